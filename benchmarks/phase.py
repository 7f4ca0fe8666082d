"""Speed of the phase diagram: `python -m benchmarks.phase`.

`phase`: processor seconds of a loop over the cells of an 8 x 8 grid, one run at a time, over those of
`phase_diagram`, with as many runs and steps. The record also has the seconds of the whole map, 40 x 40 cells
and 200 steps, which has to take less than 10.
"""

import statistics
from dataclasses import replace

import numpy as np

from benchmarks._record import interleaved_seconds, record
from igrpo_kit.analysis.exact import CIPHER, phase_diagram, simulate

X, Y = np.geomspace(1e-6, 1e-3, 8), np.geomspace(1, 200, 8)
STEPS, LIMIT = 50, 10.0


def cell_by_cell() -> None:
    for p0 in X:
        simulate(
            replace(CIPHER, p0=p0, repair=p0), "grpo", steps=STEPS, seeds=16, rng=np.random.default_rng(0)
        )
        for ratio in Y:
            world = replace(CIPHER, p0=p0, repair=p0 * ratio)
            simulate(world, "igrpo", steps=STEPS, rng=np.random.default_rng(0))


def at_once() -> None:
    phase_diagram(CIPHER, "p0", X, "ratio", Y, steps=STEPS, rng=np.random.default_rng(0))


def whole_map() -> None:
    assert phase_diagram(rng=np.random.default_rng(0)).p.shape == (2, 201, 40, 40)


if __name__ == "__main__":
    seconds = interleaved_seconds({"loop": cell_by_cell, "grid": at_once}, 7)
    whole = interleaved_seconds({"": whole_map}, 3)[""]
    ratios = [loop / grid for loop, grid in zip(seconds["loop"], seconds["grid"], strict=True)]
    print(f"40 x 40 cells, 200 steps: {statistics.median(whole):.1f} s (limit {LIMIT} s)")
    record(
        "phase",
        ratios,
        small_grid="8 x 8 cells, 50 steps",
        small_grid_seconds=[round(s, 3) for s in seconds["grid"]],
        map_of="40 x 40 cells, 200 steps, GRPO and iGRPO",
        map_seconds=[round(s, 2) for s in whole],
        map_seconds_limit=LIMIT,
    )
