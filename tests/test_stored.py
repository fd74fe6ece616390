"""``stored``: bytes over dense's, resolved for every format, never rounded up."""

from __future__ import annotations

import re
from contextlib import suppress
from typing import Any

import pytest
from _formats import CLASSES, assert_sentence, each

from hwbench import suite
from hwbench.devices.cpu import Cpu
from hwbench.errors import KnobError, SuiteError, UnreachableError
from hwbench.formats._base import Format, budget, unreachable
from hwbench.formats.low_rank import LowRank
from hwbench.records import Case
from hwbench.workloads import _planning

SHARES = (0.02, 0.15, 0.3, 0.6, 1.0)
SHAPES = ((24, 32), (32, 24), (37, 53))
KERNELS = [(cls, kernel) for cls in CLASSES.values() for kernel in cls.KERNELS]


class Padded(LowRank):
    """A format of another package: it says what it costs, and nothing of ``stored``."""

    @classmethod
    def name(cls) -> str:
        return "padded"

    def index_bytes(self) -> int:
        return 100 + 3 * self.rank


def reachable(cls: type[Format], shape: tuple[int, int], kernel: str) -> list[Format]:
    """Everything that the format can be at some density, found one parameter at a time."""
    collected: dict[Format, None] = {}
    total = shape[0] * shape[1]
    for parameters in range(1, total + 1):
        with suppress(KnobError):
            collected[
                cls.for_budget(*shape, min(1.0, (parameters + 0.5) / total), kernel=kernel)
            ] = None
    return list(collected)


@pytest.mark.parametrize(
    "shape",
    [(19, 13), *(pytest.param(s, marks=pytest.mark.heavy) for s in ((24, 32), *SHAPES[1:]))],
)
@each("cls, kernel", [*KERNELS, (Padded, "torch")])
def test_the_most_bytes_that_are_allowed_are_used(
    cls: type[Format], kernel: str, shape: tuple[int, int]
) -> None:
    """Against every setting there is; a format may find more than a density can ask for."""
    every = reachable(cls, shape, kernel)
    for item in (2, 4):
        dense = item * shape[0] * shape[1]
        own = cls.for_stored.__func__ is not Format.for_stored.__func__  # type: ignore[attr-defined]
        slack = item + 3 if own else 0  # less than a value with its index
        bytes_of = [f.stored_bytes(item) for f in every]
        for stored in SHARES:
            within = [size for size in bytes_of if size <= stored * dense + 1e-9]
            try:
                f = cls.from_knobs(*shape, item_bytes=item, stored=stored, kernel=kernel)
            except UnreachableError as error:
                assert not within, (shape, stored)
                assert_sentence(error)
            except KnobError:
                assert not bytes_of, (shape, stored)
            else:
                assert f.stored_bytes(item) <= stored * dense + 1e-9
                assert f.stored_bytes(item) >= max(within, default=0) - slack


@each("cls, kernel", [*KERNELS, (Padded, "torch")])
def test_what_is_named_as_the_nearest_can_be_had(cls: type[Format], kernel: str) -> None:
    for shape in SHAPES:
        try:
            cls.from_knobs(*shape, stored=1e-6, kernel=kernel)
        except UnreachableError as error:
            named = re.search(r"nothing below it can be had.* stored=([0-9.e-]+)\.$", str(error))
            if named and float(named[1]) <= 1:
                f = cls.from_knobs(*shape, stored=float(named[1]), kernel=kernel)
                share = f.stored_bytes(4) / (4 * shape[0] * shape[1])
                assert share == pytest.approx(float(named[1]), rel=1e-3)
        except KnobError:
            pass


def test_the_refusal_says_what_is_near() -> None:
    with pytest.raises(UnreachableError) as refusal:
        CLASSES["low_rank"].from_knobs(16, 16, stored=0.05)
    assert str(refusal.value) == (
        "low_rank cannot be stored in 0.05 of dense's bytes; nothing below it can be had, and the "
        "nearest above is stored=0.125."
    )


def test_a_wide_layer_loses_no_parameter_to_rounding() -> None:
    """The number of parameters survives its way through a density at 2^34 weights too."""
    f = CLASSES["csr"].from_knobs(2**17, 2**17, stored=0.3, item_bytes=2)
    limit = int(0.3 * 2 * 2**34)
    assert limit - 6 < f.stored_bytes(2) <= limit  # an entry and its index take six bytes


def test_bytes_of_a_value_are_those_of_the_dtype() -> None:
    """Indices weigh twice as much beside 16-bit values."""
    kept = {
        dtype: planned(dtype=dtype, format="csr", knobs={"stored": 0.3}).resolved["nonzeros"]
        for dtype in ("float32", "bfloat16")
    }
    assert kept["float32"] > 1.4 * kept["bfloat16"]  # type: ignore[operator]


