"""A notebook as a batch job: a Python script with command-line flags, and the Slurm files that run it.

    igrpo export notebooks/08_full_run_a100.ipynb --out jobs
    python jobs/08_full_run_a100.py --help
    sbatch jobs/08_full_run_a100.one_node.slurm --recipe one-gpu

The cell tagged `parameters` becomes the flags: `steps: int = 100  # policy updates` is the flag `--steps`, an
int with the default 100 and that help text. Cells tagged `batch-skip` are left out; Markdown becomes
comments. The script's code is under a main guard. An engine or a data loader that starts its workers by
*spawn* imports the script again in each of them, and without the guard every worker would start the whole
run.

The alternative is papermill, which executes the notebook itself, cell by cell, and keeps its output and
figures. That suits reading, but not several nodes, because it needs a Jupyter kernel and a single process.
papermill only warns about a parameter that does not exist and continues with the defaults. `run_notebook`
(`igrpo run NOTEBOOK --steps 10`) takes the same flags as the script, so a misspelled one fails before
anything runs.
"""

import argparse
import ast
import hashlib
import io
import json
import re
import tokenize
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SKIP = "batch-skip"
_TEMPLATE = Path(__file__).parent / "job.slurm"
_TYPES: dict[str, Any] = {"str": str, "int": int, "float": float, "bool": bool}
_RESERVED = ("help", "show_parameters", "argparse", "json")
_INTERACTIVE = ("get_ipython", "display")


@dataclass(frozen=True)
class Parameter:
    """One line of the `parameters` cell: `name: type = default  # help`."""

    name: str
    type: str
    default: str | int | float | bool
    help: str

    @property
    def flag(self) -> str:
        """`--dashed-name`."""
        return "--" + self.name.replace("_", "-")

    def source(self) -> str:
        """The line that adds the flag to `parser`; a bool becomes `--x` and `--no-x`."""
        kind = "action=argparse.BooleanOptionalAction" if self.type == "bool" else f"type={self.type}"
        text = (self.help.replace("%", "%%") + " (%(default)s)").strip()
        return f"parser.add_argument({self.flag!r}, {kind}, default={self.default!r}, help={text!r})"


