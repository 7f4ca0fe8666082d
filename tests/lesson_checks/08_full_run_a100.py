"""Checks of the lesson's own numbers, run in its kernel once its last cell has run."""

assert load_recipe("r1-7b-as-printed").accumulation(8) == 8, "Table S.2"
assert [load_recipe(name).accumulation(8) for name in ("r1-7b", "r1-7b-grpo")] == [8, 16], "the same prompts"
assert all(0.9 < updates * 128 / 7500 < 1.1 for updates in implied.values()), "128 prompts per update, about"
too_large = [name for name, c in costs.items() if c.peak_update_bytes > jobs[name].device.memory]
assert too_large == ["r1-7b-as-printed"]
assert max(ratios, key=ratios.get) == (4096, 0.35) and 1.05 < min(ratios.values()) < 1.15
if phase != "evaluate":
    assert [row["step"] for row in metrics] == list(range(1, len(metrics) + 1)), "every step, once"
    assert all(0 <= row["igrpo/dead_groups"] <= 1 and math.isfinite(row["grad_norm"]) for row in metrics)
if rehearsed:
    assert first.state.global_step == 1 and all(same), "a resumed run is the run, bit for bit"
if evaluating and tasks == 1:
    assert set(pass_at_1) == set(benchmarks)
    assert all(0 <= result.over_problems.estimate <= 1 for result in pass_at_1.values())
