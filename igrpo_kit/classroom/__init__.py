"""For courses: exercises that name the mistake, student copies of the lessons, and grading."""
