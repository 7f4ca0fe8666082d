"""The exercises of the course, lesson by lesson."""

from igrpo_kit.classroom.exercise import Exercise
from igrpo_kit.classroom.exercises import (
    capstone04,
    capstone05,
    lesson01,
    lesson02,
    lesson03,
    lesson04,
    lesson05,
    lesson06,
    lesson07,
    lesson08,
    lesson09,
    lesson10,
    lesson11,
    lesson12,
)

_LESSONS = (
    lesson01,
    lesson02,
    lesson03,
    lesson04,
    capstone04,
    lesson05,
    capstone05,
    lesson06,
    lesson07,
    lesson08,
    lesson09,
    lesson10,
    lesson11,
    lesson12,
)

EXERCISES: dict[str, Exercise] = {e.name: e for lesson in _LESSONS for e in lesson.EXERCISES}
"""Every exercise by its name."""
