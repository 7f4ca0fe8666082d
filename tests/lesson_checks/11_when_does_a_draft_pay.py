"""Checks of the lesson's own numbers, run in its kernel once its last cell has run."""

assert abs(grpo_wait(LogitNormalPrompts(p_rare), 8, prompts).mean * 8 * prompts * p_rare - 1) < 0.01
assert all(np.all(np.diff(share) >= 0) for share in reached.values()), "a first time only comes once"
for (kind, _), curve in curves.items():
    assert abs(curve[0] / settings[kind][0] - 1) < 1e-3, "the world starts at its p"
    assert curve.min() >= 0 and curve.max() <= 1
assert [o.number for o in outcomes] == list(range(1, 23))
assert set(stored) == {now}, "the predictions are the committed ones"
assert measured.reading.p.low <= measured.reading.p.estimate <= measured.reading.p.high
for name in core:
    for record in runs[name]:
        p = [row["p"] for row in record.exact]
        assert [row["step"] for row in record.exact] == list(range(0, 201, 10))
        assert 0 < min(p) <= max(p) <= 1 + 1e-6
assert limit < float(scores["MATH500"]) / 100
