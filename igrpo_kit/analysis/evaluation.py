"""Evaluation after training: K samples per problem under three protocols.

- `q`: single-shot from the question, as in the paper (Section 3.2.1 of https://arxiv.org/abs/2602.09000). The
  only protocol without a draft.
- `own_draft`: the prompt contains one sample from q as the draft, correct or not. Needs no reward.
- `best_of_n`: the prompt contains the best of N samples. Needs the reward at inference, so compare it with
  best-of-N of the baseline, not with the baseline's single-shot accuracy.

`evaluate` returns counts and does not keep the completions. `evaluate_to_file` keeps all of them and resumes
if interrupted.
"""

import json
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import torch
from jaxtyping import Bool, Float
from tqdm.auto import tqdm

from igrpo_kit.core.rows import (
    OnError,
    Row,
    SkippedLinesWarning,
    append_rows,
    read_checked_rows,
    read_rows,
    write_rows,
)
from igrpo_kit.policies.samplers.sampler import Sampler
from igrpo_kit.tasks.problem import Problem, problems_identity
from igrpo_kit.tasks.rewards import RewardLike, as_reward
from igrpo_kit.tasks.verification import answer_of
from igrpo_kit.training.metrics import rollout_metrics
from igrpo_kit.training.rollout import Rollout, igrpo_rollout

Protocol = Literal["q", "own_draft", "best_of_n"]
PROTOCOLS: tuple[Protocol, ...] = get_args(Protocol)


@dataclass(frozen=True)
class Evaluation:
    """Counts over K graded samples per problem, sufficient for any pass@k and its interval."""

    protocol: str
    temperature: float
    num_samples: int
    correct: list[int]
    """for each problem, how many of its K samples reached the full reward"""
    reward: list[float]
    """for each problem, the mean reward of its K samples"""
    draft_correct: list[int] | None
    """for each problem, how many of the K drafts in the prompts were correct; None for the protocol `q`"""
    entropy: float
    """nats per token, over the graded samples"""
    length: float
    """tokens per sample"""

    def to_row(self) -> Row:
        """Plain values for a JSONL file."""
        return asdict(self)


def evaluate(
    sampler: Sampler,
    reward: RewardLike,
    problems: Sequence[Problem],
    *,
    num_samples: int,
    protocol: Protocol = "q",
    num_drafts: int = 4,
) -> Evaluation:
    """Sample and grade K completions per problem at the sampler's temperature.

    Under `own_draft` and `best_of_n` each of the K samples has its own draft, so the samples of a problem are
    independent.

    Args:
        sampler: samples the completions, and the drafts if there are any.
        reward: grades them.
        problems: P problems.
        num_samples: K.
        protocol: "q", "own_draft" or "best_of_n".
        num_drafts: N of `best_of_n`.

    Raises:
        ValueError: unknown protocol.
    """
    rollout = _ask(sampler, reward, problems, num_samples, protocol, num_drafts)
    shape, stage = (len(problems), num_samples), rollout.refinements
    shown = rollout.shown_rewards
    row = rollout_metrics(rollout, num_drafts=0)
    return Evaluation(
        protocol=protocol,
        temperature=sampler.settings.temperature,
        num_samples=num_samples,
        correct=stage.correct.view(shape).sum(dim=1).tolist(),
        reward=[round(x, 6) for x in stage.rewards.view(shape).nanmean(dim=1).tolist()],
        draft_correct=None if shown is None else (shown.view(shape) >= stage.full_reward).sum(dim=1).tolist(),
        entropy=row["entropy"],
        length=row["length"],
    )


def _ask(
    sampler: Sampler, reward: RewardLike, problems: Sequence[Problem], num_samples: int,
    protocol: Protocol, num_drafts: int,
) -> Rollout:  # fmt: skip
    """K completions per problem under any protocol, row-major by problem."""
    if protocol not in PROTOCOLS:
        raise ValueError(f"protocol: one of {PROTOCOLS}, got {protocol!r}")
    if protocol == "q":
        return igrpo_rollout(sampler, reward, problems, num_drafts=0, num_refinements=num_samples)
    asked = [problem for problem in problems for _ in range(num_samples)]  # each with its own draft
    drafts = 1 if protocol == "own_draft" else num_drafts
    return igrpo_rollout(sampler, reward, asked, num_drafts=drafts, num_refinements=1)


