# The public names, and the only list of them: what the type checker reads and what loads on first use.
from .extraction import extract_answer as extract_answer
from .grader import Grade as Grade
from .grader import Grader as Grader
