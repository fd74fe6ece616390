"""``python -m hwbench`` is the command line, and imports nothing from the current folder.

Python puts that folder first for ``-m``; there, a file of the user's called ``random.py`` would
stand before the one that is meant. What ``PYTHONPATH`` names stays.
"""

import os
import sys

# pathlib is not loaded yet, and would itself be looked for in that folder.
if not sys.flags.safe_path and sys.path[0] in ("", os.getcwd()):  # noqa: PTH109
    del sys.path[0]

from hwbench.cli import main

main()