# ---------------------------------------------------------------- stored, resumable

FORMAT = "igrpo_kit evaluation 1"
_PER_SAMPLE = ("rewards", "statuses", "texts", "answers", "lengths", "truncated", "entropies")


@dataclass(frozen=True)
class StoredEvaluation:
    """The content of an evaluation file: every completion with its grade.

    The estimators take their counts from `correct`: `pass_at_k_curve(K, correct.sum(axis=1))`,
    `pass_at_1_over_runs(correct)`, `majority_curve(answers, correct)`.
    """

    identity: Row
    """what was evaluated, and how: policy, problems, settings, seed"""
    rows: dict[str, list[Row]]
    """by protocol, one row per problem in the order of the problems; see `evaluate_to_file`"""

    def rewards(self, protocol: str = "q") -> Float[np.ndarray, "P K"]:
        """Rewards [problems, samples]; NaN for a completion that could not be scored."""
        rewards = [[np.nan if r is None else r for r in row["rewards"]] for row in self._of(protocol)]
        return np.array(rewards, dtype=float)

    def correct(self, protocol: str = "q") -> Bool[np.ndarray, "P K"]:
        """True for completions that reached the full reward; False for those that could not be scored."""
        return self.rewards(protocol) >= self.identity["full_reward"]

    def answers(self, protocol: str = "q") -> list[list[str | None]]:
        """Answers of the completions (`tasks.verification.answer_of`), for a majority vote."""
        return [row["answers"] for row in self._of(protocol)]

    def summary(self, protocol: str = "q") -> Evaluation:
        """Counts and means, as returned by `evaluate`."""
        rows, rewards = self._of(protocol), self.rewards(protocol)
        lengths, entropies = (
            np.array([[np.nan if v is None else v for v in row[name]] for row in rows], dtype=float)
            for name in ("lengths", "entropies")
        )
        scored = ~np.isnan(rewards)
        total = np.where(scored, rewards, 0.0).sum(axis=1)
        mean = np.divide(total, scored.sum(axis=1), out=np.full(len(rows), np.nan), where=scored.any(axis=1))
        draft_correct = None
        if "draft_rewards" in rows[0]:
            full = self.identity["full_reward"]
            draft_correct = [sum(r is not None and r >= full for r in row["draft_rewards"]) for row in rows]
        return Evaluation(
            protocol=protocol,
            temperature=self.identity["sampling"]["temperature"],
            num_samples=self.identity["num_samples"],
            correct=self.correct(protocol).sum(axis=1).tolist(),
            reward=[round(x, 6) for x in mean.tolist()],
            draft_correct=draft_correct,
            entropy=float((entropies * lengths).sum() / lengths.sum()),
            length=float(lengths.mean()),
        )

    def _of(self, protocol: str) -> list[Row]:
        if protocol not in self.rows:
            raise LookupError(f"protocol: the file holds {sorted(self.rows)}, not {protocol!r}")
        return self.rows[protocol]


def fingerprint(model: torch.nn.Module) -> str:
    """First 16 hex digits of the SHA-256 of a model's weights, as a unique name for them."""
    digest = sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]


