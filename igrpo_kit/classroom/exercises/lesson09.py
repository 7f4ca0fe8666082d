"""Exercises of lesson 09, entropy and pass@N."""

from collections import Counter

import numpy as np
import torch
from torch import Tensor

from igrpo_kit.classroom.exercise import Arguments, Exercise, FunctionCheck, ValueCheck


def entropy(logits: Tensor) -> Tensor:
    """-sum p log p over the whole vocabulary, in nats (Eq. 7)."""
    log_probs = logits.log_softmax(dim=-1)
    return -(log_probs.exp() * log_probs).sum(dim=-1)


def _in_bits(logits: Tensor) -> Tensor:
    """Those are bits (log to the base 2); the paper and the records have nats."""
    return entropy(logits) / np.log(2)


def _surprise(logits: Tensor) -> Tensor:
    """-log p of the likeliest token is a surprise; the entropy is its mean over *all* tokens."""
    return -logits.log_softmax(dim=-1).amax(dim=-1)


def _no_softmax(logits: Tensor) -> Tensor:
    """Logits are not log-probs: apply log_softmax first."""
    return -(logits.exp() * logits).sum(dim=-1)


def _negative(logits: Tensor) -> Tensor:
    """The sign: entropy is never negative."""
    return -entropy(logits)


def _random_logits(rng: np.random.Generator) -> list[Arguments]:
    return [(torch.tensor(rng.normal(size=(2, 3, 6)) * 2),)]


_ENTROPY = FunctionCheck(
    reference=entropy,
    typed=[
        ((torch.zeros(1, 4),), torch.tensor([1.3862944])),
        ((torch.tensor([[0.0, 200.0]]),), torch.zeros(1)),
    ],
    random=_random_logits,
    mistakes=[_in_bits, _surprise, _no_softmax, _negative],
)


def majority(answers: list[str]) -> str:
    """The most frequent answer; of a tie, the one seen first."""
    return Counter(answers).most_common(1)[0][0]


def _last_of_a_tie(answers: list[str]) -> str:
    """Of a tie you take the last one seen; the rule here is the first."""
    counts = Counter(answers)
    return max(reversed(list(counts)), key=counts.__getitem__)


def _least(answers: list[str]) -> str:
    """That is the rarest answer."""
    counts = Counter(answers)
    return min(counts, key=counts.__getitem__)


def _first(answers: list[str]) -> str:
    """You return the first answer, however often the others occur: that is pass@1, not a vote."""
    return answers[0]


def _random_answers(rng: np.random.Generator) -> list[Arguments]:
    return [([str(a) for a in rng.integers(0, 3, n)],) for n in (3, 4, 7, 9, 8, 6)] + [
        (["1", "0", "0", "1"],)
    ]


_MAJORITY = FunctionCheck(
    reference=majority,
    typed=[
        ((["4", "7", "7"],), "7"),
        ((["7", "4", "7"],), "7"),
        ((["7", "4", "4", "7"],), "7"),
        ((["1", "2", "3"],), "1"),
        ((["9", "10", "10", "9", "3"],), "9"),  # neither the largest, nor the smallest, nor the last
        ((["b", "a", "c", "c", "a", "d"],), "a"),  # a tie that is not with the first answer
        ((["12", "12", "-3", "-3", "-3"],), "-3"),
        ((["5"],), "5"),
    ],
    random=_random_answers,
    mistakes=[_last_of_a_tie, _least, _first],
)


def transitions(draft_correct: list[bool], refinement_correct: list[bool]) -> tuple[int, int, int, int]:
    """Counts of kept, regressed, repaired and still incorrect refinements."""
    count = Counter(zip(draft_correct, refinement_correct, strict=True))
    return count[True, True], count[True, False], count[False, True], count[False, False]


def _swapped(draft_correct: list[bool], refinement_correct: list[bool]) -> tuple[int, int, int, int]:
    """Regressed and repaired are swapped: correct → incorrect comes before incorrect → correct."""
    a, b, c, d = transitions(draft_correct, refinement_correct)
    return a, c, b, d


def _independent(draft_correct: list[bool], refinement_correct: list[bool]) -> tuple[int, int, int, int]:
    """You counted drafts and refinements separately; a transition is a *pair*."""
    d, r = sum(draft_correct), sum(refinement_correct)
    return d, len(draft_correct) - d, r, len(draft_correct) - r


def _marginals(draft_correct: list[bool], refinement_correct: list[bool]) -> tuple[int, int, int, int]:
    """The order of the four is mixed up: it starts with correct → correct."""
    return transitions(draft_correct, refinement_correct)[::-1]


def _random_pairs(rng: np.random.Generator) -> list[Arguments]:
    return [(rng.random(n).__lt__(0.6).tolist(), rng.random(n).__lt__(0.5).tolist()) for n in (9, 30)]


_TRANSITIONS = FunctionCheck(
    reference=transitions,
    typed=[(([True, True, True, True, False, False], [True, True, False, False, True, False]), (2, 2, 1, 1))],
    random=_random_pairs,
    mistakes=[_swapped, _independent, _marginals],
)

_EQUAL_WHAT = ValueCheck(
    right="accuracy",
    mistakes={
        "steps": "At equal steps a policy that has learned less is also less sure of itself: "
        "slower learning and delayed collapse look alike.",
        "tokens": "The budget is fair, but the two policies have still learned different amounts.",
    },
    otherwise="Answer with one of the words: 'steps', 'tokens', 'accuracy'.",
)

EXERCISES = [
    Exercise("entropy", "09", "code", difficulty=1, minutes=8, verify=_ENTROPY),
    Exercise("equal_what", "09", "prediction", difficulty=2, minutes=3, verify=_EQUAL_WHAT),
    Exercise("majority", "09", "code", difficulty=2, minutes=6, verify=_MAJORITY),
    Exercise("transitions", "09", "code", difficulty=1, minutes=6, verify=_TRANSITIONS),
]
