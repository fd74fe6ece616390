"""What is built from several runs: the gate, its baselines, and the machine against itself.

Nothing here prints.
"""
