"""The training loop (Algorithm 1): rollout, update, record, step after step; checkpoint and resume.

`train` is an iterator of metric rows. What happens in a step is `rollout` and `update`; this is what happens
between steps.
"""

import contextlib
import copy
import dataclasses
import hashlib
import math
import resource
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

import torch
from tqdm.auto import tqdm

from igrpo_kit import selection
from igrpo_kit.checkpoint import (
    CheckpointError,
    load_checkpoint,
    random_states,
    restore_random_states,
    save_checkpoint,
)
from igrpo_kit.losses import GRPO
from igrpo_kit.metrics import rollout_metrics
from igrpo_kit.policies import Policy
from igrpo_kit.problems import Problem
from igrpo_kit.rewards import Reward, Scores
from igrpo_kit.rollout import (
    RewardFunction,
    Rollout,
    Selector,
    Stage,
    igrpo_rollout,
    rollout_with_next_drafts,
    sample_drafts,
)
from igrpo_kit.runlog import Row, RunLog, environment
from igrpo_kit.samplers import Sampler, Samples
from igrpo_kit.update import NonFiniteError, Trained, trained_stages, update


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Everything that decides a run but the policy, the problems and the reward. Counts are per step.

    GRPO is `num_drafts=0`; at a matched rollout budget its `num_refinements` is iGRPO's N + G.
    """

    steps: int
    prompts: int = 32
    """P"""
    num_drafts: int = 4
    """N"""
    num_refinements: int = 4
    """G"""
    select: str = "best"
    """best, worst, random, first or none"""
    objective: GRPO = dataclasses.field(default_factory=GRPO)
    train_drafts: bool = False
    """our extension: the drafts also enter the update, as an ordinary group on q"""
    inner_epochs: int = 1
    """optimizer steps per rollout (mu); from the second on the ratio leaves 1 and the clip acts"""
    micro_batches: int = 1
    """each trained stage's update is computed in this many pieces, with the same gradient"""
    learning_rate: float = 3e-4
    warmup_steps: int = 10
    final_learning_rate: float = 1.0
    """where the cosine ends, as a share of `learning_rate`; 1 keeps it constant, the paper has 0.1"""
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    max_draft_tokens: int | None = None
    stop_at: float | None = None
    """stop drawing a problem's drafts at this reward; see `rollout.sample_drafts`"""
    draft_ahead: bool = False
    """draw a step's drafts one step earlier, in one batch with that step's refinements: faster, and drafts
    are one update old; see `rollout.rollout_with_next_drafts`"""
    bfloat16: bool = False
    """autocast the update to bfloat16, weights stay in float32"""
    seed: int = 0

    def __post_init__(self) -> None:
        positive = ("steps", "prompts", "inner_epochs", "micro_batches")
        for name in positive:
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be >= 1, got {getattr(self, name)}")
        if self.num_refinements < 2 or (self.train_drafts and self.num_drafts < 2):
            raise ValueError("num_refinements, and num_drafts if they are trained: a group needs at least 2")
        if self.num_drafts < 0:
            raise ValueError(f"num_drafts must be >= 0, got {self.num_drafts}")
        if self.select not in SELECTORS:
            raise ValueError(f"select: one of {sorted(SELECTORS)}, got {self.select!r}")
        if self.num_drafts == 0 and (self.train_drafts or self.draft_ahead or self.stop_at is not None):
            raise ValueError("train_drafts, draft_ahead and stop_at need num_drafts >= 1")
        if self.stop_at is not None and (self.train_drafts or self.draft_ahead):
            raise ValueError(
                "stop_at draws drafts one by one, train_drafts and draft_ahead need them at once"
            )
        if self.stop_at is not None and self.select not in ("best", "first"):
            raise ValueError("stop_at leaves the controls other drafts to choose from: select best or first")
        if self.train_drafts and self.draft_ahead:
            raise ValueError(
                "train_drafts needs drafts of the present policy, draft_ahead has the last one's"
            )

    def to_row(self) -> Row:
        """Plain values for `config.json`, the objective by its name and settings."""
        row = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        row["objective"] = {"name": type(self.objective).__name__, **dataclasses.asdict(self.objective)}
        return row


