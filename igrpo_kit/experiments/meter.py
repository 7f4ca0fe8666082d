"""The meter on policies by name, and the meter judged: predictions against the recorded experiments.

`python -m igrpo_kit.experiments.meter` measures the base of each experiment in `JUDGED` and writes
`data/evaluations/meter.json`, so that nothing else has to run a policy. The single-seed `smollm2-cpu` is left
out: its record has no sign of a difference.
"""

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from igrpo_kit.analysis.compare import summarize
from igrpo_kit.analysis.evaluation import fingerprint
from igrpo_kit.analysis.meter.prediction import (
    BOTH_STAGES,
    DRAFTS_FIRST,
    GRPO,
    WARM_UP,
    Prediction,
    Verdict,
    predict,
)
from igrpo_kit.analysis.meter.reading import Reading, take_reading
from igrpo_kit.analysis.stats.intervals import Interval
from igrpo_kit.analysis.transfer import Transfer, measure_transfer, unique_answers
from igrpo_kit.core.data import data_path
from igrpo_kit.core.randomness import derived_seed
from igrpo_kit.core.rows import Row, jsonable, write_atomically
from igrpo_kit.experiments.experiment import PREPARED, PROBLEMS, REWARDS, Experiment
from igrpo_kit.experiments.presets import committed, load_experiment
from igrpo_kit.policies.load import load_policy
from igrpo_kit.policies.policy import Policy
from igrpo_kit.policies.samplers.encoding import encode_answers
from igrpo_kit.policies.samplers.hf import HFSampler
from igrpo_kit.policies.samplers.sampler import SamplingSettings
from igrpo_kit.tasks.problem import Problem
from igrpo_kit.tasks.rewards import AccuracyReward, Reward
from igrpo_kit.tasks.sets.files import load_problems

JUDGED = (
    "countdown-cpu", "addition-cpu", "graded-cpu", "template-after-cpu",
    "revision-8", "revision-12", "revision-15", "revision-19", "revision-19-shifted", "revision-19-fresh",
)  # fmt: skip
"""experiments with both methods of `PAIR`, several seeds, and a base that was measured"""
PAIR = ("iGRPO 4+4", "GRPO-8")
CLAIMS: dict[Verdict, tuple[int, ...]] = {
    GRPO: (0, -1),
    DRAFTS_FIRST: (1,),
    BOTH_STAGES: (0, -1),
    WARM_UP: (0,),
}
"""what each verdict says about the sign of iGRPO 4+4 minus GRPO-8 at the end of the run; `GRPO` and `both
stages` both say that iGRPO is not ahead there"""
FILE = "evaluations/meter.json"
COMMAND = "python -m igrpo_kit.experiments.meter"
PROBLEMS_MEASURED, SAMPLES, SEED = 256, 8, 0
_SAMPLED_TOKENS = 32  # the CLI's limit where answers are not unique


@dataclass(frozen=True)
class Measurement:
    """The meter's numbers of one policy."""

    policy: str
    weights: str
    """`fingerprint` of the policy's weights"""
    problems: str
    reading: Reading
    transfer: Transfer


def problems_for_meter(name: str, count: int) -> list[Problem]:
    """`count` held-out problems of a key of `PROBLEMS`, or the first `count` of a JSONL file.

    Raises:
        ValueError: neither a key nor a .jsonl file, or there are fewer problems.
    """
    if name in PROBLEMS:
        return PROBLEMS[name](count, seed=1, split="held_out", distinct=True)
    if not name.endswith(".jsonl"):
        raise ValueError(f"problems: one of {', '.join(PROBLEMS)}, or a .jsonl file, got {name!r}")
    found = load_problems(name)
    if len(found) < count:
        raise ValueError(f"count: asked for {count} problems, {name} has {len(found)}")
    return found[:count]


