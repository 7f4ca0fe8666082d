# All public names of this package. Type checkers read this list; each module is imported on first use.
from .intervals import Interval as Interval
from .intervals import bootstrap_interval as bootstrap_interval
from .intervals import bootstrap_means as bootstrap_means
from .intervals import paired_difference as paired_difference
from .intervals import student_interval as student_interval
from .intervals import welch_interval as welch_interval
from .intervals import wilson_interval as wilson_interval
from .passk import majority_at_k as majority_at_k
from .passk import majority_curve as majority_curve
from .passk import pass_at_1_over_runs as pass_at_1_over_runs
from .passk import pass_at_k_curve as pass_at_k_curve
