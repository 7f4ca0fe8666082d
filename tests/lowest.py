"""The lower bounds of pyproject.toml as a constraints file for pip: `python tests/lowest.py > FILE`.

The tools of the tests have no bounds; they are taken as constraints.txt pins them. The engine is left out: it
ties torch and transformers to one version each.
"""

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]


def lower_bounds() -> list[str]:
    """One `name==version` for each requirement of the project and its extras."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    requirements = [*project["dependencies"], *extras["figures"], *extras["notebooks"], *extras["train"]]
    bounds = dict(
        re.fullmatch(r"([\w.-]+)>=([\w.]+).*", requirement).groups() for requirement in requirements
    )
    pins = dict(re.findall(r"^([\w.-]+)==(\S+)$", (ROOT / "constraints.txt").read_text(), re.M))
    tools = {name: pins[name] for name in extras["test"]}
    return [f"{name}=={version}" for name, version in sorted({**bounds, **tools}.items())]


if __name__ == "__main__":
    print("\n".join(lower_bounds()))
