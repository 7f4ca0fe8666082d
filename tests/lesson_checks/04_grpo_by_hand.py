"""Checks of the lesson's own numbers, run in its kernel once its last cell has run."""

assert row_advantages[:4].abs().allclose(torch.tensor(0.75, dtype=torch.float64).sqrt()), "0.866, sample std"
assert (row_advantages[4:] == 0).all(), "a dead group has advantage 0, exactly"
assert abs(first_loss["GRPO"]) < 1e-12 < gradient.norm(), "loss 0, gradient not 0"
assert torch.allclose(gradient_alive, 2 * gradient), "the dead half of the batch halves the gradient"
assert reward_of("126", "26") == 0 == reward_of("26=15", "26"), "only the number after the last = counts"
assert unclipped[mask].any() and not unclipped[mask].all(), "both branches of the clip were used"
assert gap < 1e-12, "Eq. 29 is what autograd computes"
assert abs(slope / by_hand.norm() - 1) < 1e-3, "and what a finite difference measures"
assert first_loss["DAPO"] < 0 and first_loss["Dr. GRPO"] < 0 and abs(first_loss["GSPO"]) < 1e-12
assert (mask.sum(dim=1) - incorrect_mask.sum(dim=1) == 1).all(), "the incorrect mask loses every EOS"
assert abs(largest_ratio - 1) < 1e-3, "fresh samples: every update met the ratio 1"
correct_end, incorrect_end = (
    ends["never taught to stop", name][:, 1].mean() for name in ("correct mask", "incorrect mask")
)
assert correct_end > incorrect_end + 0.3, "only the correct mask teaches a policy to stop"
assert difference < 0.02 or real_steps > 30, "the two losses train alike"
falls = lengths["AdamW", "then 9 in 10 die"]
assert min(lengths["AdamW", "half are dead"]) > 0.99999, "AdamW: a constant factor has no effect"
assert falls[39] < 0.5 < 0.9 < falls[159], "a change has one, for a while"
