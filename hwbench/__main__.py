"""``python -m hwbench`` is the command line."""

from hwbench.cli import main

main()
