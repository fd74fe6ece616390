"""The closed forms that errors of Gaussian matrices are held against, as a chart draws them."""

from __future__ import annotations

import json
from typing import Any

from hwbench.analysis import closed_forms as expected
from hwbench.quantities import PROJECTION_ERROR
from hwbench.report.rows import Row, known

NOTE = (
    "The dashed line and the ring are closed forms for large matrices of independent normal "
    "entries: the error of keeping the largest entries, wherever they are, and of 2:4."
)
_POINTS = 40


def closed_forms(have: list[Row]) -> list[dict[str, Any]]:
    """Points of the curve of unstructured sparsity, and that of 2:4; none for other experiments.

    Each has ``density`` and ``score``, ``law`` (unstructured or 2:4), and ``text`` where its name
    is written. The curve reaches from the least density of the rows to one.
    """
    row = have[0]
    named = row.workload, row.score_name, json.loads(row.options).get("matrix")
    least = min((r.density for r in have if known(r.density)), default=0.0)
    if named != ("projection", PROJECTION_ERROR.name, "gaussian") or not 0 < least < 1:
        return []
    steps = [least ** (1 - step / _POINTS) for step in range(_POINTS + 1)]
    curve = [_point(density, expected.unstructured(density), "unstructured") for density in steps]
    curve[_POINTS // 2]["text"] = "unstructured, closed form"
    return [*curve, {**_point(0.5, expected.n_of_m(2, 4), "2:4"), "text": "2:4, closed form"}]


def _point(density: float, error: float, law: str) -> dict[str, Any]:
    places = {"density": float(f"{density:.5g}"), "score": float(f"{error:.5g}")}
    return {**places, "law": law, "text": ""}
