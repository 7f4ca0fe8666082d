"""Controlled comparisons: methods x seeds as parallel one-thread processes, then one table.

An `Experiment` fixes policy, problems, reward and budget; its methods differ in what the comparison is about
and in nothing else. Every run is a process of its own (`run_one`), is recorded, and goes on where it was if
it is killed. The numbers of a report are computed from the records alone (`analysis.compare`).
"""

import json
import os
import pickle
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

from igrpo_kit.analysis.evaluate import evaluate
from igrpo_kit.baselines import CRITIQUE_AS_IF_FROM_Q, CRITIQUE_GRPO, SELF_VERIFICATION, vote_rows
from igrpo_kit.checkpoint import load_checkpoint
from igrpo_kit.policies import TINY_VERDICTS, Policy, load_policy
from igrpo_kit.problems import Problem, addition_problems, countdown_max_problems, countdown_problems
from igrpo_kit.prompts import VerdictFormat
from igrpo_kit.rewards import AccuracyReward
from igrpo_kit.runlog import RunLog, environment, read_rows, write_rows
from igrpo_kit.samplers import SamplingSettings
from igrpo_kit.samplers.hf import HFSampler
from igrpo_kit.training import IGRPO_STEPS, TrainConfig, Variant, derived_seed, train
from igrpo_kit.warmstart import prepare_smollm2_sums, sum_problems

GRPO_8: dict[str, Any] = {"num_drafts": 0, "num_refinements": 8}
GRPO_4: dict[str, Any] = {"num_drafts": 0, "num_refinements": 4}
IGRPO: dict[str, Any] = {"num_drafts": 4, "num_refinements": 4}
LOOKING_BACK: dict[str, Any] = {**IGRPO, "train_drafts": True, "select": "random"}
"""the baselines of Table 1: both stages trained, any answer looked back at"""


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """What is compared and all that is held equal.

    `methods` are overrides of `TrainConfig`; among them `prompt_format` replaces the policy's own, and
    `variant` the step (`baselines`).
    """

    name: str
    title: str
    policy: str
    problems: Callable[..., list[Problem]]
    methods: dict[str, dict[str, Any]]
    max_new_tokens: int
    steps: int = 200
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    train_problems: int = 4000
    held_out_problems: int = 512
    evaluate_every: int = 20
    evaluation_samples: int = 8
    """samples per held-out problem during training"""
    final_samples: int = 32
    """samples per held-out problem at the end: pass@k for every k up to this"""
    baseline: str = "GRPO-8"
    """the method the others' differences are taken to"""
    against: dict[str, str] = field(default_factory=dict)
    """where a method's difference is taken to another one than `baseline`"""
    verdicts: VerdictFormat | None = None
    """evaluate votes among samples, too, plain and weighted by the policy's own verdicts"""
    score: str = "accuracy"
    """the column of `analysis.compare` that matters: "reward" where it is graded"""
    settings: dict[str, Any] = field(default_factory=dict)
    """of `TrainConfig`, the same for every method, where they are not its defaults"""
    draft_samples: int = 8
    """samples per held-out problem at the end of those that are shown a draft"""
    record_every: int = 50
    """steps between two checkpoints, each with some completions in full"""
    device: str = "cpu"
    prepare: Callable[[], object] | None = None
    """makes the policy where it is not there yet; called once, before any run"""


# Learning rates and warm-up were fixed before any run: usual values for a model of this size, between the
# paper's 1e-6 for 7 B and our 3e-4 for 0.36 M parameters; twice as high where steps are ten times fewer.
SMOLLM2: dict[str, Any] = {
    "policy": "smollm2-sums",
    "prepare": prepare_smollm2_sums,
    "problems": sum_problems,
    "max_new_tokens": 32,
    "methods": {
        "GRPO-8": GRPO_8,
        "iGRPO 4+4": IGRPO,
        "GRPO-4": GRPO_4,
        "iGRPO 4+4, random draft": {**IGRPO, "select": "random"},
    },
}

