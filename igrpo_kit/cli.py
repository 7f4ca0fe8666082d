"""The command line, `python -m igrpo_kit <command>`: thin, each command a few calls into the rooms below.

A command imports what it needs when it runs, so `--help` works whatever is installed.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float

from igrpo_kit.toy import best_of_n_probability, simulate_best_of_n

_TOY_P = np.array([0.02, 0.05, 0.1, 0.2, 0.4])
_TOY_N = [1, 2, 4, 8, 16]


def best_of_n_table(
    p: Float[np.ndarray, " K"], n: Sequence[int], simulated: Float[np.ndarray, "M K"], trials: int
) -> str:
    """Closed form against simulation as text, one line per (p, N); the last column counts standard errors.

    `simulated` [n, p] as in `plot_best_of_n`; each p strictly between 0 and 1.
    """
    lines = ["   p    N   1-(1-p)^N   simulated   std. error   off by"]
    for column, x in enumerate(p.tolist()):
        for row, size in enumerate(n):
            expected = float(best_of_n_probability(x, size))
            error = (expected * (1 - expected) / trials) ** 0.5
            seen = float(simulated[row, column])
            off = (seen - expected) / error
            lines.append(f"{x:4.2f} {size:4d}   {expected:9.5f}   {seen:9.5f}   {error:10.5f}   {off:+6.2f}")
    return "\n".join(lines)


def _toy(args: argparse.Namespace) -> None:
    from igrpo_kit.viz.plots import plot_best_of_n, write_html

    rng = np.random.default_rng(args.seed)
    simulated = np.array(
        [[simulate_best_of_n(p, n, args.trials, rng) for p in _TOY_P.tolist()] for n in _TOY_N]
    )
    print(f"Is the best of N drafts right? {args.trials:,} simulated prompts a line, seed {args.seed}\n")
    print(best_of_n_table(_TOY_P, _TOY_N, simulated, args.trials))
    print("\n'off by' counts standard errors: if the formula holds, one line in 16,000 is beyond 4.")
    figure = plot_best_of_n(_TOY_P, _TOY_N, simulated, args.trials)
    print("Figure, opens without a network:", write_html(figure, args.out / "best_of_n.html"))


def _figures(args: argparse.Namespace) -> None:
    from igrpo_kit.viz.gallery import draw_figures

    for path in draw_figures(args.out):
        print(path)


def _whole(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"a whole number >= 0 is needed, got {text!r}")
    return int(text)


def _positive(text: str) -> int:
    if not _whole(text):
        raise argparse.ArgumentTypeError("a whole number >= 1 is needed, got 0")
    return int(text)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="igrpo", description="iGRPO (arXiv 2602.09000), to run and to read."
    )
    commands = parser.add_subparsers(dest="command", metavar="command", required=True)

    toy = commands.add_parser("toy", aliases=["demo"], help="best of N: formula against simulation")
    toy.add_argument("--out", type=Path, default=Path("runs/toy"), help="folder of the figure (%(default)s)")
    toy.add_argument("--trials", type=_positive, default=1_000_000, help="prompts per line (%(default)s)")
    toy.add_argument("--seed", type=_whole, default=0, help="(%(default)s)")
    toy.set_defaults(run=_toy)

    figures = commands.add_parser("figures", help="draw the pictures of figures/ anew (needs a Chromium)")
    figures.add_argument("--out", type=Path, default=Path("figures"), help="folder (%(default)s)")
    figures.set_defaults(run=_figures)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status. What a user can put right is said in one line on stderr."""
    args = _parser().parse_args(arguments)
    try:
        args.run(args)
    except ModuleNotFoundError as error:
        hint = f"{error.name} is not installed: pip install 'igrpo-kit[figures]'"
        print(f"igrpo {args.command}: {hint}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"igrpo {args.command}: {error}", file=sys.stderr)
        return 1
    return 0
