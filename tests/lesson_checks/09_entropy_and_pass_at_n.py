"""Checks of the lesson's own numbers, run in its kernel once its last cell has run."""

from igrpo_kit.viz import alt_text

at_steps = {m: gap("countdown-cpu", m, lambda r: r.final("q")["entropy"]) for m in ("iGRPO 4+4", "GRPO-4")}
at_tokens = {m: gap("countdown-cpu", m, entropy_at_tokens) for m in ("iGRPO 4+4", "GRPO-4")}
assert all(i.low > 0 for i in at_steps.values()), "at equal steps both keep more entropy, draft or no draft"
assert all(i.high < 0 for i in at_tokens.values()), "at equal live tokens both have less"
at_rewards = [gap("countdown-cpu", "iGRPO 4+4", entropy_at_reward(r)) for r in thresholds]
assert all(i.high < 0 for i in at_rewards), "at equal accuracy iGRPO has less"
for record in seeds_of(records, *over_seeds):
    assert against_before(record, 1).low > 0, "better at one attempt, in every run"
    assert against_before(record, 32).high < 0, "worse at 32, in every run"
assert abs(single.mean(axis=0) - truth.mean(axis=0)).max() < 0.03, "a single draw is unbiased too"
assert np.allclose(single[:, -1], unbiased[:, -1]), "at N = K they are the same number"
assert single[:, 7].std() > 1.3 * unbiased[:, 7].std()
for found in checks.values():
    assert found.mean_p_bias.low > 0, "Jensen: the formula at the mean predicts too much"
assert apart.mean() > 0.5, "two single draws differ more often than not"
assert end["regressed"][1].high < start["regressed"][1].low
assert "Countdown" in alt_text(plot_transitions(igrpo, title="Countdown"))
