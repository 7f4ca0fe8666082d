"""Where on the map a draft pays: two methods compared over a grid of two properties of the policy.

Methods that never see a draft depend on p0 alone. They are run once for each p0, with `SEEDS_ON_Q` times as
many seeds, as whether they start at all is chance where p0 * rollouts * steps is about 1. All others are
sampled in every cell. `world` says what these worlds leave out.
"""

from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, Float

from igrpo_kit.analysis.exact.world import World, simulate, symbol_rates

CIPHER = World(
    p0=1.7e-4, repair=0.0123, keep=0.47, sharing=0.5, spread=1.5, length=16, entries=156, learning_rate=2.8
)
"""The revision cipher with 16 symbols. p0, repair and keep were measured before RL on one base policy of a
first study, and `spread` is that of the noise its warm start planted. `sharing` (.4 to .6 there) and
`learning_rate` were chosen after seeing iGRPO on this base, and GRPO on one with 8 symbols."""

AXES = {"p0": "log", "repair": "log", "ratio": "log", "keep": "linear", "sharing": "linear"}
"""what an axis may be, and its scale; ratio is repair / p0"""

SEEDS_ON_Q = 16


@dataclass(frozen=True, eq=False)
class PhaseDiagram:
    """Mean curves of two methods for each cell of a grid; NaN in cells that no world has."""

    x_name: str
    y_name: str
    x: Float[np.ndarray, " X"]
    y: Float[np.ndarray, " Y"]
    methods: tuple[str, str]
    p: Float[np.ndarray, "2 points Y X"]
    """mean over seeds of p on q, for each method before training and after each step"""

    def difference(self, step: int) -> Float[np.ndarray, "Y X"]:
        """p of the second method minus p of the first, after `step` steps.

        Raises ValueError where the diagram does not go so far.
        """
        if not 0 <= step < self.p.shape[1]:
            raise ValueError(f"step: from 0 to {self.p.shape[1] - 1}, got {step}")
        return self.p[1, step] - self.p[0, step]

    def first_step(self, level: float = 0.5) -> Float[np.ndarray, "2 Y X"]:
        """The first step after which the mean p is at least `level`; infinite where it never is."""
        reached = self.p >= level
        steps = np.where(reached.any(axis=1), reached.argmax(axis=1), np.inf)
        return np.where(np.isnan(self.p[:, 0]), np.nan, steps)

    def first(self, level: float = 0.5) -> Float[np.ndarray, "Y X"]:
        """Who first reaches `level`: 1 the second method, -1 the first, 0 both at once or neither."""
        first, second = np.nan_to_num(self.first_step(level), posinf=self.p.shape[1])
        return np.where(np.isnan(self.p[0, 0]), np.nan, np.sign(first - second))

    def boundary(self, step: int, level: float = 0.0) -> Float[np.ndarray, "L 2 2"]:
        """Where the difference after `step` steps is `level`: line segments, their two ends as (x, y)."""
        to_x, to_y = AXES[self.x_name] == "log", AXES[self.y_name] == "log"
        x, y = np.log(self.x) if to_x else self.x, np.log(self.y) if to_y else self.y
        ends = contour(x, y, self.difference(step), level)
        for axis, is_log in enumerate((to_x, to_y)):
            ends[..., axis] = np.exp(ends[..., axis]) if is_log else ends[..., axis]
        return ends


