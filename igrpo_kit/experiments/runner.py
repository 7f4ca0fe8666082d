"""Run an experiment: methods x seeds as parallel single-thread processes, each with its own record.

Each run is a separate process, started from a file (`igrpo run-one`), and resumes if it was killed. Reports
are computed from the records alone (`analysis.compare`).
"""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import MISSING, asdict, dataclass, fields, replace
from functools import lru_cache, partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

from igrpo_kit.analysis.evaluation import evaluate
from igrpo_kit.analysis.transfer import exact_row
from igrpo_kit.core.data import data_path
from igrpo_kit.core.randomness import derived_seed
from igrpo_kit.core.rows import Row, read_rows, write_atomically, write_rows
from igrpo_kit.experiments.baselines import vote_rows
from igrpo_kit.experiments.experiment import (
    PREPARED,
    PROBLEMS,
    REWARDS,
    Experiment,
    read_experiment,
    record_folders,
    run_name,
)
from igrpo_kit.policies.load import load_policy
from igrpo_kit.policies.policy import TINY_VERDICTS, Policy
from igrpo_kit.policies.samplers.hf import HFSampler
from igrpo_kit.policies.samplers.sampler import SamplingSettings
from igrpo_kit.tasks.problem import Problem, problems_identity
from igrpo_kit.training.checkpoint import load_checkpoint
from igrpo_kit.training.config import IGRPO_STEPS
from igrpo_kit.training.loop import train
from igrpo_kit.training.records import RunLog, environment, read_config


def _sampling(experiment: Experiment, temperature: float = 1.0) -> SamplingSettings:
    return SamplingSettings(experiment.max_new_tokens, temperature)


def _sampler(
    experiment: Experiment, policy: Policy, seed: int, purpose: str, temperature: float = 1.0
) -> HFSampler:
    return HFSampler(policy, _sampling(experiment, temperature), seed=derived_seed(seed, purpose))


def _evaluation_row(
    experiment: Experiment, policy: Policy, problems: Sequence[Problem], step: int,
    *, protocol: Any = "q", num_samples: int, temperature: float = 1.0, seed: int,
) -> Row:  # fmt: skip
    # A separate sampler, so that the number of evaluations does not affect the run.
    purpose = f"evaluation {step} {protocol} {temperature}"
    sampler = _sampler(experiment, policy, seed, purpose, temperature)
    reward = REWARDS[experiment.reward]()
    result = evaluate(sampler, reward, problems, num_samples=num_samples, protocol=protocol)
    return {"step": step, "final": False, **result.to_row()}


def _final_rows(
    experiment: Experiment, policy: Policy, problems: Sequence[Problem], step: int, seed: int
) -> list[Row]:
    """The full evaluation: pass@k from q, greedy, and the two protocols with a draft."""
    wanted: list[dict[str, Any]] = [
        {"num_samples": experiment.final_samples},
        {"num_samples": 1, "temperature": 0.0},
        {"num_samples": experiment.draft_samples, "protocol": "own_draft"},
        {"num_samples": experiment.draft_samples, "protocol": "best_of_n"},
    ]
    rows = [_evaluation_row(experiment, policy, problems, step, seed=seed, **w) for w in wanted]
    if experiment.verdicts:
        voters = _sampler(experiment, policy, seed, f"votes {step}")
        votes = vote_rows(voters, REWARDS[experiment.reward](), problems, verdicts=TINY_VERDICTS)
        rows += [{"step": step, **row} for row in votes]
    return [{**row, "final": True} for row in rows]


def _is_recorded(path: Path) -> bool:
    """Whether the rows exist, packed or not."""
    return path.exists() or path.with_name(path.name + ".gz").exists()


def run_base(experiment: Experiment, folder: str | Path) -> None:
    """Evaluate the untrained policy (of block 0) in full, as the starting point of every run."""
    folder = Path(folder) / "base"
    if _is_recorded(folder / RunLog.EVALUATIONS):
        return
    torch.set_num_threads(1)
    policy = load_policy(experiment.policy_of(0), device=experiment.device)
    rows = _final_rows(experiment, policy, experiment.held_out(), 0, seed=0)
    RunLog(folder, {"policy": policy.name, **environment(str(policy.model.device))})
    write_rows(folder / RunLog.EVALUATIONS, rows)


def _measure(
    experiment: Experiment, policy: Policy, problems: Sequence[Problem], step: int, seed: int
) -> list[Row]:
    sampler = _sampler(experiment, policy, seed, f"measurement {step}")
    return [{"step": step, **exact_row(sampler, problems)}]


def _write_once(path: Path, step: int, make: Callable[[], list[Row]]) -> None:
    """Append rows of a step, unless they are there: a resumed run may come to this step a second time."""
    if not (path.exists() and any(row["step"] == step for row in read_rows(path))):
        write_rows(path, make())


