"""What a run on TRL's trainer needs from outside its loop: to be watched, and to be stopped safely.

A batch system asks for a stop by a signal, but a signal reaches the processes of a run at different moments
and some not at all, and a checkpoint needs all of them at the same step. So the job's shell turns it into a
file that every node sees, rank 0 looks for it after each step, and all ranks do what rank 0 saw.
(`enable_jit_checkpoint` of transformers reacts to SIGTERM rank by rank after a timer: right for one process.)
"""

import math
import os
from pathlib import Path
from typing import Any

from accelerate.utils import broadcast_object_list
from transformers import TrainerCallback, TrainerControl, TrainerState

from igrpo_kit.core.rows import Row, append_row, keep_rows
from igrpo_kit.training.records import RunLog

_SHOWN = {
    "draft": "igrpo/stage1/reward",
    "shown": "igrpo/shown_draft_reward",
    "reward": "reward",
    "dead": "igrpo/dead_groups",
    "entropy": "entropy",
    "seconds": "step_time",
}


class StopFile(TrainerCallback):
    """Ends training after the step under way, with a checkpoint, once the file exists.

    `path` is by default what the environment variable IGRPO_STOP_FILE names, which the Slurm files set;
    without one nothing is watched. It must lie where rank 0 sees it.
    """

    def __init__(self, path: str | Path | None = None) -> None:
        self.path = path or os.environ.get("IGRPO_STOP_FILE")

    def on_step_end(self, args: Any, state: Any, control: TrainerControl, **_: Any) -> TrainerControl:
        """As TrainerCallback has it."""
        if self.path is not None:
            asked = [Path(self.path).exists()]
            broadcast_object_list(asked)
            if asked[0]:
                control.should_save = control.should_training_stop = True
        return control


class StepLog(TrainerCallback):
    """Appends what is logged at each step to `folder/metrics.jsonl` at once, and prints a line of it.

    A run that resumes writes the steps after its checkpoint anew. Rank 0 alone writes.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / RunLog.METRICS

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """As TrainerCallback has it."""
        if state.is_world_process_zero:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            keep_rows(self.path, state.global_step)

    def on_log(
        self, args: Any, state: TrainerState, control: TrainerControl, logs: Row | None = None, **_: Any
    ) -> None:
        """As TrainerCallback has it; the summary at a run's end is no step."""
        if state.is_world_process_zero and logs and "loss" in logs:
            append_row(self.path, {"step": state.global_step, **logs})
            numbers = [f"{name} {logs.get(key, math.nan):.3g}" for name, key in _SHOWN.items()]
            print(f"step {state.global_step}/{state.max_steps}", *numbers, sep="  ", flush=True)
