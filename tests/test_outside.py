"""What others wrote and what a machine lacks: plug-ins, checkpoints, data and compilers."""

from __future__ import annotations

import io
import json
import math
import random
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from _synthetic import questions
from safetensors.torch import load_file, save_file

from hwbench import plugins, protocol
from hwbench.devices.cpu import Cpu
from hwbench.errors import UsageError
from hwbench.records import Status
from hwbench.studies import _sides
from hwbench.worker import Worker
from hwbench.workloads import _bert, _language, _planning, _sets, _trained, _transformers
from hwbench.workloads._likelihood import WORST, perplexity

# --- members of other packages -----------------------------------------------------------------

SOURCES = {
    "of a newer Python": b"type Pair[T] = (\n",
    "in another encoding": '"""é"""\n'.encode("latin-1"),
    "with a zero byte": b'"""a"""\x00\n',
    "too deep": b"(" * 5000 + b"\n",
    "empty": b"",
}


@pytest.fixture
def broken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> Iterator[None]:
    """A format and a meter of one package, both in a file that Python cannot read."""
    (tmp_path / "outsider.py").write_bytes(SOURCES[request.param])
    info = tmp_path / "outsider-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: outsider\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[hwbench.formats]\nstrange = outsider\n[hwbench.meters]\nodd = outsider\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    plugins._external.cache_clear()
    yield
    monkeypatch.undo()
    plugins._external.cache_clear()
    sys.modules.pop("outsider", None)


@pytest.mark.parametrize("broken", SOURCES, indirect=True)
def test_a_member_that_cannot_be_read_takes_no_other_away(broken: None, hwbench: Any) -> None:
    code, out, err = hwbench("list", "formats", "--json")
    assert (code, err) == (0, "")
    about = {row["name"]: row["about"] for row in json.loads(out)}
    assert {"dense", "low_rank", "strange"} <= set(about)
    details = {name: _planning.details(name) for name in ("dense", "strange")}
    assert details["dense"].kernels
    assert "It cannot be used: " in details["strange"].description
    worker = Worker(Cpu(0))
    assert "latency" in {name for name, _ in worker.meters}
    assert set(worker.left_out) == {"odd"}
    plan = worker.plan(protocol.PlanRequest(cases=[]))
    assert "outsider" in plan.state["meters_left_out"]["odd"]


def test_details_of_all_formats_are_shown_with_the_one_that_is_broken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hwbench: Any
) -> None:
    real = plugins.load

    def load(kind: str, name: str, base: Any) -> Any:
        if name == "monarch":
            raise UsageError("The format 'monarch' (outsider) fails: no module named x.")
        return real(kind, name, base)

    monkeypatch.setattr(plugins, "load", load)
    code, out, err = hwbench("list", "formats", "--details")
    assert code == 0, err
    assert "It cannot be used: The format 'monarch'" in out
    assert "low_rank" in out


# --- compilers ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words",
    [
        "InvalidCxxCompiler: No working C++ compiler found in torch._inductor.config.cpp.cxx",
        "Failed to find C compiler. Please specify via CC environment variable.",
    ],
)
def test_an_absent_compiler_is_unsupported(monkeypatch: pytest.MonkeyPatch, words: str) -> None:
    worker = Worker(Cpu(0))
    (case,) = [each for each in questions() if each.format == "dense"][:1]
    planned = worker.plan(protocol.PlanRequest(cases=[case])).planned[0]

    def fail(*_: Any) -> None:
        raise RuntimeError(words)

    monkeypatch.setattr(worker, "_prepared", fail)
    actual = worker.solo(protocol.SoloRequest(planned=planned, replicate=0, seed=0)).result
    assert actual.status is Status.UNSUPPORTED
    assert "install g++" in str(actual.reason)


# --- checkpoints -------------------------------------------------------------------------------


@pytest.fixture
def bert(tmp_path: Path) -> Path:
    """The packaged encoder in a folder of its own."""
    for path in _trained.folder().rglob("*"):
        if path.is_file():
            target = tmp_path / path.relative_to(_trained.folder())
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(path.read_bytes())
    return tmp_path


def rename(folder: Path, name: Any) -> None:
    path = folder / "model.safetensors"
    save_file({name(n): v.clone() for n, v in load_file(path).items()}, path)


PREFIXES = ("", "bert.", "model.", "0.auto_model.", "module.bert.")


