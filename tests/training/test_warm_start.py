"""The supervised warm start, on a model of a few thousand weights: nothing is fetched here."""

import copy
import json
from dataclasses import replace

import pytest
import torch
from torch.nn.functional import cross_entropy

from igrpo_kit.policies.load import load_policy
from igrpo_kit.policies.samplers.encoding import encode_prompts
from igrpo_kit.tasks.problem import Problem
from igrpo_kit.tasks.sets.gym import sum_problems
from igrpo_kit.tasks.verification import verify
from igrpo_kit.training import sft
from igrpo_kit.training.sft import PLAIN_FORMAT, prepare_smollm2_sums, warm_start, worked_sum

PAIRS = [("3,7,5:26", "3*7+5"), ("1,2,3:6", "1+2+3"), ("9,8,1:71", "9*8-1"), ("2,2,2:8", "2*2*2")]


@pytest.mark.parametrize(
    ("question", "worked"),
    [
        ("Sum: 20 - 56 - 31 =", "20 - 56 = -36, -36 - 31 = <answer>-67</answer>"),
        ("57 + 87 + 70 =", "57 + 87 = 144, 144 + 70 = <answer>214</answer>"),
        ("What is 10 - 90 + 99 =", "10 - 90 = -80, -80 + 99 = <answer>19</answer>"),
    ],
)
def test_worked_sums_by_hand(question, worked):
    assert worked_sum(question) == worked


@pytest.mark.parametrize("question", ["", "1 + 2 =", "1 + 2 * 3 =", "1 + 2 + 3", "1 + 2 + 3 = 6"])
def test_what_is_no_sum_of_three_is_refused(question):
    with pytest.raises(ValueError, match="not a sum of three numbers"):
        worked_sum(question)


def test_every_worked_sum_is_right_for_the_verifier_and_a_wrong_one_is_not():
    problems = sum_problems(200, seed=5)
    assert {verify(p, worked_sum(p.question)) for p in problems} == {(1.0, "correct")}
    p = problems[0]
    wrong = Problem(p.id, p.question, str(int(p.answer) + 1), p.source)
    assert verify(wrong, worked_sum(p.question)) == (0.0, "incorrect")
    assert [p.question for p in sum_problems(50, seed=5)] == [p.question for p in problems[:50]]
    with pytest.raises(ValueError, match="distinct"):
        sum_problems(3, seed=0, distinct=False)


def fresh():
    policy = load_policy("tiny", device="cpu")
    return replace(policy, model=copy.deepcopy(policy.model))


def naive_loss(policy, pairs):
    """Row by row, nats per answer token, the end of the sequence among them."""
    total, tokens = 0.0, 0
    for question, answer in pairs:
        (prompt,) = encode_prompts(policy.tokenizer, [policy.prompt_format.problem_messages(question)])
        taught = [
            *policy.tokenizer(answer, add_special_tokens=False).input_ids,
            policy.tokenizer.eos_token_id,
        ]
        with torch.no_grad():
            logits = policy.model(torch.tensor([prompt + taught])).logits[0, len(prompt) - 1 : -1]
        total += cross_entropy(logits, torch.tensor(taught), reduction="sum").item()
        tokens += len(taught)
    return total / tokens


def test_the_loss_is_that_of_the_answers_tokens_and_falls():
    policy = fresh()
    before = [naive_loss(policy, PAIRS[:3]), naive_loss(policy, PAIRS[3:])]
    losses = warm_start(policy, PAIRS, batch=3, learning_rate=0.0)  # the last batch has what is left
    assert list(losses) == pytest.approx(before, abs=1e-5)
    for _ in warm_start(policy, PAIRS * 10, batch=4, learning_rate=1e-3):
        pass
    assert naive_loss(policy, PAIRS) < 0.5 * naive_loss(fresh(), PAIRS)


def test_it_is_made_once_whole_and_asked_without_a_system_prompt(tmp_path, monkeypatch):
    policy = fresh()

    monkeypatch.setenv("IGRPO_DATA", str(tmp_path))
    models = tmp_path / "models"

    def fetch():
        policy.save(models / "smollm2")
        (models / "smollm2" / "prompt_format.json").unlink()  # as the fetched model: asked as in the paper
        return models / "smollm2"

    monkeypatch.setattr(sft, "fetch_smollm2", fetch)
    monkeypatch.setattr(sft, "WARM_START_STEPS", 2)
    folder = prepare_smollm2_sums()
    assert folder == models / "smollm2-sums"
    assert load_policy(folder, device="cpu").prompt_format == PLAIN_FORMAT
    record = json.loads((folder / "record.json").read_text())
    assert (record["steps"], len(record["losses"])) == (2, 2)
    assert {p.name for p in models.iterdir()} == {"smollm2", "smollm2-sums"}

    monkeypatch.setattr(sft, "fetch_smollm2", None)  # a second call must not need it
    assert prepare_smollm2_sums() == folder


def test_an_interrupted_warm_start_leaves_nothing_that_looks_finished(tmp_path, monkeypatch):
    def interrupted(*args):
        yield 1.0
        raise KeyboardInterrupt

    monkeypatch.setenv("IGRPO_DATA", str(tmp_path))
    monkeypatch.setattr(sft, "fetch_smollm2", lambda: "tiny")
    monkeypatch.setattr(sft, "warm_start", interrupted)
    with pytest.raises(KeyboardInterrupt):
        prepare_smollm2_sums()
    assert list(tmp_path.iterdir()) == []
