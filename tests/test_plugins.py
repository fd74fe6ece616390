"""Open sets: a file is a member, another package adds one, and names cost no import."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

import hwbench
from hwbench import plugins
from hwbench.devices._base import Device
from hwbench.errors import UnknownNameError, UsageError
from hwbench.formats._base import Format
from hwbench.meters._base import Meter
from hwbench.workloads._base import Workload

BASES = {"formats": Format, "workloads": Workload, "devices": Device, "meters": Meter}
MEMBERS = [(kind, name) for kind in plugins.KINDS for name in plugins.names(kind)]

HALVED = '''
"""Half of a matrix: one number stands for two.

More that a summary leaves out.
"""

from dataclasses import dataclass

import torch

from hwbench.formats._base import Format, Linear


class Map(Linear):
    def __init__(self, half):
        super().__init__(half.shape[0], 2 * half.shape[1])
        self.pairs = torch.nn.Parameter(half)

    def apply_weight(self, x):
        return x @ self.to_dense().T

    def to_dense(self):
        return self.pairs.repeat_interleave(2, dim=1)


@dataclass(frozen=True, kw_only=True)
class Halved(Format):
    @classmethod
    def for_budget(cls, out_features, in_features, density, **knobs):
        return cls(out_features=out_features, in_features=in_features, **knobs)

    def parameters(self):
        return self.out_features * self.in_features // 2

    def random(self, *, dtype, generator):
        half = torch.randn(self.out_features, self.in_features // 2, generator=generator)
        return Map(half.to(dtype))

    def project(self, weight, *, activations=None):
        return Map(weight.unflatten(1, (-1, 2)).mean(2))
'''

Install = Callable[..., None]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """A function that installs a package, as pip would leave it, for one test."""
    before = set(sys.modules)

    def make(entry_points: str, **files: str) -> None:
        for name, text in files.items():
            path = tmp_path / f"{name}.py"
            path.parent.mkdir(exist_ok=True)
            path.write_text(text.lstrip(), encoding="utf-8")
        info = tmp_path / "hwbench_extra-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: hwbench-extra\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[hwbench.formats]\n{entry_points}\n")
        monkeypatch.syspath_prepend(tmp_path)
        plugins._external.cache_clear()

    yield make
    monkeypatch.undo()
    plugins._external.cache_clear()
    for name in set(sys.modules) - before:
        if name.startswith("extra"):
            del sys.modules[name]


def test_names_are_those_of_the_files() -> None:
    for kind in plugins.KINDS:
        folder = Path(hwbench.__file__).parent / kind
        files = {path.stem for path in folder.glob("*.py") if not path.name.startswith("_")}
        assert files <= set(plugins.names(kind))
        assert plugins.names(kind) == sorted(set(plugins.names(kind)))
    assert {"dense", "low_rank"} <= set(plugins.names("formats"))
    assert "_base" not in plugins.names("formats")


@pytest.mark.parametrize(("kind", "name"), MEMBERS, ids=lambda value: value)
def test_member_loads_and_says_what_it_is(kind: str, name: str) -> None:
    cls = plugins.load(kind, name, BASES[kind])
    assert issubclass(cls, BASES[kind])
    text = plugins.summary(kind, name)
    assert text.endswith(".")
    assert len(text.split()) >= 4
    assert "\n" not in text


@pytest.mark.parametrize(
    ("kind", "name", "message"),
    [
        ("formats", "low_rnk", r"Unknown format 'low_rnk'; did you mean 'low_rank'\?"),
        ("formats", "dens", r"Unknown format 'dens'; did you mean 'dense'\?"),
        ("workloads", "liner", r"Unknown workload 'liner'; did you mean 'linear'\?"),
        ("meters", "xyzzy", r"Unknown meter 'xyzzy'; known: .*latency.*\."),
        ("formats", "_base", "Unknown format '_base'"),
        ("formats", "../errors", r"Unknown format '\.\./errors'"),
        ("formats", "", "Unknown format ''"),
    ],
)
def test_unknown_name_is_answered_with_the_nearest(kind: str, name: str, message: str) -> None:
    for ask in (plugins.check, plugins.summary):
        with pytest.raises(UnknownNameError, match=message):
            ask(kind, name)
    with pytest.raises(UnknownNameError, match=message):
        plugins.load(kind, name, BASES[kind])


def test_check_returns_the_name() -> None:
    assert plugins.check("formats", "dense") == "dense"


@pytest.mark.parametrize("target", ["extra_halved", "extra_halved:Halved"])
def test_another_package_adds_a_format(install: Install, target: str) -> None:
    install(f"halved = {target}", extra_halved=HALVED)
    assert "halved" in plugins.names("formats")
    assert "halved" not in plugins.names("workloads")
    assert plugins.check("formats", "halved") == "halved"
    summary = plugins.summary("formats", "halved")
    assert summary == "Half of a matrix: one number stands for two."
    assert "extra_halved" not in sys.modules  # nothing was imported so far

    cls = plugins.load("formats", "halved", Format)
    f = cls.from_knobs(4, 6)
    layer = f.random(dtype=torch.float32, generator=torch.Generator().manual_seed(0))
    x = torch.ones(3, 6)
    assert torch.allclose(layer(x), x @ layer.to_dense().T)
    assert (cls.__name__, f.density()) == ("Halved", 0.5)
    with pytest.raises(UnknownNameError, match="did you mean 'halved'"):
        plugins.check("formats", "halvd")


def test_a_format_may_lie_in_a_package(install: Install) -> None:
    install("halved = extra.halved", **{"extra/__init__": "", "extra/halved": HALVED})
    assert plugins.summary("formats", "halved") == "Half of a matrix: one number stands for two."
    assert plugins.load("formats", "halved", Format).__name__ == "Halved"


def test_a_member_without_a_file_names_its_package(install: Install) -> None:
    install("halved = extra_gone.halved\nmore = extra", **{"extra/__init__": HALVED})
    assert plugins.summary("formats", "halved") == "from the package hwbench-extra"
    assert plugins.summary("formats", "more").startswith("Half of a matrix")


def test_a_member_installed_in_place_is_found_where_it_lies(
    install: Install, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install("halved = extra_apart.halved")
    for name, text in {"__init__": "raise ImportError", "halved": HALVED.lstrip()}.items():
        path = tmp_path / "elsewhere" / "extra_apart" / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path / "elsewhere")
    assert plugins.summary("formats", "halved").startswith("Half of a matrix")


def test_another_package_does_not_replace_a_built_in_format(install: Install) -> None:
    install("dense = extra_halved", extra_halved=HALVED)
    assert plugins.names("formats").count("dense") == 1
    assert plugins.load("formats", "dense", Format).__module__ == "hwbench.formats.dense"
    assert "Half of" not in plugins.summary("formats", "dense")


TWO = HALVED + "\n\nclass Other(Halved):\n    pass\n"
NONE = """
from hwbench.formats.dense import Dense


