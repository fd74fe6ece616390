"""What an option of the command line says reaches what it names."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import shellingham
from _check import TINY, Call, kept, made
from _faulty import ROOT

from hwbench import environment
from hwbench.store import read_run


@pytest.fixture(autouse=True)
def suite(tmp_path: Path) -> None:
    (tmp_path / "s.toml").write_text(TINY)


def test_cores_are_those_that_the_process_is_kept_on(
    hwbench: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    pinned: list[str] = []
    monkeypatch.setattr(environment, "pin", pinned.append)
    assert hwbench("run", "-s", "s.toml", "-d", "fake", "--cores", "0")[0] == 0
    assert pinned == ["0"]


def test_cores_that_are_not_there_are_a_mistake(hwbench: Call) -> None:
    code, _, err = hwbench("run", "-s", "s.toml", "-d", "fake", "--cores", "0,99999")
    assert (code, "are not all among those allowed here" in err) == (2, True)
    assert not Path("runs").exists()


def test_stored_takes_the_place_of_the_densities_of_a_suite(hwbench: Call) -> None:
    assert hwbench("run", "-s", "s.toml", "-d", "fake", "--stored", "0.25")[0] == 0
    (path,) = Path("runs").glob("*.jsonl")
    planned = {p.case.format: p for p in read_run(path).planned.values() if p.seeds is None}
    dense, other = planned["dense"].cost, planned["low_rank"]
    assert other.case.knobs == {"stored": 0.25}
    assert other.cost.stored_bytes <= 0.25 * dense.stored_bytes


def two_machines() -> list[str]:
    """The paths of runs on two machines; the second takes half as long."""
    paths = []
    for day, (name, slower) in enumerate((("A100", 1.0), ("RTX 4090", 0.5)), 1):
        run = made(day, facts={"device": {"name": name}}, steady=True)
        for result in run.results:
            for measurement in result.measurements:
                if measurement.quantity == "time_seconds":
                    measurement.values[:] = [slower * value for value in measurement.values]
        paths.append(kept(run))
    return paths


@pytest.mark.parametrize("price", ["a100=0", "a100=inf", "a100=nan", "a100=-1", "=1", "a100", "a="])
def test_a_price_that_is_none_is_a_mistake(hwbench: Call, price: str) -> None:
    code, _, err = hwbench("compare", *two_machines(), "--price", price)
    assert (code, "--price is NAME=PRICE" in err) == (2, True)


def test_prices_are_set_against_speed(hwbench: Call) -> None:
    paths = two_machines()
    code, without, _ = hwbench("compare", *paths)
    assert (code, "an hour" in without) == (0, False)
    code, out, err = hwbench("compare", *paths, "--price", "a100=2", "--price", "4090=1")
    assert code == 0, err
    assert "At 2 and 1 an hour a call costs 0.25" in " ".join(out.split())


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_shell_is_given_its_completion(
    hwbench: Call, monkeypatch: pytest.MonkeyPatch, shell: str
) -> None:
    monkeypatch.setattr(shellingham, "detect_shell", lambda: (shell, f"/bin/{shell}"))
    code, out, err = hwbench("--show-completion")
    assert (code, err) == (0, "")
    assert f"complete_{shell}" in out


def test_every_default_that_is_named_in_a_help_text_is_shown(hwbench: Call) -> None:
    """Rich takes what stands in brackets for markup, unless it is escaped."""
    source = "".join(
        path.read_text(encoding="utf-8") for path in (ROOT / "hwbench" / "cli").glob("*.py")
    )
    assert not re.findall(r"(?<!\\\\)\[default", source)
    for verb, words in (("run", "[default: 10m]"), ("choose", "[default: 128]")):
        assert words in hwbench(verb, "--help")[1]


@pytest.mark.parametrize("name", ["~x.jsonl", "~/y.jsonl"])
def test_a_file_that_is_there_is_meant_though_its_name_begins_with_a_tilde(
    hwbench: Call, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    Path(name).parent.mkdir(exist_ok=True)
    Path(kept(made(1))).rename(name)
    code, out, err = hwbench("show", name)
    assert code == 0, err
    assert "low_rank" in out
