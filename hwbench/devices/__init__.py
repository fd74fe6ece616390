"""Where it runs: one file a device kind. Each places marks in its queue and tells its own facts.

To add a device, copy ``cpu.py`` and fill in the class; the sampling loop, which exists once in
``meters/latency.py``, needs nothing else. Files that begin with ``_`` are shared pieces.
"""