@dataclasses.dataclass(frozen=True)
class Variant:
    """A method with other steps inside the same loop: what is rolled out, and what is trained on it.

    `rollout` is called like `igrpo_rollout`; `trained` says which completions enter the update, on which
    prompts and with which advantages, as `trained_stages` does. See `baselines`.
    """

    name: str
    rollout: Callable[..., Rollout] = igrpo_rollout
    trained: Callable[..., list[Trained]] = trained_stages


IGRPO_STEPS = Variant("igrpo")
"""The paper's method; with `num_drafts=0` it is GRPO."""

SELECTORS: dict[str, Callable[[torch.Generator], Selector]] = {
    "best": lambda generator: selection.select_best_draft,
    "worst": lambda generator: selection.select_worst_draft,
    "random": lambda generator: lambda r: selection.select_random_draft(r, generator=generator),
    "first": lambda generator: selection.select_first_draft,
    "none": lambda generator: selection.select_no_draft,
}


def learning_rate_at(step: int, config: TrainConfig) -> float:
    """Linear warm-up over `warmup_steps`, then a cosine to `final_learning_rate` (Table S.2); steps from 1.

    A function of the step alone, so there is no scheduler to save.
    """
    if step <= config.warmup_steps:
        return config.learning_rate * step / config.warmup_steps
    done = (step - config.warmup_steps) / max(config.steps - config.warmup_steps, 1)
    low = config.final_learning_rate
    return config.learning_rate * (low + (1 - low) * (1 + math.cos(math.pi * min(done, 1.0))) / 2)


def problems_of_step(problems: Sequence[Problem], step: int, config: TrainConfig) -> list[Problem]:
    """The P problems of a step: the set reshuffled each epoch, then cut into steps. Steps count from 1."""
    picked = []
    for position in range((step - 1) * config.prompts, step * config.prompts):
        epoch, index = divmod(position, len(problems))
        picked.append(problems[_epoch_order(len(problems), config.seed, epoch)[index]])
    return picked


@lru_cache(maxsize=8)
def _epoch_order(count: int, seed: int, epoch: int) -> list[int]:
    generator = torch.Generator().manual_seed(derived_seed(seed, f"epoch {epoch}"))
    return torch.randperm(count, generator=generator).tolist()


def derived_seed(seed: int, purpose: str) -> int:
    """An independent seed for one purpose of a run, so that no two streams of random numbers coincide."""
    return int.from_bytes(hashlib.sha256(f"{seed} {purpose}".encode()).digest()[:7], "big")


