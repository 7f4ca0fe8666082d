"""Checks of the lesson's own numbers, run in its kernel once its last cell has run."""

assert np.allclose(at_half, [0.75, 0.25]), "the sliders reach the figure"
assert off_by.max() < 5, "formula and simulation agree"
assert all(
    best_of_n_probability(x, num_drafts).mean() <= best_of_n_probability(x.mean(), num_drafts) + 1e-9
    for x in (*populations.values(), before, after)
), "Jensen: the formula at the mean is never too low"
assert after.mean() > before.mean()
best_before, best_after = (best_of_n_probability(x, 4).mean() for x in (before, after))
assert best_after < best_before, "the mean went up, the best draft went down"
assert dead_group_probability(0.5, 4) == 0.125
