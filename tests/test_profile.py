"""The profile of one case: its table, its trace, and claims confirmed or contradicted."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from hwbench.meters._profile import claim

SPARSE = "sm80_xmma_sparse_gemm_bf16bf16_bf16f32_f32_tn_n_tilesize128x128x64"
CUTLASS = "void cutlass::Kernel<cutlass::gemm::kernel::SparseGemmRowBroadcast<float>>"
DENSE = "ampere_bf16_s16816gemm_bf16_128x128_ldg8_f2f_stages_32x5_tn"


@pytest.mark.parametrize(
    ("name", "kernel", "operators", "kernels", "verdict"),
    [
        ("semi_structured", "cusparselt", {"aten::_cslt_sparse_mm"}, {SPARSE}, "confirmed"),
        ("semi_structured", "cutlass", set(), {CUTLASS}, "confirmed"),
        ("semi_structured", "cusparselt", {"aten::_cslt_sparse_mm"}, {DENSE}, "contradicted"),
        ("semi_structured", "cusparselt", {"aten::mm"}, set(), "contradicted"),
        ("csr", "spmm", {"aten::_sparse_compressed_tensor_unsafe"}, set(), "confirmed"),
        ("csr", "spmm", {"aten::mm"}, {DENSE}, "contradicted"),
        ("monarch", "bmm", {"aten::bmm", "aten::view"}, set(), "confirmed"),
        ("monarch", "bmm", {"aten::einsum"}, set(), "contradicted"),
        ("other", "unheard_of", {"aten::mm"}, set(), "unchecked"),
    ],
)
def test_a_claim_needs_evidence(
    name: str, kernel: str, operators: set[str], kernels: set[str], verdict: str
) -> None:
    assert claim(name, kernel, operators, kernels)[0] == verdict


def verb(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "hwbench", "profile", "--device", "cpu", *words],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.mark.heavy
@pytest.mark.parametrize("direction", ["forward", "backward_weight"])
def test_a_case_has_a_table_a_trace_and_a_verdict(tmp_path: Path, direction: str) -> None:
    words = ("--format", "monarch", "--density", "0.5", "--shape", "64x64", "--tokens", "8")
    done = verb(tmp_path, *words, "--direction", direction, "--calls", "4", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["verdict"] == "confirmed"
    rows = {row["name"]: row for row in found["rows"]}
    assert rows["aten::bmm"]["calls"] % 4 == 0
    assert sum(row["share"] for row in found["rows"]) == pytest.approx(1.0)
    events = json.loads(Path(found["trace"]).read_text(encoding="utf-8"))["traceEvents"]
    assert "aten::bmm" in {event.get("name") for event in events}


@pytest.mark.heavy
def test_the_table_names_the_operators_of_the_kernel_that_was_asked_for(tmp_path: Path) -> None:
    words = ("--format", "csr", "--density", "0.5", "--shape", "64x64", "--knob", "kernel=spmm")
    done = verb(tmp_path, *words)
    assert done.returncode == 0, done.stderr
    assert "aten::addmm" in done.stdout
    assert "confirmed: spmm was claimed" in done.stdout
    assert (tmp_path / "trace.json").exists()


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
    tmp_path: Path, words: tuple[str, ...], says: str
) -> None:
    done = verb(tmp_path, *words)
    assert done.returncode == 2
    assert says in done.stderr
    assert "Traceback" not in done.stderr