EXPERIMENTS: dict[str, Experiment] = {
    e.name: e
    for e in (
        Experiment(
            name="demo",
            title="GRPO-8 against iGRPO 4+4 on Countdown, 3 seeds",
            policy="tiny",
            problems=countdown_problems,
            methods={"GRPO-8": GRPO_8, "iGRPO 4+4": IGRPO},
            max_new_tokens=12,
            steps=120,
            seeds=(0, 1, 2),
            held_out_problems=256,
            evaluate_every=30,
        ),
        Experiment(
            name="countdown-cpu",
            title="Countdown with three numbers, binary reward",
            policy="tiny",
            problems=countdown_problems,
            methods={
                "GRPO-8": GRPO_8,
                "iGRPO 4+4": IGRPO,
                "GRPO-4": GRPO_4,
                "iGRPO 4+4, random draft": {**IGRPO, "select": "random"},
                "iGRPO 4+4, no draft": {**IGRPO, "select": "none"},
                "iGRPO 4+4, both stages trained (ours)": {**IGRPO, "train_drafts": True},
            },
            max_new_tokens=12,
        ),
        Experiment(
            name="addition-cpu",
            title="Three-digit addition with a free choice of scratchpad",
            policy="tiny-addition",
            problems=addition_problems,
            methods={
                "GRPO-8": GRPO_8,
                "iGRPO 4+4": IGRPO,
                "iGRPO 4+4, both stages trained (ours)": {**IGRPO, "train_drafts": True},
            },
            max_new_tokens=24,
            steps=100,
            seeds=(0, 1, 2),
            held_out_problems=256,
            evaluate_every=10,
        ),
        Experiment(
            name="graded-cpu",
            title="The largest value under a limit, graded reward: does partial credit rescue iGRPO?",
            policy="tiny-max",
            problems=countdown_max_problems,
            methods={
                "GRPO-8": GRPO_8,
                "iGRPO 4+4": IGRPO,
                "iGRPO 4+4, both stages trained (ours)": {**IGRPO, "train_drafts": True},
            },
            max_new_tokens=16,
            seeds=(0, 1, 2),
            score="reward",
            held_out_problems=256,
        ),
        Experiment(
            name="baselines-cpu",
            title="The baselines of Table 1 on Countdown, from a policy that can give verdicts",
            policy="tiny-verdicts",
            problems=countdown_problems,
            methods={
                "GRPO-8": GRPO_8,
                "iGRPO 4+4": IGRPO,
                "Self-Verification 4+4": {**LOOKING_BACK, "variant": SELF_VERIFICATION},
                "Critique-GRPO 4+4": {**LOOKING_BACK, "variant": CRITIQUE_GRPO},
                "Critique-GRPO 4+4, as if from q": {**LOOKING_BACK, "variant": CRITIQUE_AS_IF_FROM_Q},
            },
            max_new_tokens=12,
            steps=120,
            seeds=(0, 1, 2),
            held_out_problems=256,
            evaluate_every=30,
            verdicts=TINY_VERDICTS,
        ),
        Experiment(
            name="smollm2-cpu",
            title="SmolLM2-135M on sums of three numbers: reduced, one seed, 30 steps, CPU",
            **SMOLLM2,
            steps=30,
            seeds=(0,),
            train_problems=500,
            held_out_problems=48,
            evaluate_every=30,
            final_samples=8,
            draft_samples=1,
            record_every=15,
            settings={"prompts": 4, "micro_batches": 4, "learning_rate": 2e-5, "warmup_steps": 3},
        ),
        Experiment(
            name="smollm2-gpu",
            title="SmolLM2-135M on sums of three numbers",
            **SMOLLM2,
            steps=300,
            seeds=(0, 1, 2),
            train_problems=2000,
            held_out_problems=256,
            settings={"micro_batches": 4, "learning_rate": 1e-5, "warmup_steps": 30},
            device="cuda",
        ),
    )
}


def run_name(method: str, seed: int) -> str:
    """The folder of one run inside its experiment's: plain letters, whatever the method's name holds."""
    plain = "".join(c if c.isalnum() else "-" for c in method.lower())
    return f"{'-'.join(filter(None, plain.split('-')))}/seed-{seed}"


def record_folders(experiment: Experiment) -> dict[tuple[str, int], str]:
    """Every run of an experiment, (method, seed), and its folder."""
    # Seed by seed, so that a busy hour of the machine meets every method.
    return {(m, seed): run_name(m, seed) for seed in experiment.seeds for m in experiment.methods}


REPORTED = (
    "greedy",
    "pass@8",
    "at equal gradient tokens",
    "at equal seconds",
    "own draft, refined",
    "vote of 8",
    "vote of 8, own verdicts",
    "verdicts right",
    "entropy",
    "dead groups, start",
    "copy rate, end",
    "processor seconds",
)
"""the columns of a report's table after the score; `analysis.compare.COLUMNS` has more"""


def held_out(experiment: Experiment) -> list[Problem]:
    """The evaluation problems: the same for every run, disjoint from training by a hash of the question."""
    return experiment.problems(experiment.held_out_problems, seed=1, split="held_out", distinct=True)


