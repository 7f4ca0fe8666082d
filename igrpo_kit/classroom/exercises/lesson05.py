"""Exercises of lesson 05, the two stages."""

import numpy as np
import torch
from torch import Tensor

from igrpo_kit.classroom.exercise import Arguments, Exercise, FunctionCheck, ValueCheck
from igrpo_kit.core.advantages import group_advantages
from igrpo_kit.core.selection import select_best_draft

_T, _F = True, False


def _random_rewards(rng: np.random.Generator) -> list[Arguments]:
    return [(torch.tensor(rng.random((5, 3))),), (torch.tensor(rng.integers(0, 2, (6, 4)).astype(float)),)]


def _last_of_a_tie(rewards: Tensor) -> Tensor:
    """Among equal rewards you take the last; the convention is the first (the paper is silent)."""
    return rewards.shape[1] - 1 - select_best_draft(rewards.flip(1))


def _worst(rewards: Tensor) -> Tensor:
    """That is the worst draft, the control of `select_worst_draft`."""
    return select_best_draft(-rewards)


def _best_prompt(rewards: Tensor) -> Tensor:
    """The arg max runs over dim 0, the prompts; drafts of one prompt are compared: dim 1."""
    return select_best_draft(rewards.T.contiguous())


def _of_all(rewards: Tensor) -> Tensor:
    """One index into the whole flattened tensor; one index per prompt is needed, shape [P]."""
    return rewards.flatten().argmax()


_SELECT_BEST_DRAFT = FunctionCheck(
    reference=select_best_draft,
    typed=[((torch.tensor([[0.0, 1.0, 1.0], [0.2, 0.1, 0.0], [0.5, 0.5, 0.5]]),), torch.tensor([1, 0, 0]))],
    random=_random_rewards,
    mistakes=[_last_of_a_tie, _worst, _best_prompt, _of_all],
)


def refinement_prompt(question: str, draft: str) -> str:
    """q' in the paper's order (Eq. 3): the question, then the draft between tags."""
    return f"{question}\n\nA prior draft:\n<draft>\n{draft}\n</draft>"


def _draft_first(question: str, draft: str) -> str:
    """The draft stands before the question, as in `tiny`. Asked for is the paper's order, Eq. 3: after q."""
    return f"A prior draft:\n<draft>\n{draft}\n</draft>\n\n{question}"


def _no_question(question: str, draft: str) -> str:
    """The question is missing: q' = Concat(q, draft), and the draft alone does not say what was asked."""
    return f"A prior draft:\n<draft>\n{draft}\n</draft>"


def _no_draft(question: str, draft: str) -> str:
    """The draft is missing: that is q, and Stage 2 would be GRPO."""
    return question


def _no_tags(question: str, draft: str) -> str:
    """Without tags it is unclear where the draft begins and ends."""
    return f"{question}\n\nA prior draft:\n{draft}"


_REFINEMENT_PROMPT = FunctionCheck(
    reference=refinement_prompt,
    typed=[(("What is 3 + 4?", "It is 8."), "What is 3 + 4?\n\nA prior draft:\n<draft>\nIt is 8.\n</draft>")],
    random=lambda rng: [(f"{rng.integers(99)} + 1 = ?", f"{rng.integers(99)}")],
    mistakes=[_draft_first, _no_question, _no_draft, _no_tags],
)


_MESSAGES = [
    {"role": "user", "tokens": 3},
    {"role": "assistant", "tokens": 2},
    {"role": "user", "tokens": 1},
    {"role": "assistant", "tokens": 4},
]


def trained_tokens(messages: list[dict]) -> list[bool]:
    """True on the tokens of the last message alone: what was sampled in Stage 2."""
    before = sum(m["tokens"] for m in messages[:-1])
    return [False] * before + [True] * messages[-1]["tokens"]


def _by_role(messages: list[dict]) -> list[bool]:
    """Still the bug: the draft is an assistant's message too, and its tokens are trained. It is context."""
    return [m["role"] == "assistant" for m in messages for _ in range(m["tokens"])]


