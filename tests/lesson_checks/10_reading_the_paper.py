"""Checks of the lesson's own numbers, run in its kernel once its last cell has run."""

from igrpo_kit.experiments import preset_names

assert [f.where for f in means if not f.agrees] == [f"Table 1, {R1}"], "one average of 23"
assert round(gains["GRPO"], 2) == Decimal("0.47") and round(gains["iGRPO"], 2) == Decimal("2.05")
for p, G in ((0.1, 4), (0.5, 8)):
    assert np.allclose(shares(p, G)[:2], [1, (G - 1) / G]), "leave-one-out is unbiased, the own mean is not"
assert pulls[-1][1] < 0.01 * pulls[-1][0] < pulls[-1][2], "with copying only the semi-gradient vanishes"
assert slope < 0 and after < before, "uphill with the drafts held fixed can be downhill"
assert asymmetry["full"] < 1e-12 < 1e-3 < asymmetry["semi"], "the gradient of no function"
g = list(gradients.values())
assert torch.allclose(g[0], g[2]) and torch.allclose(g[3], g[1]) and not torch.allclose(g[0], g[1])
assert all((norm < 1e-9) == (where == name) for (where, name), norm in still.items()), "two equilibria"
waiting = [row[:3] for (cap, tokens), row in predicted.items() if cap == measured_cap and tokens >= 1000]
assert all(1.08 < ratio < 1.13 for row in waiting for ratio in row), "most of what was printed, not all"
assert max(max(row) - min(row) for row in waiting) < max(r[0] for r in waiting) - min(r[0] for r in waiting)
assert all(row[3] < 1.06 for row in predicted.values()), "one step ahead: hardly more than GRPO"
assert larger_steps < 1.06 and len(unreached) == 35 and len(reached) == 95
assert allowed["AIME24"] > 95 and allowed["AMC"] < 5, "a rounding that explains everything"
assert ours < 1 and step["value"] < 1, "cheaper here, by the model and by the clock"
assert set(worst.methods) == {"best draft", "worst draft"} and "ablation-select" in preset_names()
