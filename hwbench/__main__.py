"""``python -m hwbench`` is the command line, and imports nothing from the current folder.

Python puts that folder first for ``-m``; there, a file of the user's called ``random.py`` would
stand before the one that is meant. What ``PYTHONPATH`` names stays.
"""

import os
import sys

try:
    # pathlib is not loaded yet, and would itself be looked for in that folder.
    here = os.getcwd()  # noqa: PTH109
except OSError:
    here = ""  # the folder was deleted
if not sys.flags.safe_path and sys.path[0] in ("", here):
    del sys.path[0]

from hwbench.cli import main

main()
