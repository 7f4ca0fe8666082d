"""One dependency list, one set of versions, a cheap import, and public names that are documented."""

import ast
import inspect
import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

import igrpo_kit

ROOT = Path(__file__).parent.parent


def canonical(name):
    return re.sub(r"[-_.]+", "-", name).lower()


def requirement_name(requirement):
    return canonical(re.match(r"[A-Za-z0-9._-]+", requirement).group())


@pytest.fixture(scope="module")
def project():
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


@pytest.fixture(scope="module")
def constraints():
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9._!]+", pin) for pin in pins)
    names = [requirement_name(pin) for pin in pins]
    assert len(set(names)) == len(names)
    return dict(zip(names, (pin.split("==")[1] for pin in pins), strict=True))


def test_every_dependency_is_pinned_once_and_only_in_constraints(project, constraints):
    extras = project["optional-dependencies"]
    wanted = [*project["dependencies"], *(r for name in extras for r in extras[name])]
    wanted = [r for r in wanted if not r.startswith("igrpo-kit")]
    assert not [r for r in wanted if "==" in r.split(";")[0] or ">" in r.split(";")[0]]
    assert not [r for r in wanted if requirement_name(r) not in constraints]


def test_the_versions_that_were_run_together(constraints):
    """torch is what the engine asks for, and the engine is one release on CPU and GPU."""
    assert constraints["torch"] == "2.13.0"
    assert constraints["vllm"] == constraints["vllm-cpu"] == "0.31.0"
    assert constraints["trl"] == "1.16.0"
    assert constraints["transformers"].startswith("5.17.")


def test_the_installed_versions_are_the_pinned_ones(constraints):
    from importlib.metadata import distributions

    installed = {canonical(d.name): d.version.split("+")[0] for d in distributions()}
    wrong = {n: (v, constraints[n]) for n, v in installed.items() if n in constraints and v != constraints[n]}
    assert "torch" in installed
    assert not wrong


def test_the_extras_the_readme_names_exist(project):
    assert set(project["optional-dependencies"]) == {
        "figures", "notebooks", "train", "vllm", "vllm-cpu", "test", "all",
    }  # fmt: skip


def test_environment_yml_only_points_at_pyproject_and_constraints(project):
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    python, pip, packages = environment["dependencies"]
    assert pip == "pip"
    version = python.removeprefix("python=")
    assert tuple(map(int, version.split("."))) >= (3, 11)
    assert project["requires-python"] == ">=3.11"
    assert packages == {"pip": ["-c constraints.txt", "-e .[all]"]}


def test_the_readme_maps_every_lesson_and_its_code_runs():
    readme = (ROOT / "README.md").read_text()
    linked = set(re.findall(r"\(notebooks/(\w+\.ipynb)\)", readme))
    assert linked == {path.name for path in (ROOT / "notebooks").glob("*.ipynb")}
    assert all((ROOT / path).exists() for path in re.findall(r"\((figures/[\w.-]+)\)", readme))
    code = "\n".join(re.findall(r"```python\n(.*?)```", readme, re.S))
    exec(compile(code, "README.md", "exec"), {})


def test_importing_the_package_loads_nothing_heavy():
    heavy = ["torch", "transformers", "trl", "vllm", "datasets", "numpy", "scipy", "plotly", "math_verify"]
    code = f"import sys, json, igrpo_kit; print(json.dumps([m for m in {heavy} if m in sys.modules]))"
    out = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert json.loads(out.stdout) == []


def test_a_toy_name_does_not_load_torch():
    code = "import sys, igrpo_kit; igrpo_kit.best_of_n_probability(0.5, 2); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


@pytest.mark.parametrize("name", sorted(igrpo_kit.__all__))
def test_public_names_resolve_and_say_what_they_are(name):
    value = getattr(igrpo_kit, name)
    if inspect.isfunction(value) or inspect.isclass(value):
        assert value.__doc__
        assert not value.__doc__.startswith(f"{name}(")  # a dataclass's generated signature is no docstring
        for member_name, member in vars(value).items() if inspect.isclass(value) else ():
            if inspect.isfunction(member) and not member_name.startswith("_"):
                assert member.__doc__, f"{name}.{member_name}"


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no_such_name"):
        igrpo_kit.no_such_name  # noqa: B018


FLOORS = [
    # pure functions, and files
    [
        "toy",
        "prompts",
        "selection",
        "advantages",
        "tokens",
        "puzzles",
        "analysis.intervals",
        "runlog",
        "fetch",
        "scale.batch",
    ],
    [
        "losses",
        "analysis.passk",
        "analysis.cost",
        "analysis.exact",
        "analysis.paper",
        "checkpoint",
        "_grading_worker",
        "_grading_pool",
    ],
    # models and processes
    ["grading", "policies", "scoring", "samplers", "samplers._llama"],
    ["samplers.hf", "samplers.scripted", "problems"],
    ["samplers.vllm"],
    ["presets", "rewards", "pretrain", "warmstart"],
    # one step, and the loop
    ["judge", "rollout"],
    ["metrics"],
    ["update", "analysis.evaluate", "analysis.compare"],
    ["training", "analysis.dynamics", "scale.trainer", "scale.callbacks"],
    ["baselines", "scale.recipes"],
    # experiments, pictures, the command line
    ["experiments", "viz.style", "viz.text"],
    ["ablations", "viz.plots", "viz.panels", "viz.files", "viz.explorers", "viz.completions"],
    ["viz.runs", "viz.results"],
    ["viz.live", "viz.gallery"],
    # the classroom
    ["classroom.answers"],
    ["classroom.exercise", "classroom.transport"],
    [f"classroom.exercises.lesson{lesson:02d}" for lesson in range(1, 10)],
    ["classroom.exercises", "classroom._grade_worker", "classroom.student"],
    ["classroom.checks", "classroom.grade"],
    ["cli"],
]
PURE = {
    "toy",
    "prompts",
    "selection",
    "advantages",
    "tokens",
    "losses",
    "puzzles",
    "analysis.intervals",
    "analysis.passk",
    "analysis.cost",
    "analysis.exact",
}


def modules():
    """Every module of the package, by its name inside it, and the names of those it imports."""
    package, found = ROOT / "igrpo_kit", {}
    for path in package.rglob("*.py"):
        name = ".".join(path.relative_to(package).with_suffix("").parts).removesuffix("__init__").rstrip(".")
        imported = set()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "igrpo_kit":
                room = node.module.removeprefix("igrpo_kit").lstrip(".")
                for alias in node.names:
                    inner = f"{room}.{alias.name}".lstrip(".")
                    is_module = (package / (inner.replace(".", "/") + ".py")).exists()
                    imported.add(inner if is_module else room)
        found[name] = imported
    return found


def test_rooms_import_only_what_stands_below_them():
    """The house: no arrow up, no circle; a new room is given its floor here."""
    level = {room: i for i, floor in enumerate(FLOORS) for room in floor}
    packages = ("", "__main__", "analysis", "viz", "scale", "classroom")
    found = {m: imported for m, imported in modules().items() if m not in packages}
    assert set(found) <= set(level), "rooms without a floor"
    for room, imported in found.items():
        for target in imported - {room}:
            assert level[target] < level[room], f"{room} imports {target}"


def test_pure_rooms_touch_no_file_process_or_network():
    found = modules()
    for room in PURE:
        assert found[room] <= PURE
        source = (ROOT / "igrpo_kit" / (room.replace(".", "/") + ".py")).read_text()
        assert not re.search(
            r"^\s*(import|from) (os|subprocess|pathlib|httpx|transformers)\b|\bopen\(", source, re.M
        )
