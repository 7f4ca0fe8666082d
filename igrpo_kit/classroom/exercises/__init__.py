"""The exercises of the course, lesson by lesson."""

from igrpo_kit.classroom.exercise import Exercise
from igrpo_kit.classroom.exercises import lesson03

EXERCISES: dict[str, Exercise] = {e.name: e for lesson in (lesson03,) for e in lesson.EXERCISES}
"""Every exercise by its name."""
