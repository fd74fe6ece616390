"""Records are frozen, survive JSON unchanged, and cases have ids that can be trusted."""

from __future__ import annotations

import enum
import json
import math
import types
import typing
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hwbench import records
from hwbench.records import Case, Measurement, Plan, Record, Result, Status

RECORDS = sorted(
    (value for value in vars(records).values() if isinstance(value, type)),
    key=lambda cls: cls.__name__,
)
RECORDS = [cls for cls in RECORDS if issubclass(cls, Record) and cls is not Record]
LINES = list(typing.get_args(records.Line))

INTEGERS = st.integers(-(2**53), 2**53)
FLOATS = st.floats(allow_nan=False, allow_infinity=False)  # JSON has no others
JSON = st.recursive(
    st.none() | st.booleans() | INTEGERS | FLOATS | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=5), inner, max_size=2)
    ),
    max_leaves=4,
)
SCALARS = {
    bool: st.booleans(),
    int: INTEGERS,
    float: FLOATS,
    str: st.text(max_size=8),
    types.NoneType: st.none(),
}


def values(kind: Any) -> st.SearchStrategy[Any]:
    """Any value of a type that a field of a record may have."""
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any:
        return JSON
    if origin in (types.UnionType, typing.Union):
        return st.one_of([values(one) for one in inner])
    if origin is list:
        return st.lists(values(inner[0]), max_size=2)
    if origin is tuple:
        any_length = st.lists(values(inner[0]), max_size=2).map(tuple)
        return any_length if inner[1:] == (...,) else st.tuples(*map(values, inner))
    if origin is dict:
        return st.dictionaries(values(inner[0]), values(inner[1]), max_size=2)
    if issubclass(kind, enum.Enum):
        return st.sampled_from(kind)
    if issubclass(kind, msgspec.Struct):
        fields = msgspec.structs.fields(kind)
        some = {f.name: values(f.type) for f in fields if f.required}
        other = {f.name: values(f.type) for f in fields if not f.required}
        return st.fixed_dictionaries(some, optional=other).map(lambda given: kind(**given))
    return SCALARS[kind]


@pytest.mark.parametrize("kind", RECORDS, ids=lambda kind: kind.__name__)
@given(data=st.data())
def test_json_both_ways(kind: type[Record], data: st.DataObject) -> None:
    record = data.draw(values(kind))
    text = msgspec.json.encode(record)
    assert msgspec.json.decode(text, type=kind) == record
    assert msgspec.json.encode(msgspec.json.decode(text, type=kind)) == text


@pytest.mark.parametrize("kind", LINES, ids=lambda kind: kind.__name__)
@given(data=st.data())
def test_a_line_tells_what_it_is(kind: type[Record], data: st.DataObject) -> None:
    line = data.draw(values(kind))
    again = msgspec.json.decode(msgspec.json.encode(line), type=records.Line)
    assert type(again) is kind
    assert again == line


@pytest.mark.parametrize("kind", RECORDS, ids=lambda kind: kind.__name__)
@given(data=st.data())
def test_records_are_frozen_and_ignore_what_later_versions_add(
    kind: type[Record], data: st.DataObject
) -> None:
    record = data.draw(values(kind))
    with pytest.raises(AttributeError, match="immutable"):
        setattr(record, kind.__struct_fields__[0], None)
    later = {**msgspec.to_builtins(record), "a_field_of_a_later_version": 1}
    assert msgspec.convert(later, kind) == record


def test_a_field_of_the_wrong_type_is_named() -> None:
    with pytest.raises(msgspec.ValidationError, match=r"Expected `int`.*\$\.replicates"):
        msgspec.json.decode(b'{"replicates": "five"}', type=Plan)


# --- the ids of cases ---------------------------------------------------------------------------

WORDS = st.from_regex(r"[a-z][a-z_]{0,6}[0-9]?", fullmatch=True).filter(
    lambda word: word not in ("true", "false", "null")
)
KNOBS = st.dictionaries(
    WORDS,
    # 1, 1.0 and True are equal in Python and three texts: whole floats and bools beside ints
    # would be equal cases with different ids.
    st.integers(2, 10**6) | st.floats(0.01, 0.99) | st.booleans() | WORDS,
    max_size=3,
)
CASES = st.builds(
    Case,
    workload=st.sampled_from(["linear", "projection"]) | WORDS,
    format=st.sampled_from(["dense", "low_rank"]) | WORDS,
    out_features=st.integers(1, 99999),
    in_features=st.integers(1, 99999),
    dtype=st.sampled_from(sorted(records.ITEM_BYTES)),
    device=st.sampled_from(["cpu", "cuda", "fake"]),
    knobs=KNOBS,
    options=KNOBS,
    tokens=st.none() | st.integers(1, 10**6),
    direction=st.none() | st.sampled_from(records.Direction).map(str),
    regime=st.none() | st.sampled_from(records.Regime).map(str),
    mode=st.none() | st.sampled_from(records.Mode).map(str),
)


