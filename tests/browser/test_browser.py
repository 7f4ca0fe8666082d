"""The interactive parts in a real browser: Chromium, driven by Playwright, on a JupyterLab of this machine.

No request may leave this machine and no page may open a dialog, in any of these tests. With
IGRPO_SCREENSHOTS=folder the explorers are photographed.
"""

import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from urllib.parse import urlparse

import nbformat
import pytest

ROOT = Path(__file__).parents[2]
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
try:
    from playwright.sync_api import expect, sync_playwright
except ModuleNotFoundError:
    sync_playwright = None

pytestmark = [
    pytest.mark.browser,
    pytest.mark.timeout(600),
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine"),
    pytest.mark.skipif(sync_playwright is None, reason="playwright is not installed"),
]

SETTINGS = {
    "@jupyterlab/apputils-extension:notification": {"fetchNews": "false", "checkForUpdates": False},
    "@jupyterlab/notebook-extension:tracker": {"windowingMode": "none"},  # every cell is in the page
    "@jupyterlab/docmanager-extension:plugin": {"autosave": False},
}
WAIT = 240_000  # milliseconds: a kernel that imports torch on a busy machine takes its time


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """A JupyterLab of its own: address, token and the folder it shows."""
    home, shown = tmp_path_factory.mktemp("home"), tmp_path_factory.mktemp("notebooks")
    settings = home / "app-settings"
    settings.mkdir()
    (settings / "overrides.json").write_text(json.dumps(SETTINGS))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    token = secrets.token_hex()
    folders = {f"JUPYTER_{kind}_DIR": str(home / kind.lower()) for kind in ("CONFIG", "DATA", "RUNTIME")}
    environment = {
        **os.environ,
        **folders,
        "PYTHONPATH": str(ROOT),
        "HOME": str(home),
        "OMP_NUM_THREADS": "1",
    }
    command = [
        sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--ip=127.0.0.1",
        f"--port={port}", "--ServerApp.port_retries=0", f"--IdentityProvider.token={token}",
        f"--ServerApp.root_dir={shown}", f"--LabApp.app_settings_dir={settings}",
    ]  # fmt: skip
    with open(home / "log", "wb") as log:
        server = subprocess.Popen(command, env=environment, stdout=log, stderr=log, cwd=home)
    address = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + 120
        while True:
            try:
                urllib.request.urlopen(f"{address}/api?token={token}", timeout=5).close()
                break
            except OSError:
                assert server.poll() is None and time.monotonic() < deadline, (home / "log").read_text()
                time.sleep(0.2)
        yield address, token, shown
    finally:
        server.terminate()
        server.wait(30)


@pytest.fixture(scope="module")
def chromium():
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def page(chromium):
    """A page that may speak to this machine only and may open no dialog."""
    context = chromium.new_context(viewport={"width": 1400, "height": 1100})
    page = context.new_page()
    dialogs, outside = [], []
    page.on("dialog", lambda dialog: (dialogs.append(dialog.message), dialog.dismiss()))
    page.on("request", lambda r: outside.append(r.url) if _leaves(r.url) else None)
    yield page
    context.close()
    assert dialogs == [] and outside == []


def _leaves(url):
    parts = urlparse(url)
    return parts.scheme in ("http", "https", "ws", "wss") and parts.hostname != "127.0.0.1"


def open_and_run(lab, page, name, cells=None):
    """Open a notebook, one of the lessons or made of `cells`, and Run All by the menu."""
    address, token, shown = lab
    path = shown / f"{name}.ipynb"
    if cells is None:
        shutil.copy(ROOT / "notebooks" / "solutions" / path.name, path)
    else:
        notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in cells])
        notebook.metadata["kernelspec"] = {
            "name": "python3",
            "display_name": "Python 3 (ipykernel)",
            "language": "python",
        }
        nbformat.write(notebook, path)
    page.goto(f"{address}/lab/tree/{path.name}?reset&token={token}")
    page.locator(".jp-NotebookPanel .jp-Cell").first.wait_for(timeout=WAIT)
    # Run All before the kernel is there would open a dialog that asks for one.
    page.locator("#jp-main-statusbar", has_text="| Idle").wait_for(timeout=WAIT)
    page.locator(".lm-MenuBar-itemLabel", has_text="Run").first.click()
    page.locator('li[data-command="runmenu:run-all"]').click()


