"""Learning dynamics of GRPO and iGRPO in a world of logits, for many runs at once.

An answer has k symbols and is right iff all of them are. Each symbol is one of E *entries*, and the policy
has three logits per entry: that of the right symbol on q, on q' where the draft's symbol is right, and on q'
where it is wrong. Each is the sum of a part that all three share and a part of its own,

    logit = sqrt(sharing) * shared + sqrt(1 - sharing) * own,

so a gradient step on one of them moves the other two by `sharing` times as much. Prompts are random entries
(*factored*: what one prompt teaches, others use), or each has an entry to itself and k = 1 (*separate*:
prompts share nothing). A refinement copies its whole draft with probability `copy`, which is one logit more,
common to all prompts. Otherwise it writes each symbol by the logits for q'.

What is sampled: the prompts, the symbols of a first draft, and how many completions of each group are right.
Given these, the update is the sum of its exact mean and of normal noise for the symbols of the group's wrong
completions. With m of G completions right, A_j grad log pi(o_j) / G summed over j has the mean

    sqrt(m (G - m) (G - 1) / G) / G * grad logit(probability of a right answer),

and each symbol's variance is exact but for copies; that symbols of one wrong completion are correlated is
neglected. Without the noise Adam's steps would achieve too much: on the cipher of 16 symbols, at sharing .4,
iGRPO would be at p = .39 after 100 steps, not at .23.
Rare first successes are sampled, not averaged: while p * rollouts * steps is about 1, whether a run starts at
all is chance, and a mean over runs hides that.

Left out: attention, and everything else by which one symbol depends on another; lengths and EOS; templates;
forgetting, since training one entry changes no other; more than two outcomes per symbol; clipping of the
ratio, which is 1 here, and of the gradient's norm; weight decay. Adam has one second moment for all logits of
a run, not one per weight: it still shows how Adam turns a rare success into a full step. A step in logits has
no counterpart in a network, so `learning_rate` and `sharing` have to be fitted to a run. Nothing is fitted
here. Equations: https://arxiv.org/abs/2602.09000.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.special import expit, logit, ndtri

from igrpo_kit.analysis.exact.waiting import located
from igrpo_kit.core.toy import Numbers, as_count, as_probability

METHODS = ("grpo", "igrpo", "both", "drafts_then_grpo", "random", "none")
"""GRPO with N + G rollouts; iGRPO; iGRPO that trains its drafts too; iGRPO until drafts are live (by the rule
of `SWITCH`), then GRPO; iGRPO with a random draft; GRPO with G rollouts, the other N being wasted"""

SWITCH = 1 / 8
"""drafts_then_grpo: from this share of live draft groups on, the second half is sampled from q, as one group
of N + G with the drafts"""

WARMUP, MOMENTUM, DECAY = 10, 0.9, 0.95
"""steps over which the learning rate rises from 0, and Adam's two decay rates"""

_BLOCK = 1 << 17  # symbols sampled at a time: the arrays of a block stay in a processor's cache


