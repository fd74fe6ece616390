"""The pictures of the page: each is there, has its size, and all are small."""

from __future__ import annotations

import shutil
import sys
from itertools import product
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "docs"))
import make_screenshots as made

PAGES = ("linear", "compress_lm", "compare", "simulated_cuda")
NAMES = sorted(f"{p}-{s}-{t}" for p, s, t in product(PAGES, made.SIZES, made.THEMES))


def test_every_picture_is_there_and_all_are_small() -> None:
    assert sorted(path.stem for path in made.OUT.iterdir()) == sorted([*NAMES, "notebook"])
    assert sum(path.stat().st_size for path in made.OUT.iterdir()) < 2_000_000


@pytest.mark.parametrize("name", NAMES)
def test_a_picture_has_the_size_of_its_screen_and_its_theme(name: str) -> None:
    from PIL import Image

    page, size, theme = name.split("-")
    assert page in PAGES
    with Image.open(made.OUT / f"{name}.png") as picture:
        assert picture.size == made.SIZES[size]
        red, green, blue = picture.convert("RGB").getpixel((2, 2))  # of the paper
    assert (min(red, green, blue) > 200) == (theme == "light")
    assert (max(red, green, blue) < 60) == (theme == "dark")


def test_the_picture_of_a_notebook_has_its_size() -> None:
    from PIL import Image

    with Image.open(made.OUT / "notebook.png") as picture:
        assert picture.size == made.NOTEBOOK


def test_without_a_browser_a_sentence_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(SystemExit, match="The pictures need Chromium: none of chromium, "):
        made.main()
