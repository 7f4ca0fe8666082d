# All public names of this package. Type checkers read this list; each module is imported on first use.
from .gradient import best_draft_probabilities as best_draft_probabilities
from .gradient import expected_group_gradient as expected_group_gradient
from .waiting import BetaPrompts as BetaPrompts
from .waiting import LogitNormalPrompts as LogitNormalPrompts
from .waiting import WaitingTime as WaitingTime
from .waiting import grpo_wait as grpo_wait
from .waiting import live_probability as live_probability
from .waiting import refinement_wait as refinement_wait