class _Own(Dense):
    pass
"""


@pytest.mark.parametrize(
    ("entry", "text", "count"),
    [
        ("extra_module", TWO, 2),
        ("extra_module", NONE, 0),  # what is imported, or begins with _, is not defined there
        ("extra_module:Map", HALVED, 0),
        ("extra_module", HALVED.replace("    def project", "    def projekt"), 0),  # abstract
    ],
)
def test_a_member_is_one_public_class(install: Install, entry: str, text: str, count: int) -> None:
    install(f"odd = {entry}", extra_module=text)
    expected = f"{entry} must define exactly one public subclass of Format; it defines {count}"
    with pytest.raises(UsageError, match=expected):
        plugins.load("formats", "odd", Format)


@pytest.mark.parametrize("text", ["import torchh", "x = (", "raise ValueError('no')", "y = z"])
def test_a_member_that_cannot_be_imported_says_why(install: Install, text: str) -> None:
    install("odd = extra_module", extra_module=text)
    with pytest.raises(UsageError, match=r"^The format 'odd' \(extra_module\) fails: .+\.$"):
        plugins.load("formats", "odd", Format)


@pytest.mark.parametrize("entry", ["extra_module", "extra_module:Halved"])
def test_what_an_unfinished_member_lacks_is_named(install: Install, entry: str) -> None:
    install(f"odd = {entry}", extra_module=HALVED.replace("    def project", "    def projekt"))
    with pytest.raises(UsageError, match=r"it defines 0; Halved lacks project\."):
        plugins.load("formats", "odd", Format)
