"""The stored evaluation: what it holds, and that being killed anywhere changes nothing."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from igrpo_kit.analysis.evaluation import evaluate, evaluate_to_file, fingerprint, read_evaluation
from igrpo_kit.analysis.stats.passk import majority_curve, pass_at_1_over_runs, pass_at_k_curve
from igrpo_kit.core.prompts import PromptFormat
from igrpo_kit.core.rows import SkippedLinesWarning, read_rows, write_rows
from igrpo_kit.policies.samplers.scripted import ScriptedSampler
from igrpo_kit.tasks.problem import Problem
from igrpo_kit.tasks.rewards import AccuracyReward, Scores, as_reward
from igrpo_kit.tasks.verification import answer_of

ROOT = Path(__file__).parents[2]
FORMAT = PromptFormat(system=None, refinement="{question} [{draft}]")
OTHER_FORMAT = PromptFormat(system="s", refinement="{question} {draft}")
SUMS = [Problem(str(i), f"{i}+{i}=", str(2 * i), "addition") for i in range(5)]


def scripted(texts, prompt_format=FORMAT):
    return ScriptedSampler(texts, prompt_format=prompt_format)


def seeded(seed, prompt_format=FORMAT):
    """A sampler whose digits depend on its seed alone."""
    rng = random.Random(seed)
    return scripted([rng.choice("02468") for _ in range(100)], prompt_format)


def graded(full_reward):
    """Accuracy with another full reward."""
    reward = AccuracyReward()
    reward.full_reward = full_reward
    return reward


def run(path, **options):
    settings = {
        "policy": "digits", "num_samples": 3, "protocols": ("q", "own_draft", "best_of_n"), "num_drafts": 2,
        "problems_per_call": 2, "progress": False, **options,
    }  # fmt: skip
    problems = settings.pop("problems", SUMS)
    make_sampler = settings.pop("make_sampler", seeded)
    reward = settings.pop("reward", AccuracyReward())
    return evaluate_to_file(path, make_sampler, reward, problems, **settings)


def test_rows_by_hand(tmp_path):
    drafts = ["0", "2", "5", "1=2"]  # shown one each; two samples for each of two problems
    script = [*drafts, "2", "9", "2", "x"]
    problems = [Problem("a", "1+1=", "2", "addition"), Problem("b", "0+2=", "2", "addition")]
    path = tmp_path / "evaluations" / "e.jsonl"
    stored = run(
        path, make_sampler=lambda seed: scripted(script), problems=problems, num_samples=2,
        protocols=("own_draft",), seed=7,
    )  # fmt: skip
    head, first, second = read_rows(path)
    assert head["format"] == "igrpo_kit evaluation 1"
    assert head["identity"]["seed"] == 7
    assert first == {
        "protocol": "own_draft", "problem": 0, "id": "a", "rewards": [1.0, 0.0],
        "statuses": ["correct", "incorrect"], "texts": ["2", "9"], "answers": ["2", "9"], "lengths": [2, 2],
        "truncated": [False, False], "entropies": [None, None], "draft_rewards": [0.0, 1.0],
        "draft_texts": ["0", "2"],
    }  # fmt: skip
    assert second["draft_rewards"] == [0.0, 1.0]
    assert second["statuses"] == ["correct", "unparsed_answer"]
    np.testing.assert_array_equal(stored.correct("own_draft"), [[True, False], [True, False]])
    summary = stored.summary("own_draft")
    assert (summary.correct, summary.reward, summary.draft_correct) == ([1, 1], [0.5, 0.5], [1, 1])
    assert (summary.length, summary.num_samples) == (2.0, 2)
    with pytest.raises(LookupError, match="own_draft"):
        stored.correct("q")


@pytest.mark.parametrize("protocol", ["q", "own_draft", "best_of_n"])
def test_the_summary_is_what_evaluate_gives(tmp_path, protocol):
    stored = run(
        tmp_path / "e.jsonl", protocols=(protocol,), problems_per_call=5, make_sampler=lambda _: seeded(1)
    )
    plain = evaluate(seeded(1), AccuracyReward(), SUMS, num_samples=3, protocol=protocol, num_drafts=2)
    left, right = stored.summary(protocol).to_row(), plain.to_row()
    assert np.isnan([left.pop("entropy"), right.pop("entropy")]).all()  # a script has none
    assert left == right


def test_cut_at_any_byte_and_resumed_the_file_is_the_same(tmp_path):
    whole = tmp_path / "whole.jsonl"
    run(whole)
    content = whole.read_bytes()
    cut = tmp_path / "cut.jsonl"
    head = content.index(b"\n") + 1
    for end in [*range(head, len(content), 97), len(content) - 1, len(content)]:
        cut.write_bytes(content[:end])
        run(cut)
        assert cut.read_bytes() == content, end
    assert sorted(p.name for p in tmp_path.iterdir()) == ["cut.jsonl", "whole.jsonl"]


@pytest.mark.faults
def test_killed_with_kill_9_it_goes_on(tmp_path):
    """A process that evaluates slowly gets SIGKILL after a few calls; this one finishes its file."""
    path = tmp_path / "killed.jsonl"
    code = (
        "import sys, time; from pathlib import Path; from tests.analysis import test_evaluation as t\n"
        "def slow(seed):\n    time.sleep(0.2)\n    return t.seeded(seed)\n"
        "t.run(Path(sys.argv[1]), make_sampler=slow)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", code, str(path)],
        cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    deadline = time.monotonic() + 120
    while not (path.exists() and path.read_bytes().count(b"\n") >= 4):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    done = path.read_bytes().count(b"\n") - 1
    assert 3 <= done < 15
    with pytest.raises(ValueError, match=r"problems under 'q'|cut off"):
        read_evaluation(path)
    calls = []

    def counting(seed):
        calls.append(seed)
        return seeded(seed)

    run(path, make_sampler=counting)
    assert len(calls) < 1 + 9  # one for the settings, and not all nine calls again
    run(tmp_path / "whole.jsonl")
    assert path.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


def test_protocols_asked_for_later_join_the_same_file(tmp_path):
    run(tmp_path / "a.jsonl")
    for protocol in ("best_of_n", "q", "own_draft"):
        run(tmp_path / "b.jsonl", protocols=(protocol,))
    a, b = (read_evaluation(tmp_path / name) for name in ("a.jsonl", "b.jsonl"))
    assert a.rows.keys() == b.rows.keys()
    assert all(a.rows[p] == b.rows[p] for p in a.rows)


def test_a_protocol_that_was_interrupted_does_not_hold_up_another(tmp_path):
    path = tmp_path / "e.jsonl"
    run(path, protocols=("own_draft",))
    path.write_bytes(
        b"".join(path.read_bytes().splitlines(keepends=True)[:4])
    )  # one of three calls, and a row
    assert list(run(path, protocols=("q",)).rows) == ["q"]
    with pytest.raises(ValueError, match="2 of 5 problems under 'own_draft'"):
        read_evaluation(path)
    assert run(path).rows == run(tmp_path / "whole.jsonl").rows


def test_nothing_is_sampled_again_when_all_is_there(tmp_path):
    first = run(tmp_path / "e.jsonl")

    def only_settings(seed):
        return scripted(["0"])

    assert run(tmp_path / "e.jsonl", make_sampler=only_settings).rows == first.rows


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"policy": "other"}, "policy"),
        ({"seed": 1}, "seed"),
        ({"num_samples": 4}, "num_samples"),
        ({"num_drafts": 3}, "num_drafts"),
        ({"problems_per_call": 5}, "problems_per_call"),
        ({"reward": graded(2.0)}, "full_reward"),
        ({"problems": [*SUMS[:4], Problem("4", "4+4=", "9", "addition")]}, "problems"),
        ({"make_sampler": lambda seed: scripted(["0" * 9])}, "sampling"),
        ({"make_sampler": lambda seed: seeded(seed, OTHER_FORMAT)}, "prompt_format"),
    ],
)
def test_another_evaluation_is_refused_by_name(tmp_path, change, named):
    run(tmp_path / "e.jsonl", protocols=("q",))
    before = (tmp_path / "e.jsonl").read_bytes()
    with pytest.raises(ValueError, match=f"holds another evaluation, {named} differ"):
        run(tmp_path / "e.jsonl", **change)
    assert (tmp_path / "e.jsonl").read_bytes() == before


def test_another_reward_is_refused(tmp_path):
    run(tmp_path / "e.jsonl", protocols=("q",))
    with pytest.raises(ValueError, match="reward"):
        evaluate_to_file(
            tmp_path / "e.jsonl", seeded, lambda p, c: [0.0] * len(c), SUMS, policy="digits", num_samples=3,
            num_drafts=2, problems_per_call=2, progress=False,
        )  # fmt: skip


def test_foreign_and_packed_files_are_not_overwritten(tmp_path):
    foreign = tmp_path / "metrics.jsonl"
    foreign.write_text('{"step": 1}\n')
    with pytest.raises(ValueError, match=r"metrics\.jsonl, line 1: not the head of an evaluation"):
        run(foreign)
    assert foreign.read_text() == '{"step": 1}\n'
    (tmp_path / "e.jsonl.gz").write_bytes(b"")
    with pytest.raises(FileExistsError, match="packed"):
        run(tmp_path / "e.jsonl")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda row: row.pop("texts"), "line 3: no 'texts'"),
        (lambda row: row["rewards"].pop(), "line 3: 'rewards': not 3 samples"),
        (lambda row: row.update(problem=0), "line 3: problem 0 a second time under 'q'"),
        (lambda row: row.update(problem=99), "line 3: problem 99: not one of 5"),
        (lambda row: row.update(lengths="abc"), "line 3: 'lengths': not 3 samples"),
    ],
)
def test_a_damaged_row_is_named_and_the_rest_is_read_on_request(tmp_path, damage, message):
    path = tmp_path / "e.jsonl"
    run(path, protocols=("q",))
    rows = list(read_rows(path))
    damage(rows[2])
    path.unlink()
    write_rows(path, rows)
    with pytest.raises(ValueError, match=rf"e\.jsonl, {message}"):
        read_evaluation(path)
    with pytest.warns(SkippedLinesWarning) as warned:
        stored = read_evaluation(path, on_error="skip")
    assert [message in str(w.message) for w in warned] == [True, False]
    assert "4 of 5 problems under 'q'" in str(warned[1].message)
    assert stored.correct("q").shape == (4, 3)


def test_a_file_without_its_head_is_refused_also_when_skipping(tmp_path):
    path = tmp_path / "e.jsonl"
    run(path, protocols=("q",))
    path.write_text("".join(path.read_text().splitlines(keepends=True)[1:]))
    with pytest.raises(ValueError, match="line 1: not the head"):
        read_evaluation(path)
    with pytest.raises(ValueError, match="line 1: not the head"), pytest.warns(SkippedLinesWarning):
        read_evaluation(path, on_error="skip")


class Judge(AccuracyReward):
    """Fails on every answer "2"."""

    def score(self, problems, completions):
        scores = super().score(problems, completions)
        values = [np.nan if c == "2" else v for c, v in zip(completions, scores.values, strict=True)]
        return Scores(values, scores.statuses)


def test_what_could_not_be_scored_is_not_correct_and_not_zero(tmp_path):
    problem = [Problem("a", "1+2=", "3", "addition")]
    script = ["2", "3", "4"]
    stored = evaluate_to_file(
        tmp_path / "e.jsonl", lambda seed: scripted(script), Judge(), problem, policy="p",
        num_samples=3, progress=False,
    )  # fmt: skip
    np.testing.assert_array_equal(stored.rewards("q"), [[np.nan, 1.0, 0.0]])
    assert stored.summary("q").correct == [1]
    assert stored.summary("q").reward == [0.5]


def test_a_draft_that_could_not_be_scored_was_not_shown(tmp_path):
    """Two drafts, both unscored: Stage 2 asks q itself; `evaluate` once failed on the missing index."""
    problem = [Problem("a", "1+2=", "3", "addition")]
    script = ["2", "2", "3"]
    options = {"num_samples": 1, "num_drafts": 2}
    counted = evaluate(scripted(script), Judge(), problem, protocol="best_of_n", **options)
    assert (counted.correct, counted.draft_correct) == ([1], [0])
    stored = evaluate_to_file(
        tmp_path / "e.jsonl", lambda seed: scripted(script), Judge(), problem, policy="p",
        protocols=("best_of_n",), progress=False, **options,
    )  # fmt: skip
    (row,) = stored.rows["best_of_n"]
    assert (row["draft_rewards"], row["draft_texts"]) == ([None], [None])


def test_what_counts_as_correct_is_the_rewards(tmp_path):
    """Accuracy + 1 for any answer: an incorrect one earns 1 of 2, and so do the drafts "4" and "9"."""

    def one_more(problems, completions):
        return [1.0 + (c == p.answer) for p, c in zip(problems, completions, strict=True)]

    reward = as_reward(one_more, full_reward=2.0)
    problem = [Problem("a", "1+2=", "3", "addition")]
    script = ["4", "3", "9", "3", "4", "3"]  # a draft for each of three samples, then these
    options = {"num_samples": 3, "num_drafts": 1}
    counted = evaluate(scripted(script), reward, problem, protocol="own_draft", **options)
    assert (counted.correct, counted.draft_correct, counted.reward) == ([2], [1], [1.666667])
    stored = evaluate_to_file(
        tmp_path / "e.jsonl", lambda seed: scripted(script), reward, problem, policy="p",
        protocols=("own_draft",), progress=False, **options,
    )  # fmt: skip
    summary = stored.summary("own_draft")
    assert (summary.correct, summary.draft_correct) == ([2], [1])
    assert stored.identity["full_reward"] == 2.0


def test_from_the_file_to_pass_at_n_and_majority(tmp_path):
    stored = run(tmp_path / "e.jsonl", protocols=("q",))
    correct, rng = stored.correct("q"), np.random.default_rng(0)
    curve = pass_at_k_curve(3, correct.sum(axis=1), rng=rng)
    assert curve.estimate[0] == pytest.approx(correct.mean())
    assert curve.estimate[2] == pytest.approx(correct.any(axis=1).mean())
    assert pass_at_1_over_runs(correct, rng=rng).over_runs.estimate == pytest.approx(correct.mean())
    assert majority_curve(stored.answers("q"), correct, [1], rng=rng).estimate[0] == pytest.approx(
        correct.mean()
    )


@pytest.mark.parametrize(
    ("source", "text", "answer"),
    [
        ("addition", "09,07=79", "79"),
        ("addition", " 79 ", "79"),
        ("countdown", r"first \boxed{1+2}, then \boxed{2+1}", "2+1"),
        ("countdown", "2+1", "2+1"),
        ("countdown", r"\boxed{2+1", None),
        ("countdown", "  ", None),
        ("math", "it is 7", None),
        ("math", r"it is \boxed{ 7 }", "7"),
    ],
)
def test_what_a_completion_answers(source, text, answer):
    assert answer_of(Problem("a", "q", "7", source), text) == answer


def test_other_weights_have_another_fingerprint():
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 2)
    before = fingerprint(model)
    assert fingerprint(model) == before
    with torch.no_grad():
        model.bias[0] += 1e-6
    assert fingerprint(model) != before
    assert len({before, fingerprint(model.bfloat16()), fingerprint(torch.nn.Linear(2, 3))}) == 3


def test_bad_requests(tmp_path):
    with pytest.raises(Exception, match="protocols"):
        run(tmp_path / "e.jsonl", protocols=("telepathy",))
    with pytest.raises(ValueError, match="problems: at least one"):
        run(tmp_path / "e.jsonl", problems=[])
    assert not (tmp_path / "e.jsonl").exists()
