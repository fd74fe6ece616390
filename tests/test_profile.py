"""The profile of one case: its table, its trace, and claims confirmed or contradicted."""

from __future__ import annotations

import gzip
import json
import os
import re
import resource
import tempfile
import threading
from pathlib import Path

import pytest
import torch
from _check import Call
from _formats import first_of_each, normal, random_layer, settings
from _inline import Workers, no_memory

from hwbench import plugins, protocol, worker
from hwbench.formats._base import FORWARD, Format
from hwbench.meters._profile import claim

PROFILE = ("profile", "--device", "cpu")
SPARSE = "sm80_xmma_sparse_gemm_bf16bf16_bf16f32_f32_tn_n_tilesize128x128x64"
CUTLASS = "void cutlass::Kernel<cutlass::gemm::kernel::SparseGemmRowBroadcast<float>>"
HOPPER = "cutlass3x_sm90_sptensorop_s64x128x32spgemm_bf16_bf16_f32_bf16_bf16_128x128x128"
OLDER = "cutlass_80_tensorop_bf16_s16832spgemm_bf16_128x128_64x3_tn_align8"
DENSE = "ampere_bf16_s16816gemm_bf16_128x128_ldg8_f2f_stages_32x5_tn"


@pytest.mark.parametrize(
    ("name", "kernel", "operators", "kernels", "verdict"),
    [
        ("semi_structured", "cusparselt", {"aten::_cslt_sparse_mm"}, {SPARSE}, "confirmed"),
        ("semi_structured", "cutlass", set(), {CUTLASS}, "confirmed"),
        ("semi_structured", "cusparselt", set(), {HOPPER}, "confirmed"),
        ("two_four_training", "compress", set(), {OLDER, DENSE}, "confirmed"),
        ("semi_structured", "cusparselt", {"aten::_cslt_sparse_mm"}, {DENSE}, "contradicted"),
        ("semi_structured", "cusparselt", {"aten::mm"}, set(), "contradicted"),
        ("csr", "spmm", {"aten::_sparse_compressed_tensor_unsafe"}, set(), "confirmed"),
        ("csr", "spmm", {"aten::mm"}, {DENSE}, "contradicted"),
        ("monarch", "bmm", {"aten::bmm", "aten::view"}, set(), "confirmed"),
        ("monarch", "bmm", {"aten::einsum"}, set(), "contradicted"),
        ("monarch", "triton", {"aten::mm"}, set(), "unchecked"),
    ],
)
def test_a_claim_needs_evidence(
    name: str, kernel: str, operators: set[str], kernels: set[str], verdict: str
) -> None:
    offered = plugins.load("formats", name, Format).kernels()
    assert claim(offered[kernel], operators, kernels)[0] == verdict


CPU = [
    f
    for f in first_of_each(settings([(64, 64)]))
    if f.unsupported("cpu", torch.float32, FORWARD) is None
]


@pytest.mark.parametrize("f", CPU, ids=lambda f: f"{f.name()}-{f.kernel}")
def test_a_kernel_shows_as_it_says(f: Format) -> None:
    layer, x = random_layer(f, torch.float32).requires_grad_(False), normal(8, f.in_features)
    with torch.no_grad(), torch.profiler.profile() as profiler:
        layer(x)
    operators = {event.key for event in profiler.key_averages()}
    assert claim(f.implementation, operators, set())[0] == "confirmed", operators


@pytest.mark.parametrize("direction", ["forward", "backward_weight"])
def test_a_case_has_a_table_a_trace_and_a_verdict(hwbench: Call, direction: str) -> None:
    words = ("--format", "monarch", "--density", "0.5", "--shape", "64x64", "--tokens", "8")
    code, out, err = hwbench(
        *PROFILE, *words, "--direction", direction, "--calls", "4", "--json", "--trace", "own.json"
    )
    assert code == 0, err
    document = json.loads(out)
    assert document["verdict"] == "confirmed"
    rows = {row["name"]: row for row in document["rows"]}
    assert rows["aten::bmm"]["calls"] % 4 == 0
    assert sum(row["share"] for row in document["rows"]) == pytest.approx(1.0)
    events = json.loads(Path(document["trace"]).read_text(encoding="utf-8"))["traceEvents"]
    assert "aten::bmm" in {event.get("name") for event in events}


