"""Callbacks for TRL's trainer: a step log, and a safe stop.

A batch system requests a stop by a signal. Signals reach the processes of a run at different times, or not at
all, but a checkpoint needs all processes at the same step. Therefore, the job's shell script translates the
signal into a file visible to all nodes, rank 0 checks for it after each step, and all ranks follow rank 0.
(`enable_jit_checkpoint` of transformers makes each rank react to SIGTERM after a timer, which is correct only
for a single process.)
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
    """Ends training after the current step, with a checkpoint, once a file exists.

    Args:
        path: the file, visible to rank 0. By default the value of the environment variable IGRPO_STOP_FILE,
            which the Slurm scripts set; without either, there is no check.
    """

    def __init__(self, path: str | Path | None = None) -> None:
        self.path = path or os.environ.get("IGRPO_STOP_FILE")

    def on_step_end(self, args: Any, state: Any, control: TrainerControl, **_: Any) -> TrainerControl:
        """See TrainerCallback."""
        if self.path is not None:
            asked = [Path(self.path).exists()]
            broadcast_object_list(asked)
            if asked[0]:
                control.should_save = control.should_training_stop = True
        return control


class StepLog(TrainerCallback):
    """Appends the log of each step to `folder/metrics.jsonl` immediately, and prints a summary line.

    A resumed run overwrites the steps after its checkpoint. Only rank 0 writes.
    """

    def __init__(self, folder: str | Path) -> None:
        self.path = Path(folder) / RunLog.METRICS

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """See TrainerCallback."""
        if state.is_world_process_zero:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            keep_rows(self.path, state.global_step)

    def on_log(
        self, args: Any, state: TrainerState, control: TrainerControl, logs: Row | None = None, **_: Any
    ) -> None:
        """See TrainerCallback. The summary at the end of a run is not a step and is skipped."""
        if state.is_world_process_zero and logs and "loss" in logs:
            append_row(self.path, {"step": state.global_step, **logs})
            numbers = [f"{name} {logs.get(key, math.nan):.3g}" for name, key in _SHOWN.items()]
            print(f"step {state.global_step}/{state.max_steps}", *numbers, sep="  ", flush=True)
