"""What a policy can do after training: K samples per problem under three ways of asking.

- `q`: single-shot from the question, the paper's way (Section 3.2.1) and the only one that needs no draft.
- `own_draft`: one sample from q is shown as the draft, whatever it is worth. Needs no reward.
- `best_of_n`: the best of N samples is shown. Needs the reward at inference: an oracle, so compare it with
  best-of-N of the baseline, not with its single shot.

`evaluate` counts and forgets the completions; `evaluate_to_file` keeps them all and survives being killed.
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
from igrpo_kit.tasks.problem import Problem
from igrpo_kit.tasks.rewards import RewardLike, as_reward
from igrpo_kit.tasks.verification import answer_of
from igrpo_kit.training.metrics import rollout_metrics
from igrpo_kit.training.rollout import Rollout, igrpo_rollout

Protocol = Literal["q", "own_draft", "best_of_n"]
PROTOCOLS: tuple[Protocol, ...] = get_args(Protocol)


@dataclass(frozen=True)
class Evaluation:
    """K graded samples for each problem, counted: enough for any pass@k and its interval."""

    protocol: str
    temperature: float
    num_samples: int
    correct: list[int]
    """per problem, how many of its K samples reached the full reward"""
    reward: list[float]
    """per problem, the mean reward of its K samples"""
    draft_correct: list[int] | None
    """per problem, how many of the K drafts that were shown were correct; None where none was shown"""
    entropy: float
    """nats per token, over the samples that were graded"""
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
    """Sample and grade K = `num_samples` completions per problem at the sampler's temperature.

    Under `own_draft` and `best_of_n` every one of the K samples gets a draft of its own, so samples of one
    problem stay independent. `num_drafts` is best_of_n's N.

    Raises ValueError for an unknown protocol.
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
    """K completions per problem, row-major by problem, whatever the protocol."""
    if protocol not in PROTOCOLS:
        raise ValueError(f"protocol: one of {PROTOCOLS}, got {protocol!r}")
    if protocol == "q":
        return igrpo_rollout(sampler, reward, problems, num_drafts=0, num_refinements=num_samples)
    asked = [problem for problem in problems for _ in range(num_samples)]  # each with a draft of its own
    drafts = 1 if protocol == "own_draft" else num_drafts
    return igrpo_rollout(sampler, reward, asked, num_drafts=drafts, num_refinements=1)


# ---------------------------------------------------------------- stored, and resumable

FORMAT = "igrpo_kit evaluation 1"
_PER_SAMPLE = ("rewards", "statuses", "texts", "answers", "lengths", "truncated", "entropies")


@dataclass(frozen=True)
class StoredEvaluation:
    """An evaluation file as it was read: every completion with its grade.

    Counts for the estimators come from `correct`: `pass_at_k_curve(K, correct.sum(axis=1))`,
    `pass_at_1_over_runs(correct)`, `majority_curve(answers, correct)`.
    """

    identity: Row
    """what was evaluated and how: policy, problems, settings, seed"""
    rows: dict[str, list[Row]]
    """by protocol, one row a problem in the order of the problems; see `evaluate_to_file`"""

    def rewards(self, protocol: str = "q") -> Float[np.ndarray, "P K"]:
        """Problems by samples; NaN for a completion that could not be scored."""
        rewards = [[np.nan if r is None else r for r in row["rewards"]] for row in self._of(protocol)]
        return np.array(rewards, dtype=float)

    def correct(self, protocol: str = "q") -> Bool[np.ndarray, "P K"]:
        """Which completions reached the full reward; one that could not be scored did not."""
        return self.rewards(protocol) >= self.identity["full_reward"]

    def answers(self, protocol: str = "q") -> list[list[str | None]]:
        """What the completions answer (`problems.answer_of`), for a majority vote."""
        return [row["answers"] for row in self._of(protocol)]

    def summary(self, protocol: str = "q") -> Evaluation:
        """Counts and means alone, as `evaluate` gives them."""
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
    """The first 16 hex digits of the SHA-256 of a model's weights: a name that no other weights have."""
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
    """`evaluate` under each protocol with every completion kept in `path`; goes on where it was killed.

    `make_sampler` gives a sampler of the policy for a seed, such as
    `lambda seed: HFSampler(policy, settings, seed=seed)`. Each call of it, for `problems_per_call`
    problems under one protocol, has a seed of its own, so that the result is the same wherever the evaluation
    was interrupted, and whichever protocols were asked for first. `policy` names what is evaluated: weights
    have no other name here, so put `fingerprint(model)` in it.

    The file's first line is the identity of the evaluation, every other one a problem under a protocol:
    `protocol`, `problem` (index), `id`, and for each of the K samples `rewards` (null: not scored),
    `statuses`, `texts`, `answers`, `lengths` (tokens), `truncated`, `entropies` (nats per token); where
    drafts were shown, `draft_rewards` and `draft_texts`.

    Raises ValueError where the file holds an evaluation with another identity, naming what differs, or is
    damaged other than by a crash; FileExistsError where only its packed form is there.
    """
    if not problems:
        raise ValueError("problems: at least one is needed")
    if unknown := set(protocols) - set(PROTOCOLS):
        raise ValueError(f"protocols: some of {PROTOCOLS}, got {sorted(unknown)}")
    path, reward, asked = Path(path), as_reward(reward), make_sampler(seed)
    identity: Row = {
        "policy": policy,
        "problems": {"count": len(problems), "sha256": _digest(problems)},
        "prompt_format": asdict(asked.policy.prompt_format),
        "sampling": asdict(asked.settings),
        "reward": reward.__name__,
        "full_reward": reward.full_reward,
        "num_samples": num_samples,
        "num_drafts": num_drafts,
        "seed": seed,
        "problems_per_call": problems_per_call,
    }
    done = _open(path, json.loads(json.dumps(identity)))  # as it reads back
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
    stored = _read(path, "raise")  # another protocol's part may still wait to be resumed
    return StoredEvaluation(stored.identity, {p: stored.rows[p] for p in protocols})


def _digest(problems: Sequence[Problem]) -> str:
    text = "\n".join(f"{p.id}\t{p.question}\t{p.answer}" for p in problems)
    return sha256(text.encode("utf-8", "backslashreplace")).hexdigest()


def _seed(seed: int, protocol: Protocol, start: int) -> int:
    entropy = [seed, PROTOCOLS.index(protocol), start]
    return int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0] >> 8)


def _open(path: Path, identity: Row) -> set[tuple[str, int]]:
    """Make the file, or check that it is this evaluation's; the calls it holds whole, as (protocol, start).

    What a crash left of a call is dropped, that call is made again.
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
            row["draft_rewards"] = [round(x, 6) for x in shown[rows].tolist()]
            row["draft_texts"] = [rollout.draft_text(j) for j in range(rows.start, rows.stop)]
        yield row


def _row_check(path: Path, identity: Row) -> Callable[[Row], Row]:
    """A check of one file's rows in order; the head fills `identity`."""
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
    """Read what `evaluate_to_file` wrote, packed or not.

    Raises ValueError naming file and line for a line that is damaged or of another kind, and for an
    evaluation that is not complete; on_error="skip" reads what is there, with a warning.
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
