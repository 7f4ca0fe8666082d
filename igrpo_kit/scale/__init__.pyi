# All public names of this package. Type checkers read this list; each module is imported on first use.
from .callbacks import StepLog as StepLog
from .callbacks import StopFile as StopFile
from .export import export_notebook as export_notebook
from .export import run_notebook as run_notebook
from .recipes import Recipe as Recipe
from .recipes import fits as fits
from .recipes import load_recipe as load_recipe
from .recipes import problem_set as problem_set
from .recipes import recipe_names as recipe_names
from .trainer import IGRPOConfig as IGRPOConfig
from .trainer import IGRPOTrainer as IGRPOTrainer
from .trainer import problem_dataset as problem_dataset
