"""A layer of the user's own: its shape is timed, its weights are scored, nothing is executed."""

from __future__ import annotations

import json
import os
import pickle
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from _check import Call
from _formats import relative
from _scored import described, scored, unsupported, workload
from _synthetic import scored_case
from _tiers import sampled
from msgspec.structs import replace
from safetensors.torch import save_file

from hwbench import environment
from hwbench import suite as suites
from hwbench.analysis.frames import summary_rows
from hwbench.checkpoints import tensors
from hwbench.cli import _weights
from hwbench.errors import SuiteError, UsageError
from hwbench.records import Case
from hwbench.report import _questions, _trade, html
from hwbench.report._answers import plain
from hwbench.report._whose import SYNTHETIC
from hwbench.store import read_run

OUT, IN, ROWS = 96, 64, 40
UP, DOWN = "layers.0.up.weight", "layers.0.down.weight"
ASKED = ("--format", "csr,low_rank", "--density", "0.5", "--tokens", "8", "--quick")
FAST = (*ASKED, "--device", "fake")


def numbers(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "model.safetensors"
    held = {
        UP: numbers(OUT, IN).bfloat16(),
        DOWN: numbers(IN, OUT, seed=1).half(),
        "layers.0.up.bias": numbers(OUT, seed=2),
        "ids": torch.arange(6).reshape(2, 3),
        "step": torch.tensor(3.0),
    }
    save_file(held, path, metadata={"format": "pt"})
    return path


@pytest.fixture
def seen(tmp_path: Path) -> Path:
    path = tmp_path / "acts.safetensors"
    save_file({UP: numbers(ROWS, IN, seed=3), DOWN: numbers(ROWS, OUT, seed=4)}, path)
    return path


def own(file: Path, name: str, format_: str = "csr", **options: Any) -> Case:
    one = scored_case("projection", format_, IN, matrix="file", weights=str(file), tensor=name)
    shape = tensors.matrix(file, name).shape
    return replace(
        one, out_features=shape[0], in_features=shape[1], options={**one.options, **options}
    )


# --- what is read ------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_numbers_are_those_that_safetensors_reads(tmp_path: Path, dtype: torch.dtype) -> None:
    exact = numbers(7, 5).to(dtype)
    save_file({"other": numbers(3), "w": exact}, tmp_path / "w.safetensors")
    stored = tensors.matrix(tmp_path / "w.safetensors", "w")
    assert torch.equal(torch.from_numpy(tensors.array(stored)), exact.float())
    assert (stored.shape, f"torch.{stored.dtype}") == ((7, 5), str(dtype))


def test_a_tensor_is_read_in_pieces(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stored = tensors.matrix(file, UP)
    whole, hashed = tensors.array(stored), tensors.checked(stored)
    monkeypatch.setattr(tensors, "_CHUNK", 100)
    assert np.array_equal(tensors.array(stored), whole)
    assert tensors.checked(stored) == hashed


def test_a_file_and_a_tensor_are_told_apart_by_what_is_there(tmp_path: Path) -> None:
    odd = tmp_path / "a:b.safetensors"
    save_file({"x:y": numbers(2, 2)}, odd)
    assert tensors.split(str(odd)) == (odd, None)
    assert tensors.split(f"{odd}:x:y") == (odd, "x:y")
    assert tensors.split("no/file:w") == (Path("no/file"), "w")


def test_a_pattern_takes_the_matrices_that_match(file: Path) -> None:
    names = [each.name for each in tensors.matrices(file, "layers.*")]
    assert sorted(names) == sorted([UP, DOWN])


def test_the_only_matrix_needs_no_name(tmp_path: Path) -> None:
    save_file({"w": numbers(3, 2), "b": numbers(3)}, tmp_path / "one.safetensors")
    assert [each.name for each in tensors.matrices(tmp_path / "one.safetensors", None)] == ["w"]


# --- what is refused ---------------------------------------------------------------------------


class Trap:
    """A pickle that leaves a file where it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return Path.touch, (self.path,)


def written(header: object, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def entry(kind: str = "F32", shape: Any = (2, 2), ends: Any = (0, 16)) -> dict[str, Any]:
    return {"w": {"dtype": kind, "shape": shape, "data_offsets": ends}}


FULL = np.ones(4, "<f4").tobytes()
HOSTILE: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "is empty"),
    "short": (b"\0\0\0", "is neither a safetensors nor a GGUF file"),
    "LFS": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS"),
    "pickle": (pickle.dumps({"w": 1}), "never loaded"),
    "zip": (b"PK\x03\x04" + bytes(100), "never loaded"),
    "GGUF": (b"GGUF\x09\0\0\0" + bytes(100), "of version 9"),
    "text": (b"hello, this is no file of tensors", "is neither a safetensors nor a GGUF file"),
    "a header longer than the file": (
        struct.pack("<Q", 10**6) + b"{}",
        "is neither a safetensors nor a GGUF file",
    ),
    "a header of 2^63 bytes": (
        struct.pack("<Q", 2**63) + b"{}",
        "is neither a safetensors nor a GGUF file",
    ),
    "no JSON": (written(b"{not json"), "its header is no JSON object"),
    "nested": (written(b'{"a":' * 100_000), "its header is no JSON object"),
    "bad text": (written(b'{"\xff": 1}'), "its header is no JSON object"),
    "a number of 5000 digits": (written(b'{"w": ' + b"9" * 5000 + b"}"), "no JSON object"),
    "an entry that is none": (written({"w": 3}), "does not describe 'w'"),
    "a negative side": (written(entry(shape=[-2, -2])), "does not describe"),
    "a side that is a truth": (written(entry(shape=[True, 4])), "does not describe"),
    "ends in reverse": (written(entry(ends=[16, 0]), FULL), "not those of its shape"),
    "another size": (written(entry(ends=[0, 12]), FULL), "not those of its shape"),
    "huge sides": (written(entry(shape=[2**40, 2**40]), FULL), "not those of its shape"),
    "cut off": (written(entry(), FULL[:-1]), "is cut off"),
    "far away": (written(entry(ends=[2**60, 2**60 + 16]), FULL), "is cut off"),
    "no tensor at all": (written({}), "holds 0 matrices"),
    "whole numbers": (written(entry("I32"), FULL), "whole numbers (I32)"),
    "a type of later": (written(entry("F4_X"), FULL), "'w' is F4_X"),
    "eight bits": (written(entry("F8_E4M3", ends=[0, 4]), FULL), "'w' is F8_E4M3"),
    "one side": (written(entry(shape=[4]), FULL), "a matrix has two sides"),
    "three sides": (written(entry(shape=[1, 2, 2]), FULL), "a matrix has two sides"),
    "no side": (written(entry(shape=[], ends=[0, 4]), FULL), "a matrix has two sides"),
    "no numbers": (written(entry(shape=[0, 4], ends=[0, 0])), "holds no number"),
    "NaN": (written(entry(), np.array([1, 2, np.nan, 0], "<f4").tobytes()), "not finite"),
    "infinity": (written(entry(), np.array([1, np.inf, 0, 0], "<f4").tobytes()), "not finite"),
    "too large for float32": (
        written(entry("F64", ends=[0, 32]), np.full(4, 1e300, "<f8").tobytes()),
        "not finite in float32",
    ),
    "bfloat16 NaN": (written(entry("BF16", ends=[0, 8]), b"\xc0\x7f" * 4), "not finite"),
    "zeros": (written(entry(), bytes(16)), "all zeros"),
}


def refused(hwbench: Call, folder: Path, *asked: str) -> str:
    """The one sentence with which a command line is refused; no run is begun."""
    code, out, err = hwbench("run", *asked, *FAST)
    assert (code, out) == (2, ""), err
    assert len(err.strip().splitlines()) == 1, err
    assert len(err) < 600
    assert not list(folder.rglob("*.jsonl"))
    return err


@pytest.mark.parametrize("kind", sampled(HOSTILE, 2))
def test_a_file_that_cannot_be_used_is_refused_in_one_sentence(
    hwbench: Call, tmp_path: Path, kind: str
) -> None:
    raw, words = HOSTILE[kind]
    bad, good = tmp_path / "bad.safetensors", tmp_path / "good.safetensors"
    bad.write_bytes(raw)
    save_file({"w": numbers(3, 2)}, good)
    assert words in refused(hwbench, tmp_path, "--weights", str(bad))
    if kind == "no tensor at all":
        words = "it holds none"
    assert words in refused(hwbench, tmp_path, "--weights", f"{bad}:w")
    assert words in refused(hwbench, tmp_path, "--weights", str(good), "--activations", str(bad))


def test_a_pickle_is_not_loaded(hwbench: Call, tmp_path: Path, file: Path) -> None:
    mark = tmp_path / "executed"
    for protocol in range(6):
        path = tmp_path / f"p{protocol}.safetensors"
        path.write_bytes(pickle.dumps(Trap(mark), protocol=protocol))
        code, _, err = hwbench("run", "--weights", f"{path}:w", *FAST)
        assert code == 2
        assert len(err.strip().splitlines()) == 1
    path = tmp_path / "saved.safetensors"
    torch.save({"w": Trap(mark)}, path)
    code, _, err = hwbench("run", "--weights", f"{path}:w", *FAST)
    assert (code, "never loaded" in err) == (2, True)
    assert not mark.exists()


def places(folder: Path) -> Iterator[tuple[str, str]]:
    """What is no readable file, and what is said of it."""
    yield str(folder), "is a folder"
    yield str(folder / "missing.safetensors"), "No such file"
    yield f"{folder / 'missing.safetensors'}:w", "No such file"
    yield "", "is a folder"
    os.mkfifo(folder / "pipe")
    yield str(folder / "pipe"), "is not a file"
    yield "a\0b", "null"
    yield str(folder / ("x" * 300)), "too long"


def test_a_place_without_a_file_is_refused(hwbench: Call, tmp_path: Path) -> None:
    for place, words in places(tmp_path):
        code, _, err = hwbench("run", "--weights", place, *FAST)
        assert code == 2, (place, err)
        assert words in err
        assert len(err.strip().splitlines()) == 1


def wrong(file: Path, seen: Path) -> Iterator[tuple[list[str], str]]:
    """Options that do not fit, and what is said of them."""
    yield ["--weights", f"{file}:layers.0.up.wieght"], f"the nearest are {UP}"
    yield ["--weights", f"{file}:*.bias"], "none is a matrix of floating-point numbers"
    yield ["--weights", f"{file}:nothing*"], "has no tensor 'nothing*'"
    yield ["--weights", str(file)], "holds 2 matrices of floating-point numbers; name one"
    yield ["--weights", f"{file}:ids"], "whole numbers (I64)"
    yield ["--weights", f"{file}:{UP}", "--shape", "8x8"], "leave --shape out"
    yield ["--activations", str(seen)], "--activations belong to --weights"
    yield ["--weights", f"{file}:{UP}", "--suite", "compress"], "compress has neither"
    other = seen.with_name("other.safetensors")
    save_file({UP: numbers(ROWS, IN + 1)}, other)
    yield ["--weights", f"{file}:{UP}", "--activations", str(other)], "have 65 columns"
    save_file({"a": numbers(ROWS, IN), "b": numbers(ROWS, IN)}, one := seen.with_name("ab.st"))
    yield ["--weights", f"{file}:{UP}", "--activations", str(one)], "holds no activations of"
    save_file({UP: numbers(1, IN)}, row := seen.with_name("row.st"))
    yield ["--weights", f"{file}:{UP}", "--activations", str(row)], "are one row"
    save_file({f"w{n}": numbers(2, 2) for n in range(65)}, many := seen.with_name("many.st"))
    yield ["--weights", f"{many}:w*"], "matches 65 matrices of"
    save_file({"\x1b[31m\nw" + "x" * 500: numbers(2, 2)}, loud := seen.with_name("loud.st"))
    yield ["--weights", f"{loud}:w"], "\\x1b[31m\\nw"
    save_file({"x" * 500: numbers(2, 2)}, long := seen.with_name("long.st"))
    yield ["--weights", f"{long}:x*"], "no name that a run can hold"


def test_what_does_not_fit_is_one_sentence(hwbench: Call, file: Path, seen: Path) -> None:
    for asked, words in wrong(file, seen):
        fast = FAST[-2:] if "--suite" in asked else FAST
        code, out, err = hwbench("run", *asked, *fast)
        assert (code, out) == (2, ""), (asked, err)
        assert words in err
        assert len(err.strip().splitlines()) == 1, err


def test_a_weight_that_does_not_fit_into_memory_is_refused_before_it_is_read(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(environment, "memory_available_bytes", lambda: 10_000)
    monkeypatch.setattr(tensors, "_chunks", lambda stored: pytest.fail("it was read"))
    with pytest.raises(UsageError, match=r"needs about 197 kB of memory, and 10\.0 kB are left"):
        _weights.named_tensors(f"{file}:{UP}", None)


# --- what is scored ----------------------------------------------------------------------------


def test_the_errors_are_those_of_the_matrix_and_of_the_held_out_rows(
    file: Path, seen: Path
) -> None:
    from safetensors.torch import load_file

    one = own(file, UP, "low_rank", activations=str(seen), activations_tensor=UP)
    values = scored(one)
    weight, rows = load_file(file)[UP].float(), load_file(seen)[UP]
    lost = (described(one).project(weight).to_dense().detach() - weight).double()
    held = rows[ROWS // 2 :].double().T
    output = torch.linalg.norm(lost @ held) / torch.linalg.norm(weight.double() @ held)
    assert values["score"] == pytest.approx(float(output), rel=1e-6)
    assert values["projection_error"] == pytest.approx(
        float(torch.linalg.norm(lost) / torch.linalg.norm(weight.double())), rel=1e-6
    )


def test_what_a_kernel_rounds_is_an_error_with_and_without_activations(
    file: Path, seen: Path
) -> None:
    from safetensors.torch import load_file

    weight, rows = load_file(file)[UP].float(), load_file(seen)[UP][ROWS // 2 :]
    blind = replace(own(file, UP, "quantized"), knobs={"kernel": "int_mm"})
    given = {**blind.options, "activations": str(seen), "activations_tensor": UP}
    values, drawn = scored(replace(blind, options=given)), scored(blind)["score"]
    layer = described(blind).project(weight)
    assert values["score"] == pytest.approx(relative(layer(rows), rows @ weight.T), rel=1e-3)
    assert drawn == values["projection_error"] > 1.1 * relative(layer.to_dense(), weight)


def test_the_projection_uses_activations_only_where_it_is_asked_to(file: Path, seen: Path) -> None:
    rows = numbers(ROWS, IN, seed=3) * torch.linspace(0.01, 3, IN)
    save_file({UP: rows}, seen)
    options = {"activations": str(seen), "activations_tensor": UP}
    alone, beside = own(file, UP), own(file, UP, **options)
    plain_, blind = scored(alone), scored(beside)
    assert blind["projection_error"] == plain_["score"]
    for weighting in ("activations", "gram"):
        sighted = scored(own(file, UP, **options, weighting=weighting))
        assert sighted["score"] < blind["score"]
        assert sighted["projection_error"] > blind["projection_error"]


def test_a_projection_by_activations_does_not_see_the_rows_it_is_scored_on(
    file: Path, seen: Path
) -> None:
    options = {"activations": str(seen), "activations_tensor": UP, "weighting": "activations"}
    before = scored(own(file, UP, **options))
    rows = numbers(ROWS, IN, seed=3)
    rows[ROWS // 2 :] *= torch.linspace(0.1, 9, IN)
    save_file({UP: rows}, seen)
    after = scored(own(file, UP, **options))
    assert after["projection_error"] == before["projection_error"]
    assert after["score"] != before["score"]


def test_another_content_than_was_asked_for_is_refused(file: Path) -> None:
    hashed = tensors.content(tensors.matrix(file, UP))
    one = own(file, UP, weights_hash=hashed)
    assert unsupported(one) is None
    save_file({UP: numbers(OUT, IN, seed=9).bfloat16()}, file)
    os.utime(file, ns=(1, 1))
    assert f"its content was {hashed} when the run was asked for" in str(unsupported(one))
    file.unlink()
    assert "No such file" in str(unsupported(one))


def mistakes() -> Iterator[tuple[dict[str, Any], str]]:
    """Options of a suite's author that contradict each other."""
    yield {"matrix": "file"}, "needs weights, a file, and tensor"
    yield {"matrix": "power_law", "weights": "x"}, "are options of matrix = 'file'"
    yield {"matrix": "file", "weights": "x", "tensor": "w", "seeds": 2}, "seeds must be 1"
    yield {"weighting": "activations"}, "needs activations"
    yield {"weighting": "x"}, "Unknown weighting"
    yield {"matrix": "x"}, "Unknown matrix"


def test_options_that_contradict_each_other_are_mistakes() -> None:
    for options, words in mistakes():
        one = scored_case("projection", "csr", 8, **options)
        with pytest.raises(UsageError, match=words):
            workload(one).check(one)


# --- what a suite becomes ----------------------------------------------------------------------


@pytest.mark.parametrize("name", ["linear", "smoke", "llm", "crossover", "projection"])
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_every_suite_of_layers_is_about_the_tensors(file: Path, name: str, device: str) -> None:
    document, _ = _weights.with_weights(
        suites.read(name), f"{file}:layers.*", None,
        shape=[], tokens=[], dtype=[], density=[], formats=[],
    )  # fmt: skip
    for asked in (document, suites.quickened(document)):
        cases = suites.build(asked, device).cases
        sides = {UP: (OUT, IN), DOWN: (IN, OUT)}
        own_ = [case for case in cases if case.workload == "projection"]
        assert {str(case.options["tensor"]) for case in own_} == set(sides)
        for case in own_:
            assert (case.out_features, case.in_features) == sides[str(case.options["tensor"])]
            assert (case.dtype, case.options["matrix"]) == ("float32", "file")
            workload(case).check(case)
        timed = [case for case in cases if case.tokens is not None]
        assert {(case.out_features, case.in_features) for case in timed} <= set(sides.values())
        assert bool(timed) == (name != "projection")


def test_a_suite_without_layers_says_so(file: Path) -> None:
    with pytest.raises(SuiteError, match="training has neither"):
        _weights.with_weights(
            suites.read("training"), f"{file}:{UP}", None,
            shape=[], tokens=[], dtype=[], density=[], formats=[],
        )  # fmt: skip


# --- from the command to the page --------------------------------------------------------------


def run(hwbench: Call, *asked: str) -> tuple[Path, str, str]:
    code, out, err = hwbench("run", *asked, "--out", "runs")
    assert code == 0, err
    return next(Path("runs").glob("*.jsonl")), out, err


def test_the_page_answers_for_the_layer(hwbench: Call, file: Path, seen: Path) -> None:
    path, out, err = run(hwbench, "--weights", f"{file}:{UP}", "--activations", str(seen), *FAST)
    assert f"{UP} of model.safetensors: 96×64, stored in bfloat16, scored in float32" in err
    assert "its output error on rows 21–40" in err
    assert f"Projection of {UP} of model.safetensors, 96×64, float32" in out
    assert f"{UP} of model.safetensors: stored in bfloat16, scored in float32; output error" in out
    assert "synthetic" not in out
    run_ = read_run(path)
    rows = html._rows([run_], [""])
    joins = _trade.joins(rows)
    for each in joins:
        assert each.shapes == ("96×64 float32", "96×64 float32")
        assert each.score_name == "output_error"
    first = _questions.questions(rows, joins)[0]
    assert first.text == "Which format should this layer use?"
    words = plain(first.sentences[0])
    assert words.startswith(f"{UP} of model.safetensors, forward, 96×64, 8 tokens, float32. ")
    (low_rank,) = [r for r in rows if r.format == "low_rank" and r.score_name]
    assert low_rank.value("projection_error") > 0
    assert f"low_rank density=0.5 (output error {low_rank.score:.3f}, " in words
    page = html.render([run_])
    assert words.split(". ")[0].split(",")[0] in page
    assert SYNTHETIC not in page
    options = [p.case.options for p in run_.planned.values() if p.case.workload == "projection"]
    assert all(o["weights"] == str(file.resolve()) and o["tensor"] == UP for o in options)
    assert all(o["weights_hash"] and o["activations_hash"] for o in options)


def test_each_layer_is_joined_at_its_own_shape(hwbench: Call, file: Path) -> None:
    path, _, _ = run(hwbench, "--weights", f"{file}:layers.*", *FAST)
    joins = _trade.joins(html._rows([read_run(path)], [""]))
    assert {each.shapes[0] for each in joins} == {"96×64 float32", "64×96 float32"}
    assert len(joins) == 4  # two layers, forward and step
    for each in joins:
        timed, scored_ = each.shapes
        assert timed == scored_


def test_hostile_names_steer_nothing(hwbench: Call, tmp_path: Path) -> None:
    name = "w<script>alert(1)</script>"
    path = tmp_path / "::error::m<b>.safetensors"
    save_file({name: numbers(OUT, IN)}, path)
    stored, out, err = run(hwbench, "--weights", f"{path}:{name}", *FAST)
    page = html.render([read_run(stored)])
    assert name not in page
    assert "m<b>" not in page
    assert not any(line.lstrip().startswith("::") for line in (out + err).splitlines())


def test_a_run_is_resumed_without_the_options(hwbench: Call, file: Path) -> None:
    path, _, _ = run(hwbench, "--weights", f"{file}:{UP}", *FAST)
    code, _, err = hwbench("run", "--resume", str(path), "--weights", f"{file}:{UP}")
    assert (code, "--resume goes on" in err) == (2, True)


def test_synthetic_matrices_are_called_so(hwbench: Call) -> None:
    _, out, _ = run(hwbench, "--suite", "smoke", "--device", "fake", "--quick")
    path = next(Path("runs").glob("*.jsonl"))
    rows = summary_rows(read_run(path))
    made = [row for row in rows if row["workload"] == "projection"]
    assert {json.loads(row["options"]).get("matrix", "power_law") for row in made} == {"power_law"}
    assert SYNTHETIC in out
    assert SYNTHETIC in html.render([read_run(path)])


@pytest.mark.heavy
def test_a_layer_of_a_language_model(hwbench: Call, tmp_path: Path) -> None:
    path = tmp_path / "large.safetensors"
    save_file({"w": numbers(4096, 11008).bfloat16()}, path)
    stored, _, _ = run(
        hwbench,
        "--weights",
        f"{path}:w",
        *FAST,
        "--format",
        "csr",
        "--filter",
        "workload=projection",
    )
    (row,) = [row for row in summary_rows(read_run(stored)) if row["format"] == "csr"]
    # Half of the entries of a Gaussian matrix, the largest: the closed form is 0.2671.
    assert row["score"] == pytest.approx(0.2671, abs=1e-3)
