"""How a benchmark is run and what it leaves behind: `data/benchmarks/<name>.json`."""

import json
import math
import os
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from time import process_time

from scipy.stats import binom

from igrpo_kit.core.rows import write_atomically
from igrpo_kit.training.records import environment

BENCHMARKS = Path(__file__).parent.parent / "data" / "benchmarks"
LIMITS = {
    # the least and the most that the median may be, in its own unit
    "igrpo_over_grpo_step": (0.0, 1.0),
    "igrpo_over_grpo_as_published": (0.0, 1.0),
    "shared_prefix_speedup": (1.6, math.inf),
    "sampler_over_generate": (2.0, math.inf),
    "step_over_trl": (0.0, 0.5),
    "pass_at_n_seconds": (0.0, 5.0),
    "million_rows_seconds": (0.0, 10.0),
    "growth": (0.0, 2.0),  # attention alone would make it 2
    "grading_per_second": (1000.0, math.inf),
    "grading_with_hostile_seconds": (0.0, 45.0),
    "phase": (3.0, math.inf),
}


def interleaved_seconds(jobs: dict[str, Callable[[], object]], repetitions: int) -> dict[str, list[float]]:
    """Processor seconds of each job, taken in turn: a slowdown affects all of them equally.

    One unmeasured round comes first.
    """
    seconds: dict[str, list[float]] = {name: [] for name in jobs}
    for repetition in range(repetitions + 1):
        for name, job in jobs.items():
            start = process_time()
            job()
            if repetition:
                seconds[name].append(process_time() - start)
    return seconds


def median_interval(samples: Sequence[float]) -> tuple[float, float, float]:
    """Low, high, and coverage of the 95% interval of the median: the k-th smallest and k-th largest sample.

    How many of n samples lie below the true median is binomial, B(n, 1/2), whatever their distribution. k is
    the largest rank at which the interval holds the median with a probability, its coverage, of at least 95%.
    Fewer than 6 samples allow no such interval: low and high are then their minimum and maximum, and the
    coverage says how little that is (75% for 3).
    """
    count, ordered = len(samples), sorted(samples)
    rank = max(1, int(binom.ppf(0.025, count, 0.5)))
    return ordered[rank - 1], ordered[count - rank], float(1 - 2 * binom.cdf(rank - 1, count, 0.5))


def record(name: str, samples: list[float], *, device: str = "cpu, one thread", **details: object) -> None:
    """Write and print the median of `samples` with its interval, and what it was measured on."""
    where = environment(device)
    low, high, coverage = median_interval(samples)
    row = {
        "name": name,
        "value": round(statistics.median(samples), 3),
        "interval": [round(low, 3), round(high, 3)],
        "coverage": round(coverage, 3),
        "samples": [round(sample, 3) for sample in samples],
        **details,
        "device": f"{where['processor']}, {where['device']}",
        "versions": where["versions"],
        "load": round(os.getloadavg()[0], 2),  # our own process is 1; more is others beside it
    }
    BENCHMARKS.mkdir(parents=True, exist_ok=True)
    write_atomically(BENCHMARKS / f"{name}.json", (json.dumps(row, indent=1) + "\n").encode())
    print(f"{name}: {row['value']}, {coverage:.0%} interval {low:.3f} to {high:.3f}, {len(samples)} samples")
    least, most = LIMITS[name]
    if not least <= row["value"] <= most:
        print(f"{name}: outside its limits, {least} to {most}")
