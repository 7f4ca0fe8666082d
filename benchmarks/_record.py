"""How a benchmark is run and what it leaves behind: `data/benchmarks/<name>.json`."""

import json
import statistics
from collections.abc import Callable
from pathlib import Path
from time import process_time

from igrpo_kit.core.rows import write_atomically
from igrpo_kit.training.records import environment

BENCHMARKS = Path(__file__).parent.parent / "data" / "benchmarks"


def interleaved_seconds(jobs: dict[str, Callable[[], object]], repetitions: int) -> dict[str, list[float]]:
    """Processor seconds of each job, taken in turn: a slow moment of the machine meets them all alike.

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


def record(name: str, samples: list[float], *, device: str = "cpu, one thread", **details: object) -> None:
    """Write and print the median of `samples`, with what it was measured on."""
    where = environment(device)
    row = {
        "name": name,
        "value": round(statistics.median(samples), 3),
        "samples": [round(sample, 3) for sample in samples],
        **details,
        "device": f"{where['processor']}, {where['device']}",
        "versions": where["versions"],
    }
    BENCHMARKS.mkdir(parents=True, exist_ok=True)
    write_atomically(BENCHMARKS / f"{name}.json", (json.dumps(row, indent=1) + "\n").encode())
    print(f"{name}: {row['value']} (of {len(samples)}: {min(samples):.3f} to {max(samples):.3f})")
