# All public names of this package. Type checkers read this list; each module is imported on first use.
from .natural import COUNTEREXAMPLE as COUNTEREXAMPLE
from .natural import low_rates_judged as low_rates_judged
from .natural import natural_judged as natural_judged
from .predictions import Outcome as Outcome
from .predictions import crossing as crossing
from .predictions import judged as judged
from .predictions import outcome_table as outcome_table
from .tables import by_seed as by_seed
from .tables import controls_table as controls_table
from .tables import main_table as main_table
from .tables import read_out_table as read_out_table