def measure_policy(
    name: str,
    problems: str,
    *,
    count: int = PROBLEMS_MEASURED,
    samples: int = SAMPLES,
    prompts_per_step: int = 32,
    num_drafts: int = 4,
    num_refinements: int = 4,
    seed: int = SEED,
) -> Measurement:
    """The meter on a policy by name; completions have up to 32 tokens, or as many as a unique answer needs.

    Args:
        name: of a policy (`load_policy`); one that the kit prepares is made if it is missing.
        problems: key of `PROBLEMS`, or a JSONL file.
        count: number of problems.
        samples: K, per prompt.
        prompts_per_step: P.
        num_drafts: N.
        num_refinements: G.
        seed: of sampling and bootstrap.

    Raises:
        ValueError: as `problems_for_meter`, `take_reading` and `measure_transfer`.
        FileNotFoundError: there is no such policy or file.
    """
    drawn = problems_for_meter(problems, count)
    PREPARED.get(name, lambda: None)()
    policy = load_policy(name)
    batch = {"prompts_per_step": prompts_per_step, "num_drafts": num_drafts}
    limit = _answer_tokens(policy, drawn) if unique_answers(drawn) else _SAMPLED_TOKENS
    return _measure(
        policy, AccuracyReward(), drawn, problems, limit, samples, seed,
        {**batch, "num_refinements": num_refinements},
    )  # fmt: skip


def _answer_tokens(policy: Policy, problems: list[Problem]) -> int:
    """Tokens of the longest answer, with its end."""
    return encode_answers(policy.tokenizer, [p.answer for p in problems], torch.device("cpu"))[1].shape[1]


def _measure(
    policy: Policy, reward: Reward, problems: list[Problem], name: str, max_new_tokens: int,
    samples: int, seed: int, batch: dict[str, Any],
) -> Measurement:  # fmt: skip
    sampler = HFSampler(policy, SamplingSettings(max_new_tokens), seed=derived_seed(seed, "meter"))
    rng = np.random.default_rng(seed)
    reading = take_reading(sampler, reward, problems, rng=rng, samples=samples, **batch)
    moved = measure_transfer(sampler, reward, problems, rng=rng, samples=samples)
    return Measurement(policy.name, fingerprint(policy.model), name, reading, moved)


def measure_base(experiment: Experiment, block: int = 0) -> Measurement:
    """The meter on the policy that an experiment's runs of a block start from, with its batch and reward."""
    config = experiment.config(PAIR[0], seed=block)
    PREPARED.get(experiment.policy_of(block), lambda: None)()
    policy = load_policy(experiment.policy_of(block), device=experiment.device)
    batch = {
        "prompts_per_step": config.prompts_per_step,
        "num_drafts": config.num_drafts,
        "num_refinements": config.num_refinements,
    }
    return _measure(
        policy, REWARDS[experiment.reward](), experiment.held_out(block)[:PROBLEMS_MEASURED],
        experiment.problems_of(block), experiment.max_new_tokens, SAMPLES, SEED, batch,
    )  # fmt: skip


def measurement_row(measurement: Measurement) -> Row:
    """A measurement as plain data; numbers have five digits, an infinity is a string."""

    def rounded(value: Any) -> Any:
        if isinstance(value, float):
            return float(f"{value:.5g}")
        return {k: rounded(v) for k, v in value.items()} if isinstance(value, dict) else value

    return jsonable(rounded(asdict(measurement)))


def measurement_from_row(row: Row) -> Measurement:
    """The measurement of a `measurement_row`."""

    def read(kind: Callable[..., Any], data: Row) -> Any:
        intervals = {k: v for k, v in data.items() if isinstance(v, dict)}
        return kind(**{**data, **{k: _interval(v) for k, v in intervals.items()}})

    parts = {"reading": read(Reading, row["reading"]), "transfer": read(Transfer, row["transfer"])}
    return Measurement(**{**row, **parts})


def _interval(data: Row) -> Interval:
    return Interval(**{k: float("nan") if v is None else float(v) for k, v in data.items()})


@cache
def committed_measurements() -> dict[str, list[Measurement]]:
    """The measurements in `data/evaluations/meter.json`: experiment -> one per block."""
    rows = json.loads(data_path(FILE).read_text(encoding="utf-8"))["experiments"]
    return {name: [measurement_from_row(row) for row in blocks] for name, blocks in rows.items()}


