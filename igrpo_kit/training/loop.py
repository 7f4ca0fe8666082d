"""The training loop (Algorithm 1): rollout, update and metrics for each step, with checkpoints and resuming.

`train` iterates over metric rows. `rollout` and `update` implement a single step; this module implements what
happens between steps. Algorithm: https://arxiv.org/abs/2602.09000.
"""

import contextlib
import copy
import dataclasses
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from functools import lru_cache, partial
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

import torch
from tqdm.auto import tqdm

from igrpo_kit.core.randomness import derived_seed, random_states, restore_random_states
from igrpo_kit.core.rows import Row
from igrpo_kit.core.selection import selector
from igrpo_kit.policies.samplers.sampler import Sampler, Samples
from igrpo_kit.tasks.problem import Problem, problems_identity
from igrpo_kit.tasks.rewards import RewardLike, Scores, as_reward
from igrpo_kit.training.checkpoint import CheckpointError, load_checkpoint, save_checkpoint
from igrpo_kit.training.config import IGRPO_STEPS, TrainConfig, Variant, learning_rate_at
from igrpo_kit.training.memory import with_peak_memory
from igrpo_kit.training.metrics import rollout_metrics
from igrpo_kit.training.optimization import make_optimizer, set_learning_rate
from igrpo_kit.training.records import RunLog, environment, sample_rows
from igrpo_kit.training.rollout import Rollout, Stage, igrpo_rollout, rollout_with_next_drafts, sample_drafts
from igrpo_kit.training.update import NonFiniteError, update


def problems_of_step(problems: Sequence[Problem], step: int, config: TrainConfig) -> list[Problem]:
    """The P problems of a step, counted from 1: the set is reshuffled every epoch and then cut into steps."""
    picked = []
    for position in range((step - 1) * config.prompts_per_step, step * config.prompts_per_step):
        epoch, index = divmod(position, len(problems))
        picked.append(problems[_epoch_order(len(problems), config.seed, epoch)[index]])
    return picked


@lru_cache(maxsize=8)
def _epoch_order(count: int, seed: int, epoch: int) -> list[int]:
    generator = torch.Generator().manual_seed(derived_seed(seed, f"epoch {epoch}"))
    return torch.randperm(count, generator=generator).tolist()


