"""Every lesson in notebooks/solutions/ is held to the house form and run top to bottom, offline.

`tests/lesson_checks/` holds what must be true of a lesson's own numbers; it runs in the lesson's kernel,
after the last cell.
"""

import ast
import os
import re
import shutil
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory

import nbformat
import pytest
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from papermill.iorw import load_notebook_node
from papermill.parameterize import parameterize_notebook
from traitlets.config import Config

from igrpo_kit.classroom.exercises import EXERCISES

ROOT = Path(__file__).parents[1]
LESSONS = sorted((ROOT / "notebooks" / "solutions").glob("*.ipynb"))
COPIES = sorted((ROOT / "notebooks").glob("*.ipynb"))
CHECKS = ROOT / "tests" / "lesson_checks"
MAX_CODE_LINES = 25
README = (ROOT / "README.md").read_text(encoding="utf-8")

# Parameters under which a lesson runs quickly; the others run as they are.
FAST: dict[str, dict] = {
    "01_best_of_n": {"trials": 20_000},
    "03_policy_gradient": {"runs": 10},
    "04_grpo_by_hand": {"seeds": 3},
    "05_two_stages": {"prompts": 20_000},
    "06_cpu_run": {"FAST": True},
    "07_single_gpu_run": {"FAST": True},
    "08_full_run_a100": {"max_steps": 2},
    "11_when_does_a_draft_pay": {"world_runs": 2, "cells": 4, "live_problems": 16},
}
# The package is found without being installed. Whatever asks for the network finds nobody there; a lesson's
# own server on this machine it does find.
ENVIRONMENT = {
    **os.environ,
    "PYTHONPATH": str(ROOT),
    "HF_HUB_OFFLINE": "1",
    "no_proxy": "127.0.0.1,localhost",
    **dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), "http://127.0.0.1:9"),
}

every_lesson = pytest.mark.parametrize("path", LESSONS, ids=[path.stem for path in LESSONS])