def evaluate_to_file(
    path: str | Path,
    make_sampler: Callable[[int], Sampler],
    reward: RewardLike,
    problems: Sequence[Problem],
    *,
    policy: str,
    num_samples: int,
    protocols: Sequence[Protocol] = ("q",),
    num_drafts: int = 4,
    seed: int = 0,
    problems_per_call: int = 32,
    progress: bool = True,
) -> StoredEvaluation:
    """`evaluate` under each protocol, keeping every completion in `path`; resumes if it was interrupted.

    Each call of the sampler (`problems_per_call` problems under one protocol) has its own seed. The result
    therefore does not depend on interruptions or on the order in which protocols are requested.

    The first line of the file is the identity of the evaluation. Every other line is one problem under one
    protocol: `protocol`, `problem` (index), `id`, and for each of the K samples `rewards` (null: not scored),
    `statuses`, `texts`, `answers`, `lengths` (tokens), `truncated`, `entropies` (nats per token); with drafts
    also `draft_rewards` and `draft_texts`.

    Args:
        path: the file.
        make_sampler: returns a sampler of the policy for a seed, for example
            `lambda seed: HFSampler(policy, settings, seed=seed)`.
        reward: grades the completions.
        problems: P problems, at least one.
        policy: name of the evaluated policy. Include `fingerprint(model)`, since nothing else identifies
            weights.
        num_samples: K.
        protocols: as in `evaluate`.
        num_drafts: N of `best_of_n`.
        seed: from which the seeds of all calls are derived.
        problems_per_call: problems per call of the sampler.
        progress: show a progress bar.

    Raises:
        ValueError: there are no problems, a protocol is unknown, the file belongs to an evaluation with
            another identity (the message names the differences), or it is damaged other than by a crash.
        FileExistsError: only the packed form of the file exists.
    """
    if not problems:
        raise ValueError("problems: at least one is needed")
    if unknown := set(protocols) - set(PROTOCOLS):
        raise ValueError(f"protocols: some of {PROTOCOLS}, got {sorted(unknown)}")
    path, reward, asked = Path(path), as_reward(reward), make_sampler(seed)
    identity: Row = {
        "policy": policy,
        "problems": problems_identity(problems),
        "prompt_format": asdict(asked.policy.prompt_format),
        "sampling": asdict(asked.settings),
        "reward": reward.__name__,
        "full_reward": reward.full_reward,
        "num_samples": num_samples,
        "num_drafts": num_drafts,
        "seed": seed,
        "problems_per_call": problems_per_call,
    }
    done = _open(path, json.loads(json.dumps(identity)))  # in the form in which it is read back
    starts = [(p, i) for p in protocols for i in range(0, len(problems), problems_per_call)]
    finished = sum(len(problems[i : i + problems_per_call]) for p, i in starts if (p, i) in done)
    bar = tqdm(total=len(problems) * len(protocols), initial=finished, unit="problem", disable=not progress)
    with bar:
        for protocol, start in [s for s in starts if s not in done]:
            part = problems[start : start + problems_per_call]
            sampler = make_sampler(_seed(seed, protocol, start))
            rollout = _ask(sampler, reward, part, num_samples, protocol, num_drafts)
            append_rows(path, _stored_rows(rollout, part, protocol, start, num_samples))
            bar.update(len(part))
    stored = _read(path, "raise")  # part of another protocol may be incomplete
    return StoredEvaluation(stored.identity, {p: stored.rows[p] for p in protocols})


def _seed(seed: int, protocol: Protocol, start: int) -> int:
    entropy = [seed, PROTOCOLS.index(protocol), start]
    return int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0] >> 8)