@contextlib.contextmanager
def _interrupt_sets(stop: threading.Event) -> Iterator[None]:
    """Within: the first Ctrl-C asks the loop to stop after its step, a second one interrupts at once.

    That holds also while the caller works on a row, or the interrupt would leave that work half done. Signals
    can be caught in the main thread alone; elsewhere `stop` itself is the way.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def handler(signum: int, frame: Any) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()
        print("\nStopping after this step; Ctrl-C again to stop now.", file=sys.stderr)

    previous = signal.signal(signal.SIGINT, handler)
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, previous)


class _Run:
    """The state of a run between two steps: what a checkpoint holds, and how a step changes it."""

    def __init__(
        self, policy: Policy, problems: Sequence[Problem], reward: Reward | RewardFunction,
        sampler: Sampler, config: TrainConfig, full_reward: float, variant: Variant,
    ) -> None:  # fmt: skip
        if not problems:
            raise ValueError("problems: at least one is needed")
        if sampler.settings.top_p < 1:
            raise ValueError(f"sampler: top_p={sampler.settings.top_p} is for evaluation; train with top_p=1")
        if config.draft_ahead and variant.rollout is not igrpo_rollout:
            raise ValueError(f"draft_ahead: {variant.name} has a rollout of its own, draw its drafts in step")
        self.policy, self.problems, self.reward = policy, problems, reward
        self.sampler, self.config, self.full_reward = sampler, config, full_reward
        self.variant = variant
        self.step = 0
        self.tokens_sampled = self.tokens_trained = 0
        self.seconds = self.cpu_seconds = 0.0
        self.pending: Stage | None = None
        self.between_steps = True
        self.generator = torch.Generator().manual_seed(derived_seed(config.seed, "selection"))
        self.select = SELECTORS[config.select](self.generator)
        parameters = [p for p in policy.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(
            parameters,
            config.learning_rate,
            betas=(0.9, 0.95),
            weight_decay=config.weight_decay,
            fused=True,
        )
        self.reference = None
        if config.objective.beta > 0:
            self.reference = copy.deepcopy(policy.model).eval().requires_grad_(False)

    def _rollout(self, step: int) -> Rollout:
        config, problems = self.config, problems_of_step(self.problems, step, self.config)
        options: dict[str, Any] = {
            "select": self.select,
            "prompt_format": self.policy.prompt_format,
            "max_draft_tokens": config.max_draft_tokens,
            "tokenizer": self.policy.tokenizer,
        }
        if not config.draft_ahead:
            options |= {"num_drafts": config.num_drafts, "num_refinements": config.num_refinements}
            options["stop_at"] = config.stop_at
            return self.variant.rollout(self.sampler, self.reward, problems, **options)
        drafts = self.pending or sample_drafts(
            self.sampler,
            self.reward,
            problems,
            num_drafts=config.num_drafts,
            prompt_format=self.policy.prompt_format,
        )
        rollout, self.pending = rollout_with_next_drafts(
            self.sampler,
            self.reward,
            problems,
            problems_of_step(self.problems, step + 1, config) if step < config.steps else [],
            drafts=drafts,
            num_refinements=config.num_refinements,
            **options,
        )
        return rollout

    def advance(self) -> tuple[Row, Rollout]:
        """One step: rollout, update, sync of the sampler, metrics."""
        start, cpu_start, config, step = perf_counter(), process_time(), self.config, self.step + 1
        self.between_steps = False  # from here to the end nothing of the state may be saved
        device = self.policy.model.device
        reset_peak_memory(device)
        rollout = self._rollout(step)
        rollout_mb = peak_memory_mb(device)
        reset_peak_memory(device)
        learning_rate = learning_rate_at(step, config)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        updated = update(
            self.policy.model,
            self.optimizer,
            self.variant.trained(rollout, config.objective, train_drafts=config.train_drafts),
            temperature=self.sampler.settings.temperature,
            inner_epochs=config.inner_epochs,
            micro_batches=config.micro_batches,
            max_grad_norm=config.max_grad_norm,
            reference=self.reference,
            bfloat16=config.bfloat16,
        )
        sync_start = perf_counter()
        self.sampler.sync()
        seconds_sync = perf_counter() - sync_start
        num_drafts = config.num_drafts or config.num_refinements // 2
        row = rollout_metrics(rollout, num_drafts=num_drafts, full_reward=self.full_reward)
        drafted = row.get("stage1/tokens", 0.0)
        self.tokens_sampled += int(row["tokens"] + drafted)
        self.tokens_trained += int(row["tokens"] + (drafted if config.train_drafts else 0))
        self.seconds += perf_counter() - start
        self.cpu_seconds += process_time() - cpu_start
        self.step, self.between_steps = step, True
        return {
            "step": step,
            **row,
            **updated,
            "learning_rate": learning_rate,
            "seconds/sync": seconds_sync,
            "tokens_sampled": self.tokens_sampled,
            "tokens_trained": self.tokens_trained,
            "seconds/step": perf_counter() - start,
            "seconds/total": self.seconds,
            "seconds/cpu_total": self.cpu_seconds,
            "memory/rollout_mb": rollout_mb,
            "memory/update_mb": peak_memory_mb(device),
        }, rollout

    def identity(self) -> Row:
        """What makes this run this run: a checkpoint of anything else is refused."""
        problems = "\n".join(f"{p.id}\t{p.question}\t{p.answer}" for p in self.problems)
        return {
            **self.config.to_row(),
            "variant": self.variant.name,
            "policy": self.policy.name,
            "prompt_format": dataclasses.asdict(self.policy.prompt_format),
            "sampler": type(self.sampler).__name__,
            "sampling": dataclasses.asdict(self.sampler.settings),
            "reward": getattr(self.reward, "__name__", type(self.reward).__name__),
            "full_reward": self.full_reward,
            "problems": {
                "count": len(self.problems),
                "sha256": hashlib.sha256(problems.encode()).hexdigest(),
            },
        }

    def state(self) -> Row:
        """Everything the next step depends on."""
        return {
            "step": self.step,
            "tokens": [self.tokens_sampled, self.tokens_trained],
            "seconds": [self.seconds, self.cpu_seconds],
            "identity": self.identity(),
            "model": self.policy.model.state_dict(),
            "reference": None if self.reference is None else self.reference.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "sampler": self.sampler.state_dict(),
            "selection": self.generator.get_state(),
            "random": random_states(),
            "pending": None if self.pending is None else _stage_to_tree(self.pending),
        }

    def restore(self, state: Row, path: Path) -> None:
        """Go on from `state`. Raises CheckpointError where it is of other settings or of another model."""
        mine, theirs = self.identity(), state.get("identity", {})
        differing = sorted(k for k in {*mine, *theirs} if mine.get(k) != theirs.get(k))
        if differing:
            raise CheckpointError(f"{path}: of another run: {', '.join(differing)} differ")
        try:
            self.policy.model.load_state_dict(state["model"])
        except RuntimeError as error:
            raise CheckpointError(f"{path}: of another model ({error})") from error
        if self.reference is not None:
            self.reference.load_state_dict(state["reference"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.sampler.load_state_dict(state["sampler"])
        self.generator.set_state(state["selection"])
        restore_random_states(state["random"])
        self.step = state["step"]
        self.seconds, self.cpu_seconds = state["seconds"]
        self.tokens_sampled, self.tokens_trained = state["tokens"]
        self.pending = None if state["pending"] is None else _stage_from_tree(state["pending"])


def _stage_to_tree(stage: Stage) -> Row:
    fields = {f.name: getattr(stage, f.name) for f in dataclasses.fields(stage)}
    fields["samples"] = {f.name: getattr(stage.samples, f.name) for f in dataclasses.fields(stage.samples)}
    fields["scores"] = {"values": stage.scores.values, "statuses": stage.scores.statuses}
    return fields


def _stage_from_tree(tree: Row) -> Stage:
    return Stage(**{**tree, "samples": Samples(**tree["samples"]), "scores": Scores(**tree["scores"])})


def reset_peak_memory(device: torch.device) -> None:
    """Let `peak_memory_mb` start anew; a process's own only on Linux, elsewhere it grows."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_memory_mb(device: torch.device) -> float:
    """Peak memory in MB (10^6 bytes) since the last reset: allocated on a GPU, else held by this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    if sys.platform == "linux":  # getrusage's peak would be that of the process this one was started by
        status = Path("/proc/self/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) * 1024 / 1e6
    unit = 1 if sys.platform == "darwin" else 1024  # bytes on macOS, KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


def sample_rows(step: int, rollout: Rollout, *, problems: int) -> Iterator[Row]:
    """The first few problems of a rollout in full: question, drafts, the one shown, refinements."""
    G = rollout.refinements.rewards.shape[1]
    for i, problem in enumerate(rollout.problems[:problems]):
        row: Row = {"step": step, "id": problem.id, "question": problem.question, "answer": problem.answer}
        if rollout.drafts is not None and rollout.selected is not None:
            N = rollout.drafts.rewards.shape[1]
            row["drafts"] = _completions(rollout.drafts, slice(i * N, i * N + N))
            row["selected"] = int(rollout.selected[i])
        yield row | {"completions": _completions(rollout.refinements, slice(i * G, i * G + G))}


def _completions(stage: Stage, rows: slice) -> list[Row]:
    parts = (stage.samples.texts[rows], stage.scores.values[rows], stage.scores.statuses[rows])
    return [{"text": t, "reward": r, "status": s} for t, r, s in zip(*parts, strict=True)]


def train(
    policy: Policy,
    problems: Sequence[Problem],
    reward: Reward | RewardFunction,
    sampler: Sampler,
    config: TrainConfig,
    *,
    full_reward: float = 1.0,
    variant: Variant = IGRPO_STEPS,
    folder: Path | None = None,
    checkpoint_every: int = 0,
    samples_every: int = 0,
    resume: bool = False,
    stop: threading.Event | None = None,
    progress: bool = True,
) -> Iterator[Row]:
    """Train and yield each step's metric row, as recorded. From `full_reward` on a completion counts as right
    in the metrics: 1 for accuracy, 2 for accuracy + format (Table S.2).

    With a `folder` the run is recorded there (see `runlog`), with a checkpoint every `checkpoint_every`
    steps (0: only on stopping) and `samples_every` steps some completions in full. `resume=True` goes on
    from the folder's checkpoint, or starts where there is none yet: rows and weights are then those of the
    uninterrupted run, bit for bit, on the same machine, software and number of threads. Ctrl-C, or setting
    `stop` from another thread, ends the run after the current step, and the caller's work on it, with a
    checkpoint. Closing the iterator saves one too, whatever the caller had still to do. `variant` puts
    another method's steps into the same loop (`baselines`).

    Raises CheckpointError for a damaged checkpoint or one of another run, FileExistsError where the folder
    holds a run that is not resumed, NonFiniteError with the batch saved in the folder.
    """
    run = _Run(policy, problems, reward, sampler, config, full_reward, variant)
    stop = threading.Event() if stop is None else stop
    path = None if folder is None else folder / "checkpoint.safetensors"
    log = None if folder is None else _open_record(run, folder, resume)
    sampler.sync()  # the weights may be a checkpoint's
    saved_at = run.step
    bar = tqdm(total=config.steps, initial=run.step, disable=not progress, unit="step")
    try:
        with _interrupt_sets(stop):
            while run.step < config.steps and not stop.is_set():
                row = _recorded_step(run, log, samples_every)
                bar.update()
                bar.set_postfix(reward=f"{row['reward']:.3f}", entropy=f"{row['entropy']:.3f}")
                yield row
                # After the caller's own work on this step, so that no periodic checkpoint is ahead of it.
                if path is not None and checkpoint_every and run.step % checkpoint_every == 0:
                    save_checkpoint(path, run.state())
                    saved_at = run.step
    finally:
        bar.close()
        can_save = run.between_steps and not sys.is_finalizing()
        if path is not None and saved_at < run.step and can_save:
            save_checkpoint(path, run.state())


def _open_record(run: _Run, folder: Path, resume: bool) -> RunLog:
    """The run's record, after going on from its checkpoint where there is one to resume."""
    path = folder / "checkpoint.safetensors"
    resuming = resume and (folder / "config.json").exists()
    if resuming and path.exists():
        run.restore(load_checkpoint(path), path)
    description = {**run.identity(), **environment(str(run.policy.model.device))}
    return RunLog(folder, description, resume_at=run.step if resuming else None)


def _recorded_step(run: _Run, log: RunLog | None, samples_every: int) -> Row:
    try:
        row, rollout = run.advance()
    except NonFiniteError as error:
        if log is None:
            raise
        where = log.folder / f"nonfinite_step_{run.step + 1}.safetensors"
        save_checkpoint(where, error.batch)
        raise NonFiniteError(f"step {run.step + 1}: {error}; batch saved in {where}", error.batch) from error
    if log is not None:
        log.metrics(row)
        if samples_every and run.step % samples_every == 0:
            log.samples(sample_rows(run.step, rollout, problems=4))
    return row