def code_cells(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def parameters_cells(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    return [cell for cell in code_cells(notebook) if "parameters" in cell.metadata.get("tags", [])]


def run_notebook(path: Path, parameters: dict, checks: str = "") -> nbformat.NotebookNode:
    """Run a notebook in its own folder, as JupyterLab does, and then `checks` in its kernel."""
    notebook = load_notebook_node(str(path))  # papermill's own reader: it adds the tags its injection needs
    if checks:
        notebook.cells.append(nbformat.v4.new_code_cell(checks, metadata={"tags": []}))
    if parameters:
        known = {node.target.id for node in ast.parse(parameters_cells(notebook)[0].source).body}
        assert set(parameters) <= known, f"{path.stem} has no parameter {set(parameters) - known}"
        notebook = parameterize_notebook(notebook, parameters)
    try:
        # By default the sockets lie, and stay, in the working folder; here the kernel works in another.
        with TemporaryDirectory() as sockets:
            NotebookClient(
                notebook,
                kernel_name="python3",
                timeout=240,
                store_widget_state=False,  # one FigureWidget would carry 5 MB of it
                resources={"metadata": {"path": str(path.parent)}},
                config=Config(AsyncKernelManager={"transport": "ipc", "ip": f"{sockets}/kernel"}),
            ).execute(env=ENVIRONMENT)
    except CellExecutionError as error:
        failed = [i for i, cell in enumerate(notebook.cells) if _has_error(cell)]
        source = notebook.cells[failed[0]].source
        raise AssertionError(
            f"{path.name}, cell {failed[0]}: {error.ename}: {error.evalue}\n{source}"
        ) from None
    return notebook


def _has_error(cell: nbformat.NotebookNode) -> bool:
    return any(output.output_type == "error" for output in cell.get("outputs", []))


@every_lesson
def test_runs_top_to_bottom(path, tmp_path):
    """In a folder that holds nothing else, as a lesson that somebody copied; every solution passes."""
    checks = (CHECKS / f"{path.stem}.py").read_text(encoding="utf-8")
    executed = run_notebook(Path(shutil.copy(path, tmp_path)), FAST.get(path.stem, {}), checks)
    if count := sum(exercise.lesson == path.stem[:2] for exercise in EXERCISES.values()):
        scores = code_cells(executed)[-2].outputs[-1].data["text/plain"]
        assert scores == f"{count} of {count} passed"


def test_every_lesson_has_checks_that_assert():
    assert sorted(path.stem for path in CHECKS.glob("*.py")) == [path.stem for path in LESSONS]
    for path in CHECKS.glob("*.py"):
        tree = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        assert sum(isinstance(node, ast.Assert) for node in tree) >= 4, path.name


@pytest.mark.parametrize("name", ["04_grpo_by_hand", "09_entropy_and_pass_at_n"])
def test_run_all_goes_through_a_student_copy_with_nothing_written(name):
    """Lesson 09 reads records as well: a copy finds them from its own folder."""
    executed = run_notebook(ROOT / "notebooks" / f"{name}.ipynb", FAST.get(name, {}))
    said = "".join(
        output.data.get("text/plain", "")
        for cell in code_cells(executed)
        for output in cell.outputs
        if "exercise" in cell.metadata.get("tags", []) and output.output_type == "execute_result"
    )
    assert said.count("not written yet") >= 4 and "passed" not in said and "✗" not in said
    last = code_cells(executed)[-1].outputs[-1].data["text/plain"]
    assert re.fullmatch(r"0 of \d+ passed, next: \w+", last)


def test_a_failing_cell_is_named(tmp_path):
    cells = [nbformat.v4.new_markdown_cell("# text"), nbformat.v4.new_code_cell("x = 1\nassert x == 2, 'no'")]
    path = tmp_path / "broken.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=cells), path)
    with pytest.raises(
        AssertionError, match=r"broken.ipynb, cell 1: AssertionError: no\nx = 1\nassert x == 2"
    ):
        run_notebook(path, {})


def test_the_network_is_out_of_reach(tmp_path):
    source = "from urllib.request import urlopen\nurlopen('http://pypi.org', timeout=20)"
    path = tmp_path / "online.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source)]), path)
    with pytest.raises(AssertionError, match=r"cell 0: URLError: .*refused"):
        run_notebook(path, {})


def test_an_unknown_parameter_is_an_error():
    with pytest.raises(AssertionError, match=r"has no parameter \{'trails'\}"):
        run_notebook(COPIES[1], {"trails": 5})


def test_fast_parameters_belong_to_a_lesson():
    assert set(FAST) <= {path.stem for path in LESSONS}


@every_lesson
def test_stripped(path):
    notebook = nbformat.read(path, as_version=4)
    for cell in code_cells(notebook):
        assert cell.outputs == [] and cell.execution_count is None, f"outputs in cell {cell.id}: make format"
    assert notebook.metadata == {
        "kernelspec": {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }


@every_lesson
def test_cell_ids_are_kept_unique_and_speaking(path):
    ids = [cell.id for cell in nbformat.read(path, as_version=4).cells]
    assert len(set(ids)) == len(ids)
    # Tools that renumber make "0", "1", ...; tools that invent make eight hexadecimal digits.
    dumb = [i for i in ids if re.fullmatch(r"\d+|[0-9a-f]{8}(-[0-9a-f-]+)?", i)]
    assert dumb == []


@every_lesson
def test_head(path):
    head = nbformat.read(path, as_version=4).cells[0].source
    assert re.match(rf"# {path.stem[:2]} · \S", head), "title: '# NN · Name'"
    assert re.search(r"^\*\*Time\*\* \d+ min .*· \*\*Hardware\*\* .+ · \*\*Needs\*\* .+$", head, re.MULTILINE)
    learn = head.split("**What you will learn**")[1]
    assert 3 <= len(re.findall(r"^- ", learn, re.MULTILINE)) <= 5


@every_lesson
def test_the_stated_minutes_are_those_of_the_exercises_and_of_the_text(path):
    """Reading: 150 words of text and 12 lines of code a minute, as the teaching guide says, to 5 minutes."""
    cells = nbformat.read(path, as_version=4).cells
    stated = re.search(r"\*\*Time\*\* (\d+) min(?: reading, (\d+) min exercises)?", cells[0].source)
    assert int(stated[2] or 0) == sum(e.minutes for e in EXERCISES.values() if e.lesson == path.stem[:2])
    words = sum(len(re.findall(r"\w+", c.source)) for c in cells if c.cell_type == "markdown")
    lines = sum(len([x for x in c.source.splitlines() if x.strip()]) for c in cells if c.cell_type == "code")
    assert abs(int(stated[1]) - (words / 150 + lines / 12)) <= 5
    entry = f"{stated[1]} + {stated[2]}" if stated[2] else stated[1]
    assert re.search(rf"^\| \[{path.stem[:2]} .*\| {re.escape(entry)} \|", README, re.MULTILINE)


@every_lesson
def test_parameters_are_typed_literals_with_a_comment(path):
    (cell,) = parameters_cells(nbformat.read(path, as_version=4))
    lines = cell.source.splitlines()
    for node in ast.parse(cell.source).body:
        assert isinstance(node, ast.AnnAssign), f"not 'name: type = literal': {ast.unparse(node)}"
        ast.literal_eval(node.value)
    assert all("  # " in line for line in lines if not line.startswith("seed")), (
        "say what it is, and its unit"
    )


@every_lesson
def test_code_cells_are_short(path):
    cells = code_cells(nbformat.read(path, as_version=4))
    long = {c.id: n for c in cells if (n := len(c.source.splitlines())) > MAX_CODE_LINES}
    assert long == {}


@every_lesson
def test_ends_with_the_scoreboard_and_takeaways(path):
    notebook = nbformat.read(path, as_version=4)
    if any(exercise.lesson == path.stem[:2] for exercise in EXERCISES.values()):
        assert code_cells(notebook)[-1].source.endswith(f'scoreboard("{path.stem[:2]}")')
    assert notebook.cells[-1].source.startswith("## Takeaways")


@pytest.mark.parametrize("path", [*LESSONS, *COPIES], ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_local_links_lead_somewhere(path):
    text = "\n".join(c.source for c in nbformat.read(path, as_version=4).cells if c.cell_type == "markdown")
    targets = [t for t in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in t]
    assert [t for t in targets if not (path.parent / t.split("#")[0]).exists()] == []


def test_lesson_00_lists_every_other_lesson():
    cells = nbformat.read(LESSONS[0], as_version=4).cells
    text = "\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
    rows = re.findall(r"^\| (\d\d) \| \[`(\w+)`\]\(\2\.ipynb\) \|", text, re.MULTILINE)
    assert rows == [(path.stem[:2], path.stem) for path in LESSONS[1:]]


def is_package(name: str) -> bool:
    return (ROOT / name.replace(".", "/") / "__init__.py").is_file()


def is_public(package: str, name: str) -> bool:
    return is_package(package) and (name in import_module(package).__all__ or is_package(f"{package}.{name}"))


def imports_beside_the_public_names(source: str) -> list[str]:
    """What code takes from igrpo_kit that neither the top nor a package lists, by its dotted name."""
    used, tops = [], set()
    nodes = list(ast.walk(ast.parse(source)))
    for node in nodes:
        if isinstance(node, ast.ImportFrom) and f"{node.module}.".startswith("igrpo_kit."):
            used += [(node.module, alias.name) for alias in node.names]
        for alias in node.names if isinstance(node, ast.Import) else ():
            if alias.name == "igrpo_kit":
                tops.add(alias.asname or alias.name)
            elif alias.name.startswith("igrpo_kit."):
                used.append(tuple(alias.name.rsplit(".", 1)))
    for node in nodes:
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in tops:
            used.append(("igrpo_kit", node.attr))
    return [f"{package}.{name}" for package, name in used if not is_public(package, name)]


@pytest.mark.parametrize(
    "path", [*LESSONS, *COPIES], ids=lambda path: str(path.relative_to(ROOT / "notebooks").with_suffix(""))
)
def test_imports_public_names_only(path):
    """From the top or from a package: a module may move, and its other names may go."""
    cells = code_cells(nbformat.read(path, as_version=4))
    assert imports_beside_the_public_names("\n".join(cell.source for cell in cells)) == []


def test_an_import_from_a_module_is_found():
    source = """
import igrpo_kit as ik, igrpo_kit.core, igrpo_kit.core.losses, numpy
from igrpo_kit import GRPO, data_path, viz, neutralize
from igrpo_kit.core import GRPO, losses
from igrpo_kit.core.losses import GRPO
from igrpo_kit.tasks.grading import Grader
from igrpo_kit.no_such_package import GRPO
ik.GRPO, ik.core, ik.losses, numpy.losses
"""
    assert imports_beside_the_public_names(source) == [
        "igrpo_kit.core.losses",
        "igrpo_kit.neutralize",
        "igrpo_kit.core.losses",
        "igrpo_kit.core.losses.GRPO",
        "igrpo_kit.no_such_package.GRPO",
        "igrpo_kit.losses",
    ]


def generous_rewards(source: str) -> list[str]:
    """Calls float(...) that reward text for containing an answer, or for ending in it, anywhere."""
    calls = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call) and node.args]
    scored = [call.args[0] for call in calls if ast.unparse(call.func) == "float"]
    return [
        ast.unparse(x)
        for x in scored
        if (isinstance(x, ast.Compare) and isinstance(x.ops[0], ast.In))
        or (isinstance(x, ast.Call) and ast.unparse(x.func).endswith((".startswith", ".endswith")))
    ]


@pytest.mark.parametrize(
    "path", [path for path in LESSONS if path.stem != "02_rewards"], ids=lambda p: p.stem
)
def test_scores_with_a_check_that_lesson_02_does_not_distrust(path):
    cells = code_cells(nbformat.read(path, as_version=4))
    assert generous_rewards("\n".join(cell.source for cell in cells)) == []


def test_a_generous_reward_is_found():
    source = """
a = [[float("<answer>26</answer>" in draft) for draft in drafts]]
b = [float(text.endswith(answer)) for text in group]
c = float(text.rsplit("=", 1)[-1] == answer), sum(float(x) for x in values), float(np.mean([x for x in y]))
"""
    assert sorted(generous_rewards(source)) == ["'<answer>26</answer>' in draft", "text.endswith(answer)"]


@every_lesson
def test_composes_the_library_and_redefines_nothing_of_it(path):
    library = {
        node.name
        for module in (ROOT / "igrpo_kit").rglob("*.py")
        for node in ast.parse(module.read_text(encoding="utf-8")).body
        if isinstance(node, ast.FunctionDef | ast.ClassDef)
    }
    assert "group_advantages" in library
    own = {
        node.name
        for cell in code_cells(nbformat.read(path, as_version=4))
        for node in ast.walk(ast.parse(cell.source))
        if isinstance(node, ast.FunctionDef | ast.ClassDef)
    }
    assert own & library == set()
