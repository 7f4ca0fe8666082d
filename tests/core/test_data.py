"""Where data files are found: in a checkout, in an installed copy, in a folder of the user's."""

from pathlib import Path

import pytest

from igrpo_kit.core import data
from igrpo_kit.core.data import checkout, data_path, lessons_path, models_path, place_when_complete

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def no_override(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("IGRPO_DATA", raising=False)


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The package as a wheel lays it out, without a checkout around it."""
    package = tmp_path / "site-packages" / "igrpo_kit"
    monkeypatch.setattr(data, "__file__", str(package / "core" / "data.py"))
    monkeypatch.setattr(data, "files", {"igrpo_kit": package}.__getitem__)
    return package


def test_a_checkout_reads_its_own_folders() -> None:
    assert checkout() == ROOT
    assert data_path() == ROOT / "data"
    assert data_path("runs") == ROOT / "data" / "runs"
    assert data_path("problems/countdown-train.jsonl").is_file()
    assert lessons_path() == ROOT / "notebooks"


def test_an_installed_copy_reads_the_folders_inside_the_package(installed: Path) -> None:
    assert checkout() is None
    assert data_path() == installed / "_data"
    assert data_path("runs") == installed / "_data" / "runs"
    assert lessons_path() == installed / "_notebooks"


@pytest.mark.parametrize("where", ["checkout", "installed"])
def test_a_folder_of_the_users_is_searched_first(
    where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    shipped = ROOT / "data" if where == "checkout" else request.getfixturevalue("installed") / "_data"
    mine = tmp_path / "mine"
    (mine / "runs").mkdir(parents=True)
    monkeypatch.setenv("IGRPO_DATA", str(mine))
    assert data_path("runs") == mine / "runs"
    assert data_path() == mine
    assert data_path("problems") == shipped / "problems"  # not there: the shipped one
    assert data_path("runs/first") == shipped / "runs" / "first"


def test_an_override_that_does_not_exist_or_is_empty_hides_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for value in (str(tmp_path / "none"), ""):
        monkeypatch.setenv("IGRPO_DATA", value)
        assert data_path("runs") == ROOT / "data" / "runs"
        assert data_path() == ROOT / "data"


def test_models_lie_in_the_users_cache_unless_the_override_says_where(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data, "user_cache_path", {"igrpo_kit": tmp_path / "cache"}.__getitem__)
    assert models_path() == tmp_path / "cache" / "models"
    monkeypatch.setenv("IGRPO_DATA", str(tmp_path / "mine"))
    assert models_path() == tmp_path / "mine" / "models"
    assert not list(tmp_path.iterdir())  # asking makes no folder


def test_the_users_cache_is_outside_the_package() -> None:
    assert not models_path().is_relative_to(ROOT)


def test_a_folder_appears_when_it_is_complete(tmp_path: Path) -> None:
    target = tmp_path / "models" / "small"
    with place_when_complete(target) as work:
        (work / "weights").write_text("42")
        (work.parent / "download").write_text("scratch")
        assert not target.exists()
        assert work.is_relative_to(tmp_path / "models")  # the same file system: one rename will do
    assert [path.name for path in target.parent.iterdir()] == ["small"]
    assert [path.name for path in target.iterdir()] == ["weights"]
    assert (target / "weights").read_text() == "42"


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_an_interruption_leaves_nothing(tmp_path: Path, error: type[BaseException]) -> None:
    target = tmp_path / "models" / "small"
    with pytest.raises(error), place_when_complete(target) as work:
        (work / "weights").write_text("4")
        raise error
    assert not list((tmp_path / "models").iterdir())


def test_of_two_processes_the_first_one_wins(tmp_path: Path) -> None:
    target = tmp_path / "small"
    with place_when_complete(target) as slow:
        (slow / "weights").write_text("slow")
        with place_when_complete(target) as fast:
            (fast / "weights").write_text("fast")
    assert (target / "weights").read_text() == "fast"
    assert [path.name for path in tmp_path.iterdir()] == ["small"]


def test_a_folder_that_cannot_be_placed_is_an_error(tmp_path: Path) -> None:
    target = tmp_path / "small"
    with pytest.raises(OSError, match="small"), place_when_complete(target):
        target.write_text("a file, not a folder")
    assert target.read_text() == "a file, not a folder"
