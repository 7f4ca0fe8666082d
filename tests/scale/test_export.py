"""Notebook to script to Slurm job: the text, and the job run for real on a simulated cluster."""

import contextlib
import hashlib
import json
import os
import re
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest

from igrpo_kit.cli import main
from igrpo_kit.core.rows import read_rows
from igrpo_kit.scale import export
from tests.test_notebooks import ENVIRONMENT, run_notebook

ROOT = Path(__file__).parents[2]
LESSON = ROOT / "notebooks" / "solutions" / "08_full_run_a100.ipynb"

PARAMETERS = '''\
model: str = "tiny"  # 50 % of it
steps: int = 3  # policy updates
rate: float = 1  # of learning
low: float = -2.5  # can be negative
two_stage: bool = True  # iGRPO, else GRPO
note: str = """a "quote"
and a line"""  # over two lines
'''


def notebook(folder: Path, *cells: str | tuple[str, str], parameters: str | None = PARAMETERS) -> Path:
    """A notebook of code cells; (tag, source) is tagged, or "markdown"."""
    made = (
        []
        if parameters is None
        else [nbformat.v4.new_code_cell(parameters, metadata={"tags": ["parameters"]})]
    )
    for cell in cells:
        tag, source = cell if isinstance(cell, tuple) else ("", cell)
        if tag == "markdown":
            made.append(nbformat.v4.new_markdown_cell(source))
        else:
            made.append(nbformat.v4.new_code_cell(source, metadata={"tags": [tag]} if tag else {}))
    for i, cell in enumerate(made):
        cell.id = f"cell-{i}"
    path = folder / "job.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=made), path)
    return path


def run_script(path: Path, *flags: str, **variables: str) -> subprocess.CompletedProcess[str]:
    script = path.with_suffix(".py")
    script.write_text(export.notebook_to_script(path))
    environment = {**ENVIRONMENT, **variables}
    return subprocess.run(
        [sys.executable, script, *flags],
        cwd=path.parent,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
    )


# ---------------------------------------------------------------- flags


def test_the_parameters_cell_is_read_with_names_types_defaults_and_help(tmp_path: Path) -> None:
    read = [(p.flag, p.type, p.default, p.help) for p in export.notebook_parameters(notebook(tmp_path))]
    assert read == [
        ("--model", "str", "tiny", "50 % of it"),
        ("--steps", "int", 3, "policy updates"),
        ("--rate", "float", 1.0, "of learning"),
        ("--low", "float", -2.5, "can be negative"),
        ("--two-stage", "bool", True, "iGRPO, else GRPO"),
        ("--note", "str", 'a "quote"\nand a line', "over two lines"),
    ]


def test_flags_set_the_parameters_and_defaults_are_the_notebooks(tmp_path: Path) -> None:
    path = notebook(tmp_path, "print([model, steps, rate, low, two_stage, note])")
    assert run_script(path).stdout == "['tiny', 3, 1.0, -2.5, True, 'a \"quote\"\\nand a line']\n"
    flags = [
        "--model",
        "a b%",
        "--steps",
        "7",
        "--rate",
        "0.5",
        "--low",
        "-1",
        "--no-two-stage",
        "--note",
        "",
    ]
    assert run_script(path, *flags).stdout == "['a b%', 7, 0.5, -1.0, False, '']\n"
    assert "policy updates (3)" in (text := run_script(path, "--help").stdout)
    assert "50 % of it (tiny)" in text
    shown = run_script(path, "--steps", "9", "--show-parameters").stdout
    assert json.loads(shown) == {
        "model": "tiny", "steps": 9, "rate": 1.0, "low": -2.5, "two_stage": True,
        "note": 'a "quote"\nand a line',
    }  # fmt: skip


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--stepz", "5"], "unrecognized arguments: --stepz 5"),
        (["--step", "5"], "unrecognized arguments: --step 5"),  # argparse would take it for --steps
        (["--steps", "five"], "argument --steps: invalid int value: 'five'"),
        (["stray"], "unrecognized arguments: stray"),
    ],
)
def test_a_wrong_flag_fails_before_anything_runs(tmp_path: Path, flags: list[str], said: str) -> None:
    done = run_script(notebook(tmp_path, "print('ran')"), *flags)
    assert (done.returncode, done.stdout) == (2, "")
    assert said in done.stderr


