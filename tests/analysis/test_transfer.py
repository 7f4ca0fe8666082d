"""Transfer on models where it is known: what q and q' share is put into them by hand."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from igrpo_kit.analysis.transfer import (
    answer_log_probs,
    answer_tokens,
    exact_row,
    limiting_tokens,
    live_share,
    measure_transfer,
    unique_answers,
)
from igrpo_kit.core.prompts import PromptFormat
from igrpo_kit.policies.policy import Policy
from igrpo_kit.policies.samplers.scripted import ScriptedSampler
from igrpo_kit.tasks.problem import Problem
from tests.tiny_models import ANSWER, CHARACTERS, EOS, VOCABULARY, tokenizer

FORMAT = PromptFormat(system=None, refinement="{draft}:{question}")
SHOWN = 4 + CHARACTERS.index(":")  # the token that tells q' from q
PROBLEMS = [Problem(str(i), f"{i}+{i}=", "12", "cipher-0") for i in range(4)]
WRONG = ["34"]


class Linear(nn.Module):
    """Next-token logits are a row of a table: `shared` of it from one table, `own` from one of q or of q'."""

    def __init__(self, shared: float, own: float) -> None:
        super().__init__()
        self.shared, self.own = torch.full((VOCABULARY, 1), shared), torch.full((VOCABULARY, 1), own)
        self.common, self.on_q, self.on_draft = (
            nn.Parameter(torch.zeros(VOCABULARY, VOCABULARY)) for _ in "123"
        )
        self.bias = torch.zeros(VOCABULARY, VOCABULARY)
        self.head = nn.Linear(VOCABULARY, VOCABULARY, bias=False)
        self.head.weight = nn.Parameter(torch.eye(VOCABULARY), requires_grad=False)
        self.config, self.device = SimpleNamespace(_attn_implementation="sdpa"), torch.device("cpu")

    def get_decoder(self):
        return self

    def get_output_embeddings(self):
        return self.head

    def forward(self, input_ids, **_):
        has_draft = (input_ids == SHOWN).any(dim=1)[:, None, None]
        own = torch.where(has_draft, self.on_draft[input_ids], self.on_q[input_ids])
        hidden = self.shared[input_ids] * self.common[input_ids] + self.own[input_ids] * own
        return SimpleNamespace(last_hidden_state=hidden + self.bias[input_ids])


def sampler(model, texts=None):
    """Draws the texts in their order; by default two wrong drafts of each problem."""
    scripted = ScriptedSampler(texts or WRONG * 100, tokenizer(), prompt_format=FORMAT)
    scripted.policy = Policy("linear", model, tokenizer(), FORMAT)
    return scripted


def exact(problems, completions):
    return [float(c == p.answer) for p, c in zip(problems, completions, strict=True)]


def measure(model, problems=PROBLEMS, texts=None, **options):
    rng = np.random.default_rng(0)
    return measure_transfer(sampler(model, texts), exact, problems, rng=rng, samples=2, **options)


@pytest.mark.parametrize(
    ("shared", "own", "s"), [(1.0, 0.0, 1.0), (0.0, 1.0, 0.0), (1.0, 3**0.5, 0.25), (1.0, 1.0, 0.5)]
)
def test_transfer_is_the_shared_part_of_the_gradient(shared, own, s):
    """A step moves the logits of q' by shared^2 + own^2 of the gradient, and those of q by shared^2."""
    found = measure(Linear(shared, own))
    for interval in (found.all_tokens, found.limiting, found.against_q):
        assert interval.estimate == pytest.approx(s, abs=0.01)
        assert interval.low == pytest.approx(interval.high)  # the problems are all alike
    assert found.problems == 2


def test_the_tokens_that_limit_p_can_learn_nothing_while_the_others_do():
    model = Linear(1.0, 0.0)
    model.shared[ANSWER], model.own[ANSWER] = 0.0, 1.0  # the first digit has tables of its own
    model.bias[ANSWER, 4 + CHARACTERS.index("1")] = -5.0  # and is the rarest
    found = measure(model)
    assert found.limiting.estimate == pytest.approx(0.0, abs=1e-6)
    assert found.all_tokens.estimate == pytest.approx(0.65, abs=0.01)  # 2 x .97 of 1.03 + 2 x .97


