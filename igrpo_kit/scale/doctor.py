"""Diagnosis for `igrpo doctor`: checks versions, device, data, grader, engine and browser."""

import os
import platform
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version

from packaging.requirements import Requirement

from igrpo_kit.core.data import data_path, models_path

_DATA = {
    "policies": "tiny/model.safetensors",
    "runs/countdown-cpu": "base/config.json",
    "paper": "table_1.csv",
    "problems": "countdown-held-out.jsonl",
    "recipes.json": "",
}
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")


@dataclass(frozen=True)
class Finding:
    """The result of a check: "ok", "missing" (an optional part) or "failed", the reason, and what to do."""

    what: str
    status: str
    detail: str
    mend: str = ""

    def __str__(self) -> str:
        mark = {"ok": "✓", "missing": "–", "failed": "✗"}[self.status]
        return f"{mark} {self.what}: {self.detail}" + (f"\n    -> {self.mend}" if self.mend else "")


def _versions() -> Iterator[Finding]:
    yield Finding("Python", "ok", f"{platform.python_version()} on {platform.platform()}")
    asked = {Requirement(line).name: Requirement(line) for line in requires("igrpo-kit") or []}
    for needed in asked.values():
        extra = next((e for e in ("", "train", "figures", "notebooks") if _asked(needed, e)), None)
        if extra is None or needed.name == "igrpo-kit":
            continue
        install = f"pip install 'igrpo-kit[{extra}]'" if extra else "pip install --force-reinstall igrpo-kit"
        try:
            found = version(needed.name)
        except PackageNotFoundError:
            status = "missing" if extra else "failed"
            yield Finding(needed.name, status, f"not installed (needs {needed.specifier})", install)
            continue
        if needed.specifier.contains(found, prereleases=True):
            yield Finding(needed.name, "ok", found)
        else:
            yield Finding(needed.name, "failed", f"{found}, needs {needed.specifier}", install)


def _asked(needed: Requirement, extra: str) -> bool:
    return needed.marker is None or needed.marker.evaluate({"extra": extra})


def _device() -> Iterator[Finding]:
    import torch

    gpus = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    found = ", ".join(f"{gpu.name} {gpu.total_memory / 1e9:.0f} GB" for gpu in gpus)
    yield Finding("device", "ok", found or f"CPU, {os.cpu_count()} cores; torch sees no CUDA GPU")


def _data() -> Iterator[Finding]:
    for folder, file in _DATA.items():  # in the folder that is read: one in IGRPO_DATA may be incomplete
        found, mend = data_path(folder) / file, "reinstall igrpo-kit, or unset IGRPO_DATA"
        there = found.exists()
        detail = str(found) if there else f"{found} does not exist"
        yield Finding(f"data: {folder}", "ok" if there else "failed", detail, "" if there else mend)
    fetched = ", ".join(path.name for path in models_path().glob("*") if path.is_dir())
    mend = "" if fetched else "igrpo fetch smollm2 (93 MB) for a real language model"
    status = "ok" if fetched else "missing"
    yield Finding("fetched models", status, f"{fetched or 'none'} in {models_path()}", mend)


def _grader() -> Iterator[Finding]:
    if os.name != "posix":
        yield Finding("grader", "failed", "worker processes need a POSIX system", "use Linux, macOS or WSL")
        return
    from igrpo_kit.tasks.grading.grader import Grader

    with Grader(num_workers=1, time_limit=20.0) as grader:
        (grade,) = grader.grade([r"\sqrt{2}"], [r"\boxed{2^{1/2}}"])
    if grade.status == "correct":
        yield Finding("grader", "ok", "a worker process grades")
    else:
        yield Finding(
            "grader", "failed", f"gave {grade.status!r} for a correct answer", "install math-verify"
        )


def _engine() -> Iterator[Finding]:
    from igrpo_kit.policies.samplers.vllm import check_engine

    try:
        yield Finding("vLLM engine", "ok", check_engine())
    except ImportError as error:
        yield Finding("vLLM engine", "missing", str(error))


def _browser() -> Iterator[Finding]:
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    mend = "" if found else "install Chromium (Debian: apt-get install chromium) to write figures as PNG"
    detail = found or "no Chromium or Chrome on the PATH"
    yield Finding("browser", "ok" if found else "missing", detail, mend)


CHECKS: tuple[Callable[[], Iterator[Finding]], ...] = (_versions, _device, _data, _grader, _engine, _browser)


def examine() -> Iterator[Finding]:
    """Run every check in order; an exception in a check is reported as a finding."""
    for check in CHECKS:
        try:
            yield from check()
        except Exception as error:
            what = check.__name__.strip("_")
            yield Finding(
                what, "failed", f"{type(error).__name__}: {error}", f"{sys.executable} -m pip check"
            )
