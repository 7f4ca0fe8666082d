"""Natural tasks: definitions, preparation, and the rates of the screen from scripted samples."""

import random
from dataclasses import replace

import pytest

from igrpo_kit.analysis.compare import Record
from igrpo_kit.experiments.experiment import PREPARED
from igrpo_kit.experiments.presets import load_experiment
from igrpo_kit.experiments.regimes import natural, screen
from igrpo_kit.policies.policy import DRAFT_BEFORE
from igrpo_kit.policies.samplers.scripted import ScriptedSampler
from igrpo_kit.tasks.puzzles import is_held_out
from igrpo_kit.training import sft


def test_every_method_runs_at_both_rates_and_each_seed_has_its_own_base():
    experiment = load_experiment("natural-results-first-4x3")
    assert len(experiment.methods) == 9
    assert experiment.config("iGRPO 4+4 at 0.0006", seed=0).learning_rate == 6e-4
    assert experiment.config("refinements trained on q, 600 steps", seed=0).steps == 600
    assert [experiment.policy_of(seed) for seed in experiment.seeds] == [
        "results-first-4x3-0",
        "results-first-4x3-1",
        "results-first-4x3-2",
    ]
    assert {experiment.policy_of(seed) for seed in experiment.seeds} <= PREPARED.keys()
    assert max(len(p.answer) for p in experiment.held_out()) + 1 == experiment.max_new_tokens


def run(method, seed, p, repair):
    exact = [{"step": 100 * i, "p": x, "repair": r} for i, (x, r) in enumerate(zip(p, repair, strict=True))]
    return Record(method, seed, [], [], exact)


def all_runs(p=0.001, repair=(0.5, 0.7), preset="natural-results-first-4x3", **changed):
    """Every run of a preset with the same p; on base 1, p is common. `changed` is p by method."""
    names = load_experiment(preset).methods
    starts = {
        name: changed.get(name.split(" at ")[0].replace("-", "_").replace(" ", "_"), p) for name in names
    }
    ours = [run(name, seed, (0.0001, end), repair) for name, end in starts.items() for seed in (0, 2)]
    return ours + [run(name, 1, (0.6, 0.9), (0.6, 0.9)) for name in names]


@pytest.mark.parametrize(
    ("runs", "hits"),
    [
        (all_runs(), [True] * 5),
        (all_runs(GRPO_8=0.03), [False, True, True, True, True]),  # above .02, and no take-off
        (all_runs(GRPO_8=0.2), [False, True, True, True, False]),
        (all_runs(repair=(0.5, 0.55)), [True, False, True, True, True]),
        (all_runs(repair=(0.89, 0.9)), [True] * 5),
        (all_runs(both_stages=0.02), [True, True, False, True, True]),
        (all_runs(refinements_trained_on_q=0.2), [True, True, True, False, True]),
    ],
)
def test_predictions_are_judged_on_the_bases_of_the_counterexample(runs, hits):
    outcomes = natural.natural_judged(runs)
    assert [o.number for o in outcomes] == [2, 3, 4, 5, 6]
    assert [o.hit for o in outcomes] == hits


def test_what_was_measured_is_said():
    measured = [o.measured for o in natural.natural_judged(all_runs())]
    assert measured == [
        "highest p 0.001 in 4 runs",
        "highest p 0.001 in 4 runs; repair rate higher in 4 of 4",
        "highest p 0.001 in 4 runs",
        "0 of 4 in 200 steps; 0 of 2 in 600",
        "0 of 8 runs",
    ]


def low_runs(dead=(), **changed):
    """Every run at the lower rates; `dead` begins the methods that can repair nothing at their end."""
    runs = all_runs(preset="natural-results-first-4x3-low", **changed)
    for r in runs:
        if r.method.startswith(tuple(dead)):
            r.exact[-1]["repair"] = 0.2  # of 0.5: less than half
    return runs


LONG_ARM = "refinements trained on q, 600 steps"


def with_long(runs, p):
    """The same runs; seed 0 of the long arm ends with this p."""
    for r in runs:
        if r.method == LONG_ARM and r.seed == 0:
            r.exact[-1]["p"] = p
    return runs


