"""How a weight is stored and applied: one file a format, and the file name is its name.

To add a format, copy ``dense.py``, rename it, and fill in the class: ``parameters``, ``random`` and
``project`` must be there, and a ``Kernel`` that multiplies; ``tests/test_formats.py`` then checks
every promise on it without a line added. A kernel more is a class more. Files that begin with ``_``
are shared pieces; no format knows another.
"""