def _first_reply(messages: list[dict]) -> list[bool]:
    """You train the draft and not the refinement: the *last* message is what Stage 2 sampled."""
    i = next(i for i, m in enumerate(messages) if m["role"] == "assistant")
    return [j == i for j, m in enumerate(messages) for _ in range(m["tokens"])]


def _all_tokens(messages: list[dict]) -> list[bool]:
    """Everything is trained, the question too."""
    return [True for m in messages for _ in range(m["tokens"])]


def _nothing(messages: list[dict]) -> list[bool]:
    """Nothing is trained: the refinement's tokens must be True."""
    return [False for m in messages for _ in range(m["tokens"])]


def _random_chats(rng: np.random.Generator) -> list[Arguments]:
    roles = ["user", "assistant"] * 3
    return [([{"role": r, "tokens": int(rng.integers(1, 5))} for r in roles[:n]],) for n in (2, 4, 6)]


_BUG_DRAFT_TOKENS = FunctionCheck(
    reference=trained_tokens,
    typed=[
        ((_MESSAGES,), [_F] * 6 + [_T] * 4),
        ((_MESSAGES[:2],), [_F] * 3 + [_T] * 2),
        # two drafts before the refinement, all of different lengths
        (
            (
                [
                    {"role": role, "tokens": tokens}
                    for role, tokens in zip(["user", "assistant"] * 3, (2, 4, 1, 3, 5, 2), strict=True)
                ],
            ),
            [_F] * 15 + [_T] * 2,
        ),
    ],
    random=_random_chats,
    mistakes=[_by_role, _first_reply, _all_tokens, _nothing],
)


def stage2_log_ratio(on_q: Tensor, on_q_prime: Tensor, old_on_q_prime: Tensor) -> Tensor:
    """log pi(o | q') - log pi_old(o | q'): both conditioned on what the refinement was sampled from."""
    return on_q_prime - old_on_q_prime


def _on_q(on_q: Tensor, on_q_prime: Tensor, old_on_q_prime: Tensor) -> Tensor:
    """Still the bug: the numerator is conditioned on q, while the refinement was sampled from q'."""
    return on_q - old_on_q_prime


def _upside_down(on_q: Tensor, on_q_prime: Tensor, old_on_q_prime: Tensor) -> Tensor:
    """Upside down: the new policy's log-prob minus the old one's."""
    return old_on_q_prime - on_q_prime


def _two_contexts(on_q: Tensor, on_q_prime: Tensor, old_on_q_prime: Tensor) -> Tensor:
    """That compares one policy in two contexts; the ratio compares two policies in one."""
    return on_q_prime - on_q


def _random_triples(rng: np.random.Generator) -> list[Arguments]:
    return [tuple(torch.tensor(-rng.random((2, 4))) for _ in range(3))]


_BUG_RATIO = FunctionCheck(
    reference=stage2_log_ratio,
    typed=[
        (
            (torch.tensor([[-3.0, -2.0]]), torch.tensor([[-1.0, -0.5]]), torch.tensor([[-1.0, -0.5]])),
            torch.tensor([[0.0, 0.0]]),
        )
    ],
    random=_random_triples,
    mistakes=[_on_q, _upside_down, _two_contexts],
)


def grouped_advantages(prompts: list[str], rewards: Tensor, group_size: int) -> Tensor:
    """Advantages of rows [B]; each run of `group_size` rows is a group, whatever the prompts say."""
    return group_advantages(rewards.view(-1, group_size)).flatten()


def _by_text(prompts: list[str], rewards: Tensor, group_size: int) -> Tensor:
    """Still the bug: two equal questions in a batch become one group of double size. A group is an axis."""
    out = torch.zeros_like(rewards)
    for text in set(prompts):
        rows = [i for i, p in enumerate(prompts) if p == text]
        out[rows] = group_advantages(rewards[rows][None])[0]
    return out


def _one_group(prompts: list[str], rewards: Tensor, group_size: int) -> Tensor:
    """The whole batch is one group: easy and hard questions are compared with each other."""
    return group_advantages(rewards[None])[0]


def _columns(prompts: list[str], rewards: Tensor, group_size: int) -> Tensor:
    """You took columns for groups: rows are row-major by prompt, so a group is group_size rows in a run."""
    return group_advantages(rewards.view(group_size, -1).T.contiguous()).T.flatten()