FIND = """name => Array.from(document.querySelectorAll('.widget-vbox .js-plotly-plot'))
    .flatMap(plot => plot.data || []).find(trace => trace.name === name)"""
"""the trace of that name in the first widget that has one; plain copies of its figure do not count"""


def plotted(page, name, axis="y"):
    """The y, or x, of the trace `name`."""
    return page.evaluate(f"([name, axis]) => Array.from((({FIND})(name) || {{}})[axis] || [])", [name, axis])


def wait_for_data(page, name, condition="y => y.length > 0"):
    test = f"name => {{ const t = ({FIND})(name); return t && ({condition})(Array.from(t.y || [])); }}"
    page.wait_for_function(test, arg=name, timeout=WAIT)
    return plotted(page, name)


def slider(page, label):
    return page.locator(".widget-slider", has=page.locator(f'label:text-is("{label}")')).locator(
        ".noUi-handle"
    )


def button(page, label):
    # Not by its accessible name: that begins with the icon, a character of its own.
    return page.locator(".jp-OutputArea-output button", has_text=label)


def photograph(page, name, tmp_path):
    folder = Path(os.environ.get("IGRPO_SCREENSHOTS", tmp_path))
    folder.mkdir(parents=True, exist_ok=True)
    box = page.locator(".jp-OutputArea-output .widget-vbox").last
    box.scroll_into_view_if_needed()
    box.screenshot(path=folder / f"{name}.png")
    assert (folder / f"{name}.png").stat().st_size > 5_000


def test_lesson_01_and_its_sliders(lab, page, tmp_path):
    """Run All, then the explorer by keyboard and by mouse: what is plotted changes, and so do the words."""
    open_and_run(lab, page, "01_best_of_n")
    expect(page.locator(".jp-OutputArea-output", has_text="5 of 5 passed")).to_be_attached(timeout=WAIT)
    before = wait_for_data(page, "your split", "y => y.length == 2")
    assert before == pytest.approx([0.7599, 0.2482])  # p = 0.3: 1 - 0.7^4, and 0.3^4 + 0.7^4
    assert plotted(page, "formula at the mean p", "x") == list(range(1, 33))
    assert plotted(page, "formula at the mean p")[:2] == pytest.approx([0.3, 0.51])
    handle = slider(page, "mean p")
    handle.scroll_into_view_if_needed()
    handle.focus()
    page.keyboard.press("ArrowRight")
    moved = wait_for_data(page, "your split", f"y => Math.abs(y[0] - {before[0]}) > 1e-6")
    assert moved == pytest.approx([1 - 0.69**4, 0.31**4 + 0.69**4])
    expect(page.locator("[role=status]", has_text="mean p 0.31")).to_be_visible(timeout=WAIT)
    box = slider(page, "N drafts").bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.mouse.down()
    page.mouse.move(box["x"] + 60, box["y"] + box["height"] / 2, steps=5)
    page.mouse.up()
    dragged = wait_for_data(page, "your split", f"y => Math.abs(y[0] - {moved[0]}) > 1e-6")
    assert dragged[0] != moved[0]
    photograph(page, "best_of_n_explorer", tmp_path)


def test_the_advantage_explorer(lab, page, tmp_path):
    source = "from igrpo_kit.viz.explorers import advantage_explorer\nadvantage_explorer()"
    open_and_run(lab, page, "advantages", [source])
    before = wait_for_data(page, "GRPO")
    assert plotted(page, "GRPO", "x") == [f"o{i}" for i in range(1, 9)]
    assert plotted(page, "min(r A, clip(r) A)", "x")[::160] == pytest.approx([0.4, 2.0])
    slider(page, "R2").focus()
    for _ in range(10):
        page.keyboard.press("ArrowRight")
    after = wait_for_data(page, "GRPO", f"y => Math.abs(y[1] - {before[1]}) > 0.5")
    assert sum(after) == pytest.approx(0, abs=1e-6) and after[1] > before[1]
    expect(page.locator("[role=status]", has_text="o1 has advantage")).to_be_visible()
    photograph(page, "advantage_explorer", tmp_path)


