"""`igrpo doctor`: what is wrong is a line with its mend, and the command fails."""

import os
import re
import sys
import types
from importlib.metadata import PackageNotFoundError, version

import pytest

from igrpo_kit.cli import main
from igrpo_kit.core import data
from igrpo_kit.scale import doctor
from igrpo_kit.scale.doctor import Finding, examine


def lines_of(capsys):
    """What the command printed, a line or two (with the mend) for each finding, by what was checked."""
    out = capsys.readouterr().out.replace("\n    ", " ").splitlines()
    return {line.split(": ")[0]: line for line in out}


def test_here_nothing_fails(capsys):
    """What is optional may be missing."""
    assert main(["doctor"]) == 0
    lines = lines_of(capsys)
    assert {name[:1] for name in lines} <= {"✓", "–"}
    for name in ("Python", "torch", "numpy", "data", "device", "grader"):
        assert f"✓ {name}" in lines
    assert {name[2:] for name in lines} >= {"fetched models", "vLLM engine", "browser", "transformers"}
    assert all(" -> " in line for name, line in lines.items() if name == "– fetched models")


def test_a_finding_as_text():
    assert str(Finding("torch", "ok", "2.13.0")) == "✓ torch: 2.13.0"
    failed = Finding("torch", "failed", "1.0, needs >=2.13", "pip install torch")
    assert str(failed) == "✗ torch: 1.0, needs >=2.13\n    -> pip install torch"


@pytest.fixture
def only(monkeypatch):
    """Makes one check alone: the others are slow, and depend on the machine."""

    def choose(check):
        monkeypatch.setattr(doctor, "CHECKS", (check,))

    return choose


@pytest.fixture
def needs(monkeypatch, only):
    """Sets what the package's metadata ask for, and what is installed where that is not the truth."""

    def set_(requirements, **installed):
        def found(name):
            if name not in installed:
                return version(name)
            if installed[name] is None:
                raise PackageNotFoundError(name)
            return installed[name]

        monkeypatch.setattr(doctor, "requires", lambda name: requirements)
        monkeypatch.setattr(doctor, "version", found)

    only(doctor._versions)
    return set_


def test_a_package_that_is_needed_and_missing(needs, capsys):
    needs(["numpy>=2.1,<3", "scipy>=1.14,<2"], scipy=None)
    assert main(["doctor"]) == 1
    done = capsys.readouterr()
    assert done.out.splitlines()[1:] == [
        f"✓ numpy: {version('numpy')}",
        "✗ scipy: not installed (needs <2,>=1.14)",
        "    -> pip install --force-reinstall igrpo-kit",
    ]
    assert done.err == "igrpo doctor: 1 check(s) failed\n"


def test_a_package_that_is_too_old_or_too_new(needs, capsys):
    needs(["numpy>=2.1,<3", "torch>=2.13,<3"], numpy="1.26.4", torch="3.0.0+cpu")
    assert main(["doctor"]) == 1
    done = capsys.readouterr()
    assert done.out.splitlines()[1:] == [
        "✗ numpy: 1.26.4, needs <3,>=2.1",
        "    -> pip install --force-reinstall igrpo-kit",
        "✗ torch: 3.0.0+cpu, needs <3,>=2.13",
        "    -> pip install --force-reinstall igrpo-kit",
    ]
    assert done.err == "igrpo doctor: 2 check(s) failed\n"


def test_an_extra_may_be_missing_but_not_too_old(needs, capsys):
    trl = 'trl>=1.16,<1.17; extra == "train"'
    needs([trl], trl=None)
    assert main(["doctor"]) == 0
    assert capsys.readouterr().out.splitlines()[1:] == [
        "– trl: not installed (needs <1.17,>=1.16)",
        "    -> pip install 'igrpo-kit[train]'",
    ]
    needs([trl], trl="1.15.2")
    assert main(["doctor"]) == 1
    assert capsys.readouterr().out.splitlines()[1:] == [
        "✗ trl: 1.15.2, needs <1.17,>=1.16",
        "    -> pip install 'igrpo-kit[train]'",
    ]