def _evaluation_row(
    experiment: Experiment, policy: Policy, problems: Sequence[Problem], step: int,
    *, protocol: Any = "q", num_samples: int, temperature: float = 1.0, seed: int,
) -> dict[str, Any]:  # fmt: skip
    # A sampler of its own: evaluating more or less often must not change the run that is evaluated.
    sampler = HFSampler(
        policy.model,
        policy.tokenizer,
        SamplingSettings(experiment.max_new_tokens, temperature),
        seed=derived_seed(seed, f"evaluation {step} {protocol} {temperature}"),
    )
    result = evaluate(
        sampler,
        AccuracyReward(),
        problems,
        num_samples=num_samples,
        protocol=protocol,
        prompt_format=policy.prompt_format,
        tokenizer=policy.tokenizer,
    )
    return {"step": step, "final": False, **result.to_row()}


def _final_rows(
    experiment: Experiment, policy: Policy, problems: Sequence[Problem], step: int, seed: int
) -> list[dict[str, Any]]:
    """The full evaluation: pass@k from q, greedy, and the two ways of asking with a draft."""
    K = experiment.final_samples
    wanted: list[dict[str, Any]] = [
        {"num_samples": K},
        {"num_samples": 1, "temperature": 0.0},
        {"num_samples": experiment.draft_samples, "protocol": "own_draft"},
        {"num_samples": experiment.draft_samples, "protocol": "best_of_n"},
    ]
    rows = [_evaluation_row(experiment, policy, problems, step, seed=seed, **w) for w in wanted]
    if experiment.verdicts is not None:
        settings = SamplingSettings(experiment.max_new_tokens)
        voters = HFSampler(policy.model, policy.tokenizer, settings, seed=derived_seed(seed, f"votes {step}"))
        votes = vote_rows(policy, voters, AccuracyReward(), problems, verdicts=experiment.verdicts)
        rows += [{"step": step, **row} for row in votes]
    return [{**row, "final": True} for row in rows]


def _is_recorded(path: Path) -> bool:
    """Whether the rows are there, packed or not."""
    return path.exists() or path.with_name(path.name + ".gz").exists()


def run_base(experiment: Experiment, folder: Path) -> None:
    """Evaluate the untrained policy in full: the point every run starts from."""
    path = folder / "base" / RunLog.EVALUATIONS
    if _is_recorded(path):
        return
    torch.set_num_threads(1)
    policy = load_policy(experiment.policy, device=experiment.device)
    rows = _final_rows(experiment, policy, held_out(experiment), 0, seed=0)
    RunLog(folder / "base", {"policy": policy.name, **environment(str(policy.model.device))})
    write_rows(path, rows)


_NOT_OF_TRAINING = ("prompt_format", "variant")
"""what a method may override that is no setting of `TrainConfig`"""


def _config(experiment: Experiment, method: str, seed: int) -> TrainConfig:
    chosen = {**experiment.settings, **experiment.methods[method]}
    settings = {k: v for k, v in chosen.items() if k not in _NOT_OF_TRAINING}
    return TrainConfig(steps=experiment.steps, seed=seed, **settings)


def _variant(experiment: Experiment, method: str) -> Variant:
    return experiment.methods[method].get("variant", IGRPO_STEPS)


def _load_policy(experiment: Experiment, method: str) -> Policy:
    policy = load_policy(experiment.policy, device=experiment.device)
    return replace(
        policy, prompt_format=experiment.methods[method].get("prompt_format", policy.prompt_format)
    )


def run_one(experiment: Experiment, method: str, seed: int, folder: Path, *, progress: bool = False) -> None:
    """One method, one seed: train, evaluate on the way and at the end, record. Goes on if it was killed."""
    torch.set_num_threads(1)
    policy = _load_policy(experiment, method)
    problems, test = experiment.problems(experiment.train_problems, seed=0), held_out(experiment)
    settings = SamplingSettings(experiment.max_new_tokens)
    sampler = HFSampler(policy.model, policy.tokenizer, settings, seed=derived_seed(seed, "sampling"))
    run_folder = folder / run_name(method, seed)
    evaluations = run_folder / RunLog.EVALUATIONS

    def evaluate_if_due(step: int) -> None:
        if step == experiment.steps:
            write_rows(evaluations, _final_rows(experiment, policy, test, step, seed))
        elif step % experiment.evaluate_every == 0:
            samples = experiment.evaluation_samples
            row = _evaluation_row(experiment, policy, test, step, num_samples=samples, seed=seed)
            write_rows(evaluations, [row])

    checkpoint = run_folder / "checkpoint.safetensors"
    if checkpoint.exists():  # it may have been saved when its step was done and its evaluation was not
        state = load_checkpoint(checkpoint)
        if not (evaluations.exists() and state["step"] in {row["step"] for row in read_rows(evaluations)}):
            policy.model.load_state_dict(state["model"])
            evaluate_if_due(state["step"])
    rows = train(
        policy, problems, AccuracyReward(), sampler, _config(experiment, method, seed), folder=run_folder,
        variant=_variant(experiment, method), checkpoint_every=experiment.record_every,
        samples_every=experiment.record_every, resume=True,
        progress=progress,
    )  # fmt: skip
    for row in rows:
        evaluate_if_due(row["step"])


