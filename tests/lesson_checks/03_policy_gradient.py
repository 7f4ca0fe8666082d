"""Checks of the lesson's own numbers, run in its kernel once its last cell has run."""

assert worst < 1e-8 and error < 1e-8, "scores agree with finite differences"
assert np.allclose(true_gradient, finite_differences(expected_reward, logits), atol=1e-8)
off = np.abs(estimates.mean(axis=0) - true_gradient) / (estimates.std(axis=0) / samples**0.5)
assert off.max() < 5, "the mean of the estimates is the gradient, within five standard errors"
assert variances.min() < estimator_variance(logits, rewards, J) < estimator_variance(logits, rewards, 0.0) / 5
assert np.allclose(mean_group_gradient(4), 0.75 * true_gradient)
assert abs(chances @ pushes) < 1e-12 and noise > 0.1
assert np.ptp(loops["iGRPO, transfer 0"][:, 0]) == 0, "without transfer, single-shot success does not move"
assert grpo[-1] > loops["iGRPO, transfer 1"][-1, 0], "in this model GRPO is ahead even then"
if (updates, start_p, start_keep, num_drafts, refinements, rate) == (200, 0.2, 0.6, 4, 4, 0.1):
    assert final == [0.966, 0.943, 0.837, 0.893, 0.939, 0.995], "the numbers of the text"
