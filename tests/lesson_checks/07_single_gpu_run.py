"""Checks of the lesson's own numbers, run in its kernel once its last cell has run."""

for rows in live.values():
    assert [row["step"] for row in rows] == list(range(1, steps + 1))
    sampled = {sum(v for k, v in row.items() if k.startswith(("status/", "stage1/status/"))) for row in rows}
    assert sampled == {8 * prompts_per_step}, "matched rollouts, step by step"
for seconds in (*spent.values(), *spent_there.values()):
    assert min(seconds) > -1e-3, "the phases lie inside the step"
assert spent["GRPO-8"][0] == 0 < spent["iGRPO 4+4"][0], "GRPO samples no drafts"
assert all(len(row["drafts"]) == len(row["completions"]) == 4 for row in read)
assert all(record.metrics[-1]["step"] == experiment.steps for record in records)
by_method = {record.method: record.metrics for record in records}
random_draft = by_method["iGRPO 4+4, random draft"][-third:]  # below: what the text says about the record
agreed = [np.mean([row[key] for row in random_draft]) for key in ("dead_groups", "all_correct_groups")]
assert story["iGRPO 4+4"]["copies"][1] > 0.9 > story["iGRPO 4+4, random draft"]["copies"][1]
assert agreed[0] > 0.8 and agreed[1] < agreed[0] / 2
assert max(row["step"] for row in by_method["iGRPO 4+4"] if row["grad_norm"] > 0) == 14
assert story["GRPO-8"]["dead groups"][1] < 0.75