def _preregistration(experiment: Experiment) -> Row:
    """Name and SHA-256 of the file in which the runs were predicted, for their records."""
    if experiment.preregistration is None:
        return {}
    file = data_path(f"preregistrations/{experiment.preregistration}")
    digest = sha256(file.read_bytes()).hexdigest()
    return {"preregistration": {"file": experiment.preregistration, "sha256": digest}}


def run_one(
    experiment: Experiment, method: str, seed: int, folder: str | Path, *, progress: bool = False
) -> None:
    """Run one method with one seed: train, evaluate during training and at the end, record. Resumes.

    Args:
        experiment: the experiment.
        method: one of its methods.
        seed: the training seed.
        folder: folder of the experiment; the run has a folder in it.
        progress: show a progress bar.
    """
    config = experiment.config(method, seed)
    torch.set_num_threads(1)
    policy = load_policy(experiment.policy_of(seed), device=experiment.device)
    policy = replace(policy, prompt_format=experiment.prompt_format(method) or policy.prompt_format)
    problems = _training_problems(experiment.problems_of(seed), experiment.train_problems)
    test = experiment.held_out(seed)
    sampler = _sampler(experiment, policy, seed, "sampling", experiment.temperature(method))
    run_folder = Path(folder) / run_name(method, seed)
    run_folder.mkdir(parents=True, exist_ok=True)
    evaluations = run_folder / RunLog.EVALUATIONS

    def evaluate_if_due(step: int) -> None:
        if experiment.measure_every and (step % experiment.measure_every == 0 or step == config.steps):
            exact = partial(_measure, experiment, policy, test, step, seed)
            _write_once(run_folder / RunLog.EXACT, step, exact)
        if step == config.steps:
            _write_once(evaluations, step, partial(_final_rows, experiment, policy, test, step, seed))
        elif step and step % experiment.evaluate_every == 0:
            samples = experiment.evaluation_samples
            row = partial(_evaluation_row, experiment, policy, test, step, num_samples=samples, seed=seed)
            _write_once(evaluations, step, lambda: [row()])

    checkpoint, done = run_folder / "checkpoint.safetensors", 0
    if checkpoint.exists():  # it may have been saved after its step, but before the evaluation of that step
        state = load_checkpoint(checkpoint)
        policy.model.load_state_dict(state["model"])
        done = state["step"]
    evaluate_if_due(done)
    rows = train(
        sampler, REWARDS[experiment.reward](), problems, config, folder=run_folder,
        variant=experiment.variant(method), checkpoint_every=experiment.record_every,
        samples_every=experiment.record_every if experiment.keeps_samples(seed) else 0,
        resume=True, progress=progress, about=_preregistration(experiment),
    )  # fmt: skip
    for row in rows:
        evaluate_if_due(row["step"])


_NOT_ALWAYS_RECORDED = ("full_reward", "problems", "reward", "sampling")


def is_complete(experiment: Experiment, method: str, seed: int, folder: str | Path) -> bool:
    """Whether the record of this run holds its final evaluation.

    A setting that did not exist when the run was recorded counts as its default. What the first records did
    not write down (problems, reward, sampling) is not compared.

    Args:
        experiment: the experiment.
        method: one of its methods.
        seed: the training seed.
        folder: folder of the experiment.

    Raises:
        ValueError: the folder holds a run with other settings.
    """
    run_folder = Path(folder) / run_name(method, seed)
    evaluations = run_folder / RunLog.EVALUATIONS
    if not _is_recorded(evaluations) or not any(row["final"] for row in read_rows(evaluations)):
        return False
    found, wanted = read_config(run_folder), _settings(experiment, method, seed)
    for key, settings in (
        ("objective", experiment.config(method, seed).objective),
        ("sampling", _sampling(experiment)),
    ):
        if key in found:
            found[key] = {**_defaults(settings), **found[key]}
    found = {"variant": IGRPO_STEPS.name, **_defaults(experiment.config(method, seed)), **found}
    compared = [key for key in wanted if key in found or key not in _NOT_ALWAYS_RECORDED]
    differing = sorted(key for key in compared if found.get(key) != wanted[key])
    if differing:
        raise ValueError(f"{run_folder}: holds a run with another {', '.join(differing)}; move it away")
    return True


def _settings(experiment: Experiment, method: str, seed: int) -> Row:
    """What the record of a run must say for it to be a run of this experiment."""
    reward, prompt_format = REWARDS[experiment.reward](), experiment.prompt_format(method)
    row = {
        "policy": experiment.policy_of(seed),
        "variant": experiment.variant(method).name,
        **experiment.config(method, seed).to_row(),
        "sampling": asdict(_sampling(experiment, experiment.temperature(method))),
        "reward": reward.__name__,
        "full_reward": reward.full_reward,
        "problems": problems_identity(
            _training_problems(experiment.problems_of(seed), experiment.train_problems)
        ),
    }
    return row if prompt_format is None else row | {"prompt_format": asdict(prompt_format)}