def _open(path: Path, identity: Row) -> set[tuple[str, int]]:
    """Create the file, or check that it belongs to this evaluation; returns its complete calls.

    A call is (protocol, start). Rows of a call that a crash left incomplete are dropped, and the call is
    repeated.
    """
    if not path.exists():
        if path.with_name(path.name + ".gz").exists():
            raise FileExistsError(f"{path}.gz: packed; read it with read_evaluation, or choose another file")
        path.parent.mkdir(parents=True, exist_ok=True)
        write_rows(path, [{"format": FORMAT, "identity": identity}])
        return set()
    header, *rows = [*read_rows(path)] or [{}]
    theirs = _identity(header, path)
    differing = sorted(k for k in {*identity, *theirs} if identity.get(k) != theirs.get(k))
    if differing:
        raise ValueError(
            f"{path}: holds another evaluation, {', '.join(differing)} differ; choose another file"
        )
    calls: dict[tuple[str, int], list[Row]] = defaultdict(list)
    size, count = identity["problems_per_call"], identity["problems"]["count"]
    for row in rows:
        calls[row["protocol"], row["problem"] // size * size].append(row)
    whole = {call: rs for call, rs in calls.items() if len(rs) == min(size, count - call[1])}
    kept = [row for rs in whole.values() for row in rs]
    if len(kept) < len(rows) or not path.read_bytes().endswith(b"\n"):
        clean = path.with_name(path.name + ".clean")
        clean.unlink(missing_ok=True)
        write_rows(clean, [header, *kept])
        clean.replace(path)
    return set(whole)


def _identity(header: Row, path: Path) -> Row:
    if header.get("format") != FORMAT:
        raise ValueError(f"{path}, line 1: not the head of an evaluation ({FORMAT!r} expected)")
    return header["identity"]


def _stored_rows(
    rollout: Rollout, problems: Sequence[Problem], protocol: str, start: int, num_samples: int
) -> Iterator[Row]:
    samples, scores = rollout.refinements.samples, rollout.refinements.scores
    lengths = samples.mask.sum(dim=1)
    entropies: list[float] = [float("nan")] * len(samples.texts)
    if samples.entropies is not None:
        entropies = (samples.entropies.sum(dim=1) / lengths.clamp(min=1)).tolist()
    shown = rollout.shown_rewards
    for i, problem in enumerate(problems):
        rows = slice(i * num_samples, (i + 1) * num_samples)
        row = {
            "protocol": protocol,
            "problem": start + i,
            "id": problem.id,
            "rewards": scores.values[rows],
            "statuses": scores.statuses[rows],
            "texts": samples.texts[rows],
            "answers": [answer_of(problem, text) for text in samples.texts[rows]],
            "lengths": lengths[rows].tolist(),
            "truncated": [reason == "length" for reason in samples.finish_reasons[rows]],
            "entropies": [round(x, 6) for x in entropies[rows]],
        }
        if shown is not None:
            row["draft_rewards"] = shown[rows].tolist()
            row["draft_texts"] = [rollout.draft_text(j) for j in range(rows.start, rows.stop)]
        yield row


def _row_check(path: Path, identity: Row) -> Callable[[Row], Row]:
    """A check of the rows of one file, in order; the first row fills `identity`."""
    seen: set[tuple[str, int]] = set()

    def check(row: Row) -> Row:
        if not identity:
            identity.update(_identity(row, path))
            return row
        missing = [name for name in ("protocol", "problem", *_PER_SAMPLE) if name not in row]
        if missing:
            raise ValueError(f"no {', '.join(map(repr, missing))}: not a row of an evaluation")
        K, count = identity["num_samples"], identity["problems"]["count"]
        wrong = [n for n in _PER_SAMPLE if not (isinstance(row[n], list) and len(row[n]) == K)]
        if wrong:
            raise ValueError(f"{', '.join(map(repr, wrong))}: not {K} samples")
        if row["problem"] not in range(count):
            raise ValueError(f"problem {row['problem']!r}: not one of {count}")
        if (row["protocol"], row["problem"]) in seen:
            raise ValueError(f"problem {row['problem']} a second time under {row['protocol']!r}")
        seen.add((row["protocol"], row["problem"]))
        return row

    return check


def _read(path: Path, on_error: OnError) -> StoredEvaluation:
    identity: Row = {}
    found: dict[str, list[Row]] = defaultdict(list)
    for row in read_checked_rows(path, _row_check(path, identity), on_error=on_error):
        if "format" not in row:
            found[row["protocol"]].append(row)
    if not identity:
        raise ValueError(f"{path}, line 1: not the head of an evaluation ({FORMAT!r} expected)")
    return StoredEvaluation(
        identity, {p: sorted(rows, key=lambda row: row["problem"]) for p, rows in found.items()}
    )


def read_evaluation(path: str | Path, *, on_error: OnError = "raise") -> StoredEvaluation:
    """Read a file written by `evaluate_to_file`, packed or not.

    Args:
        path: the file.
        on_error: "skip" reads the valid rows, with a warning.

    Raises:
        ValueError: a line is damaged or of another kind (the message has file and line), or the evaluation is
            incomplete.
    """
    path = Path(path)
    stored = _read(path, on_error)
    count = stored.identity["problems"]["count"]
    for protocol, rows in stored.rows.items():
        if len(rows) < count:
            message = f"{path}: {len(rows)} of {count} problems under {protocol!r}; it can be resumed"
            if on_error == "raise":
                raise ValueError(message)
            warnings.warn(message, SkippedLinesWarning, stacklevel=2)
    return stored
