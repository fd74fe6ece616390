"""Which inputs of a test stand in the first tier; the second tries all others."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest


def sampled(values: Iterable[Any], step: int) -> list[Any]:
    """The values of a parametrised test: each ``step``-th in the first tier, the others heavy.

    A tuple is the values of several parameters, unless a ``pytest.param`` holds it, whose marks and
    id are kept.
    """
    collected = []
    for place, value in enumerate(values):
        given = hasattr(value, "marks")
        several = value.values if given else value if type(value) is tuple else (value,)
        marks = list(value.marks) if given else []
        if place % step:
            marks.append(pytest.mark.heavy)
        collected.append(pytest.param(*several, marks=marks, id=value.id if given else None))
    return collected