def _random_batches(rng: np.random.Generator) -> list[Arguments]:
    return [
        ([text for text in texts for _ in range(size)], torch.tensor(rng.random(len(texts) * size)), size)
        for texts, size in (("aba", 3), ("ab", 4), ("abca", 3), ("aabb", 2))
    ]


_BUG_GROUP_BY_TEXT = FunctionCheck(
    reference=grouped_advantages,
    typed=[
        ((["a"] * 4, torch.tensor([1.0, 0.0, 0.0, 0.0]), 2), torch.tensor([0.7071068, -0.7071068, 0.0, 0.0]))
    ],
    random=_random_batches,
    mistakes=[_by_text, _one_group, _columns],
)


def _blocks(prompt_length: int, lengths: list[int]) -> Tensor:
    """[L]: 0 for the tokens of the prompt, g for those of completion g."""
    return torch.tensor([0] * prompt_length + [g for g, n in enumerate(lengths, 1) for _ in range(n)])


def shared_prefix_mask(prompt_length: int, lengths: list[int]) -> Tensor:
    """[L, L], True where token i may look: at the prompt and at its own completion, up to itself."""
    block = _blocks(prompt_length, lengths)
    return ((block[:, None] == block) | (block == 0)).tril()


def _causal_only(prompt_length: int, lengths: list[int]) -> Tensor:
    """Causal alone: the second completion reads the first one. They must not see each other."""
    L = prompt_length + sum(lengths)
    return torch.ones(L, L, dtype=torch.bool).tril()


def _no_prompt(prompt_length: int, lengths: list[int]) -> Tensor:
    """Completions do not see the prompt: they were sampled from it."""
    block = _blocks(prompt_length, lengths)
    return (block[:, None] == block).tril()


def _not_causal(prompt_length: int, lengths: list[int]) -> Tensor:
    """A token sees what comes after it: keep only earlier tokens and the token itself."""
    block = _blocks(prompt_length, lengths)
    return (block[:, None] == block) | (block == 0)


def _transposed(prompt_length: int, lengths: list[int]) -> Tensor:
    """Rows and columns are swapped: row i says what token i may look at."""
    return shared_prefix_mask(prompt_length, lengths).T.contiguous()


_SHARED_PREFIX_MASK = FunctionCheck(
    reference=shared_prefix_mask,
    typed=[
        ((1, [1, 2]), torch.tensor([[_T, _F, _F, _F], [_T, _T, _F, _F], [_T, _F, _T, _F], [_T, _F, _T, _T]]))
    ],
    random=lambda rng: [(int(rng.integers(1, 4)), rng.integers(1, 4, 3).tolist())],
    mistakes=[_causal_only, _no_prompt, _not_causal, _transposed],
)

_MATCHED_BUDGET = ValueCheck(
    right=8,
    mistakes={
        4: "iGRPO samples 4 drafts *and* 4 refinements; 4 samples are half of that budget.",
        16: "Drafts and refinements add up, N + G; they are not multiplied.",
        5: "All four drafts cost a rollout, including the three that are not shown.",
    },
    otherwise="Count the completions iGRPO samples for one prompt: N drafts, then G refinements.",
)

EXERCISES = [
    Exercise("select_best_draft", "05", "code", difficulty=1, minutes=5, verify=_SELECT_BEST_DRAFT),
    Exercise("matched_budget", "05", "prediction", difficulty=1, minutes=2, verify=_MATCHED_BUDGET),
    Exercise("refinement_prompt", "05", "code", difficulty=1, minutes=5, verify=_REFINEMENT_PROMPT),
    Exercise("bug_draft_tokens", "05", "bug", difficulty=2, minutes=8, verify=_BUG_DRAFT_TOKENS),
    Exercise("bug_ratio", "05", "bug", difficulty=2, minutes=8, verify=_BUG_RATIO),
    Exercise("bug_group_by_text", "05", "bug", difficulty=2, minutes=10, verify=_BUG_GROUP_BY_TEXT),
    Exercise("shared_prefix_mask", "05", "code", difficulty=3, minutes=20, verify=_SHARED_PREFIX_MASK),
]
