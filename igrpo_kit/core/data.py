"""Where the kit's files are: the folders of a checkout, or their copies in an installed package.

The environment variable IGRPO_DATA names a folder that is searched first and that receives downloads.
Without it, downloads go to the user's cache.
"""

import contextlib
import os
import tempfile
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path

from platformdirs import user_cache_path


def checkout() -> Path | None:
    """Root of the checkout this package is imported from, or None for an installed copy."""
    root = Path(__file__).parents[2]
    return root if (root / "pyproject.toml").is_file() else None


def _shipped(name: str) -> Path:
    root = checkout()
    return Path(str(files("igrpo_kit") / f"_{name}")) if root is None else root / name


def data_path(name: str = "") -> Path:
    """Path of a file or folder in `data/`, such as `data_path("runs")`; IGRPO_DATA is searched first.

    A folder found in IGRPO_DATA takes the place of the shipped one where its contents are listed.
    """
    override = os.environ.get("IGRPO_DATA")
    if override and (Path(override) / name).exists():
        return Path(override) / name
    return _shipped("data") / name


def lessons_path() -> Path:
    """Folder of the lessons."""
    return _shipped("notebooks")


def models_path() -> Path:
    """Folder for downloaded models: `models` in IGRPO_DATA if that is set, otherwise in the user's cache."""
    override = os.environ.get("IGRPO_DATA")
    return (Path(override) if override else user_cache_path("igrpo_kit")) / "models"


@contextlib.contextmanager
def place_when_complete(target: Path) -> Iterator[Path]:
    """Yield a folder that becomes `target` when the block ends; on an error nothing is left behind."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}-") as scratch:
        work = Path(scratch) / target.name
        work.mkdir()
        yield work
        try:
            os.replace(work, target)
        except OSError:
            if not target.is_dir():  # otherwise another process placed it first: keep that copy
                raise