@contextlib.contextmanager
def _interrupt_sets(stop: threading.Event) -> Iterator[None]:
    """Make the first Ctrl-C stop the loop after the current step, and a second one interrupt immediately.

    This also applies while the caller processes a row, so that an interrupt does not leave that work half
    done. Only the main thread can handle signals. In other threads, set `stop` instead.
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
    """The state of a run between two steps: the content of a checkpoint, and the methods that change it."""

    def __init__(
        self, sampler: Sampler, reward: RewardLike, problems: Sequence[Problem], config: TrainConfig,
        variant: Variant,
    ) -> None:  # fmt: skip
        if not problems:
            raise ValueError("problems: at least one is needed")
        if sampler.settings.top_p < 1:
            raise ValueError(f"sampler: top_p={sampler.settings.top_p} is for evaluation; train with top_p=1")
        if config.draft_ahead and variant.rollout is not igrpo_rollout:
            raise ValueError(f"draft_ahead: {variant.name} has a rollout of its own, draft in step with it")
        self.sampler, self.reward, self.problems = sampler, as_reward(reward), problems
        self.config, self.variant, self.policy = config, variant, sampler.policy
        self.step = 0
        self.tokens_sampled = self.tokens_trained = self.tokens_live = 0
        self.seconds = self.cpu_seconds = 0.0
        self.pending: Stage | None = None
        self.between_steps = True
        self.generator = torch.Generator().manual_seed(derived_seed(config.seed, "selection"))
        self.select = selector(config.select, self.generator)
        self.optimizer = make_optimizer(self.policy.model, weight_decay=config.weight_decay)
        self.reference = None
        if config.objective.beta > 0:
            self.reference = copy.deepcopy(self.policy.model).eval().requires_grad_(False)

    def _rollout(self, step: int) -> Rollout:
        config, problems = self.config, problems_of_step(self.problems, step, self.config)
        settings: dict[str, Any] = {"select": self.select, "max_draft_tokens": config.max_draft_tokens}
        settings["num_refinements"] = config.num_refinements
        if not config.draft_ahead:
            settings |= {"num_drafts": config.num_drafts, "stop_at": config.stop_at}
            return self.variant.rollout(self.sampler, self.reward, problems, **settings)
        drafts = self.pending or sample_drafts(
            self.sampler, self.reward, problems, num_drafts=config.num_drafts
        )
        following = problems_of_step(self.problems, step + 1, config) if step < config.steps else []
        rollout, self.pending = rollout_with_next_drafts(
            self.sampler, self.reward, problems, next_problems=following, drafts=drafts, **settings
        )
        return rollout

    def _update(self, step: int, rollout: Rollout) -> Row:
        config, learning_rate = self.config, learning_rate_at(step, self.config)
        set_learning_rate(self.optimizer, learning_rate)
        trained = self.variant.trained(rollout, config.objective, train_drafts=config.train_drafts)
        self.tokens_trained += sum(int(t.samples.mask.sum()) for t in trained)
        row = update(
            self.policy.model,
            self.optimizer,
            trained,
            temperature=self.sampler.settings.temperature,
            num_iterations=config.num_iterations,
            micro_batches=config.micro_batches,
            max_grad_norm=config.max_grad_norm,
            reference=self.reference,
            bfloat16=config.bfloat16,
        )
        start = perf_counter()
        self.sampler.sync()
        return {**row, "learning_rate": learning_rate, "seconds/sync": perf_counter() - start}

    def advance(self) -> tuple[Row, Rollout]:
        """One step: rollout, update, sampler sync, metrics."""
        start, cpu_start, config, step = perf_counter(), process_time(), self.config, self.step + 1
        self.between_steps = False  # do not save the state until the step is complete
        device = self.policy.model.device
        rollout, rollout_mb = with_peak_memory(device, partial(self._rollout, step))
        updated, update_mb = with_peak_memory(device, partial(self._update, step, rollout))
        row = {
            "step": step,
            **rollout_metrics(rollout, num_drafts=config.num_drafts or config.num_refinements // 2),
            **updated,
            "memory/rollout_mb": rollout_mb,
            "memory/update_mb": update_mb,
        }
        drafted = row.get("stage1/tokens", 0.0)
        self.tokens_sampled += int(row["tokens"] + drafted)
        self.tokens_live += int(row["live_tokens"])
        self.seconds += perf_counter() - start
        self.cpu_seconds += process_time() - cpu_start
        self.step, self.between_steps = step, True
        return row | {
            "tokens_sampled": self.tokens_sampled,
            "tokens_trained": self.tokens_trained,
            "tokens_live": self.tokens_live,
            "seconds/step": perf_counter() - start,
            "seconds/total": self.seconds,
            "seconds/cpu_total": self.cpu_seconds,
        }, rollout

    def identity(self) -> Row:
        """What identifies this run; a checkpoint with another identity is rejected."""
        return {
            **self.config.to_row(),
            "variant": self.variant.name,
            "policy": self.policy.name,
            "prompt_format": dataclasses.asdict(self.policy.prompt_format),
            "sampler": type(self.sampler).__name__,
            "sampling": dataclasses.asdict(self.sampler.settings),
            "reward": self.reward.__name__,
            "full_reward": self.reward.full_reward,
            "problems": problems_identity(self.problems),
        }

    def state(self) -> Row:
        """Everything that the next step depends on."""
        return {
            "step": self.step,
            "tokens": [self.tokens_sampled, self.tokens_trained, self.tokens_live],
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
        """Continue from `state`.

        Raises:
            CheckpointError: `state` has other settings or belongs to another model.
        """
        mine, theirs = self.identity(), state.get("identity", {})
        differing = sorted(k for k in {*mine, *theirs} if mine.get(k) != theirs.get(k))
        if differing:
            raise CheckpointError(f"{path}: of another run: {', '.join(differing)} differ")
        if len(state["tokens"]) != 3:
            raise CheckpointError(f"{path}: of an older version, which did not count live tokens")
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
        self.tokens_sampled, self.tokens_trained, self.tokens_live = state["tokens"]
        self.pending = None if state["pending"] is None else _stage_from_tree(state["pending"])


def _stage_to_tree(stage: Stage) -> Row:
    fields = {f.name: getattr(stage, f.name) for f in dataclasses.fields(stage)}
    fields["samples"] = {f.name: getattr(stage.samples, f.name) for f in dataclasses.fields(stage.samples)}
    fields["scores"] = {"values": stage.scores.values, "statuses": stage.scores.statuses}
    return fields


def _stage_from_tree(tree: Row) -> Stage:
    return Stage(**{**tree, "samples": Samples(**tree["samples"]), "scores": Scores(**tree["scores"])})


def train(
    sampler: Sampler,
    reward: RewardLike,
    problems: Sequence[Problem],
    config: TrainConfig,
    *,
    variant: Variant = IGRPO_STEPS,
    folder: str | Path | None = None,
    checkpoint_every: int = 0,
    samples_every: int = 0,
    resume: bool = False,
    stop: threading.Event | None = None,
    progress: bool = True,
    about: Row | None = None,
) -> Iterator[Row]:
    """Train the sampler's policy and yield the metric row of each step (Algorithm 1).

    Ctrl-C, or setting `stop`, ends the run after the current step, once the caller has processed its row, and
    saves a checkpoint. Closing the iterator also saves a checkpoint, even if the caller has work left to do.
    A resumed run has the same rows and weights as an uninterrupted one, bit for bit, on the same machine,
    with the same software and number of threads.

    Args:
        sampler: samples from the policy to be trained, `sampler.policy`, with top_p = 1.
        reward: scores completions against their problems.
        problems: training problems, at least one.
        config: all other settings.
        variant: the method's rollout and update (see `experiments.baselines`).
        folder: where the run is recorded (see `training.records`); None records nothing.
        checkpoint_every: steps between two checkpoints; 0 saves one only when the run stops.
        samples_every: steps between two records of full completions; 0 records none.
        resume: continue from the folder's checkpoint, or start a new run if there is none.
        stop: an event that another thread can set to end the run.
        progress: show a progress bar.
        about: further entries of `config.json`.

    Yields:
        One row of metrics per step, as recorded in `metrics.jsonl`.

    Raises:
        CheckpointError: the checkpoint is damaged or belongs to another run.
        FileExistsError: the folder holds a run and `resume` is False.
        NonFiniteError: loss or gradient is NaN or infinite; the batch is saved in the folder.
        ValueError: there are no problems, or the settings do not fit the sampler or the variant.
    """
    run = _Run(sampler, reward, problems, config, variant)
    folder = None if folder is None else Path(folder)
    stop = threading.Event() if stop is None else stop
    path = None if folder is None else folder / "checkpoint.safetensors"
    log = None if folder is None else _open_record(run, folder, resume, about or {})
    sampler.sync()  # the weights may come from a checkpoint
    saved_at = run.step
    bar = tqdm(total=config.steps, initial=run.step, disable=not progress, unit="step")
    try:
        with _interrupt_sets(stop):
            while run.step < config.steps and not stop.is_set():
                row = _recorded_step(run, log, samples_every)
                bar.update()
                bar.set_postfix(reward=f"{row['reward']:.3f}", entropy=f"{row['entropy']:.3f}")
                yield row
                # After the caller has processed this step, so no periodic checkpoint is ahead of that work.
                if path is not None and checkpoint_every and run.step % checkpoint_every == 0:
                    save_checkpoint(path, run.state())
                    saved_at = run.step
    finally:
        bar.close()
        can_save = run.between_steps and not sys.is_finalizing()
        if path is not None and saved_at < run.step and can_save:
            save_checkpoint(path, run.state())


def _open_record(run: _Run, folder: Path, resume: bool, about: Row) -> RunLog:
    """Open the run's record, restoring the checkpoint if the run is resumed and has one."""
    path = folder / "checkpoint.safetensors"
    resuming = resume and (folder / "config.json").exists()
    if resuming and path.exists():
        run.restore(load_checkpoint(path), path)
    description = {**run.identity(), **about, **environment(str(run.policy.model.device))}
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
