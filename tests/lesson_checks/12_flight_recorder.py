"""Checks of the lesson's own numbers, run in its kernel once its last cell has run."""

assert abs(baseline["entropy"] - 0.33) < 0.06, "the untrained policy's entropy, as the text says"
assert (trained % 128 == 0).all() and (trained > sampled).all(), "whole rows are trained in the example"
assert gap_colder > 1000 * gap and in_dead > 0.1, "the lines fail where they should"
assert {(r["ratio_max"], r["clip_fraction"]) for run in runs.values() for r in run.metrics} <= {
    (1.0, 0.0), (None, None)
}, "ratio and clip fraction are no evidence here"  # fmt: skip
for case in "ab":
    assert abs(runs[case].at_end("correct") - runs["e"].at_end("correct")) < 0.05, "the silent ones"
assert runs["d"].at_end("correct") < 0.3 and runs["example"].at_end("correct") < 0.25, "the loud ones"
