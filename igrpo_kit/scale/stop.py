"""Stopping a training run from outside, on a step's boundary and with a checkpoint.

A batch system asks by a signal, but a signal reaches the processes of a run at different moments and some not at
all, and a checkpoint needs all of them at the same step. So the job's shell turns it into a file that every node
sees, rank 0 looks for it after each step, and all ranks do what rank 0 saw.
(`enable_jit_checkpoint` of transformers reacts to SIGTERM rank by rank after a timer: right for one process.)
"""

import os
from pathlib import Path
from typing import Any

from accelerate.utils import broadcast_object_list
from transformers import TrainerCallback, TrainerControl

VARIABLE = "IGRPO_STOP_FILE"


class StopFile(TrainerCallback):
    """Ends training after the step under way, with a checkpoint, once the file exists.

    `path` is by default what the environment variable IGRPO_STOP_FILE names, which the Slurm files set; without
    one nothing is watched. It must lie where rank 0 sees it.
    """

    def __init__(self, path: str | Path | None = None) -> None:
        self.path = path or os.environ.get(VARIABLE)

    def on_step_end(self, args: Any, state: Any, control: TrainerControl, **_: Any) -> TrainerControl:
        """As TrainerCallback has it."""
        if self.path is not None:
            asked = [Path(self.path).exists()]
            broadcast_object_list(asked)
            if asked[0]:
                control.should_save = control.should_training_stop = True
        return control