@pytest.mark.parametrize(
    ("parameters", "said"),
    [
        (None, "0 cells are tagged 'parameters'"),
        ("steps = 3", "'steps = 3' is not of the form"),
        ("steps: int", "'steps: int' is not of the form"),
        ("import os", "'import os' is not of the form"),
        ("steps: int = 1 + 2", "steps: 1 \\+ 2 is not a literal"),
        ("steps: int = 'a'", "steps: 'a' is not of type int"),
        ("steps: int = True", "steps: True is not of type int"),
        ("on: bool = 1", "on: 1 is not of type bool"),
        ("names: list = []", "names: the type is one of str, int, float, bool, got list"),
        ("help: str = ''", "help: the script uses that name"),
        ("a: int = 1\na: int = 2", "given twice: --a"),
        ("steps: int = = 3", "cell 0 .cell-0.: not plain Python, line 1"),
    ],
)
def test_a_parameters_cell_that_cannot_become_flags_is_refused(
    tmp_path: Path, parameters: str | None, said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        export.notebook_parameters(notebook(tmp_path, "1 + 1", parameters=parameters))


def test_two_parameters_cells_and_no_notebook_at_all_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="2 cells are tagged"):
        export.notebook_parameters(notebook(tmp_path, ("parameters", "x: int = 1")))
    for content in ("", "[]", "{}", "null"):
        (tmp_path / "not.ipynb").write_text(content)
        with pytest.raises(ValueError, match=r"not\.ipynb: not a Jupyter notebook"):
            export.notebook_parameters(tmp_path / "not.ipynb")


# ---------------------------------------------------------------- the body

STRINGS = '''\
def text(x):
    return f"""one
    {x:>3} {
x}
two"""

lines = ("""
  kept
    as it is
""", 'a\\
b', r"""\\n
""")

if True:
    # a comment
    answer = [
1,

2]
print(repr((lines, text(7), answer)))
'''


def test_the_body_means_what_the_cells_mean_strings_over_lines_too(tmp_path: Path) -> None:
    expected = subprocess.run(
        [sys.executable, "-c", STRINGS], capture_output=True, text=True, check=True
    ).stdout
    assert "as it is" in expected
    assert run_script(notebook(tmp_path, STRINGS)).stdout == expected


def test_indentation_leaves_the_inside_of_strings_alone() -> None:
    assert export.indent('x = 1\n\nif x:\n    y = """a\nb"""\nz = 2') == (
        '    x = 1\n\n    if x:\n        y = """a\nb"""\n    z = 2'
    )


