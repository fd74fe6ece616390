"""How a weight is stored and applied: one file a format, and the file name is its name.

To add a format, copy ``dense.py``, rename it, and fill in the class: ``for_budget``,
``parameters``, ``random`` and ``project`` must be there; ``tests/test_formats.py`` then checks
every promise on it without a line added. Files that begin with ``_`` are shared pieces; no format
knows another.
"""
