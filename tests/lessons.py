"""All lessons in order on this machine, with the minutes of each: `python -m tests.lessons [--fast]`."""

import sys
import time

from tests.test_notebooks import CHECKS, ENVIRONMENT, FAST, LESSONS, run_notebook


def main(fast: bool) -> None:
    """Run them; with `fast`, under the parameters the tests use. Raises AssertionError naming a cell."""
    ENVIRONMENT["CUDA_VISIBLE_DEVICES"] = ""  # the promise is about a CPU
    total = 0.0
    for path in LESSONS:
        start = time.monotonic()
        checks = (CHECKS / f"{path.stem}.py").read_text(encoding="utf-8")
        run_notebook(path, FAST.get(path.stem, {}) if fast else {}, checks)
        minutes = (time.monotonic() - start) / 60
        total += minutes
        print(f"{minutes:6.2f} min   {path.stem}", flush=True)
    print(f"{total:6.2f} min   all {len(LESSONS)}")


if __name__ == "__main__":
    main("--fast" in sys.argv[1:])
