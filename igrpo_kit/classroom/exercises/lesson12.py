"""Exercises of lesson 12, the flight recorder: what is wrong with a run, from its record alone.

Every hint states what the committed record shows (`tests/classroom/test_flight.py` reads it there).
"""

from collections.abc import Mapping

from igrpo_kit.classroom.exercise import Exercise, ValueCheck

WHAT_A_SOUND_RUN_SHOWS = {
    "temperature": "The log-prob gap is below 1e-6 in every step: both sides score at one temperature.",
    "stale": "A sampler with older weights has a log-prob gap that grows from update to update; here it is "
    "below 1e-6 in every step.",
    "eos": "Without the EOS tokens, fewer tokens are trained than were sampled; here the two are equal.",
    "padding": "With the padding, more tokens are trained than were sampled; here the two are equal.",
    "draft": "With the draft, over twice as many tokens are trained as were sampled; here the two are equal.",
    "batch": "With the mean of the batch, dead groups would have an advantage. Here about as many trained "
    "tokens have advantage 0 as there are dead groups.",
    "saturated": "Over a quarter of the groups are live to the end, and the gradient norm has not halved.",
    "length": "Reward and share correct are one and the same line: nothing but correctness is paid.",
}
"""diagnosis -> what speaks against it in a run without that fault"""

DIAGNOSES = ("healthy", *WHAT_A_SOUND_RUN_SHOWS)
_MORE_TRAINED = (
    "Then fewer tokens would be trained than were sampled; here there are more than twice as many."
)
_FEWER_TRAINED = "Then more tokens would be trained than were sampled; here there are fewer"


def _case(right: str, hints: Mapping[str, str]) -> ValueCheck:
    """`hints` are those that differ from what a sound run shows."""
    mistakes = {word: hint for word, hint in {**WHAT_A_SOUND_RUN_SHOWS, **hints}.items() if word != right}
    return ValueCheck(right=right, mistakes=mistakes, otherwise=f"One of: {', '.join(DIAGNOSES)}.")


_A = _case(
    "batch", {"healthy": "Compare the two lines of the dead-groups panel: what advantage has a dead group?"}
)
_B = _case(
    "eos",
    {
        "healthy": "Count: how many tokens were sampled in a step, and how many were trained?",
        "padding": f"{_FEWER_TRAINED}.",
        "draft": f"{_FEWER_TRAINED}, and there is no log-prob gap.",
    },
)
_C = _case(
    "length",
    {"healthy": "Reward and share correct are two lines here. What is paid beside a correct answer?"},
)
_D = _case(
    "stale",
    {
        "healthy": "The reward falls to a third by step 75, and sampler and trainer disagree in most steps.",
        "temperature": "In steps 1, 26, 51 and 76 the log-prob gap is below 1e-6. A second temperature would "
        "show in these too.",
    },
)
_E = _case("healthy", {})
_F = _case(
    "saturated",
    {"healthy": "In the last steps most groups are dead, the gradient is small, and nearly all is correct."},
)
_G = _case(
    "temperature",
    {
        "healthy": "The log-prob gap is above 0.05 in every step; rounding makes 1e-6.",
        "stale": "The log-prob gap is there in step 1, before any update, when old weights are the new ones.",
    },
)
_H = _case(
    "draft",
    {
        "healthy": "Count: how many tokens were sampled in a step, and how many were trained?",
        "temperature": "There is a log-prob gap from step 1 on, but of more than 2 nats, and more tokens are "
        "trained than were sampled: explain these first.",
        "stale": "The log-prob gap is there in step 1, before any update, when old weights are the new ones.",
        "eos": _MORE_TRAINED,
        "padding": "Rows padded to one length would make the trained tokens of a step a multiple of its 128 "
        "completions; here they are none in most steps.",
    },
)

EXERCISES = [
    Exercise("flight_a", "12", "prediction", difficulty=3, minutes=6, verify=_A),
    Exercise("flight_b", "12", "prediction", difficulty=3, minutes=6, verify=_B),
    Exercise("flight_c", "12", "prediction", difficulty=1, minutes=4, verify=_C),
    Exercise("flight_d", "12", "prediction", difficulty=2, minutes=5, verify=_D),
    Exercise("flight_e", "12", "prediction", difficulty=2, minutes=5, verify=_E),
    Exercise("flight_f", "12", "prediction", difficulty=1, minutes=4, verify=_F),
    Exercise("flight_g", "12", "prediction", difficulty=2, minutes=5, verify=_G),
    Exercise("flight_h", "12", "prediction", difficulty=3, minutes=6, verify=_H),
]