LIVE = """
import time
from igrpo_kit.viz.live import LiveDashboard

def rows(first):
    for step in range(first, 2001):
        time.sleep(0.05)
        yield {"step": step, "reward": step / 2000, "entropy": 1.0, "dead_groups": 0.25}

dashboard = LiveDashboard(2000, title="a run")
dashboard.start("run", rows(1), again=lambda: rows(len(dashboard.rows["run"]) + 1))
dashboard
"""


def test_the_dashboard_updates_stops_and_resumes(lab, page):
    open_and_run(lab, page, "live", [LIVE])
    first = wait_for_data(page, "run: one answer to q", "y => y.length > 5")
    later = wait_for_data(page, "run: one answer to q", f"y => y.length > {len(first) + 5}")
    assert later[: len(first)] == first
    button(page, "Stop").click()
    expect(page.locator(".widget-label", has_text="stopped")).to_be_visible(timeout=WAIT)
    stopped = plotted(page, "run: one answer to q")
    button(page, "Resume").click()
    resumed = wait_for_data(page, "run: one answer to q", f"y => y.length > {len(stopped) + 5}")
    assert resumed[: len(stopped)] == stopped
    button(page, "Stop").click()


HOSTILE = [
    '<img src="http://example.com/x.png" onerror="alert(1)">',
    "<script>alert(2)</script><style>*{display:none}</style>",
    '</div></div><iframe src="http://example.com"></iframe><a href="javascript:alert(3)">click</a>',
    "\x1b[31mred\x1b[0m \u202eevil\u202c \u200b\x07<svg onload=alert(4)>",
    "&lt;b&gt; ${alert(5)} {{7*7}} $$\\href{javascript:alert(6)}{x}$$ ![i](http://example.com/i.png)",
]
BROWSER = f"""
from igrpo_kit.viz.completions import CompletionsBrowser
hostile = {HOSTILE!r}
items = [{{"text": t, "reward": float(i == 1), "status": t}} for i, t in enumerate(hostile)]
row = {{"step": 1, "id": hostile[0], "question": hostile[1], "answer": hostile[2], "drafts": items,
       "selected": 1, "completions": items}}
CompletionsBrowser([row, {{**row, "step": 2}}])
"""


def test_hostile_completions_do_nothing(lab, page, tmp_path):
    open_and_run(lab, page, "hostile", [BROWSER])
    output = page.locator(".jp-OutputArea-output .widget-vbox")
    expect(output).to_contain_text('<img src="http://example.com/x.png" onerror="alert(1)">', timeout=WAIT)
    for text in (
        "<script>alert(2)</script>",
        "</div></div><iframe",
        "U+202E",
        "U+001B",
        "U+200B",
        "${alert(5)}",
        "chosen",
    ):
        expect(output).to_contain_text(text)
    assert not set("\x1b\x07\u202e\u202c\u200b") & set(output.inner_text() + output.inner_html())
    for tag in ("img", "script", "style", "iframe", "a", "svg", "object", "link", "math", "mjx-container"):
        assert output.locator(tag).count() == 0, tag
    output.locator("select").first.select_option(index=1)
    expect(output.locator("ins, del").first).to_be_visible(timeout=WAIT)
    photograph(page, "completions_browser", tmp_path)


STUB = """from igrpo_kit.classroom.checks import check


def my_best_of_n(p, n):
    raise NotImplementedError("not written yet")


check("best_of_n", my_best_of_n)"""


def test_an_exercise_goes_from_not_written_to_passed(lab, page):
    open_and_run(lab, page, "exercise", [STUB])
    status = page.locator(".jp-OutputArea-output [role=status]")
    expect(status).to_have_text("… best_of_n: not written yet", timeout=WAIT)
    for solution, verdict in (
        ("p**n", "is the chance that *all* N drafts are correct"),
        ("1 - (1 - p) ** n", "✓ best_of_n: passed"),
    ):
        page.locator(".jp-CodeCell .cm-content").first.click()
        page.keyboard.press("ControlOrMeta+a")
        page.keyboard.insert_text(
            STUB.replace('raise NotImplementedError("not written yet")', f"return {solution}")
        )
        page.keyboard.press("Control+Enter")
        expect(status).to_contain_text(verdict, timeout=WAIT)
