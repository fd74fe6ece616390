"""What is done with a format: prepare → step → score. One file a workload; its name is the file's.

A workload prepares a ``Subject`` for one case: the step that is timed, the untimed part before it,
the check that it is right, and, for accuracy experiments, its score.
"""