def test_a_model_s_layers_are_resolved_in_the_dtype_of_the_case() -> None:
    from hwbench.workloads._base import layer_format

    one, two = (case(dtype=d, format="csr", knobs={"stored": 0.3}) for d in ("float32", "bfloat16"))
    sizes = [layer_format(c, 64, 64).parameters() for c in (one, two)]
    assert sizes[0] > 1.4 * sizes[1]


def test_what_cannot_be_reached_is_unsupported_in_words() -> None:
    actual = planned(format="semi_structured", knobs={"stored": 0.25})
    assert actual.unsupported is not None
    assert actual.unsupported.startswith(
        "semi_structured cannot be stored in 0.25 of dense's bytes"
    )
    assert actual.cost is None


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"stored": 0.5, "density": 0.5}, "either a density or stored bytes, not both"),
        ({"stored": 0.5, "rank": 3}, "either stored bytes or rank, not both"),
        ({"stored": 0}, "stored must be above 0 and at most 1, not 0"),
        ({"stored": 2}, "stored must be above 0 and at most 1, not 2"),
        ({"stored": "half"}, "stored must be a number, not 'half'"),
        ({"stored": True}, "stored must be a number, not True"),
        ({"stored": 0.5, "multiple": 0}, "multiple must be a whole number above zero"),
        ({"stored": 1e-9, "kernel": "none"}, "has no kernel 'none'"),
    ],
)
def test_mistakes_are_told(knobs: dict[str, Any], message: str) -> None:
    with pytest.raises(KnobError, match=message) as refusal:
        CLASSES["low_rank"].from_knobs(64, 64, **knobs)
    assert not isinstance(refusal.value, UnreachableError)
    assert_sentence(refusal.value)


def test_a_rank_is_rounded_down_to_a_multiple() -> None:
    f = CLASSES["low_rank"].from_knobs(64, 64, stored=0.4, multiple=8)
    assert f.knobs()["rank"] == 8


def test_third_party_format_with_a_budget_that_has_gaps() -> None:
    """Between two sizes that exist, the lower one is taken."""

    class Steps(Padded):
        @classmethod
        def for_budget(cls, out_features: int, in_features: int, density: float, **knobs: Any):  # type: ignore[no-untyped-def]
            rank = budget(out_features, in_features, density) // (out_features + in_features)
            fit = max((r for r in (2, 8) if r <= rank), default=None)
            if fit is None:
                raise unreachable("steps", density, "it has two ranks")
            return cls(out_features=out_features, in_features=in_features, rank=fit, **knobs)

    ranks = [Steps.from_knobs(64, 64, stored=s).rank for s in (0.08, 0.2, 0.3, 1.0)]
    assert ranks == [2, 2, 8, 8]


# --- suites and the command line ----------------------------------------------------------------


DOCUMENT = {
    "schema": 1,
    "name": "tiny",
    "cases": [
        {
            "workload": "linear",
            "shape": [16, 16],
            "tokens": 2,
            "format": [{"name": "dense"}, {"name": "low_rank", "density": [0.9, 0.8]}],
        }
    ],
}


def knobs_of(document: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    return [(c.format, c.knobs) for c in suite.build(document, "cpu").cases]


def test_stored_takes_the_place_of_a_density() -> None:
    request = suite.override(DOCUMENT, stored=[0.5, 0.25], formats=["low_rank", "csr"])
    assert knobs_of(request) == [
        ("dense", {}),
        *[(name, {"stored": s}) for name in ("low_rank", "csr") for s in (0.5, 0.25)],
    ]
    again = suite.override(request, density=[0.1])
    assert knobs_of(again)[1:] == [("low_rank", {"density": 0.1}), ("csr", {"density": 0.1})]


def test_a_share_of_both_kinds_is_refused() -> None:
    with pytest.raises(SuiteError, match="either for a density or for stored bytes"):
        suite.override(DOCUMENT, stored=[0.5], density=[0.5])


def test_a_whole_share_is_the_same_case_however_it_is_written() -> None:
    ids = {c.id for one in (1, 1.0) for c in suite.build(with_stored(one), "cpu").cases}
    assert "linear/forward/low_rank[stored=1.0]/16x16/t2/float32/hot/eager/cpu" in ids
    assert len(ids) == 2


def with_stored(share: float) -> dict[str, Any]:
    block = {**DOCUMENT["cases"][0]}  # type: ignore[index]
    block["format"] = [{"name": "dense"}, {"name": "low_rank", "stored": share}]
    return {**DOCUMENT, "cases": [block]}


def case(**changes: Any) -> Case:
    made = {
        "workload": "linear",
        "format": "dense",
        "out_features": 64,
        "in_features": 64,
        "dtype": "float32",
        "device": "cpu",
        "tokens": 4,
        "direction": "forward",
        "regime": "hot",
        "mode": "eager",
    }
    return Case(**{**made, **changes})


def planned(**changes: Any) -> Any:
    return _planning.planned(case(**changes), Cpu("cpu"), {})
