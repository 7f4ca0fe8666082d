"""Time of the analysis on its largest inputs: `python -m benchmarks.analysis`.

`pass_at_n_seconds`: Pass@N for every N up to 256, from 256 samples of each of 1,000 problems, with 2,000
bootstrap resamples of the problems. `million_rows_seconds`: five columns of a metrics file of 10^6 rows, all
of each row parsed, and one of the columns thinned to 500 buckets; the rows are those of a committed run over
and over, steps counted on.

Processor seconds of one process.
"""

import json
import tempfile
from pathlib import Path

import numpy as np

from benchmarks._record import interleaved_seconds, record
from igrpo_kit.analysis.dynamics import Curve, thin
from igrpo_kit.analysis.stats.passk import pass_at_k_curve
from igrpo_kit.core.rows import read_columns, read_rows

RUN = Path(__file__).parent.parent / "data" / "runs" / "countdown-cpu" / "igrpo-4-4" / "seed-0"
PROBLEMS, SAMPLES, RESAMPLES, ROWS = 1000, 256, 2000, 1_000_000
COLUMNS = ["step", "reward", "entropy", "length", "tokens_sampled"]


def pass_at_n() -> list[float]:
    """Problems as hard as those of a benchmark: most are solved almost always or almost never."""
    rng = np.random.default_rng(0)
    correct = rng.binomial(SAMPLES, rng.beta(0.3, 0.3, size=PROBLEMS))

    def job() -> None:
        curve = pass_at_k_curve(SAMPLES, correct, rng=rng, resamples=RESAMPLES)
        assert len(curve.n) == SAMPLES

    return interleaved_seconds({"": job}, 7)[""]


def write_million(path: Path) -> None:
    rows = [json.dumps(row)[1:] for row in read_rows(RUN / "metrics.jsonl")]
    with open(path, "w") as file:
        for i in range(ROWS):
            file.write(f'{{"step": {i + 1}, {rows[i % len(rows)].partition(", ")[2]}\n')


def million_rows(path: Path) -> list[float]:
    def job() -> None:
        read = read_columns(path, COLUMNS)
        assert len(read["step"]) == ROWS
        assert len(thin(Curve(read["step"], read["entropy"])).x) <= 2500

    return interleaved_seconds({"": job}, 6)[""]


def measure_pass_at_n() -> None:
    sizes = {"problems": PROBLEMS, "samples_each": SAMPLES, "resamples": RESAMPLES}
    record("pass_at_n_seconds", pass_at_n(), device="cpu, one process", **sizes)


def measure_million_rows() -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "metrics.jsonl"
        write_million(path)
        size = {"rows": ROWS, "megabytes": round(path.stat().st_size / 1e6)}
        record("million_rows_seconds", million_rows(path), device="cpu, one process", **size)


if __name__ == "__main__":
    measure_pass_at_n()
    measure_million_rows()
