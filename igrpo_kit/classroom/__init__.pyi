# The public names, and the only list of them: what the type checker reads and what loads on first use.
from .checks import check as check
from .grade import grade_folder as grade_folder
from .student import write_student_copies as write_student_copies
