# All public names of this package. Type checkers read this list; each module is imported on first use.
from .gradient import best_draft_probabilities as best_draft_probabilities
from .gradient import expected_group_gradient as expected_group_gradient