def symbol_rates(
    p0: Numbers, repair: Numbers, keep: Numbers, copy: Numbers = 0.0, length: int = 1
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The probabilities of one symbol that give the whole answer its p0, repair, and keep.

    With s the mean probability of a right symbol on q, h that on q' where the draft's is right, f where it is
    wrong, and copies aside, p0 = s^k, keep = h^k, and a refinement of any draft is right with probability
    (s h + (1 - s) f)^k = p0 keep + (1 - p0) repair.

    Returns:
        s, h, f. No such world exists where one of them is not strictly between 0 and 1.
    """
    p0, repair, keep, copy = (np.asarray(x, dtype=float) for x in (p0, repair, keep, copy))
    symbol, written, fixed = p0 ** (1 / length), (keep - copy) / (1 - copy), repair / (1 - copy)
    hold = np.maximum(written, 0.0) ** (1 / length)
    all_drafts = p0 * np.maximum(written, 0.0) + (1 - p0) * fixed
    fix = (all_drafts ** (1 / length) - symbol * hold) / (1 - symbol)
    return np.asarray(symbol), np.asarray(hold), np.asarray(fix)


@dataclass(frozen=True, eq=False, kw_only=True)
class World:
    """A policy before training, and how it is trained. Numbers may be arrays that broadcast: one run each.

    `entries=None` is the separate world: each of the P prompts has an entry to itself, `length` is 1, and all
    P are asked at every step. The gradient is that of the mean over prompts and symbols.

    Raises:
        ValueError: naming the argument that is out of range, or that no world has in this combination.
    """

    p0: Numbers
    """mean probability of a right answer to q, over prompts"""
    repair: Numbers
    """probability that a refinement of the policy's own wrong draft is right, over prompts and drafts"""
    keep: Numbers
    """the same for a right draft, copies included: between `copy` and 1"""
    sharing: Numbers
    """share of a gradient that q and q' have in common, in [0, 1]"""
    learning_rate: Numbers
    """sgd: of the gradient; adam: L2 norm of a full step over all logits"""
    spread: Numbers = 0.0
    """standard deviation over entries of the logit of a right symbol on q, by the quantiles of a normal"""
    copy: Numbers = 0.0
    """probability that a refinement repeats its draft; entries that keep their wrong symbol come on top"""
    length: int = 1
    """k: symbols of an answer"""
    entries: int | None = None
    """E: entries that all prompts share; None: no prompt shares any"""
    prompts_per_step: int = 32
    """P"""
    num_drafts: int = 4
    """N"""
    num_refinements: int = 4
    """G"""
    optimizer: str = "adam"
    """adam, or sgd"""

    def __post_init__(self) -> None:
        p0, repair, keep, _, copy = (
            as_probability(getattr(self, name), name) for name in ("p0", "repair", "keep", "sharing", "copy")
        )
        for name in ("learning_rate", "spread"):
            if not np.all((np.asarray(getattr(self, name)) >= 0) & np.isfinite(getattr(self, name))):
                raise ValueError(f"{name} must be finite and not negative, got {getattr(self, name)}")
        for name in ("length", "prompts_per_step", "num_drafts"):
            as_count(getattr(self, name), name)
        if self.entries is None and self.length != 1:
            raise ValueError(f"length must be 1 where prompts share no entries, got {self.length}")
        if self.entries is not None:
            as_count(self.entries, "entries")
        if self.num_refinements < 2:
            raise ValueError(f"num_refinements: a group needs at least 2, got {self.num_refinements}")
        if self.optimizer not in ("sgd", "adam"):
            raise ValueError(f"optimizer: sgd or adam, got {self.optimizer!r}")
        if not np.all((p0 > 0) & (p0 < 1)):
            raise ValueError(f"p0 must lie strictly between 0 and 1, got {p0}")
        if not np.all((keep > copy) & (keep < 1)):
            raise ValueError(f"keep must lie strictly between copy and 1, got {keep}, copy {copy}")
        fix = symbol_rates(self.p0, self.repair, self.keep, self.copy, self.length)[2]
        if not np.all((fix > 0) & (fix < 1) & (repair < 1 - copy)):
            raise ValueError(
                f"repair: no world has it with this p0, keep, copy and length; a wrong symbol would be fixed "
                f"with probability {fix}"
            )

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the runs that the numbers broadcast to; () for one run."""
        numbers = (self.p0, self.repair, self.keep, self.sharing, self.learning_rate, self.spread, self.copy)
        return np.broadcast_shapes(*(np.shape(x) for x in numbers))

    def logits(self) -> Float[np.ndarray, "3 *runs E"]:
        """Initial logits of a right symbol: on q, on q' with a right and with a wrong symbol in the draft."""
        units = self.prompts_per_step if self.entries is None else self.entries
        symbol, hold, fix = symbol_rates(self.p0, self.repair, self.keep, self.copy, self.length)
        offsets = np.asarray(self.spread)[..., None] * ndtri((np.arange(units) + 0.5) / units)
        symbol, offsets = np.broadcast_arrays(symbol[..., None], offsets)
        on_q = located(symbol[..., 0], offsets, np.full(units, 1 / units)) + offsets
        parts = (on_q, logit(hold)[..., None], logit(fix)[..., None])
        return np.stack([np.broadcast_to(part, (*self.shape, units)) for part in parts])


@dataclass(frozen=True, eq=False)
class Trajectory:
    """What happened to each run, step by step. The axes after the first: those of the world, then seeds."""

    p: Float[np.ndarray, "points ..."]
    """mean probability of a right answer to q over all prompts there are, exact; before training and after
    each step"""
    live: Float[np.ndarray, "T ..."]
    """share of prompts with a live trained group"""
    second: Float[np.ndarray, "T ..."]
    """mean probability of a right completion of the second half: of a refinement, or of an answer to q"""


def simulate(
    world: World, method: str, *, steps: int, seeds: int = 1, rng: np.random.Generator
) -> Trajectory:
    """Train every run of `world`, `seeds` times, for `steps` steps.

    With the same seed, runs of different numbers are asked the same prompts: it is fairer to compare them so.

    Raises:
        ValueError: method is unknown, steps or seeds is below 1, or N drafts cannot be trained as a group.
    """
    if method not in METHODS:
        raise ValueError(f"method: one of {', '.join(METHODS)}, got {method!r}")
    as_count(steps, "steps"), as_count(seeds, "seeds")
    if method == "both" and world.num_drafts < 2:
        raise ValueError(f"num_drafts: a group needs at least 2, got {world.num_drafts}")
    P, k = world.prompts_per_step, world.length
    if world.entries is None:
        asked = np.broadcast_to(np.arange(P)[:, None], (steps, 1, P, seeds))
    else:
        asked = rng.integers(world.entries, size=(steps, k, P, seeds))
    start = np.moveaxis(world.logits(), -1, 1).reshape(3, -1, 1, int(np.prod(world.shape)))
    if method in ("grpo", "none"):
        start = start[:1]
    numbers = [
        np.broadcast_to(x, world.shape).reshape(-1) for x in (world.copy, world.sharing, world.learning_rate)
    ]
    size = max(1, _BLOCK // (P * k * seeds))
    blocks = []
    for i in range(0, start.shape[-1], size):
        block = slice(i, i + size)
        policy = _Policy(np.repeat(start[..., block], seeds, axis=2), *(x[block] for x in numbers))
        blocks.append(_train(policy, world, method, asked, rng))
    shape = (-1, seeds, *world.shape)
    joined = (np.concatenate(parts, axis=-1).reshape(shape) for parts in zip(*blocks, strict=True))
    return Trajectory(*(np.moveaxis(rows, 1, -1) for rows in joined))


def _train(
    policy: "_Policy", world: World, method: str, asked: Int[np.ndarray, "T k P S"], rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """p, live and second of one block of runs, as in `Trajectory` but [T, S, C]."""
    optimizer = _Optimizer(policy, world.optimizer)
    p, live, second = [policy.mean_p(world.length)], [], []
    for entries in asked:
        step = _Step(world, policy, entries, rng)
        groups, weight, chance = step.groups(method)
        optimizer.step(policy, step.gradient(groups, weight))
        p.append(policy.mean_p(world.length))
        live.append(np.any([group.live for group in groups], axis=0).mean(axis=0))
        second.append(chance.mean(axis=0))
    return np.stack(p), np.stack(live), np.stack(second)


def group_signal(right: Int[np.ndarray, "*groups"], group_size: int) -> Float[np.ndarray, "*groups"]:
    """The advantages of the m right completions of a group, summed and divided by G (Eq. 4, rewards 0 and 1).

    sqrt(m (G - m) (G - 1) / G) / G; the wrong ones sum to its opposite, and dead groups have 0.
    """
    return np.sqrt(right * (group_size - right) * ((group_size - 1) / group_size)) / group_size


class _Policy:
    """C runs of S seeds: logits [3, E, S, C] ([1, E, S, C]: on q only), and the logit of copying [S, C]."""

    def __init__(self, logits: np.ndarray, copy: np.ndarray, sharing: np.ndarray, rate: np.ndarray) -> None:
        self.logits, self.copy = logits, np.repeat(logit(copy)[None], logits.shape[2], axis=0)
        self.sharing, self.rate = sharing, rate

    def mean_p(self, length: int) -> Float[np.ndarray, "S C"]:
        """Over all prompts: their symbols are independent, each entry as likely as any other."""
        return expit(self.logits[0]).mean(axis=0) ** length


@dataclass
class _Gradient:
    symbols: Float[np.ndarray, "D E S C"]
    copy: Float[np.ndarray, "S C"]


class _Optimizer:
    """Gradient ascent on shared and own parts, kept as logits: what it does to a logit is linear in both.

    Adam has one second moment for all logits of a run.
    """

    def __init__(self, policy: _Policy, kind: str) -> None:
        self.kind, self.steps = kind, 0
        self.mean = _Gradient(np.zeros_like(policy.logits), np.zeros_like(policy.copy))
        self.square = np.zeros_like(policy.copy)

    def step(self, policy: _Policy, gradient: _Gradient) -> None:
        """Move the policy."""
        self.steps += 1
        rate, total = policy.rate * min(1.0, self.steps / WARMUP), gradient.symbols.sum(axis=0)
        if self.kind == "adam":
            norm2 = (1 - policy.sharing) * np.einsum("desc,desc->sc", gradient.symbols, gradient.symbols)
            norm2 += policy.sharing * np.einsum("esc,esc->sc", total, total) + gradient.copy**2
            self.mean.symbols += (1 - MOMENTUM) * (gradient.symbols - self.mean.symbols)
            self.mean.copy += (1 - MOMENTUM) * (gradient.copy - self.mean.copy)
            self.square += (1 - DECAY) * (norm2 - self.square)
            root = np.sqrt(self.square / (1 - DECAY**self.steps))
            rate = np.divide(rate / (1 - MOMENTUM**self.steps), root, where=root > 0, out=np.zeros_like(root))
            gradient, total = self.mean, self.mean.symbols.sum(axis=0)
        policy.logits += rate * ((1 - policy.sharing) * gradient.symbols + policy.sharing * total)
        policy.copy += rate * gradient.copy


@dataclass
class _Group:
    """What the L live groups among [P, S, C] pull at: places in the flat logits, and by how much."""

    live: Bool[np.ndarray, "P S C"]
    places: Int[np.ndarray, "k L"]
    pulls: Float[np.ndarray, "k L"]
    copy: Float[np.ndarray, "S C"]


class _Step:
    """One step of all runs: the prompts of each seed, what is sampled, and the gradient that follows."""

    def __init__(
        self, world: World, policy: _Policy, entries: Int[np.ndarray, "k P S"], rng: np.random.Generator
    ) -> None:
        self.world, self.policy, self.entries, self.rng = world, policy, entries, rng
        self.symbol = expit(policy.logits)  # probability of a right symbol
        self.on_q = self._of_entries(self.symbol[0]).prod(axis=0)

    def groups(self, method: str) -> tuple[list[_Group], float, Float[np.ndarray, "P S C"]]:
        """The groups that are trained, the weight of each, and the chance of the second half to be right."""
        N, G, on_q = self.world.num_drafts, self.world.num_refinements, self.on_q
        if method in ("grpo", "none"):
            size = N + G if method == "grpo" else G
            return [self._group_on_q(self._right(on_q, size), size)], 1.0, on_q

        draft = self.rng.random((self.world.length, *on_q.shape), dtype=np.float32) < self._of_entries(
            self.symbol[0]
        )
        drafts_right = draft.all(axis=0) + self._right(on_q, N - 1)
        if method != "random":
            draft |= drafts_right > 0  # the best draft; if all are wrong, the first one
        on_draft, written = self._chance_on_draft(draft)
        if method == "drafts_then_grpo":
            live = (drafts_right > 0) & (drafts_right < N)
            switched = live.mean(axis=0) >= SWITCH
            second = np.where(switched, on_q, on_draft)
            right = self._right(second, G)
            joined = self._group_on_q(np.where(switched, drafts_right + right, 0), N + G)
            refined = self._group(np.where(switched, 0, right), G, on_draft, written, draft)
            return [joined, refined], 1.0, second
        refined = self._group(self._right(on_draft, G), G, on_draft, written, draft)
        if method == "both":  # the loss is the mean over both stages
            return [self._group_on_q(drafts_right, N), refined], 0.5, on_draft
        return [refined], 1.0, on_draft

    def gradient(self, groups: list[_Group], weight: float) -> _Gradient:
        """Their sum, averaged over P and k."""
        weight /= self.world.prompts_per_step * self.world.length
        places = np.concatenate([group.places.ravel() for group in groups])
        pulls = np.concatenate([group.pulls.ravel() for group in groups])
        sums = np.bincount(places, pulls, minlength=self.symbol.size).reshape(self.symbol.shape)
        return _Gradient(weight * sums, weight * np.sum([group.copy for group in groups], axis=0))

    def _of_entries(self, values: Float[np.ndarray, "E S C"]) -> Float[np.ndarray, "k P S C"]:
        return values[self.entries, np.arange(values.shape[1])]

    def _right(self, chance: Float[np.ndarray, "P S C"], size: int) -> Int[np.ndarray, "P S C"]:
        """How many of `size` completions are right."""
        return (self.rng.random((size, *chance.shape)) < chance).sum(axis=0)

    def _chance_on_draft(
        self, draft: Bool[np.ndarray, "k P S C"]
    ) -> tuple[Float[np.ndarray, "P S C"], Float[np.ndarray, "P S C"]]:
        """Chance of a refinement to be right, and of one that does not copy. `draft`: its right symbols."""
        if_right, if_wrong = (self._of_entries(symbol) for symbol in self.symbol[1:])
        written = np.where(draft, if_right, if_wrong).prod(axis=0)
        copy = expit(self.policy.copy)
        return copy * draft.all(axis=0) + (1 - copy) * written, written

    def _group_on_q(self, right: Int[np.ndarray, "P S C"], size: int) -> _Group:
        return self._group(right, size, self.on_q, self.on_q, None)

    def _group(
        self,
        right: Int[np.ndarray, "P S C"],
        size: int,
        chance: Float[np.ndarray, "P S C"],
        written: Float[np.ndarray, "P S C"],
        draft: Bool[np.ndarray, "k P S C"] | None,
    ) -> _Group:
        """The sum of A_j grad log pi(o_j) / G for groups of which `right` of `size` completions are right.

        Its mean is group_signal * grad logit(chance). For a symbol of probability x, with Q = `written` and
        the share c of copies, d chance / d logit = (1 - c) Q (1 - x), and the symbol is right in a share
        w = (x - Q) / (1 - Q) of the wrong completions. Their part of the sum has the variance
        m (G - 1) / G^3 * w (1 - w), and is normal here.
        """
        live = (right > 0) & (right < size)
        p, s, c = np.nonzero(live)
        _, E, S, C = self.symbol.shape
        places = (self.entries[:, p, s] * S + s) * C + c
        copy = np.zeros(len(p))
        if draft is not None:
            drafted = draft[:, p, s, c]
            places += np.where(drafted, 1, 2) * (E * S * C)
            copy = expit(self.policy.copy[s, c])
        x = self.symbol.reshape(-1)[places]
        m, own, Q = right[p, s, c], chance[p, s, c], written[p, s, c]
        signal = group_signal(m, size) / (own * (1 - own))
        not_copies = (1 - copy) * (1 - Q) / (1 - own)  # among the wrong completions
        noise = np.sqrt(m * (size - 1) / size**3 * not_copies) / (1 - Q)
        pulls = signal * (1 - copy) * Q * (1 - x)
        pulls += (
            noise
            * np.sqrt(np.maximum(x - Q, 0) * (1 - x))
            * self.rng.standard_normal(x.shape, dtype=np.float32)
        )
        to_copy = np.zeros(S * C)
        if draft is not None:
            slope = copy * (1 - copy) * (drafted.all(axis=0) - Q)
            to_copy += np.bincount(s * C + c, signal * slope, minlength=S * C)
        return _Group(live, places, pulls, to_copy.reshape(S, C))