def test_what_does_not_concern_this_machine_or_this_command_is_left_out(needs):
    needs(
        [
            "numpy>=2.1,<3; sys_platform == 'no such platform'",
            "pytest; extra == 'test'",
            "igrpo-kit[train]; extra == 'all'",
        ]
    )
    assert [finding.what for finding in examine()] == ["Python"]


def test_data_that_is_not_there(only, tmp_path, monkeypatch, capsys):
    """As in a wheel that was built without it."""
    monkeypatch.delenv("IGRPO_DATA", raising=False)
    monkeypatch.setattr(data, "_shipped", lambda name: tmp_path / name)
    (tmp_path / "data" / "paper").mkdir(parents=True)
    (tmp_path / "data" / "paper" / "table_1.csv").write_text("one file is left")
    only(doctor._data)
    assert main(["doctor"]) == 1
    out = capsys.readouterr().out
    assert f"✓ data: paper: {tmp_path}/data/paper/table_1.csv\n" in out
    for name in ("policies", "runs/countdown-cpu", "problems", "recipes.json"):
        assert re.search(
            f"✗ data: {name}: {tmp_path}/data/{name}.* does not exist\n"
            "    -> reinstall igrpo-kit, or unset IGRPO_DATA\n",
            out,
        )


def test_a_folder_of_the_users_that_hides_the_shipped_one(only, tmp_path, monkeypatch, capsys):
    (tmp_path / "policies" / "tiny").mkdir(parents=True)
    monkeypatch.setenv("IGRPO_DATA", str(tmp_path))
    only(doctor._data)
    assert main(["doctor"]) == 1
    done = capsys.readouterr()
    assert f"✗ data: policies: {tmp_path}/policies/tiny/model.safetensors does not exist\n" in done.out
    assert done.err == "igrpo doctor: 1 check(s) failed\n"


def test_fetched_models_are_named(only, tmp_path, monkeypatch):
    monkeypatch.setenv("IGRPO_DATA", str(tmp_path))
    only(doctor._data)
    before = list(examine())[-1]
    assert (before.what, before.status) == ("fetched models", "missing")
    assert before.mend.startswith("igrpo fetch smollm2")
    (tmp_path / "models" / "smollm2").mkdir(parents=True)
    assert list(examine())[-1] == Finding("fetched models", "ok", f"smollm2 in {tmp_path}/models")


def test_a_system_that_is_not_posix(only, monkeypatch, capsys):
    monkeypatch.setattr(doctor, "os", types.SimpleNamespace(name="nt", cpu_count=os.cpu_count))
    only(doctor._grader)
    assert main(["doctor"]) == 1
    assert capsys.readouterr().out == (
        "✗ grader: worker processes need a POSIX system\n    -> use Linux, macOS or WSL\n"
    )


def test_without_a_browser_figures_are_pages(only, monkeypatch):
    monkeypatch.setattr(doctor.shutil, "which", lambda name: None)
    only(doctor._browser)
    (finding,) = examine()
    assert (finding.status, finding.detail) == ("missing", "no Chromium or Chrome on the PATH")
    assert "apt-get install chromium" in finding.mend


def test_a_check_that_cannot_be_made_is_a_finding_and_the_next_is_made(monkeypatch, capsys):
    def broken():
        yield Finding("half of it", "ok", "was seen")
        raise OSError("no such device")

    monkeypatch.setattr(doctor, "CHECKS", (broken, doctor._browser))
    assert main(["doctor"]) == 1
    out = capsys.readouterr().out.splitlines()
    assert out[:3] == [
        "✓ half of it: was seen",
        "✗ broken: OSError: no such device",
        f"    -> {sys.executable} -m pip check",
    ]
    assert "browser" in out[3]