def test_id_and_label_read_well() -> None:
    case = Case(
        workload="linear",
        format="blast",
        out_features=4096,
        in_features=11008,
        dtype="bfloat16",
        device="cuda",
        knobs={"density": 0.5, "blocks": 16},
        options={"seeds": 3},
        tokens=512,
        direction="step",
        regime="hot",
        mode="eager",
    )
    assert case.id == (
        "linear[seeds=3]/step/blast[blocks=16,density=0.5]/4096x11008/t512/bfloat16/hot/eager/cuda"
    )
    assert case.label == "blast blocks=16 density=0.5"


def test_id_leaves_out_what_a_case_does_not_have() -> None:
    case = Case(
        workload="projection",
        format="dense",
        out_features=8,
        in_features=4,
        dtype="float32",
        device="cpu",
    )
    assert case.id == "projection/dense/8x4/float32/cpu"
    assert case.label == "dense"


@given(CASES)
def test_id_does_not_depend_on_the_order_of_keys(case: Case) -> None:
    knobs, options = (dict(reversed(d.items())) for d in (case.knobs, case.options))
    turned = msgspec.structs.replace(case, knobs=knobs, options=options)
    assert (turned.id, turned.label, turned.group) == (case.id, case.label, case.group)


@given(st.integers() | st.floats() | st.booleans())
def test_a_number_in_an_id_is_written_as_json_writes_it(value: records.Knob) -> None:
    case = Case(
        workload="linear",
        format="blast",
        out_features=8,
        in_features=4,
        dtype="float32",
        device="cpu",
        knobs={"x": value},
    )
    assert case.label == f"blast x={json.dumps(value)}"
    assert case.id == f"linear/blast[x={json.dumps(value)}]/8x4/float32/cpu"


@given(CASES, st.data())
def test_distinct_cases_have_distinct_ids(case: Case, data: st.DataObject) -> None:
    field = data.draw(st.sampled_from(Case.__struct_fields__))
    other = msgspec.structs.replace(case, **{field: getattr(data.draw(CASES), field)})
    assert (case.id == other.id) == (case == other)


@given(st.lists(CASES, max_size=20))
def test_ids_collide_for_equal_cases_only(cases: list[Case]) -> None:
    collected: dict[str, Case] = {}
    for case in cases:
        assert collected.setdefault(case.id, case) == case


@given(CASES, CASES)
def test_a_group_is_timed_together_whatever_the_format(case: Case, other: Case) -> None:
    same = msgspec.structs.replace(case, format=other.format, knobs=other.knobs)
    assert same.group == case.group
    assert hash(same.group) == hash(case.group)
    for field in ("workload", "options", "dtype", "device", "in_features", "tokens", "direction"):
        changed = msgspec.structs.replace(case, **{field: getattr(other, field)})
        assert (changed.group == case.group) == (getattr(case, field) == getattr(other, field))


# --- what results answer ------------------------------------------------------------------------


def test_values_are_found_by_quantity() -> None:
    time = Measurement(quantity="time", unit="s", values=[1.0, 2.0])
    result = Result(case="c", replicate=0, seed=1, status=Status.OK, measurements=[time])
    assert result.values("time") == [1.0, 2.0]
    assert result.values("energy") == []


def test_every_status_is_an_answer_or_a_failure() -> None:
    failures = {Status.WRONG, Status.TIMED_OUT, Status.CRASHED}
    assert set(records.ANSWERS) | failures == set(Status)
    assert failures.isdisjoint(records.ANSWERS)


def test_a_number_that_json_cannot_hold_becomes_null_and_is_refused() -> None:
    text = msgspec.json.encode(Measurement(quantity="time", unit="s", values=[math.nan]))
    with pytest.raises(msgspec.ValidationError, match=r"\$\.values\[0\]"):
        msgspec.json.decode(text, type=Measurement)