@pytest.mark.parametrize(
    ("before", "old"),
    [
        pytest.param(each, old, marks=[] if place % 2 == 0 and not old else pytest.mark.heavy)
        for place, each in enumerate(PREFIXES)
        for old in (True, False)
    ],
)
def test_names_of_published_checkpoints_are_understood(bert: Path, before: str, old: bool) -> None:
    expected = _bert.Bert.load(bert).state_dict()

    def named(name: str) -> str:
        if old:
            name = name.replace("LayerNorm.weight", "LayerNorm.gamma")
            name = name.replace("LayerNorm.bias", "LayerNorm.beta")
        return before + name.removeprefix("bert.")

    rename(bert, named)
    assert _bert.Bert.unreadable(bert) is None
    actual = _bert.Bert.load(bert).state_dict()
    assert all(torch.equal(actual[name], value) for name, value in expected.items())


@pytest.mark.parametrize(
    "seed", [0, 1, *(pytest.param(seed, marks=pytest.mark.heavy) for seed in range(2, 6))]
)
def test_a_weight_that_is_no_number_is_said_with_its_name(bert: Path, seed: int) -> None:
    source = random.Random(seed)
    path = bert / "model.safetensors"
    weights = {name: value.clone() for name, value in load_file(path).items()}
    name = source.choice(sorted(weights))
    flat = weights[name].flatten()
    flat[source.randrange(len(flat))] = source.choice([math.nan, math.inf, -math.inf])
    weights[name] = flat.reshape(weights[name].shape)
    save_file(weights, path)
    reason = str(_bert.Bert.unreadable(bert))
    assert "no numbers" in reason
    assert name[-40:] in reason


def test_an_index_names_files_of_its_folder_alone(tmp_path: Path) -> None:
    save_file({"w": torch.ones(2)}, tmp_path / "secret.safetensors")
    folder = tmp_path / "model"
    folder.mkdir()
    for part in ("../secret.safetensors", str(tmp_path / "secret.safetensors"), "a/../b"):
        (folder / "model.safetensors.index.json").write_text(
            json.dumps({"weight_map": {"w": part}})
        )
        with pytest.raises(UsageError, match="which is no file of the folder"):
            _transformers._weights(folder)


@pytest.mark.parametrize("scale", [0.0, 1.0, 1e2, 1e4, 1e30, math.inf, math.nan])
def test_every_perplexity_is_an_answer(scale: float) -> None:
    logits = torch.randn(2, 5, 7, generator=torch.Generator().manual_seed(0)) * scale
    ids = torch.arange(10).reshape(2, 5) % 7
    actual = perplexity(logits, ids, torch.ones(2, 5, dtype=torch.bool))
    assert 1 <= actual <= WORST
    assert math.isfinite(WORST * WORST)


# --- data --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("train", "words"),
    [
        (np.arange(400, dtype="<u4") % 5000 + 1, "tokens of 32 bits"),
        (np.zeros(400, dtype="<u2"), "one token again and again"),
        (np.full(400, 7, dtype="<u2"), "one token again and again"),
        (np.arange(400, dtype="<u2"), None),
    ],
)
def test_a_file_of_tokens_is_one(tmp_path: Path, train: Any, words: str | None) -> None:
    train.tofile(tmp_path / "train.bin")
    np.arange(400, dtype="<u2").tofile(tmp_path / "val.bin")
    reason = _language.no_tokens(tmp_path, 16)
    assert (words in str(reason)) if words else reason is None


@pytest.mark.parametrize(("labels", "words"), [((3, 10), "the label 10"), ((4, 4), "4 alone")])
@pytest.mark.parametrize("file", [*_sets._TRAINING, _sets._TEST])
def test_labels_are_looked_at_before_a_training(
    tmp_path: Path, file: str, labels: tuple[int, int], words: str
) -> None:
    for name in (*_sets._TRAINING, _sets._TEST):
        both = labels if name == file else (0, 9)
        (tmp_path / name).write_bytes(b"".join(bytes([each]) + bytes(3072) for each in both))
    assert words in str(_sets.no_cifar10(tmp_path))
    with pytest.raises(ValueError, match="label"):
        _sets.cifar10(tmp_path)


# --- revisions ---------------------------------------------------------------------------------


def test_a_revision_with_a_link_to_elsewhere_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        link = tarfile.TarInfo("out")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)

    class Told:
        returncode, stdout, stderr = 0, packed.getvalue(), b""

    monkeypatch.setattr(_sides.subprocess, "run", lambda *_, **__: Told())
    with pytest.raises(UsageError, match="cannot be unpacked"):
        _sides._make("--a", tmp_path, "0" * 40, "shared", tmp_path / "home")
