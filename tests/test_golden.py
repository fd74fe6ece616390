"""Every reader says of the stored runs what it said before; tests/golden/make.py keeps it."""

from __future__ import annotations

import pytest
from _golden import EXPECTED, difference, files

FILES = files()


@pytest.mark.parametrize("name", FILES)
def test_output_is_as_before(name: str) -> None:
    result = difference(name, FILES[name]())
    assert not result, f"{result}\nIf this change is meant: python tests/golden/make.py"


def test_every_expected_file_is_made() -> None:
    kept = {str(path.relative_to(EXPECTED)) for path in EXPECTED.rglob("*") if path.is_file()}
    assert kept == set(FILES)