@dataclass(frozen=True)
class Judged:
    """A prediction of the meter beside what happened."""

    experiment: str
    verdict: Verdict
    """of most blocks, the first on a tie"""
    possible: tuple[Verdict, ...]
    """all that occur in the intervals of any block"""
    outcome: int
    """sign of iGRPO 4+4 minus GRPO-8 at the end of the run, 0 if both intervals do not agree on one"""
    hit: bool
    """whether the outcome is what the verdict says (`CLAIMS`)"""


def judge(preset: str) -> Judged:
    """Compare the meter's prediction for the base of a committed experiment with its records.

    A predictor that always says GRPO hits wherever iGRPO does not win, so hits mean little unless the
    experiments include wins of both.

    Raises:
        LookupError: the base was not measured, or the records lack a method of `PAIR`.
    """
    if preset not in committed_measurements():
        raise LookupError(f"{preset}: not in {FILE}; add it to JUDGED and run {COMMAND}")
    experiment, records, base = committed(preset)
    runs = [record for record in records if record.method in PAIR]
    if missing := set(PAIR) - {record.method for record in runs}:
        raise LookupError(f"{preset}: no records of {', '.join(sorted(missing))}")
    predictions = [
        predict(m.reading, m.transfer, steps=experiment.steps) for m in committed_measurements()[preset]
    ]
    (verdict, _), *_ = Counter(p.verdict for p in predictions).most_common()
    (summary,) = [s for s in summarize(runs, base, baseline=PAIR[1]) if s.method == PAIR[0]]
    outcome = summary.differences[experiment.metric].sign
    possible = tuple(dict.fromkeys(v for p in predictions for v in p.possible))
    return Judged(preset, verdict, possible, outcome, outcome in CLAIMS[verdict])


LABELS = {
    "p": "p, right answers on q",
    "repair": "r, own wrong drafts repaired",
    "foreign": "r, foreign wrong drafts",
    "own_over_foreign": "r, own minus foreign",
    "keep": "right drafts kept",
    "copy": "wrong drafts copied",
    "reliance": "reliance, nats",
    "live_grpo": "live groups, GRPO",
    "live_refine": "live groups, Stage 2",
    "wait_grpo": "steps to the first, GRPO",
    "wait_refine": "steps to the first, Stage 2",
    "limiting": "transfer, limiting tokens",
    "all_tokens": "transfer, all tokens",
    "against_q": "rise on q, over a step on q",
}
"""the quantities of a measurement, in the order of its table"""


def measurement_text(measurement: Measurement, prediction: Prediction) -> str:
    """A table of quantity, value and interval, and the verdict with its reason."""
    reading = measurement.reading
    found = {f.name: getattr(part, f.name) for part in (reading, measurement.transfer) for f in fields(part)}
    how = "exact rates" if reading.exact else f"{reading.samples} samples per prompt"
    batch = f"P = {reading.prompts_per_step}, N = {reading.num_drafts}, G = {reading.num_refinements}"
    lines = [
        f"{measurement.policy} on {measurement.problems}: {reading.problems} problems, {how}; {batch}",
        "",
    ]
    lines.append(f"{'quantity':30s} {'value':>9s}   95% interval")
    for name, label in LABELS.items():
        x = found[name]
        lines.append(f"{label:30s} {x.estimate:9.3g}   [{x.low:.3g}, {x.high:.3g}]")
    lines += ["", f"Verdict: {prediction.verdict}", f"{prediction.reason}"]
    return "\n".join(lines + ([prediction.advice] if prediction.advice else []))


def main() -> None:
    """Measure the base of each experiment in `JUDGED`, in every block that was run, and write the file."""
    torch.set_num_threads(1)
    rows = {}
    for name in JUDGED:
        experiment = load_experiment(name)
        blocks = sorted({seed % experiment.blocks for seed in experiment.seeds})
        rows[name] = [measurement_row(measure_base(experiment, block)) for block in blocks]
    text = json.dumps({"command": COMMAND, "experiments": rows}, indent=1) + "\n"
    path = data_path(FILE)
    write_atomically(path, text.encode())
    print(Path(path))


if __name__ == "__main__":
    main()
