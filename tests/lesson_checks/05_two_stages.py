"""Checks of the lesson's own numbers, run in its kernel once its last cell has run."""

assert best.tolist() == [1, 0], "the first correct draft; the first of a tie"
assert turns == {"naive": 4, "safe": 2}, "a neutralized draft cannot open a turn"
assert dead_groups(rewards).tolist() == [True, False]
assert rollout.selected.tolist() == best.tolist() and (rollout.refinements.rewards == rewards).all()
assert advantages[1].tolist() == [-0.5, 1.5, -0.5, -0.5]
trained = slopes > 0
assert not trained[:, : len(q_prime) - 1].any(), "no gradient starts at the question or the draft"
assert (trained.sum(dim=1) == mask.sum(dim=1)).all(), "one position per trained token"
assert (importance_ratio(log_probs, old_log_probs) == 1).all(), "given q', the first ratio is 1, exactly"
assert (ratio_given_q - 1).abs().max() > 0.2, "given q, it is not"
assert (ratio_too_cold - 1).abs().max() > 0.2, "nor at another temperature"
assert min(accuracies["your loop"], accuracies["the kit's loop"]) > accuracies["before training"] - 0.05
assert all(first < last for first, _, last in kept.values()), "keeping is learned"
assert mixed_recorded < mixed_if_alike, "one p_keep for all prompts promises too many mixed groups"
assert gaps["GRPO-4", "GRPO-8"].estimate > 2 * gaps["iGRPO 4+4", "GRPO-4"].estimate, "mostly the size"
assert reward_of("126", "26") == 0 == reward_of("26=15", "26"), "only the number after the last = counts"
for p, seen in simulated.items():
    expected = mixed_by_hand(p, float(best_of_n_probability(p, num_drafts)))
    assert abs(seen.mixed_igrpo - expected) < 4 * (0.25 / prompts) ** 0.5, "simulation and formula agree"
