# All public names of this package. Type checkers read this list; each module is imported on first use.
from .files import load_problems as load_problems
from .files import save_problems as save_problems
from .generated import addition_problems as addition_problems
from .generated import countdown_max_problems as countdown_max_problems
from .generated import countdown_problems as countdown_problems
from .gym import reasoning_gym_problems as reasoning_gym_problems
from .gym import sum_problems as sum_problems
from .hub import HUB_SETS as HUB_SETS
from .hub import HubSet as HubSet
from .hub import hub_problems as hub_problems
from .hub import load_hub_set as load_hub_set
