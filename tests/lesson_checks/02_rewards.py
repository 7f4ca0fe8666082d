"""Checks of the lesson's own numbers, run in its kernel once its last cell has run."""

assert statuses == [row["status"] for row in rows], "the sixty have the statuses the grader promises"
assert len(disagree) == 7 and list(broken) == ["typo"]
assert scores.values == [2.0, 1.0, 1.0, 0.0], "a correct and an incorrect draft tie"
bound, light, equal, both = curves.values()
assert all(a >= b - 0.02 for a, b in zip(bound, equal, strict=True)), "1 - (1 - p)^N is an upper bound"
assert all(abs(a - b) < 0.02 for a, b in zip(bound, light, strict=True)), "a light format weight reaches it"
assert all(a >= b - 0.02 for a, b in zip(equal, both, strict=True))
assert judged.statuses == ["judged", "judged", "judged", "missing_score"]
assert judged.values[:3] == [1.0, 0.7, 0.0] and judged.values[3] != judged.values[3], "NaN, not 0"
assert len(received) == 5, "the request that got 429 was sent again"
assert "<|im_end|>" not in shown and shown.count("<<<END SOLUTION") == 1, "it stayed in its slot"
first, last = slice(0, 5), slice(-20, None)
means = {name: sum(log[last]) / len(log[last]) for name, log in cheat_log.items()}
assert agree and means["generous"] > 0.85, "a reward without an error on ordinary texts, and it rises"
assert means["exact"] < 0.2 < sum(cheat_log["exact"][first]) / 5, "while the policy gets worse"
assert sum(honest_log["exact"][last]) / 20 > 0.6, "the exact reward trains the better method"
assert shown_correct["exact"][-1] > 0.95 and shown_correct["generous"][-1] < 0.85, "selection cheats as well"