def test_the_table_names_the_operators_of_the_kernel_that_was_asked_for(hwbench: Call) -> None:
    words = ("--format", "csr", "--density", "0.5", "--shape", "64x64", "--knob", "kernel=spmm")
    code, out, err = hwbench(*PROFILE, *words)
    assert code == 0, err
    assert "aten::addmm" in out
    assert "confirmed: spmm was claimed" in out
    assert "--trace FILE writes a trace." in out
    assert not list(Path().glob("*.json"))
    shares = re.findall(r"(\d+\.\d) %", out)
    assert shares
    assert all(float(share) >= 1 for share in shares)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--format", "semi_structured"), "cannot run here: 2:4 kernels exist for CUDA"),
        (("--format", "low_rank"), "needs rank, or a density"),
        (("--format", "lowrank"), "did you mean 'low_rank'"),
        (("--format", "dense", "--knob", "blocks"), "--knob is NAME=VALUE"),
        (("--format", "dense", "--trace", "nowhere/trace.json"), "There is no folder nowhere"),
        (("--format", "dense", "--trace", "."), "Cannot write the trace .: Is a directory."),
        (
            ("--format", "dense", "--shape", "8x8", "--trace", "/dev/full"),
            "Cannot write the trace /dev/full: No space left on device.",
        ),
        (("--format", "low_rank", "--density", "nan"), "density must be a finite number, not nan"),
        (("--format", "low_rank", "--stored", "inf"), "stored must be a finite number, not inf"),
        (("--format", "low_rank", "--knob", "rank=NaN"), "rank must be a finite number, not nan"),
        (("--format", "low_rank", "--knob", "rank=1e999"), "rank must be a finite number, not inf"),
        (
            ("--format", "dense", "--shape", "400000x400000"),
            "dense cannot run here: out of memory: MemoryError: It needs about 3.2e+12 bytes",
        ),
        (("--format", "dense", "--threads", "99999"), "--threads must be between 1 and 4096"),
    ],
)
def test_what_cannot_be_profiled_is_said_in_a_sentence(
    hwbench: Call, words: tuple[str, ...], says: str
) -> None:
    code, _, err = hwbench(*PROFILE, *words)
    assert code == 2
    assert says in err
    assert "Traceback" not in err


SMALL = (*PROFILE, "--format", "dense", "--shape", "8x8", "--tokens", "4")


@pytest.mark.parametrize("how", ["memory", "compiler", "format"])
def test_what_the_machine_lacks_is_told_as_a_run_tells_it(
    hwbench: Call, monkeypatch: pytest.MonkeyPatch, workers: Workers, how: str
) -> None:
    if how == "memory":
        workers.act_out(no_memory, request=protocol.ProfileRequest)
    else:
        text = "Failed to find C compiler" if how == "compiler" else "a format of someone else"

        def refuse(*_: object) -> None:
            raise RuntimeError(text)

        monkeypatch.setattr(worker, "profile_case", refuse)
    code, _, err = hwbench(*SMALL)
    if how == "format":
        assert (code, text in err) == (70, True)
        return
    words = {"memory": "out of memory: MemoryError: [enforce fail]", "compiler": "Compiling needs"}
    assert code == 2, err
    assert f"dense cannot run here: {words[how]}" in err
    assert len(err.strip().splitlines()) == 1


def test_a_trace_may_be_compressed(hwbench: Call) -> None:
    code, out, err = hwbench(*SMALL, "--trace", "own.json.gz")
    assert code == 0, err
    assert f"The trace is in {Path('own.json.gz').absolute()}." in out
    assert json.loads(gzip.decompress(Path("own.json.gz").read_bytes()))["traceEvents"]


def test_a_trace_that_the_profiler_could_not_write_is_none(
    hwbench: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It says nothing itself where a disk is full: here no file may be longer than 1000 bytes."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    Path("own.json").write_text("the trace of before")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        code, out, err = hwbench(*SMALL, "--trace", "own.json")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (code, out) == (2, "")
    assert "The profiler could not write all of its trace to" in err
    assert Path("own.json").read_text() == "the trace of before"
    assert [*tmp_path.iterdir()] == [tmp_path / "own.json"]


def test_a_stream_gets_the_trace_alone(hwbench: Call) -> None:
    os.mkfifo("pipe")
    read: list[bytes] = []
    reader = threading.Thread(target=lambda: read.append(Path("pipe").read_bytes()))
    reader.start()
    code, out, err = hwbench(*SMALL, "--trace", "pipe")
    reader.join()
    assert (code, out) == (0, "")
    assert "confirmed: torch was claimed" in err
    assert json.loads(read[0])["traceEvents"]
