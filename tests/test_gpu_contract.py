"""The checks that a GPU's numbers stand, as far as they run without one; and the table of them."""

from __future__ import annotations

import json
import runpy
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from _check import kept
from _synthetic import linear_case, run_of
from hwbench_simulated import Fake
from test_gpu_visit import FAILED, script

from hwbench.devices.cpu import Cpu
from hwbench.store import Run

gpu_contract = script("gpu_contract")
gpu_table = script("gpu_table")
Bench = gpu_contract.Bench


@pytest.fixture(scope="module")
def bench() -> Any:
    return gpu_contract.bench_of("cpu")


class Mark(int):
    """A point of simulated time, whose device reaches it when the host asks."""

    reached = True

    def query(self) -> bool:
        return self.reached


class Queue(Fake):
    """A device with a queue, which a mark waits in while the queue is filled for long enough."""

    asynchronous = True
    host_seconds = 1e-3
    filled = 0.0

    def prefill(self, seconds: float) -> None:
        self.filled = seconds

    def mark(self) -> Mark:
        mark = Mark(self._now)
        mark.reached = self.filled < self.host_seconds
        return mark


def words(rows: Any) -> dict[str, Any]:
    return {row["case"]: row for row in rows}


def test_a_check_that_fails_is_a_row_and_the_next_one_is_taken(
    bench: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused() -> Any:
        raise LookupError("it has no such kernel")

    def lost() -> Any:
        raise RuntimeError("CUDA error: out of patience\nand more")

    def check(bench: Any) -> Any:
        yield "one", refused
        yield "two", lost
        yield "three", lambda: {"value_seconds": 1.0}

    rows = words(gpu_contract.taken("check", check, bench))
    assert rows["one"]["unsupported"] == "it has no such kernel"
    assert rows["two"]["failed"] == "RuntimeError: CUDA error: out of patience"
    assert rows["three"]["value_seconds"] == 1.0
    assert "RuntimeError" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["prefill", "two_four", "fused"])
def test_what_needs_a_gpu_says_so_on_a_cpu(bench: Any, name: str) -> None:
    rows = list(gpu_contract.taken(name, gpu_contract.CHECKS[name], bench))
    assert rows
    assert {row.get("said") for row in rows} == {"not on cpu"}


def test_a_check_may_ask_a_kernel_for_gradients(bench: Any) -> None:
    """A probe of a training kernel that cannot record a graph would call the kernel refused."""

    def check(bench: Any) -> Any:
        yield "grad", lambda: {"grad": torch.is_grad_enabled()}

    (row,) = gpu_contract.taken("check", check, bench)
    assert row["grad"]


def test_a_layer_of_a_check_records_no_graph(bench: Any) -> None:
    layer, x = bench.layer("low_rank", 4, density=0.5)
    assert not layer(x).requires_grad