def test_markdown_is_comment_and_batch_skip_is_gone(tmp_path: Path) -> None:
    path = notebook(
        tmp_path, ("markdown", '# Title\n\n"""text'), ("batch-skip", "%matplotlib widget"), "print(1)"
    )
    script = export.notebook_to_script(path)
    assert '    # %% [markdown]\n    # # Title\n    #\n    # """text\n' in script
    assert "matplotlib" not in script
    assert run_script(path).stdout == "1\n"


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("x = 1\n%time x", r"cell 1 \(cell-1\): not plain Python, line 2: '%time x'"),
        ("!ls", r"cell 1 \(cell-1\): not plain Python, line 1: '!ls'"),
        ("%%bash\nls", "cell-1.: not plain Python, line 1: '%%bash'"),
        ("files = !ls", "cell-1.: not plain Python"),
        ("print?", "cell-1.: not plain Python"),
        ("await task", "cell-1.: not plain Python.*'await' outside function"),
        ("return 1", "cell-1.: not plain Python.*'return' outside function"),
        ("get_ipython().run_line_magic('time', '')", r"cell-1.: get_ipython exists only in Jupyter"),
        ("display(1)", r"cell-1.: display exists only in Jupyter"),
    ],
)
def test_what_only_jupyter_can_run_is_refused_with_its_cell(tmp_path: Path, source: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        export.notebook_to_script(notebook(tmp_path, source))
    export.notebook_to_script(notebook(tmp_path, ("batch-skip", source)))


def test_an_imported_display_is_no_magic(tmp_path: Path) -> None:
    assert "display(1)" in export.notebook_to_script(
        notebook(tmp_path, "from IPython.display import display\ndisplay(1)")
    )


def test_a_pool_that_spawns_does_not_start_the_run_again(tmp_path: Path) -> None:
    source = """\
import math, multiprocessing
open("started", "a").write("x")
with multiprocessing.get_context("spawn").Pool(1) as pool:
    print(pool.map(math.sqrt, [4.0, 9.0]))
"""
    done = run_script(notebook(tmp_path, source))
    assert (done.stdout, done.returncode) == ("[2.0, 3.0]\n", 0), done.stderr
    assert (tmp_path / "started").read_text() == "x"


def test_the_files_carry_the_hash_of_their_source_and_are_listed(tmp_path: Path) -> None:
    path = notebook(tmp_path, "1", parameters="recipe: str = ''  # a\nvllm_host: str = ''  # b")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    files = export.export_notebook(path, tmp_path / "out")
    assert [file.name for file in files] == ["job.py", "job.one_node.slurm", "job.multi_node.slurm"]
    assert all(digest in file.read_text() for file in files)
    assert not re.search(r"@[A-Z0-9]+@", "".join(file.read_text() for file in files))
    alone = export.export_notebook(notebook(tmp_path, "1"), tmp_path / "other")
    assert [file.name for file in alone] == ["job.py", "job.one_node.slurm"]


def test_a_file_name_cannot_smuggle_anything_into_the_shell(tmp_path: Path) -> None:
    path = notebook(tmp_path, "1").rename(tmp_path / 'a "$(touch x)"; b.ipynb')
    files = export.export_notebook(path, tmp_path / "out")
    assert [file.name for file in files] == ["a----touch-x----b.py", "a----touch-x----b.one_node.slurm"]
    assert "$(touch" not in "".join(file.read_text() for file in files)


def test_papermill_is_given_checked_flags(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = notebook(tmp_path, "print(steps * 2)")
    with pytest.raises(SystemExit) as ended:
        export.run_notebook(path, tmp_path / "out.ipynb", ["--stepz", "4"])
    assert ended.value.code == 2 and "unrecognized arguments: --stepz 4" in capsys.readouterr().err
    assert not (tmp_path / "out.ipynb").exists()


def test_the_commands_export_run_and_recipe(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = notebook(tmp_path, "print(steps * 2, two_stage)")
    assert main(["export", str(path), "--out", str(tmp_path / "jobs")]) == 0
    assert capsys.readouterr().out.split() == [
        str(tmp_path / "jobs" / "job.py"), str(tmp_path / "jobs" / "job.one_node.slurm"),
    ]  # fmt: skip
    out = tmp_path / "ran" / "job.ipynb"
    assert main(["run", "--out", str(out), str(path), "--steps", "4", "--no-two-stage"]) == 0
    assert nbformat.read(out, as_version=4).cells[-1].outputs[0].text == "8 False\n"
    assert capsys.readouterr().out == f"{out}\n"
    assert main(["recipe", "dapo"]) == 0
    assert json.loads(capsys.readouterr().out)["trainer"]["loss_type"] == "dapo"
    assert main(["recipe", "dapo", "--sources"]) == 0
    assert re.search(r"trainer\.epsilon_high +0\.28 +arXiv 2503\.14476", capsys.readouterr().out)
    assert main(["recipe"]) == 0
    assert "r1-7b-grpo" in capsys.readouterr().out
    assert main(["recipe", "r2"]) == 1
    assert "no recipe 'r2'; there is r1-7b" in capsys.readouterr().err
    assert main(["export", str(tmp_path / "none.ipynb")]) == 1


# ---------------------------------------------------------------- the job

TRAINER = """\
import os, sys, time
from pathlib import Path

folder = Path(out_dir)
folder.mkdir(exist_ok=True)
rank = os.environ["SLURM_PROCID"]
line = f"[{phase} rank {rank} of {os.environ['SLURM_NTASKS']} host {vllm_host!r}]\\n"
os.write(1, line.encode())  # one write: several tasks share the file
if fail:
    sys.exit(fail)
if phase == "train" and rank == "0":
    step = int((folder / "checkpoint").read_text()) if (folder / "checkpoint").exists() else 0
    while step < steps and not Path(os.environ["IGRPO_STOP_FILE"]).exists():
        time.sleep(0.02)
        step += 1
        with open(folder / "steps", "a") as log:
            log.write(f"{step} ")
    (folder / "checkpoint").write_text(str(step))
"""
TRAINER_PARAMETERS = """\
recipe: str = "r1-7b"  # name
phase: str = "all"  # of the run
vllm_host: str = ""  # node
out_dir: str = "run"  # folder
steps: int = 3  # updates
fail: int = 0  # exit status
"""
CLUSTER = {
    "srun": r"""
echo "srun $*" >> "$FAKE/calls"
nodes=1 tasks=1 output=
while [[ $1 == --* ]]; do
    case $1 in
        --nodes=*) nodes=${1#*=} ;;
        --ntasks-per-node=*) tasks=${1#*=} ;;
        --output=*) output=${1#*=} ;;
    esac
    shift
done
if [[ $output ]]; then exec >>"$output" 2>&1; fi
pids=() status=0
for ((rank = 0; rank < nodes * tasks; rank++)); do
    SLURM_PROCID=$rank SLURM_LOCALID=$((rank % tasks)) SLURM_NTASKS=$((nodes * tasks)) "$@" &
    pids+=($!)
done
echo "${pids[@]}" > "$FAKE/tasks"
trap 'kill "${pids[@]}"' TERM
for pid in "${pids[@]}"; do
    while kill -0 "$pid" 2>/dev/null; do wait "$pid"; done
    wait "$pid" || status=$?
done
exit $status
""",
    "vllm": r"""
printf '%s\n' "$VLLM_SERVER_DEV_MODE" "$@" > "$FAKE/served"
case ${FAKE_SERVER:-} in
    fails) echo "no kernel image for this GPU"; exit 1 ;;
    dies) touch "$FAKE/healthy"; sleep 0.3; echo "CUDA out of memory"; exit 1 ;;
esac
touch "$FAKE/healthy"
exec sleep 60
""",
    "curl": r"""[[ -e $FAKE/healthy ]]""",
    "accelerate": r"""
echo "accelerate $*" >> "$FAKE/calls"
while [[ $1 != *.py ]]; do shift; done
exec python "$@"
""",
    "scontrol": r"""
if [[ $1 == show ]]; then printf '%s\n' $3; exit; fi
echo "scontrol $*" >> "$FAKE/calls"
exit "${FAKE_REQUEUE:-0}"
""",
}


class Cluster:
    """Runs an exported job as Slurm would, with the scripts of CLUSTER in place of `srun` and its like."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.fake = folder, folder / "fake"
        export.export_notebook(notebook(folder, TRAINER, parameters=TRAINER_PARAMETERS), folder)
        self.fake.mkdir()
        for name, text in {**CLUSTER, "python": f'exec "{sys.executable}" "$@"'}.items():
            path = self.fake / name
            path.write_text("#!/bin/bash\n" + text)
            path.chmod(path.stat().st_mode | stat.S_IXUSR)

    def start(self, *flags: str, nodes: str = "n0", **variables: str) -> subprocess.Popen[bytes]:
        """The job in a process group of its own, writing to `log`."""
        kind = "multi_node" if " " in nodes else "one_node"
        environment = {
            **ENVIRONMENT, "PATH": f"{self.fake}:/usr/bin:/bin", "FAKE": str(self.fake),
            "POLL_SECONDS": "0.05",
            "SLURM_JOB_ID": "42", "SLURM_JOB_NAME": "job", "SLURM_JOB_NODELIST": nodes, **variables,
        }  # fmt: skip
        (self.fake / "healthy").unlink(missing_ok=True)
        with open(self.folder / "log", "ab") as log:
            return subprocess.Popen(
                ["bash", f"job.{kind}.slurm", *flags], cwd=self.folder, env=environment,
                stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip

    def finish(self, job: subprocess.Popen[bytes]) -> int:
        """Its exit status; nothing it started is left running."""
        try:
            return job.wait(timeout=150)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(job.pid, signal.SIGKILL)

    def run(self, *flags: str, nodes: str = "n0", **variables: str) -> int:
        return self.finish(self.start(*flags, nodes=nodes, **variables))

    def wait_for(self, path: str, text: str = "") -> None:
        deadline = time.monotonic() + 150
        while not ((self.folder / path).exists() and text in (self.folder / path).read_text()):
            assert time.monotonic() < deadline, f"{path} never held {text!r}:\n{self.log}"
            time.sleep(0.05)

    @property
    def log(self) -> str:
        return (self.folder / "log").read_text()

    @property
    def calls(self) -> str:
        path = self.fake / "calls"
        return path.read_text() if path.exists() else ""

    @property
    def steps(self) -> list[int]:
        return [int(step) for step in (self.folder / "run" / "steps").read_text().split()]


@pytest.fixture
def cluster(tmp_path: Path) -> Cluster:
    return Cluster(tmp_path)


def test_the_shell_accepts_the_slurm_files(cluster: Cluster) -> None:
    for file in cluster.folder.glob("*.slurm"):
        subprocess.run(["bash", "-n", file], check=True)
        head = [line for line in file.read_text().splitlines() if line.startswith("#SBATCH")]
        assert "#SBATCH --signal=B:USR1@600" in head and "#SBATCH --requeue" in head
        assert f"#SBATCH --nodes={2 if 'multi' in file.name else 1}" in head


def test_one_node_trains_and_evaluates(cluster: Cluster) -> None:
    assert cluster.run("--steps", "2") == 0, cluster.log
    assert re.findall(r"\[.*\]", cluster.log) == [
        "[train rank 0 of 1 host '']",
        "[evaluate rank 0 of 1 host '']",
    ]
    assert cluster.steps == [1, 2]
    assert "accelerate" not in cluster.calls and not (cluster.fake / "served").exists()
    assert cluster.log.endswith("done\n") and not list(cluster.folder.glob(".stop-*"))


def test_several_nodes_serve_train_and_evaluate(cluster: Cluster) -> None:
    assert cluster.run("--recipe", "r1-14b", nodes="n0 n1 n2", SLURM_GPUS_ON_NODE="2") == 0, cluster.log
    assert (cluster.fake / "served").read_text().splitlines() == [
        "1", "serve", "deepseek-ai/DeepSeek-R1-Distill-Qwen-14B", "--host", "0.0.0.0", "--port", "8000",
        "--dtype", "bfloat16", "--tensor-parallel-size", "1", "--data-parallel-size", "8",
        "--gpu-memory-utilization", "0.85", "--max-model-len", "9728", "--enable-prefix-caching",
        "--enable-scale-out", "--weight-transfer-config", '{"backend": "nccl"}',
        "--logprobs-mode", "processed_logprobs", "--max-logprobs", "-1",
    ]  # fmt: skip
    launched = sorted(line for line in cluster.calls.splitlines() if line.startswith("accelerate"))
    assert [re.search(r"--machine_rank (\d)", line)[1] for line in launched] == ["0", "1"]
    assert all(
        "--num_machines 2 --num_processes 4" in line and "--main_process_ip n1" in line for line in launched
    )
    assert "--nodelist=n1,n2" in cluster.calls and "--nodelist=n0,n1,n2" in cluster.calls
    assert sorted(re.findall(r"\[.*\]", cluster.log)) == [
        *(f"[evaluate rank {i} of 6 host '']" for i in range(6)),
        *(f"[train rank {i} of 2 host 'n0']" for i in range(2)),
    ]


def test_a_wrong_flag_costs_nothing(cluster: Cluster) -> None:
    assert cluster.run("--stepz", "2", nodes="n0 n1") == 2
    assert cluster.calls == "" and "unrecognized arguments: --stepz" in cluster.log


def test_an_unknown_recipe_ends_the_job_before_the_server(cluster: Cluster) -> None:
    assert cluster.run("--recipe", "r2", nodes="n0 n1") == 1
    assert cluster.calls == "" and "no recipe 'r2'" in cluster.log


def test_a_server_that_does_not_start_ends_the_job(cluster: Cluster) -> None:
    assert cluster.run(nodes="n0 n1", FAKE_SERVER="fails") == 69
    assert "no kernel image for this GPU" in cluster.log and "did not start" in cluster.log
    assert not (cluster.folder / "run").exists()


def test_a_server_that_never_answers_ends_the_job(cluster: Cluster) -> None:
    (cluster.fake / "curl").write_text("#!/bin/bash\nexit 7\n")
    assert cluster.run(nodes="n0 n1", SERVER_SECONDS="-1") == 69
    assert "no vLLM server after" in cluster.log


def test_a_server_that_dies_ends_the_job_with_its_last_words(cluster: Cluster) -> None:
    assert cluster.run("--steps", "3000", nodes="n0 n1", FAKE_SERVER="dies") == 69
    assert "CUDA out of memory" in cluster.log and "the vLLM server died" in cluster.log


@pytest.mark.parametrize("nodes", ["n0", "n0 n1"])
def test_the_exit_status_of_the_script_is_the_jobs(cluster: Cluster, nodes: str) -> None:
    assert cluster.run("--fail", "3", nodes=nodes) == 3
    assert "phase train ended with status 3" in cluster.log and "evaluate" not in cluster.calls


def test_usr1_saves_requeues_and_the_next_attempt_resumes(cluster: Cluster) -> None:
    job = cluster.start("--steps", "3000", nodes="n0 n1", SLURM_GPUS_ON_NODE="2")
    cluster.wait_for("run/steps", "3 ")
    job.send_signal(signal.SIGUSR1)
    assert cluster.finish(job) == 0, cluster.log
    assert "scontrol requeue 42" in cluster.calls and "back to the queue" in cluster.log
    saved = int((cluster.folder / "run" / "checkpoint").read_text())
    assert 3 <= saved < 3000 and "phase evaluate" not in cluster.log
    assert not (cluster.folder / ".stop-42").exists()
    (cluster.folder / ".stop-42").touch()  # as left behind by a job that was killed in the meantime
    assert cluster.run("--steps", str(saved + 2), nodes="n0 n1", SLURM_RESTART_COUNT="1") == 0
    assert cluster.steps == [*range(1, saved + 3)]
    assert "attempt 2" in cluster.log and "phase evaluate" in cluster.log


def test_where_nothing_is_requeued_the_status_says_to_submit_again(cluster: Cluster) -> None:
    job = cluster.start("--steps", "3000", FAKE_REQUEUE="1")
    cluster.wait_for("run/steps", "1 ")
    job.send_signal(signal.SIGUSR1)
    assert cluster.finish(job) == 75
    assert (
        "submit the job again to resume" in cluster.log and (cluster.folder / "run" / "checkpoint").exists()
    )


def test_term_to_every_process_of_a_step_still_saves_and_a_cancelled_job_stays_cancelled(
    cluster: Cluster,
) -> None:
    job = cluster.start("--steps", "3000")
    cluster.wait_for("run/steps", "1 ")
    (task,) = (cluster.fake / "tasks").read_text().split()
    children = subprocess.run(
        ["pgrep", "-P", task], capture_output=True, text=True, check=True
    ).stdout.split()
    assert children
    for pid in (*children, task):  # what the task started first: it must live on
        os.kill(int(pid), signal.SIGTERM)
    assert cluster.finish(job) == 75, cluster.log
    assert (cluster.folder / "run" / "checkpoint").exists() and "requeue" not in cluster.calls


def test_a_job_submitted_from_elsewhere_says_what_is_missing(cluster: Cluster) -> None:
    (cluster.folder / "job.py").unlink()
    assert cluster.run() == 2
    assert "no job.py in" in cluster.log


# ---------------------------------------------------------------- the flags of the pinned versions


def template_flags(start: str, stop: str) -> list[str]:
    text = (ROOT / "igrpo_kit" / "scale" / "job.slurm").read_text()
    return re.findall(r"(?<= )--[\w-]+", text[text.index(start) : text.index(stop, text.index(start))])


def test_the_servers_flags_are_those_trl_itself_would_use(monkeypatch: pytest.MonkeyPatch) -> None:
    from trl.scripts import vllm_serve

    monkeypatch.setattr(vllm_serve, "is_vllm_available", lambda min_version=None: True)
    arguments = vllm_serve.ScriptArguments(model="m", max_model_len=1, enable_prefix_caching=True)
    theirs = [part for part in vllm_serve.build_command(arguments) if part.startswith("--")]
    ours = template_flags("vllm serve", "server=$!")
    assert len(ours) == 12
    # Left at their defaults here.
    assert set(theirs) - set(ours) == {"--kv-cache-dtype", "--model-impl", "--uvicorn-log-level"}
    assert set(ours) <= set(theirs)


def test_accelerate_knows_every_flag_of_the_launch() -> None:
    from accelerate.commands.launch import launch_command_parser

    known = {option for action in launch_command_parser()._actions for option in action.option_strings}
    flags = template_flags("launch=(accelerate", '"$script")')
    assert len(flags) == 14 and set(flags) <= known


@pytest.mark.vllm
def test_vllm_knows_every_flag_of_the_server() -> None:
    pytest.importorskip("vllm")
    from vllm.entrypoints.launchers.cli_args import make_arg_parser
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    known = {
        o for action in make_arg_parser(FlexibleArgumentParser())._actions for o in action.option_strings
    }
    assert set(template_flags("vllm serve", "server=$!")) <= known


# ---------------------------------------------------------------- lesson 08


def test_lesson_08_as_a_script_gives_the_notebooks_numbers(tmp_path: Path) -> None:
    export.export_notebook(LESSON, tmp_path)
    parameters = {"max_steps": 2, "seed": 3}
    flags = ["--max-steps", "2", "--seed", "3", "--out-dir", str(tmp_path / "script")]
    with open(tmp_path / "log", "w") as log:  # both at once: most of it is importing
        script = subprocess.Popen(
            [sys.executable, "08_full_run_a100.py", *flags],
            cwd=tmp_path,
            env=ENVIRONMENT,
            stdout=log,
            stderr=log,
        )
        try:
            run_notebook(LESSON, {**parameters, "out_dir": str(tmp_path / "notebook")})
            assert script.wait(timeout=240) == 0, (tmp_path / "log").read_text()
        finally:
            script.kill()
    assert re.search(r"Pass@1 \S.*\n$", (tmp_path / "log").read_text())
    records = {}
    for way in ("notebook", "script"):
        rows = list(read_rows(tmp_path / way / "metrics.jsonl"))
        records[way] = [{key: value for key, value in row.items() if key != "step_time"} for row in rows]
        (file,) = (tmp_path / way / "evaluations").rglob("*.jsonl")
        records[way] += list(read_rows(file))
    assert [row["step"] for row in records["script"][:2]] == [1, 2]
    assert {"reward", "igrpo/stage1/reward", "grad_norm", "entropy"} <= set(records["script"][0])
    assert len(records["script"]) == 2 + 1 + 256  # steps, the evaluation's head, its problems
    assert records["script"] == records["notebook"]
