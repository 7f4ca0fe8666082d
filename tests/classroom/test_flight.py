"""Lesson 12: each hint says what the committed record of its case shows."""

import numpy as np
import pytest

from igrpo_kit.classroom.exercises.lesson12 import DIAGNOSES, EXERCISES, WHAT_A_SOUND_RUN_SHOWS
from igrpo_kit.experiments.faults import CASES, KEPT, STEPS, read_flight

VERIFY = {exercise.name.removeprefix("flight_"): exercise.verify for exercise in EXERCISES}
GRADED = [case for case in CASES if case != "example"]
P_G = 128


class Evidence:
    """The numbers of one record that the hints are about."""

    def __init__(self, case):
        record, self.samples = read_flight(case)
        self.rows = record.metrics

    def __getitem__(self, name):
        return np.array([np.nan if row[name] is None else row[name] for row in self.rows])

    @property
    def trained(self):
        return np.diff(self["tokens_trained"], prepend=0)

    @property
    def gap(self):
        return self["sampler_gap"][~np.isnan(self["sampler_gap"])]


SOUND = {
    "temperature": lambda e: e.gap.max() < 1e-6,
    "stale": lambda e: e.gap.max() < 1e-6,
    "eos": lambda e: (e.trained == e["tokens"]).all(),
    "padding": lambda e: (e.trained == e["tokens"]).all(),
    "draft": lambda e: (e.trained == e["tokens"]).all(),
    "batch": lambda e: abs((1 - e["live_tokens"] / e.trained).mean() - e["dead_groups"].mean()) < 0.08,
    "saturated": lambda e: (
        e["dead_groups"][-20:].mean() < 0.75 and e["grad_norm"][-20:].mean() > e["grad_norm"][:20].mean() / 2
    ),
    "length": lambda e: (e["reward"] == e["correct"]).all(),
}
"""diagnosis -> what `WHAT_A_SOUND_RUN_SHOWS` says, on a record"""


@pytest.fixture(scope="module")
def evidence():
    return {case: Evidence(case) for case in CASES}


def test_the_answers_are_the_faults_that_were_trained():
    assert {case: check.right for case, check in VERIFY.items()} == {case: CASES[case] for case in GRADED}
    assert sorted(CASES.values()) == sorted(DIAGNOSES)
    assert "".join(VERIFY) == "abcdefgh"


@pytest.mark.parametrize("case", GRADED)
def test_every_wrong_diagnosis_has_a_hint(case):
    assert set(VERIFY[case].mistakes) == set(DIAGNOSES) - {CASES[case]}


@pytest.mark.parametrize("case", GRADED)
def test_what_a_hint_says_of_a_sound_run_is_so(case, evidence):
    used = [w for w, hint in VERIFY[case].mistakes.items() if hint == WHAT_A_SOUND_RUN_SHOWS.get(w)]
    assert used
    for word in used:
        assert SOUND[word](evidence[case]), word


@pytest.mark.parametrize("case", [case for case in CASES if CASES[case] != "healthy"])
def test_a_fault_breaks_what_a_sound_run_shows(case, evidence):
    """Else the right answer could be argued away, and the check of the hints could not fail."""
    assert not SOUND[CASES[case]](evidence[case])


def test_a_dead_group_has_an_advantage_in_case_a(evidence):
    e = evidence["a"]
    assert (e["live_tokens"] == e.trained).all() and e["dead_groups"].min() > 0.15


def test_one_token_per_finished_completion_is_missing_in_case_b(evidence):
    e = evidence["b"]
    finished = np.round(P_G * (1 - e["truncated"]))
    assert (e["tokens"] - e.trained == finished).all()
    assert e.gap.max() < 1e-6


def test_length_is_paid_in_case_c(evidence):
    e = evidence["c"]
    assert (e["reward"] > e["correct"] + 0.05).all()
    assert e["length"][-20:].mean() > e["length"][:20].mean() + 3
    wrong = [c for row in e.samples for c in row["completions"] if c["status"] == "incorrect"]
    assert all(c["reward"] == pytest.approx(0.02 * len(c["text"])) for c in wrong)
    assert len({len(c["text"]) for c in wrong}) > 2


def test_weights_arrive_every_25_steps_in_case_d(evidence):
    e = evidence["d"]
    assert list(e["step"][e["sampler_gap"] < 1e-6]) == [1, 26, 51, 76]
    assert (e["sampler_gap"] > 1e-3).sum() == STEPS - 4
    assert e["reward"][65:75].mean() < e["reward"][:20].mean() / 3
    for start in (1, 26, 51, 76):
        assert e["sampler_gap"][start] < e["sampler_gap"][start + 22]


def test_nothing_is_left_to_learn_in_case_f(evidence):
    e = evidence["f"]
    assert e["dead_groups"][-20:].mean() > 0.75 and e["correct"][-20:].mean() > 0.9
    assert e["grad_norm"][-20:].mean() < e["grad_norm"][:20].mean() / 2
    assert len({row["question"] for row in e.samples}) == 2


def test_the_gap_of_case_g_is_there_from_the_start(evidence):
    e = evidence["g"]
    assert e.gap.min() > 0.05 and e.gap.max() < 0.15
    assert e["entropy"][0] < 0.2 < 0.3 < min(evidence[case]["entropy"][0] for case in "abcdeh")


def test_the_prompt_is_trained_in_case_h(evidence):
    e = evidence["h"]
    assert (e.trained > 2 * e["tokens"]).all() and e.gap.min() > 2
    assert (e.trained % P_G != 0).sum() > STEPS / 2


def test_padding_is_trained_in_the_example(evidence):
    e = evidence["example"]
    assert (e.trained % P_G == 0).all() and (e.trained > e["tokens"]).all()
    assert e["length"][-20:].mean() > e["length"][:20].mean() + 3
    assert e["reward"][-20:].mean() < e["reward"][:20].mean() - 0.15


@pytest.mark.parametrize("case", CASES)
def test_a_record_says_nothing_of_its_fault_but_what_it_did(case):
    record, samples = read_flight(case)
    assert [row["step"] for row in record.metrics] == list(range(1, STEPS + 1))
    assert all(tuple(row) == KEPT for row in record.metrics)
    assert [row["step"] for row in samples] == [1] * 4 + [50] * 4 + [100] * 4
    statuses = {c["status"] for row in samples for c in [*row["drafts"], *row["completions"]]}
    assert statuses <= {"correct", "incorrect", "unparsed_answer", "no_answer"}
    assert {row["id"].rsplit("-", 2)[0] for row in samples} == {"addition/train"}
