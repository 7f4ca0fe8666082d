"""The experiments of the kit: the files in `data/experiments/`, the ablations, and the regimes."""

from functools import cache
from pathlib import Path

from igrpo_kit.analysis.compare import Record, load_records
from igrpo_kit.core.data import data_path
from igrpo_kit.core.rows import Row
from igrpo_kit.experiments.ablations import FACTORS, ablation
from igrpo_kit.experiments.experiment import Experiment, read_experiment, record_folders
from igrpo_kit.experiments.regimes import natural, revision

_REGIMES = {**revision.experiments(), **natural.experiments()}


def preset_names() -> list[str]:
    """The names that `load_experiment` accepts."""
    files = sorted(path.stem for path in data_path("experiments").glob("*.yaml"))
    return [*files, *(f"ablation-{factor}" for factor in FACTORS), *_REGIMES]


def load_experiment(name_or_path: str | Path) -> Experiment:
    """Load a preset by name, or an experiment of your own from a YAML file.

    Raises:
        ValueError: an unknown name (the message lists the known ones), or as `read_experiment`.
    """
    name = str(name_or_path)
    if name.endswith((".yaml", ".yml")):
        return read_experiment(name)
    if name not in preset_names():
        raise ValueError(
            f"no preset {name!r}; there is {', '.join(preset_names())}, or a .yaml file of yours"
        )
    if name.removeprefix("ablation-") in FACTORS:
        return ablation(name.removeprefix("ablation-"))
    if name in _REGIMES:
        return _REGIMES[name]()
    return read_experiment(data_path(f"experiments/{name}.yaml"))


@cache
def committed(preset: str) -> tuple[Experiment, list[Record], Row]:
    """A preset with its records in `data/runs`, and the untrained policy's evaluation from q."""
    experiment = load_experiment(preset)
    return experiment, *load_records(data_path(f"runs/{preset}"), record_folders(experiment))