def is_complete(experiment: Experiment, method: str, seed: int, folder: Path) -> bool:
    """Whether the record of this run holds its final evaluation.

    Raises ValueError where the folder holds a run with other settings.
    """
    run_folder = folder / run_name(method, seed)
    evaluations = run_folder / RunLog.EVALUATIONS
    if not _is_recorded(evaluations) or not any(row["final"] for row in read_rows(evaluations)):
        return False
    found = json.loads((run_folder / "config.json").read_text())
    wanted = {"policy": experiment.policy, **_config(experiment, method, seed).to_row()}
    if "variant" in experiment.methods[method]:  # records older than variants do not name theirs
        wanted["variant"] = _variant(experiment, method).name
    if "prompt_format" in experiment.methods[method]:
        wanted["prompt_format"] = asdict(experiment.methods[method]["prompt_format"])
    differing = sorted(key for key in wanted if found.get(key) != wanted[key])
    if differing:
        raise ValueError(f"{run_folder}: holds a run with another {', '.join(differing)}; move it away")
    return True


@dataclass
class _Job:
    label: str
    method: str | None
    """None: the untrained policy's evaluation"""
    seed: int
    folder: Path
    process: subprocess.Popen | None = None


def run_experiment(experiment: Experiment, folder: Path, *, jobs: int) -> None:
    """All methods and seeds, `jobs` processes at a time, one torch thread each. Finished runs, packed ones
    too, are kept: where all are there nothing is run.

    Raises ValueError for settings that cannot be, before anything is run; RuntimeError where there is no GPU
    for an experiment that needs one, or naming the runs that failed and their logs, after all others have
    finished.
    """
    for method in experiment.methods:
        _config(experiment, method, seed=0)
    if experiment.device == "cuda" and not torch.cuda.is_available():
        raise RuntimeError(f"{experiment.name} needs a CUDA GPU, and torch sees none")
    if experiment.prepare is not None:
        experiment.prepare()
    waiting = []
    if not _is_recorded(folder / "base" / RunLog.EVALUATIONS):
        waiting.append(_Job("base", None, 0, folder / "base"))
    for (method, seed), name in record_folders(experiment).items():
        if not is_complete(experiment, method, seed, folder):
            waiting.append(_Job(f"{method}, seed {seed}", method, seed, folder / name))
    total = experiment.steps * sum(job.method is not None for job in waiting)
    running: list[_Job] = []
    failed: list[_Job] = []
    bar = tqdm(total=total, unit="step", desc=experiment.name)
    start_steps = {job.label: _steps_done(job) for job in waiting}
    everything = list(waiting)
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                running.append(_start(waiting.pop(0), experiment, folder))
            time.sleep(0.2)
            for job in [j for j in running if j.process is not None and j.process.poll() is not None]:
                running.remove(job)
                if job.process is not None and job.process.returncode:
                    failed.append(job)
            done = sum(_steps_done(job) - start_steps[job.label] for job in everything)
            bar.update(done - bar.n)
    finally:
        bar.close()
        for job in running:
            if job.process is not None:
                job.process.terminate()
                job.process.wait()
    if failed:
        names = "; ".join(f"{job.label} (see {job.folder / 'log.txt'})" for job in failed)
        raise RuntimeError(f"{len(failed)} run(s) failed: {names}")


def _steps_done(job: _Job) -> int:
    path = job.folder / RunLog.METRICS
    return path.read_bytes().count(b"\n") if path.exists() else 0


def _start(job: _Job, experiment: Experiment, folder: Path) -> _Job:
    job.folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-c", "from igrpo_kit.experiments import run_job; run_job()"]
    # Two threads on two busy cores wait for each other; one thread a process does not.
    variables = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    # The experiment itself and not its name: what is run is what was asked for, in no list or changed.
    described = pickle.dumps((experiment, job.method, job.seed, folder))
    with open(job.folder / "log.txt", "ab") as log:
        job.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=log, stderr=log, env=variables)
    assert job.process.stdin is not None
    job.process.stdin.write(described)
    job.process.stdin.close()
    return job


def run_job() -> None:
    """One run in a process of its own, described on its standard input by `run_experiment`."""
    experiment, method, seed, folder = pickle.load(sys.stdin.buffer)
    if method is None:
        run_base(experiment, folder)
    else:
        run_one(experiment, method, seed, folder)