def test_gaps_names_the_operator_that_is_missing(
    bench: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = gpu_contract._gaps(bench, "csr")
    assert whole["ran"] > 0
    assert whole["failed"] == {}
    real = gpu_contract.format_of

    class Lacking:
        def __init__(self, described: Any) -> None:
            self.described = described

        def unsupported(self, *asked: Any) -> str | None:
            return self.described.unsupported(*asked)

        def random(self, *, dtype: torch.dtype, generator: torch.Generator) -> Any:
            if dtype == torch.bfloat16:
                raise NotImplementedError('"op_cuda" not implemented for BFloat16\nand where')
            return self.described.random(dtype=dtype, generator=generator)

    monkeypatch.setattr(gpu_contract, "format_of", lambda *a, **k: Lacking(real(*a, **k)))
    lacking = gpu_contract._gaps(bench, "csr")
    assert set(lacking["failed"].values()) == {'"op_cuda" not implemented for BFloat16'}
    assert all("bfloat16" in case for case in lacking["failed"])
    assert lacking["failed"]
    assert len(lacking["failed"]) + lacking["ran"] == whole["ran"]


@pytest.mark.parametrize("name", ["quantized", "packed_dense", "armor", "dense"])
def test_a_format_without_these_densities_is_among_the_gaps(bench: Any, name: str) -> None:
    row = gpu_contract._gaps(bench, name)
    assert row["ran"] > 0
    assert row["failed"] == {}


def test_a_format_is_taken_at_each_density_that_it_has() -> None:
    assert list(gpu_contract.formats_of("csr", "gather")) == ["density 0.5", "density 0.1"]
    assert list(gpu_contract.formats_of("n_m", "gather")) == ["density 0.5"]
    (usual,) = gpu_contract.formats_of("quantized", "int4pack").items()
    assert (usual[0], usual[1].type) == ("", "int4")


def test_a_fused_kernel_that_a_layer_cannot_have_leaves_the_times_of_the_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As monarch with 4 blocks at side 4096, whose groups of outputs are too wide for one."""

    class Narrow(Bench):
        gpu = True

        def layer(self, name: str, tokens: int, **knobs: Any) -> Any:
            kernel = knobs.pop("kernel", "")
            if kernel == "triton_fused":
                raise LookupError("groups of 64 outputs are too wide")
            return super().layer(name, tokens, **knobs)

    monkeypatch.setattr(gpu_contract, "seconds", lambda bench, step: 1e-5)
    narrow = Narrow(Cpu(), 64, torch.float32, few=2, some=4, many=8)
    row = gpu_contract._fused(narrow, "monarch", 0.5, 2)
    timed = {key for key in row if key.endswith("_seconds")}
    assert timed == {"dense_seconds", "bmm_seconds", "triton_seconds"}
    assert row["triton_fused_unsupported"] == "groups of 64 outputs are too wide"


def test_a_queue_that_ran_dry_is_seen() -> None:
    device = Queue()
    filled = partial(gpu_contract.sampled, device, lambda: None, 3)
    seconds, ahead = filled(0.5e-3)
    assert not ahead
    assert seconds == pytest.approx(1e-5)
    assert filled(2e-3)[1]
    assert gpu_contract.sampled(Fake(), lambda: None, 3, 0.0)[1]  # without a queue nothing runs dry


def test_a_graph_is_measured_or_the_reason_is_told(bench: Any) -> None:
    row = gpu_contract._graphed(bench, "dense", 4, {})
    assert row["event_seconds"] > 0
    assert row["graph"] == Cpu().capture(lambda: None)
    assert "profiler_seconds" not in row


def test_an_unknown_check_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = gpu_contract.__file__
    arguments = [path, "--out", str(tmp_path / "c.jsonl"), "--device", "cpu", "--only", "gap"]
    monkeypatch.setattr(sys, "argv", arguments)
    with pytest.raises(SystemExit, match="--only takes gaps, .*, not 'gap'"):
        runpy.run_path(str(path), run_name="__main__")


# --- the table --------------------------------------------------------------------------------


def written(run: Run, folder: Path, name: str) -> None:
    """A run as a file of a visit."""
    Path(kept(run, folder)).replace(folder / f"{name}.jsonl")


def lines(*rows: dict[str, Any]) -> str:
    return "".join(f"{json.dumps(row)}\n" for row in rows)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """What a visit leaves, with a step that was killed and a line that was cut off."""
    steps = [
        {"step": "facts", "ended": "exit 0 after 8.0 s of 30"},
        {"step": "doctor", "ended": "exit 0 after 20.0 s of 60", "said": [
            {"key": "device", "verdict": "fine", "says": "NVIDIA H100"},
            {"key": "clocks", "verdict": "doubt", "says": "they are low"},
            {"key": "timer", "verdict": "fine", "says": "it moves"}]},
        {"step": "ceilings", "ended": "killed after 60.0 s of 50"},
    ]  # fmt: skip
    (tmp_path / "facts.jsonl").write_text(lines(*steps))
    gaps = {"check": "gaps", "case": "coo", "ran": 9, "failed": {"bfloat16 step": "no kernel"}}
    fused = [
        {"check": "fused", "case": f"btt density=0.5, {tokens} tokens", "dense_seconds": 4e-6,
         "bmm_seconds": 2e-5, "triton_seconds": 1e-5, "bmm_error": 0.002, "triton_error": error}
        for tokens, error in ((16, 0.003), (512, 0.4))
    ]  # fmt: skip
    prefill = {"check": "prefill", "case": "dense, 1 token", "host_seconds": 8e-6, "x1_ahead": 0.5}
    more = [{**prefill, "case": f"case {number}"} for number in range(80)]
    result = lines(gaps, *fused, prefill, *more)
    (tmp_path / "contract.jsonl").write_text(result + '{"check": "cut o')
    (tmp_path / "tests.xml").write_text(FAILED)
    cases = [linear_case("dense", None), linear_case("btt", 0.5), linear_case("low_rank", 0.5)]
    written(run_of(cases), tmp_path, "linear")
    written(run_of(cases, complete=False), tmp_path, "llm")
    (tmp_path / "same-1.jsonl").write_text("{}")
    return tmp_path


def test_the_table_says_all_of_it_within_its_lines(out: Path) -> None:
    actual = gpu_table.table(out)
    assert len(actual) <= gpu_table.MOST_LINES
    assert max(map(len, actual)) <= gpu_table.MOST_COLUMNS
    text = "\n".join(actual)
    for words in (
        "ended well   facts 8.0 s, doctor 20.0 s",
        "ceilings     killed after 60.0 s of 50",
        "clocks       doubt: they are low",
        "gaps         coo bfloat16 step: no kernel",
        "lines of contract.jsonl",
        "tests        2 tests, 1 failures, 0 errors, 0 skipped",
        "test_x[1-a]",
        "linear: complete, 3 ok",
        "llm: cut off, 3 ok",
        "same-1: ",
    ):
        assert words in text
    assert "it moves" not in text


def test_the_fused_kernels_have_a_line_a_format_and_a_wrong_one_says_so(out: Path) -> None:
    (line,) = [line for line in gpu_table.contract(out) if line.startswith("fused")]
    assert "16 tokens 0.50/2.5; 512 tokens 0.50/2.5 WRONG by 0.4" in line


def test_a_fused_kernel_that_is_refused_is_told_once_beside_the_times_of_the_others(
    tmp_path: Path,
) -> None:
    seconds = {"dense_seconds": 4e-6, "bmm_seconds": 2e-5, "triton_seconds": 1e-5}
    errors = {"bmm_error": 0.002, "triton_error": 0.003}
    row = {"check": "fused", **seconds, **errors, "triton_fused_unsupported": "too wide"}
    rows = [{**row, "case": f"monarch density=0.5, {tokens} tokens"} for tokens in (16, 512)]
    alone = {
        "check": "fused", "case": "blast density=0.5, 16 tokens", "dense_seconds": 4e-6,
        "bmm_unsupported": "no room", "triton_seconds": 8e-6, "triton_error": 0.001,
    }  # fmt: skip
    (tmp_path / "contract.jsonl").write_text(lines(*rows, alone))
    assert gpu_table.contract(tmp_path) == [
        "fused        monarch density=0.5: 16 tokens 0.50/2.5; 512 tokens 0.50/2.5",
        "fused        blast density=0.5: 16 tokens –/2.0",
        "fused        monarch density=0.5 triton_fused: unsupported, too wide (2 cases)",
        "fused        blast density=0.5 bmm: unsupported, no room (1 cases)",
    ]


def test_a_format_of_which_nothing_ran_has_a_line(tmp_path: Path) -> None:
    ran = {"check": "gaps", "case": "csr", "ran": 9, "unsupported": 3, "failed": {}}
    none = {**ran, "case": "packed_dense", "ran": 0, "unsupported": 12, "reason": "CPUs only"}
    (tmp_path / "contract.jsonl").write_text(lines(ran, none))
    assert gpu_table.contract(tmp_path) == [
        "gaps         packed_dense: nothing ran, 12 calls unsupported: CPUs only"
    ]


def test_a_run_names_its_slowest_case_beside_the_quickest(tmp_path: Path) -> None:
    names = ("low_rank", "monarch", "btt", "csr")
    cases = [linear_case("dense", None), *(linear_case(name, 0.5) for name in names)]
    written(run_of(cases), tmp_path, "linear")
    _, *named = gpu_table.runs(tmp_path)
    assert len(named) == 3
    assert "low_rank" in named[0]
    assert "monarch" in named[1]
    assert named[2].startswith("  slowest, ")
    assert "csr" in named[2]