def _cells(notebook: str | Path) -> Iterator[tuple[str, str, list[str], str]]:
    """(name for messages, type, tags, source) of each cell. Raises ValueError if the file is no notebook."""
    try:
        cells = json.loads(Path(notebook).read_text(encoding="utf-8"))["cells"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{notebook}: not a Jupyter notebook ({error!r})") from error
    for index, cell in enumerate(cells):
        name = f"{notebook}, cell {index} ({cell.get('id', 'no id')})"
        yield name, cell["cell_type"], cell.get("metadata", {}).get("tags", []), "".join(cell["source"])


def _parse(name: str, source: str) -> ast.Module:
    """The cell's syntax tree. Raises ValueError naming the cell if it is not plain Python."""
    try:
        tree = ast.parse(source)
        compile(tree, name, "exec")  # finds errors that parsing does not, such as `await` outside a function
    except SyntaxError as error:
        line = (source.splitlines() or [""])[(error.lineno or 1) - 1 : error.lineno]
        raise ValueError(
            f"{name}: not plain Python, line {error.lineno}: {''.join(line).strip()!r} ({error.msg}). "
            "Magics (%), shell lines (!) and top-level await do not run in a script: write it in Python, or "
            f"tag the cell {SKIP}"
        ) from error
    return tree


def _parameter(name: str, node: ast.stmt, comments: dict[int, str]) -> Parameter:
    if not (isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.value):
        raise ValueError(f"{name}: {ast.unparse(node)!r} is not of the form 'name: type = literal  # help'")
    target, kind = node.target.id, ast.unparse(node.annotation)
    if kind not in _TYPES:
        raise ValueError(f"{name}: {target}: the type is one of {', '.join(_TYPES)}, got {kind}")
    if target in _RESERVED:
        raise ValueError(f"{name}: {target}: the script uses that name")
    try:
        default = ast.literal_eval(node.value)
    except ValueError as error:
        raise ValueError(f"{name}: {target}: {ast.unparse(node.value)} is not a literal") from error
    if kind == "float" and type(default) is int:
        default = float(default)
    if type(default) is not _TYPES[kind]:
        raise ValueError(f"{name}: {target}: {default!r} is not of type {kind}")
    return Parameter(target, kind, default, comments.get(node.end_lineno or 0, ""))


def notebook_parameters(notebook: str | Path) -> list[Parameter]:
    """The parameters of a notebook, from its one cell tagged `parameters`.

    Raises ValueError naming notebook, cell, and parameter if there are none or several such cells, and for
    anything other than `name: type = literal`, a value that is not of its type, or a name given twice.
    """
    tagged = [(name, source) for name, _, tags, source in _cells(notebook) if "parameters" in tags]
    if len(tagged) != 1:
        raise ValueError(f"{notebook}: {len(tagged)} cells are tagged 'parameters', one is needed")
    name, source = tagged[0]
    tree = _parse(name, source)
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    comments = {t.start[0]: t.string.lstrip("# ") for t in tokens if t.type == tokenize.COMMENT}
    found = [_parameter(name, node, comments) for node in tree.body]
    twice = {p.flag for p in found if [q.flag for q in found].count(p.flag) > 1}
    if twice:
        raise ValueError(f"{name}: given twice: {', '.join(sorted(twice))}")
    return found


def indent(source: str) -> str:
    """`source` indented by four columns, except for lines inside a string, which belong to its value."""
    inside, open_strings = set[int](), list[int]()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        kind = tokenize.tok_name[token.type]
        if kind == "STRING":
            inside.update(range(token.start[0] + 1, token.end[0] + 1))
        elif kind == "FSTRING_START":  # since Python 3.12 an f-string is several tokens
            open_strings.append(token.start[0])
        elif kind == "FSTRING_END":
            inside.update(range(open_strings.pop() + 1, token.end[0] + 1))
    lines = source.split("\n")
    return "\n".join(
        line if number in inside or not line.strip() else "    " + line
        for number, line in enumerate(lines, start=1)
    )


def _body(notebook: str | Path) -> Iterator[str]:
    """The script's body, cell by cell. Raises ValueError naming a cell that cannot run in a script."""
    cells = list(_cells(notebook))
    kept = [cell for cell in cells if not {SKIP, "parameters"} & set(cell[2])]
    trees = {name: _parse(name, source) for name, kind, _, source in kept if kind == "code"}
    nodes = {name: list(ast.walk(tree)) for name, tree in trees.items()}
    imported = {
        alias.asname or alias.name
        for found in nodes.values()
        for node in found
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in node.names
    }
    for name, kind, _, source in kept:
        if kind == "markdown":
            yield "\n".join(
                ["    # %% [markdown]", *(f"    # {line}".rstrip() for line in source.splitlines())]
            )
        if kind != "code" or not source.strip():
            continue
        used = {node.id for node in nodes[name] if isinstance(node, ast.Name)}
        if missing := used & set(_INTERACTIVE) - imported:
            raise ValueError(
                f"{name}: {missing.pop()} exists only in Jupyter: import it, or tag the cell {SKIP}"
            )
        yield "    # %%\n" + indent(source)


def notebook_to_script(notebook: str | Path) -> str:
    """The notebook as the text of a Python script; see the module.

    The script's docstring names the notebook and the SHA-256 of its file. `--show-parameters` prints the
    resulting parameters as JSON and runs nothing. Raises ValueError naming a cell that cannot be exported.
    """
    parameters = notebook_parameters(notebook)
    digest = hashlib.sha256(Path(notebook).read_bytes()).hexdigest()
    head = f'''"""Made by `igrpo export` from {job_name(notebook)}.ipynb; change that and export it again.

source sha256: {digest}
"""

import argparse
import json


def _parameters() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="{job_name(notebook)}, as a script.", allow_abbrev=False)
    parser.add_argument("--show-parameters", action="store_true", help="print them as JSON and run nothing")
'''
    values = [f"    {p.name}: {p.type} = _arguments.{p.name}" for p in parameters]
    script = "\n".join(
        [
            head + "\n".join(f"    {p.source()}" for p in parameters),
            "    arguments = parser.parse_args()",
            "    if arguments.__dict__.pop('show_parameters'):",
            "        print(json.dumps(vars(arguments)))",
            "        raise SystemExit(0)",
            "    return arguments",
            "",
            "",
            'if __name__ == "__main__":',
            "    _arguments = _parameters()",
            *values,
            "",
            "\n\n".join(_body(notebook)),
            "",
        ]
    )
    compile(script, f"{job_name(notebook)}.py", "exec")
    return script


def job_name(notebook: str | Path) -> str:
    """The name of a notebook's script and job: its file name without characters that a shell interprets."""
    return re.sub(r"[^\w.-]", "-", Path(notebook).stem)


def slurm_file(notebook: str | Path, *, nodes: int) -> str:
    """The Slurm file that runs the exported script on `nodes` nodes; with several, the first serves vLLM."""
    values = {
        "@NAME@": job_name(notebook),
        "@SHA256@": hashlib.sha256(Path(notebook).read_bytes()).hexdigest(),
        "@NODES@": str(nodes),
        "@GPUS@": "1" if nodes == 1 else "8",
    }
    text = _TEMPLATE.read_text()
    for placeholder, value in values.items():
        text = text.replace(placeholder, value)
    return text


def export_notebook(notebook: str | Path, folder: str | Path) -> list[Path]:
    """Write NAME.py, NAME.one_node.slurm, and, if the notebook can use a server, NAME.multi_node.slurm.

    What the Slurm files require of a notebook: with a parameter `phase` it is run as "train" and then as
    "evaluate", without one it is run once. The parameters `recipe` and `vllm_host` together make it suitable
    for several nodes. A training loop that watches `IGRPO_STOP_FILE` (`scale.callbacks`) is requeued when
    preempted, and must be able to resume. Returns the files. Raises ValueError as `notebook_to_script` does.
    """
    parameters, name = {p.name for p in notebook_parameters(notebook)}, job_name(notebook)
    files = {
        f"{name}.py": notebook_to_script(notebook),
        f"{name}.one_node.slurm": slurm_file(notebook, nodes=1),
    }
    if {"recipe", "vllm_host"} <= parameters:
        files[f"{name}.multi_node.slurm"] = slurm_file(notebook, nodes=2)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for file, text in files.items():
        (folder / file).write_text(text, encoding="utf-8")
    return [folder / file for file in files]


def run_notebook(notebook: str | Path, output: str | Path, flags: Sequence[str]) -> None:
    """Execute a notebook with papermill, with its parameters given as the script's flags; write `output`.

    A wrong flag ends the process with status 2, as in argparse. Raises papermill's error if a cell fails.
    """
    parser = argparse.ArgumentParser(prog=f"igrpo run {notebook}", allow_abbrev=False)
    for parameter in notebook_parameters(notebook):
        kind: dict[str, Any] = {"type": _TYPES[parameter.type]}
        if parameter.type == "bool":
            kind = {"action": argparse.BooleanOptionalAction}
        parser.add_argument(
            parameter.flag, **kind, help=parameter.help.replace("%", "%%"), default=argparse.SUPPRESS
        )
    given = vars(parser.parse_args(list(flags)))
    import papermill  # needed only here, and slow to import

    Path(output).parent.mkdir(parents=True, exist_ok=True)
    # Widget state would put 5 MB of JavaScript into the file for one live figure.
    papermill.execute_notebook(
        str(notebook),
        str(output),
        given,
        kernel_name="python3",
        language="python",
        cwd=str(Path(notebook).parent),
        store_widget_state=False,
        progress_bar=False,
    )
