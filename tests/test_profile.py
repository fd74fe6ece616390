"""The profile of one case: its table, its trace, and claims confirmed or contradicted."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from _check import Call
from _formats import first_of_each, normal, random_layer, settings

from hwbench import plugins
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
    ],
)
def test_what_cannot_be_profiled_is_said_in_a_sentence(
    hwbench: Call, words: tuple[str, ...], says: str
) -> None:
    code, _, err = hwbench(*PROFILE, *words)
    assert code == 2
    assert says in err
    assert "Traceback" not in err
