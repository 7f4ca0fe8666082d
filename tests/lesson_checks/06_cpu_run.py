"""Checks of the lesson's own numbers, run in its kernel once its last cell has run."""

PROMPTS = ik.TrainConfig(steps=1).prompts_per_step


def completions_sampled(row: Row) -> float:
    return sum(count for key, count in row.items() if key.startswith(("status/", "stage1/status/")))


for rows in dashboard.rows.values():
    assert [row["step"] for row in rows] == list(range(1, len(rows) + 1)) and len(rows) <= steps
    assert {completions_sampled(row) for row in rows} == {8 * PROMPTS}, "matched rollouts, step by step"
assert all(share.min() >= 0 and share.max() <= 1 for share in shares.values())
assert live_difference.low <= live_difference.estimate <= live_difference.high
for trace in dashboard.figure().data:
    assert len(trace.x) == len(trace.y) <= 1000
for name, (records, _) in runs.items():
    for record in records:
        method = EXPERIMENTS[name].methods[record.method]
        budget = PROMPTS * (method["num_drafts"] + method["num_refinements"])
        for row in record.metrics:
            assert completions_sampled(row) == budget, "every method samples its whole budget"
            assert 0 <= row.get("stage1/reward", 0) <= row["best_draft_reward"] + 1e-5 <= 1 + 2e-5
            assert 0 <= row["dead_groups"] <= 1 and 0 <= (row.get("copy_rate") or 0) <= 1
        live, trained, sampled = (record.metrics[-1][f"tokens_{x}"] for x in ("live", "trained", "sampled"))
        assert live < trained <= sampled
        passes = [compare.pass_at(record.final("q"), k) for k in (1, 2, 4, 8, 16, 32)]
        assert passes == sorted(passes) and passes[0] >= 0 and passes[-1] <= 1, "pass@k rises with k"
    for summary in summaries_of(name):
        for interval in (*summary.numbers.values(), *(d.welch for d in summary.differences.values())):
            assert interval.low <= interval.estimate <= interval.high
at_mean, per_problem, *_ = lines.values()
assert at_mean.mean() >= per_problem.mean(), "Jensen: the formula at the mean predicts too much"
