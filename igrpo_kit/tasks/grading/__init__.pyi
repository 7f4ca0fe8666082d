# All public names of this package. Type checkers read this list; each module is imported on first use.
from .extraction import extract_answer as extract_answer
from .grader import Grade as Grade
from .grader import Grader as Grader