@pytest.mark.parametrize(
    ("runs", "hits"),
    [
        (with_long(low_runs(), 0.1), [True, True, True, True]),
        (low_runs(), [True, True, False, True]),  # nothing takes off in 600 steps
        (low_runs(dead=["iGRPO 4+4 at 3e-05"]), [False, True, False, True]),
        (low_runs(dead=["iGRPO 4+4 at 0.0001"]), [True, True, False, True]),
        (low_runs(dead=["iGRPO 4+4 at 0.0001", "both stages at 0.0001"]), [False, True, False, True]),
        (low_runs(dead=["iGRPO 4+4", "GRPO-8 at 3e-05"]), [False, True, False, False]),  # 2 of 8 alive
        (low_runs(GRPO_8=0.1), [True, True, False, False]),
        (low_runs(GRPO_8=0.1, dead=["GRPO-8"]), [True, True, False, True]),  # of those alive, none starts
        (low_runs(both_stages=0.02), [True, False, False, True]),
        (with_long(low_runs(refinements_trained_on_q=0.1), 0.1), [True, True, False, True]),
    ],
)
def test_predictions_at_the_lower_rates(runs, hits):
    outcomes = natural.low_rates_judged(runs)
    assert [o.number for o in outcomes] == [7, 8, 9, 10]
    assert [o.hit for o in outcomes] == hits


def test_what_was_measured_at_the_lower_rates_is_said():
    assert [o.measured for o in natural.low_rates_judged(low_runs(dead=["iGRPO 4+4 at 0.0001"]))] == [
        "4 of 4 alive at 3e-05; 2 of 4 alive at 0.0001",
        "highest p 0.001 in 8 runs",
        "0 of 4 in 200 steps; 0 of 2 in 600",
        "6 of 8 alive; 0 of those took off",
    ]


def test_a_policy_is_prepared_once(monkeypatch, tmp_path):
    monkeypatch.setenv("IGRPO_DATA", str(tmp_path))
    task = replace(sft._results_first_task(4, 3), steps=1)
    monkeypatch.setattr(sft, "_results_first_task", lambda *shape: task)
    folder = sft.prepare_results_first(4, 3, 0)
    monkeypatch.setattr(sft, "pretrain", lambda *arguments, **settings: pytest.fail("trained twice"))
    assert sft.prepare_results_first(4, 3, 0) == folder and folder.name == "results-first-4x3-0"


class RecordingSampler(ScriptedSampler):
    """Keeps the last message of every prompt, one list for each call."""

    def __init__(self, texts):
        super().__init__(texts, prompt_format=DRAFT_BEFORE)
        self.prompts = []

    def sample(self, prompts, num_samples):
        self.prompts.append([messages[-1]["content"] for messages in prompts])
        return super().sample(prompts, num_samples)


def test_rates_count_one_sample_for_each_question():
    on_q = ["a", "x", "y", "b", "c", "c", "z", "w"]  # two samples each: 0 and 2 are right at first
    refined = ["b", "z"]  # own wrong drafts of 1 and 3: one repaired, one copied
    foreign, kept = ["b", "d"], ["a", "x"]
    sampler = RecordingSampler([*on_q, *refined, *foreign, *kept])
    found = screen.rates(sampler, lambda q, a: (float(a == q.lower()), ""), ["A", "B", "C", "D"])
    assert sampler.prompts == [
        ["A", "B", "C", "D"],
        ["<d>y</d>B", "<d>z</d>D"],
        ["<d>z</d>B", "<d>y</d>D"],
        ["<d>a</d>A", "<d>c</d>C"],
    ]
    assert {name: (row["rate"], row["trials"]) for name, row in found.items()} == {
        "p": (0.5, 4),
        "again": (0.5, 2),
        "repair": (0.5, 2),
        "foreign": (1.0, 2),
        "keep": (0.5, 2),
        "copy": (0.5, 2),
    }
    assert found["p"]["low"] == pytest.approx(0.15, abs=0.01)  # Wilson, 2 of 4


def test_rates_without_trials_are_none():
    sampler = RecordingSampler(["x"] * 4)
    found = screen.rates(sampler, lambda q, a: (0.0, "incorrect"), ["A"])
    assert found["keep"] is None and found["copy"]["rate"] == 1.0


def test_screened_questions_are_on_their_side_of_the_split():
    task = screen.SCREEN["countdown with values"]
    asked = screen.held_out_questions(task, 20, seed=0)
    assert len(set(asked)) == 20 and all(map(is_held_out, asked))
    assert not is_held_out(screen.question_of(task, random.Random(0), held_out=False))


@pytest.mark.parametrize("name", screen.SCREEN)
def test_answers_fit_into_the_tokens(name):
    task, rng = screen.SCREEN[name], random.Random(0)
    for _ in range(20):
        question = task.draw(rng)
        answer = task.answer(question, rng)
        assert len(answer) < task.max_new_tokens and task.check(question, answer)[0] == 1
