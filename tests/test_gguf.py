"""Layers of a GGUF file: what is read, what is put back, and what is refused in one sentence."""

from __future__ import annotations

import importlib.util
import itertools
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from _scored import described, scored
from _synthetic import scored_case
from msgspec.structs import replace
from numpy.typing import NDArray

from hwbench.checkpoints import gguf_file, smollm2, tensors
from hwbench.cli import _weights
from hwbench.errors import MissingPartError, UsageError

gguf = pytest.importorskip("gguf")

HEADS, OUT, IN = 2, 64, 256
UP, Q, K = "blk.0.ffn_up.weight", "blk.0.attn_q.weight", "blk.0.attn_k.weight"
PLAIN = {"F64": np.float64, "F32": np.float32, "F16": np.float16}
PACKED = ("BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0")


def numbers(*shape: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def kind_of(name: str) -> Any:
    return gguf.GGMLQuantizationType[name]


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """A small file of a Llama with these tensors: arrays, or arrays with a quantised type."""

    def written(architecture: str = "llama", **held: Any) -> Path:
        path = tmp_path / "model.gguf"
        writer = gguf.GGUFWriter(path, architecture)
        writer.add_head_count(HEADS)
        writer.add_head_count_kv(1)
        writer.add_token_list(["a", "bc", "def"])
        writer.add_array("sizes", [1, 2, 3])
        for name, value in held.items():
            values, kind = value if isinstance(value, tuple) else (value, None)
            raw = values if kind is None else gguf.quants.quantize(values, kind_of(kind))
            writer.add_tensor(name, raw, raw_dtype=None if kind is None else kind_of(kind))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path

    return written


# --- what is read ------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", PLAIN)
def test_plain_numbers_are_those_that_were_written(write: Callable[..., Path], kind: str) -> None:
    exact = numbers(OUT, IN).astype(PLAIN[kind])
    stored = tensors.matrix(write(**{UP: exact, "norm": numbers(IN)}), UP)
    assert (stored.kind, stored.shape) == (kind, (OUT, IN))
    assert np.array_equal(tensors.array(stored), exact.astype(np.float32))


@pytest.mark.parametrize("kind", PACKED)
def test_blocks_are_read_as_the_package_reads_them(
    write: Callable[..., Path], kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    exact = numbers(OUT, IN)
    path = write(**{"first": numbers(IN), UP: (exact, kind)})
    stored = tensors.matrix(path, UP)
    (read,) = (each for each in gguf.GGUFReader(path).tensors if each.name == UP)
    expected = gguf.quants.dequantize(read.data, read.tensor_type)
    actual = tensors.array(stored)
    assert np.array_equal(actual, expected)
    assert np.abs(actual - exact).max() < 0.5
    hashed = tensors.checked(stored)
    monkeypatch.setattr(tensors, "_CHUNK", 100)  # in pieces
    assert np.array_equal(tensors.array(stored), expected)
    assert tensors.checked(stored) == hashed


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_rows_of_q_and_k_of_a_llama_are_put_back(
    write: Callable[..., Path], architecture: str
) -> None:
    exact = {Q: numbers(OUT, IN), K: numbers(OUT, IN, seed=1), UP: numbers(OUT, IN, seed=2)}
    path = write(architecture, **exact)
    heads = {Q: HEADS, K: 1} if architecture == "llama" else {}
    for name, values in exact.items():
        expected = smollm2.halves(values, heads[name]) if name in heads else values
        assert np.array_equal(tensors.array(tensors.matrix(path, name)), expected)


def test_patterns_take_the_matrices_alone(write: Callable[..., Path]) -> None:
    path = write(**{UP: (numbers(OUT, IN), "Q8_0"), Q: numbers(OUT, IN), "blk.0.norm": numbers(IN)})
    assert [each.name for each in tensors.matrices(path, "blk.*")] == [UP, Q]
    ((weight, _),) = _weights.named_tensors(f"{path}:{UP}", None)
    assert "stored in Q8_0, scored in float32" in _weights.sentences_of([(weight, None)])[0]


def test_a_layer_is_scored_by_its_numbers(write: Callable[..., Path]) -> None:
    path = write(**{UP: (numbers(OUT, IN), "Q4_1")})
    one = scored_case("projection", "low_rank", IN, matrix="file", weights=str(path), tensor=UP)
    one = replace(one, out_features=OUT)
    weight = torch.from_numpy(tensors.array(tensors.matrix(path, UP)))
    lost = described(one).project(weight).to_dense().detach() - weight
    expected = torch.linalg.norm(lost) / torch.linalg.norm(weight)
    assert scored(one)["score"] == pytest.approx(float(expected), rel=1e-5)


# --- what is refused ---------------------------------------------------------------------------


def test_without_the_package_one_line_says_what_to_install(
    write: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    path, real = write(**{UP: numbers(OUT, IN)}), importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "gguf" else real(name)
    )
    with pytest.raises(MissingPartError, match="pip install gguf"):
        gguf_file.header(path, path.stat().st_size)


def test_names_and_kinds_that_do_not_serve_are_said(write: Callable[..., Path]) -> None:
    path = write(**{UP: numbers(OUT, IN), "ids": np.ones((2, 3), np.int32), "norm": numbers(IN)})
    for name, words in (
        ("up", "the nearest are"),
        ("ids", "holds whole numbers"),
        ("norm", "a matrix has two sides"),
    ):
        with pytest.raises(UsageError, match=words):
            tensors.matrix(path, name)
    bad = numbers(OUT, IN)
    bad[3, 4] = np.nan
    with pytest.raises(UsageError, match="not finite"):
        tensors.checked(tensors.matrix(write(**{UP: bad}), UP))


def test_a_file_that_is_cut_off_anywhere_is_refused_in_one_sentence(
    write: Callable[..., Path], tmp_path: Path
) -> None:
    path = write(**{UP: (numbers(OUT, IN), "Q4_1")})
    whole, cut = path.read_bytes(), tmp_path / "cut.gguf"
    for length in (*range(4, 400, 7), len(whole) // 2, len(whole) - 1):
        cut.write_bytes(whole[:length])
        with pytest.raises(UsageError) as caught:
            tensors.matrix(cut, UP)
        assert str(caught.value).count("\n") == 0
        assert "cut off" in str(caught.value) or "damaged" in str(caught.value)


def test_a_damaged_header_ends_in_a_sentence_or_in_tensors_of_the_file(
    write: Callable[..., Path], tmp_path: Path
) -> None:
    path = write(**{UP: (numbers(OUT, IN), "Q4_1"), Q: numbers(OUT, IN)})
    whole, source, odd = path.read_bytes(), random.Random(0), tmp_path / "odd.gguf"
    tried = itertools.islice(iter(lambda: source.randrange(4, 420), None), 300)
    refused = []
    for place in tried:
        changed = bytearray(whole)
        changed[place] = source.choice([0, 1, 127, 255])
        odd.write_bytes(changed)
        try:
            for each in gguf_file.header(odd, len(changed)):
                assert 0 < each.start <= len(changed)
        except UsageError as error:
            refused.append(str(error))
    assert len(refused) > 50
    assert not any("\n" in each for each in refused)
