"""A photograph in each format: equal stored bytes, PSNR, and the gallery."""

from __future__ import annotations

import importlib.util
import math
import sys
from pathlib import Path

import pytest
import torch
from _faulty import ROOT
from msgspec.structs import replace
from PIL import Image as Png

import hwbench
from hwbench import plugins
from hwbench import suite as suites
from hwbench.errors import KnobError, UnknownNameError
from hwbench.formats._base import Format
from hwbench.formats.dense import Dense
from hwbench.formats.low_rank import LowRank
from hwbench.records import Case
from hwbench.workloads._pictures import PICTURES, SIDES, grey, psnr
from hwbench.workloads.image import Image

sys.path.insert(0, str(ROOT / "docs"))
import make_gallery

CASES = suites.build(suites.read("image"), "cpu").cases
BUDGET = 384 * 640  # a quarter of the picture in float32, in bytes


def described(case: Case, **knobs: float) -> Format:
    kind = plugins.load("formats", case.format, Format)
    return kind.from_knobs(case.out_features, case.in_features, **{**case.knobs, **knobs})


def answer(rows: int, columns: int, *, rank: int = 4) -> str | None:
    case = Case(workload="image", format="low_rank", dtype="float32", device="cpu",
                out_features=rows, in_features=columns)  # fmt: skip
    spec = LowRank(out_features=rows, in_features=columns, rank=rank)
    return Image().unsupported(case, spec, None)  # type: ignore[arg-type]


# The suite


@pytest.mark.parametrize("case", CASES[: len(CASES) // 2], ids=lambda case: case.format)
def test_a_case_has_the_bytes_nearest_below_the_budget(case: Case) -> None:
    stored = described(case).stored_bytes(4)
    assert 0.98 * BUDGET < stored <= BUDGET
    if "density" not in case.knobs:
        return
    own, others = round(1000 * float(case.knobs["density"])), []
    for step in {*range(1, 1001, 20), *range(max(1, own - 40), min(1000, own + 40))}:
        try:
            others.append(described(case, density=step / 1000).stored_bytes(4))
        except KnobError:  # the format cannot be that small
            continue
    assert len(others) > 70
    assert stored >= max(each for each in others if each <= BUDGET)


def test_each_picture_is_kept_in_the_same_formats() -> None:
    kept = {
        name: [(case.format, case.knobs) for case in CASES if case.options["picture"] == name]
        for name in PICTURES
    }
    assert kept["china"] == kept["flower"]
    assert len(kept["china"]) * 2 == len(CASES)


# The score


def test_psnr_is_ten_decades_of_the_mean_squared_error() -> None:
    exact = torch.zeros(4, 4)
    assert psnr(exact, exact + 0.1) == pytest.approx(20, abs=1e-5)
    assert psnr(exact, exact) == math.inf


@pytest.mark.parametrize("name", PICTURES)
def test_a_picture_is_grey_between_black_and_white_and_cut_from_the_middle(name: str) -> None:
    whole, middle = grey(name, *SIDES), grey(name, 27, 40)
    assert whole.shape == SIDES
    assert -0.5 <= whole.min() < -0.3
    assert 0.3 < whole.max() <= 0.5
    assert torch.equal(middle, whole[200:227, 300:340])


def test_the_score_of_low_rank_is_that_of_the_singular_values_left_out(tmp_path: Path) -> None:
    document = {
        "schema": 1,
        "name": "tiny",
        "cases": [{"workload": "image", "shape": [[48, 64]], "dtype": ["float32"],
                   "format": [{"name": "low_rank", "rank": [4, 8]}]}],
    }  # fmt: skip
    rows = hwbench.summary(hwbench.run(document, device="cpu", out=tmp_path)).to_dict("records")
    left = torch.linalg.svdvals(grey("china", 48, 64).double()).square()
    for row, rank in zip(rows, (4, 8), strict=True):
        exact = -10 * math.log10(float(left[rank:].sum()) / (48 * 64))
        assert row["score"] == pytest.approx(exact, abs=1e-3)
        assert (row["score_name"], row["better"]) == ("psnr_db", "higher")


# What cannot be


def test_without_the_package_the_case_is_unsupported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    reason = answer(48, 64)
    assert reason is not None
    assert "sklearn is not installed" in reason
    assert "hwbench-torch[models]" in reason


def test_what_is_no_compression_of_the_picture_says_so() -> None:
    assert answer(48, 64) is None
    assert "427×640 pixels" in str(answer(428, 64))
    assert "nothing is compressed" in str(answer(48, 48, rank=24))
    case = CASES[0]
    dense = Dense(out_features=case.out_features, in_features=case.in_features)
    assert "nothing is compressed" in str(Image().unsupported(case, dense, None))  # type: ignore[arg-type]


def test_an_unknown_picture_names_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="flower"):
        Image().check(replace(CASES[0], options={"picture": "flour"}))


# The gallery


def test_the_gallery_shows_the_cases_of_the_suite() -> None:
    with Png.open(make_gallery.OUT) as png:
        shown = png.info[make_gallery.KEY].splitlines()
    assert shown == [make_gallery.name(case) for case in make_gallery.cases()], (
        "docs/gallery.png is stale: run docs/make_gallery.py."
    )
