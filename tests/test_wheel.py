"""The kit as a user has it: a wheel in an environment of its own, used from a folder that is no checkout."""

import os
import re
import subprocess
import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).parents[1]
pytestmark = [pytest.mark.wheel, pytest.mark.timeout(600)]

TRAIN = """
import igrpo_kit as ik

sampler = ik.HFSampler(ik.load_policy("tiny"), ik.SamplingSettings(max_new_tokens=12))
config = ik.TrainConfig(steps=3, num_drafts=2, num_refinements=2)
problems = ik.countdown_problems(200, seed=0)
for row in ik.train(sampler, ik.AccuracyReward(), problems, config, progress=False):
    print(row["step"], row["reward"])
"""
WHERE = """
from pathlib import Path

import igrpo_kit
from igrpo_kit.core.data import checkout, data_path, lessons_path

for path in (Path(igrpo_kit.__file__).parent, checkout(), data_path(), lessons_path()):
    print(path)
"""


class Installed:
    """A fresh environment with igrpo_kit alone; the packages it needs are those of this one."""

    def __init__(self, folder: Path) -> None:
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
        self.bin, self.empty = folder / "bin", folder / "empty"
        (self.site_packages,) = (folder / "lib").glob("python*/site-packages")
        # A folder that a .pth file names is searched, but its own .pth files, so an editable kit, are not.
        (self.site_packages / "dependencies.pth").write_text(f"{Path(nbformat.__file__).parents[1]}\n")
        self.empty.mkdir()

    def install(self, *what: str | Path) -> None:
        """With pip; nothing is fetched."""
        command = [sys.executable, "-m", "pip", "--python", self.bin / "python", "install", "--quiet"]
        command += ["--no-deps", "--no-index", "--no-build-isolation", "--disable-pip-version-check", *what]
        subprocess.run(command, cwd=self.empty, env=self.environment(), check=True)

    def environment(self) -> Mapping[str, str]:
        """Nothing of the checkout, no network, no browser, and a home of its own."""
        kept = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "IGRPO_DATA", "VIRTUAL_ENV")}
        home = str(self.empty.parent / "home")
        return {**kept, "HOME": home, "XDG_CACHE_HOME": home, "HF_HUB_OFFLINE": "1", "BROWSER_PATH": "none"}

    def run(self, program: str, *arguments: str) -> str:
        """What a program of the environment prints, run in the empty folder."""
        done = subprocess.run(
            [self.bin / program, *arguments],
            cwd=self.empty,
            env=self.environment(),
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def files(self) -> dict[Path, int]:
        """All that lies in site-packages, with the time it was last changed."""
        return {path: path.stat().st_mtime_ns for path in self.site_packages.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    out = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", out, ROOT]
    subprocess.run(command, check=True, capture_output=True)
    (path,) = out.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """Every test below runs in it, and at the end nothing in its site-packages has changed."""
    environment = Installed(tmp_path_factory.mktemp("installed"))
    environment.install(wheel)
    before = environment.files()
    assert len(before) > 500
    yield environment
    assert environment.files() == before


def test_the_wheel_holds_the_package_its_data_and_the_lessons_and_nothing_else(wheel):
    held = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    command = [
        "git",
        "ls-files",
        "--cached",
        "--others",
        "--exclude-standard",
        "igrpo_kit",
        "data",
        "notebooks",
    ]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    of_checkout = [path for path in listed if (ROOT / path).is_file()]
    inside = {"igrpo_kit": "igrpo_kit", "data": "igrpo_kit/_data", "notebooks": "igrpo_kit/_notebooks"}
    rooms = [path.split("/", 1) for path in of_checkout]
    assert held == {f"{inside[room]}/{rest}" for room, rest in rooms}
    assert held > {
        "igrpo_kit/py.typed",
        "igrpo_kit/__init__.pyi",
        "igrpo_kit/scale/job.slurm",
        "igrpo_kit/_data/recipes.json",
        "igrpo_kit/_data/experiments/countdown-cpu.yaml",
        "igrpo_kit/_data/policies/tiny/model.safetensors",
        "igrpo_kit/_data/benchmarks/growth.json",
        "igrpo_kit/_notebooks/teaching_guide.md",
        "igrpo_kit/_notebooks/00_start_here.ipynb",
        "igrpo_kit/_notebooks/solutions/01_best_of_n.ipynb",
    }
    assert not [name for name in held if "/models/" in name or "__pycache__" in name]


def test_an_installed_kit_reads_what_it_brought(installed):
    package = installed.site_packages / "igrpo_kit"
    where = [str(package), "None", str(package / "_data"), str(package / "_notebooks")]
    assert installed.run("python", "-c", WHERE).splitlines() == where


def test_an_editable_install_reads_the_checkout_and_copies_nothing(tmp_path):
    editable = Installed(tmp_path / "editable")
    editable.install("--editable", ROOT)
    where = [str(ROOT / "igrpo_kit"), str(ROOT), str(ROOT / "data"), str(ROOT / "notebooks")]
    assert editable.run("python", "-c", WHERE).splitlines() == where
    assert not (editable.site_packages / "igrpo_kit").exists()


def test_recipes_are_listed_and_shown(installed):
    assert "r1-7b" in installed.run("igrpo", "recipe")
    assert '"name": "r1-7b"' in installed.run("igrpo", "recipe", "r1-7b")


def test_the_doctor_finds_nothing_wrong(installed):
    said = installed.run("igrpo", "doctor")
    assert "✗" not in said
    assert str(installed.site_packages / "igrpo_kit" / "_data" / "policies" / "tiny") in said


def test_a_policy_is_loaded_and_trained(installed):
    installed.run("python", "-c", "from igrpo_kit import load_policy; load_policy('tiny')")
    assert [line.split()[0] for line in installed.run("python", "-c", TRAIN).splitlines()] == ["1", "2", "3"]


def test_a_report_and_the_figures_are_drawn_from_the_records(installed):
    said = installed.run("igrpo", "report", "--preset", "countdown-cpu")
    assert "iGRPO 4+4" in said
    assert (installed.empty / "runs" / "countdown-cpu.html").stat().st_size > 3_000_000
    pages = installed.run("igrpo", "figures").splitlines()
    assert len(pages) >= 10 and all((installed.empty / page).exists() for page in pages)


def test_student_copies_are_written_where_the_user_is(installed):
    copies = installed.run("igrpo", "student").splitlines()
    assert len(copies) == 13
    assert all(Path(copy).parts[:1] == ("notebooks",) for copy in copies)
    assert all((installed.empty / copy).is_file() for copy in copies)


def test_lessons_are_copied_and_never_over_existing_work(installed):
    copies = installed.run("igrpo", "lessons", "mine").splitlines()
    assert "mine/00_start_here.ipynb" in copies and "mine/teaching_guide.md" in copies
    (installed.empty / "mine" / "00_start_here.ipynb").write_text("my work")
    (said,) = installed.run("igrpo", "lessons", "mine").splitlines()
    assert said.startswith(f"{len(copies)} files already exist and were not changed: 00_start_here.ipynb, ")
    assert (installed.empty / "mine" / "00_start_here.ipynb").read_text() == "my work"


@pytest.mark.parametrize(
    ("lesson", "flags"),
    [
        ("02_rewards", []),
        ("06_cpu_run", ["--FAST"]),
        ("07_single_gpu_run", ["--FAST"]),
        ("08_full_run_a100", ["--max-steps", "2"]),
        ("09_entropy_and_pass_at_n", []),
        ("10_reading_the_paper", []),
    ],
)
def test_a_lesson_that_reads_data_runs_from_its_copy(installed, lesson, flags):
    installed.run("igrpo", "lessons")
    mine = installed.empty / "lessons" / f"{lesson}.ipynb"
    ours = nbformat.read(mine, as_version=4)
    asked = "import igrpo_kit; print(igrpo_kit.__file__)"
    ours.cells.insert(len(ours.cells) - 1, nbformat.v4.new_code_cell(asked))
    nbformat.write(ours, mine)
    installed.run("igrpo", "run", str(mine), *flags)
    executed = nbformat.read(installed.empty / "runs" / f"{lesson}.ipynb", as_version=4)
    code = [cell for cell in executed.cells if cell.cell_type == "code"]
    printed = ["".join(output.get("text", "") for output in cell.outputs) for cell in code]
    assert re.fullmatch(r"0 of \d+ passed, next: \w+", code[-2].outputs[-1].data["text/plain"])
    assert f"{installed.site_packages / 'igrpo_kit' / '__init__.py'}\n" in printed