def _defaults(settings: Any) -> Row:
    return {f.name: f.default for f in fields(settings) if f.default is not MISSING}


@lru_cache
def _training_problems(problems: str, count: int) -> list[Problem]:
    return PROBLEMS[problems](count, seed=0)


@dataclass
class _Job:
    label: str
    method: str | None
    """None: the untrained policy's evaluation"""
    seed: int
    folder: Path
    process: subprocess.Popen | None = None


def run_experiment(experiment: Experiment, folder: str | Path, *, jobs: int) -> None:
    """Run all methods and seeds that are missing, in parallel processes with one torch thread each.

    The experiment is written to `folder` as a file, and each process is started from that file. Finished
    runs, including packed ones, are kept.

    Args:
        experiment: the experiment.
        folder: folder of the runs.
        jobs: number of processes at a time.

    Raises:
        RuntimeError: the experiment needs a GPU and there is none; or runs failed (raised after all others
            have finished; the message names the runs and their logs).
    """
    folder = Path(folder)
    if experiment.device == "cuda" and not torch.cuda.is_available():
        raise RuntimeError(f"{experiment.name} needs a CUDA GPU, and torch sees none")
    for name in sorted({experiment.policy_of(seed) for seed in (0, *experiment.seeds)} & PREPARED.keys()):
        PREPARED[name]()
    waiting = _missing(experiment, folder)
    experiment_file = folder / f"{experiment.name}.yaml"
    if waiting:  # a folder of finished records may be read-only
        _check_same(experiment, experiment_file)
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(experiment_file, experiment.to_yaml().encode())
    total = sum(experiment.config(job.method, job.seed).steps for job in waiting if job.method is not None)
    with tqdm(total=total, unit="step", desc=experiment.name) as bar:
        failed = _run_jobs(waiting, experiment_file, jobs, bar)
    if failed:
        names = "; ".join(f"{job.label} (see {job.folder / 'log.txt'})" for job in failed)
        raise RuntimeError(f"{len(failed)} run(s) failed: {names}")


def _missing(experiment: Experiment, folder: Path) -> list[_Job]:
    """The runs that are not complete, and the evaluation of the untrained policy."""
    missing = []
    if not _is_recorded(folder / "base" / RunLog.EVALUATIONS):
        missing.append(_Job("base", None, 0, folder / "base"))
    for (method, seed), name in record_folders(experiment).items():
        if not is_complete(experiment, method, seed, folder):
            missing.append(_Job(f"{method}, seed {seed}", method, seed, folder / name))
    return missing


_MAY_CHANGE = ("title", "methods", "seeds", "baseline", "against", "metric")
"""what may differ between two experiments that share a folder"""


def _check_same(experiment: Experiment, path: Path) -> None:
    """Raise ValueError where the folder belongs to another experiment."""
    if not path.exists():
        return
    before = read_experiment(path)
    names = [f.name for f in fields(Experiment) if f.name not in _MAY_CHANGE]
    differing = [name for name in names if getattr(before, name) != getattr(experiment, name)]
    if differing:
        raise ValueError(f"{path}: another experiment, {', '.join(differing)} differ; choose another folder")


def _run_jobs(waiting: list[_Job], experiment_file: Path, jobs: int, bar: tqdm) -> list[_Job]:
    """Run `jobs` processes at a time until all have ended; the jobs that failed. An interrupt ends them."""
    everything, running, failed = list(waiting), list[_Job](), list[_Job]()
    before = sum(map(_steps_done, everything))
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                running.append(_start(waiting.pop(0), experiment_file))
            time.sleep(0.2)
            for job in [j for j in running if j.process is not None and j.process.poll() is not None]:
                running.remove(job)
                if job.process is not None and job.process.returncode:
                    failed.append(job)
            bar.update(sum(map(_steps_done, everything)) - before - bar.n)
    finally:
        for job in running:
            if job.process is not None:
                job.process.terminate()
                job.process.wait()
    return failed


def _steps_done(job: _Job) -> int:
    path = job.folder / RunLog.METRICS
    return path.read_bytes().count(b"\n") if path.exists() else 0


def _start(job: _Job, experiment_file: Path) -> _Job:
    job.folder.mkdir(parents=True, exist_ok=True)
    command = [
        sys.executable,
        "-m",
        "igrpo_kit",
        "run-one",
        str(experiment_file),
        str(experiment_file.parent),
    ]
    command += ["base"] if job.method is None else [job.method, str(job.seed)]
    # On two busy cores, processes with two threads wait for each other; those with one do not.
    variables = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    with open(job.folder / "log.txt", "ab") as log:
        job.process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=variables
        )
    return job