def phase_diagram(
    world: World = CIPHER,
    x_name: str = "p0",
    x: Float[np.ndarray, " X"] | None = None,
    y_name: str = "ratio",
    y: Float[np.ndarray, " Y"] | None = None,
    *,
    methods: tuple[str, str] = ("grpo", "igrpo"),
    steps: int = 200,
    seeds: int = 1,
    rng: np.random.Generator,
) -> PhaseDiagram:
    """Train both methods in every cell of a grid.

    Args:
        world: everything that is not an axis, for one run.
        x_name, y_name: two of `AXES`; not repair and ratio together.
        x, y: increasing values. Default for p0: 40 from 1e-6 to 0.1; for ratio: 40 from 1 to 1000.
        methods: the two that are compared.
        steps: of training.
        seeds: runs of each cell.
        rng: source of the random numbers.

    Raises:
        ValueError: an axis is unknown, named twice, without values or not increasing, a value is out of
            range, no cell is a world, or `world` holds more than one run.
    """
    names = (x_name, y_name)
    if len({*names}) < 2 or not {*names} <= {*AXES} or {*names} == {"repair", "ratio"}:
        raise ValueError(f"x_name, y_name: two of {', '.join(AXES)}, not repair and ratio, got {names}")
    if world.shape:
        raise ValueError(f"world: one run, got {world.shape}")
    x, y = _values("x", x_name, x), _values("y", y_name, y)
    shape = (len(y), len(x))
    cells = {x_name: np.broadcast_to(x, shape), y_name: np.broadcast_to(y[:, None], shape)}
    numbers = {name: np.broadcast_to(getattr(world, name), shape) for name in AXES if name != "ratio"} | cells
    if "ratio" in cells:
        numbers["repair"] = numbers.pop("ratio") * numbers["p0"]
    exists = _exists(numbers, world)
    if not exists.any():
        raise ValueError("world: with these axes, no cell of the grid is a world (see symbol_rates)")
    p = np.full((2, steps + 1, *shape), np.nan)
    for i, method in enumerate(methods):
        if method in ("grpo", "none"):
            p0, place = np.unique(numbers["p0"], return_inverse=True)
            on_q = replace(world, p0=p0, repair=p0, keep=p0, copy=0.0)  # of a draft never shown
            curves = simulate(on_q, method, steps=steps, seeds=SEEDS_ON_Q * seeds, rng=rng).p.mean(axis=-1)
            p[i] = np.where(exists, curves[:, place.reshape(shape)], np.nan)
        else:
            cell = replace(world, **{name: values[exists] for name, values in numbers.items()})
            p[i][:, exists] = simulate(cell, method, steps=steps, seeds=seeds, rng=rng).p.mean(axis=-1)
    return PhaseDiagram(x_name, y_name, x, y, methods, p)


def contour(
    x: Float[np.ndarray, " X"], y: Float[np.ndarray, " Y"], values: Float[np.ndarray, "Y X"], level: float
) -> Float[np.ndarray, "L 2 2"]:
    """The line values = level, by linear interpolation in the two triangles of each square of the grid.

    Returns segments, their two ends as (x, y). Squares with a NaN have none.
    """
    corner = np.stack([*np.meshgrid(x, y), values], axis=-1)  # [Y, X, 3]
    a, b, c, d = corner[:-1, :-1], corner[:-1, 1:], corner[1:, :-1], corner[1:, 1:]
    triangles = np.stack([np.stack([a, b, c], axis=2), np.stack([d, b, c], axis=2)]).reshape(-1, 3, 3)
    triangles = triangles[~np.isnan(triangles).any(axis=(1, 2))]
    above = triangles[:, :, 2] > level
    crossed = above.any(axis=1) & ~above.all(axis=1)
    triangles, above = triangles[crossed], above[crossed]
    alone = np.where(above.sum(axis=1) == 1, above.argmax(axis=1), above.argmin(axis=1))  # on its side
    rows = np.arange(len(alone))
    tip = triangles[rows, alone]
    ends = []
    for other in (triangles[rows, (alone + turn) % 3] for turn in (1, 2)):
        share = (level - tip[:, 2]) / (other[:, 2] - tip[:, 2])
        ends.append(tip[:, :2] + share[:, None] * (other[:, :2] - tip[:, :2]))
    return np.stack(ends, axis=1)


def _values(argument: str, name: str, values: np.ndarray | None) -> Float[np.ndarray, " K"]:
    if values is None:
        default = {"p0": np.geomspace(1e-6, 0.1, 40), "ratio": np.geomspace(1, 1000, 40)}
        if name not in default:
            raise ValueError(f"{argument}: values for {name} are needed")
        return default[name]
    values = np.asarray(values, dtype=float)
    if values.ndim != 1 or len(values) < 2 or not np.all(np.diff(values) > 0):
        raise ValueError(f"{argument}: at least two increasing values of {name}, got {values}")
    if values[0] <= 0 and AXES[name] == "log":
        raise ValueError(f"{argument}: {name} must be above 0, got {values[0]}")
    if name != "ratio" and not 0 <= values[0] <= values[-1] <= 1:
        raise ValueError(f"{argument}: {name} must lie in [0, 1], got {values[0]} to {values[-1]}")
    return values


def _exists(numbers: dict[str, np.ndarray], world: World) -> Bool[np.ndarray, "Y X"]:
    """Which cells are worlds: see `symbol_rates`."""
    with np.errstate(invalid="ignore", divide="ignore"):
        rates = symbol_rates(numbers["p0"], numbers["repair"], numbers["keep"], world.copy, world.length)
    inside = [(rate > 0) & (rate < 1) for rate in rates]
    return np.logical_and.reduce([*inside, numbers["repair"] <= 1])
