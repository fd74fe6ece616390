"""Plans a case on a device: resolves its knobs, counts its costs, and says why it cannot run."""

from __future__ import annotations

import functools
import inspect
import sys
from typing import Any

from hwbench import plugins, protocol
from hwbench.devices._base import Device
from hwbench.errors import KnobError, UnreachableError, UsageError
from hwbench.formats._base import Format
from hwbench.quantities import Quantity
from hwbench.records import ITEM_BYTES, Case, Direction, Planned
from hwbench.workloads._base import DTYPES, Workload, fitted


def described(case: Case, resolved: dict[str, Any]) -> tuple[Workload, Format]:
    """The workload of a case, and its format as planning resolved it."""
    workload, format_class = _members(case.workload, case.format)
    return workload, format_class(
        out_features=case.out_features, in_features=case.in_features, **resolved
    )


@functools.cache
def _members(workload: str, format_: str) -> tuple[Workload, type[Format]]:
    """Looked up once: a suite of a hundred thousand cases has a handful of them."""
    return plugins.load("workloads", workload, Workload)(), plugins.load("formats", format_, Format)


def quantities(workload: str) -> list[Quantity]:
    """The quantity that a workload scores, and those that its score brings beside it."""
    member = plugins.load("workloads", workload, Workload)
    return [*([member.SCORE] if member.SCORE else []), *member.QUANTITIES]


Resolved = dict[tuple[Any, ...], tuple[Format, dict[str, Any]]]
"""Formats by shape, bytes of a value and knobs, each with its facts that hold in every case."""


def planned(case: Case, device: Device, resolved: Resolved) -> Planned:
    """The case with the facts of its device and format; ``resolved`` keeps the formats.

    A share that the format cannot reach, and a default that the size does not fit, are no mistakes:
    the case is unsupported, and says why.

    Raises:
        HwbenchError: an option, a knob or the tokens do not fit.
    """
    workload, format_class = _members(case.workload, case.format)
    workload.check(case)
    if "tokens" in workload.AXES and case.tokens is None:
        raise KnobError(f"the workload {case.workload} needs tokens.")
    if "tokens" not in workload.AXES and case.tokens is not None:
        raise KnobError(f"the workload {case.workload} has no use for tokens or direction.")
    quantity = workload.quantity(case)
    named: dict[str, Any] = {
        "case": case,
        "revision": format_class.revision,
        "better": quantity.better if quantity else "lower",
        "seeds": workload.seeds(case),
    }
    try:
        format_, facts = _resolved(case, format_class, device, resolved)
        cost = workload.cost(case, format_)
        facts = {**facts, "density": workload.density(case, format_)}
    except UnreachableError as error:
        return Planned(**named, unsupported=str(error))
    unsupported = workload.unsupported(case, format_, device)
    return Planned(**named, **facts, cost=cost, unsupported=unsupported)


def _resolved(
    case: Case, format_class: type[Format], device: Device, resolved: Resolved
) -> tuple[Format, dict[str, Any]]:
    """The format of the case, and its facts."""
    out, inputs, item = case.out_features, case.in_features, ITEM_BYTES[case.dtype]
    key = (case.format, out, inputs, item, repr(sorted(case.knobs.items())))
    if key not in resolved:
        format_ = fitted(format_class, out, inputs, item, case.knobs)
        format_ = format_.on(device.torch_device.type)
        facts: dict[str, Any] = {
            "resolved": format_.knobs(),
            "kernel": format_.kernel,
            "density": format_.density(),
        }
        resolved[key] = (format_, facts)
    return resolved[key]


def details(name: str) -> protocol.FormatDetails:
    """The facts of a format and the places where it runs; or why it cannot be used."""
    try:
        format_class = plugins.load("formats", name, Format)
    except UsageError as error:
        return protocol.FormatDetails(
            name=name,
            summary=plugins.summary("formats", name),
            description=f"It cannot be used: {error}",
            knobs=[], defaults={}, kernels=[], paper="", unsupported={}, by_kernel={},
        )  # fmt: skip
    reasons = {kernel: _reasons(format_class, kernel) for kernel in format_class.KERNELS}
    text = inspect.cleandoc(sys.modules[format_class.__module__].__doc__ or "")
    return protocol.FormatDetails(
        name=name,
        summary=plugins.summary("formats", name),
        description=text.partition("\n\n")[2],
        knobs=format_class.knob_names(),
        defaults=format_class.knob_defaults(),
        kernels=list(format_class.KERNELS),
        paper=format_class.PAPER,
        unsupported=reasons[format_class.KERNELS[0]],
        by_kernel=reasons,
    )


def _reasons(format_class: type[Format], kernel: str) -> dict[str, str]:
    """Why that kernel cannot run, or "", for each kind of device, dtype and direction."""
    sides = (256, 256)
    try:
        example = format_class.from_knobs(*sides, kernel=kernel)
    except KnobError:
        example = format_class.from_knobs(*sides, kernel=kernel, density=0.5)
    return {
        f"{kind} {dtype} {direction}": example.unsupported(kind, DTYPES[dtype], direction) or ""
        for kind in ("cpu", "cuda")
        for dtype in ("float32", "bfloat16", "float16")
        for direction in (Direction.FORWARD, Direction.STEP)
    }
