# All public names of this package. Type checkers read this list; each module is imported on first use.
from .checks import check as check
from .checks import scoreboard as scoreboard
from .checks import use as use
from .grade import grade_folder as grade_folder
from .student import solution as solution
from .student import write_student_copies as write_student_copies