def test_the_policy_is_the_same_afterwards():
    model = Linear(1.0, 1.0)
    with torch.no_grad():
        model.common.normal_()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    measure(model)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


def test_where_no_draft_is_wrong_or_none_can_be_repaired_nothing_is_known():
    right = measure(Linear(1.0, 0.0), texts=["12"] * 8)
    assert right.problems == 0 and np.isnan(right.all_tokens.estimate)
    no_gradient = Linear(0.0, 0.0)
    assert np.isnan(measure(no_gradient).limiting.estimate)


def test_a_step_that_does_not_raise_q_prime_elsewhere_says_nothing():
    """The second half has other answers, which lose what those of the first half win."""
    problems = [*PROBLEMS[:2], *(replace(p, answer="56") for p in PROBLEMS[2:])]
    model = Linear(1.0, 0.0)
    model.bias[:, EOS] = 50.0  # the shared end of the answer is certain
    model.bias[ANSWER, EOS] = 0.0
    model.shared[4 + CHARACTERS.index("1")] = model.shared[4 + CHARACTERS.index("5")] = 0.0
    found = measure(model, problems).all_tokens
    assert np.isnan(found.estimate) and (found.low, found.high) == (-np.inf, np.inf)


def test_without_unique_answers_own_corrections_are_the_targets():
    sums = [replace(p, source="addition") for p in PROBLEMS]
    drafts, refined = ["34", "34"] * 2, ["12", "34"] * 2
    found = measure(Linear(1.0, 1.0), sums, texts=[*drafts, *refined] * 2)
    assert found.all_tokens.estimate == pytest.approx(0.5, abs=0.01) and found.problems == 2
    never = measure(Linear(1.0, 1.0), sums, texts=["34"] * 16)
    always = measure(Linear(1.0, 1.0), sums, texts=[*drafts, *["12"] * 4] * 2)
    assert np.isnan(never.all_tokens.estimate)
    assert np.isnan(always.all_tokens.estimate)  # r (1 - r) = 0: such groups are dead


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="problems: at least 4"):
        measure(Linear(1.0, 0.0), PROBLEMS[:3])


@pytest.mark.parametrize(
    ("log_probs", "limiting"),
    [
        ([-1.0, -3.0, -2.0, 0.0], [1]),  # 3 of 6
        ([-1.0, -2.0, -2.5, -0.5], [1, 2]),  # 2.5 of 6 is not enough
        ([-1.0, -1.0, -1.0, -1.0], [0, 1]),
        ([0.0, 0.0, 0.0, 0.0], []),
    ],
)
def test_limiting_tokens_by_hand(log_probs, limiting):
    found = limiting_tokens(torch.tensor([log_probs], dtype=torch.float64))
    assert found[0].nonzero().flatten().tolist() == limiting


def test_answers_in_chunks_are_those_of_one_batch():
    policy = sampler(Linear(1.0, 1.0)).policy
    with torch.no_grad():
        policy.model.common.normal_()
    problems = [Problem(str(i), "1+1=", "12345"[: 1 + i % 5], "cipher-0") for i in range(130)]
    drafts = [str(i) for i in range(130)]
    whole, _ = answer_log_probs(policy, problems, drafts)
    assert torch.allclose(answer_tokens(policy, problems, drafts).float(), whole)


def test_exact_row_of_a_uniform_model():
    row = exact_row(sampler(Linear(1.0, 0.0), ["12", "34", "34", "34"]), PROBLEMS)
    assert row["p"] == row["repair"] == pytest.approx(32**-3)
    assert row["live/q8"] == pytest.approx(8 * 32**-3, rel=1e-3)
    assert (row["drafts_wrong"], row["reliance"]) == (0.75, 0)


def test_live_share_where_float32_has_none():
    assert live_share(torch.tensor([1e-9]), 8) == pytest.approx(8e-9)
    assert live_share(torch.tensor([0.5, 1.0]), 2) == 0.25


def test_unique_answers_by_source():
    sources = {"cipher-0": True, "countdown": False, "addition": False, "gsm8k": False}
    for source, unique in sources.items():
        assert unique_answers([Problem("a", "q", "1", source)]) is unique
    assert not unique_answers([Problem("a", "q", "1", "cipher-0"), Problem("b", "q", "1", "countdown")])
