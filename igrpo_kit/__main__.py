"""`python -m igrpo_kit`: see `cli`."""

import sys

from igrpo_kit.cli import main

sys.exit(main())
