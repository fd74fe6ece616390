"""Every file that somebody else names is read and written by one module, and no model is lost."""

from __future__ import annotations

import ast
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from _check import Call, kept, made, model_files, one_sentence
from _faulty import ROOT

from hwbench import checkpoints, files
from hwbench.errors import HwbenchError, UsageError
from hwbench.workloads import _language, _sets

PACKAGE = ROOT / "hwbench"
OPENERS = {
    *("open", "read_text", "read_bytes", "write_text", "write_bytes", "fdopen"),
    *("fromfile", "memmap", "load_file", "safe_open", "GGUFReader", "savefig", "save_file"),
    *("copyfile", "copytree", "to_csv", "to_parquet", "read_csv"),
}
MODULES = {("json", "load"), ("tomllib", "load"), ("np", "load"), ("torch", "load")}
MODULES |= {("shutil", "copy"), ("shutil", "move"), ("torch", "save"), ("np", "save")}

OWN = "a file of hwbench's own package"
BESIDE = "a path that files.whole made"
EXCEPTIONS = {
    "cli/_streams.py opened open": "the null device",
    "cli/_streams.py hushed open": "the null device",
    "cli/report.py report open": "the browser, which opens the page that was just written",
    "cli/check.py _github open": "the step's summary on GitHub, which is appended to",
    "devices/cuda.py _driver read_text": "a file of the kernel",
    "environment.py _core_names read_text": OWN,
    "environment.py _read read_text": "a file of the kernel",
    "environment.py keep write_text": BESIDE,
    "environment.py rapl_joules read_text": "a file of the kernel",
    "analysis/peaks.py table read_text": OWN,
    "formats/_native.py _key read_bytes": OWN,
    "measure/transports/ray.py _standing_in open": "the current folder",
    "report/bencher.py write write_text": BESIDE,
    "report/export.py _csv to_csv": BESIDE,
    "report/export.py _json write_text": BESIDE,
    "report/export.py _parquet to_parquet": BESIDE,
    "report/figures.py import_matplotlib open": "the current folder",
    "report/figures.py _save savefig": BESIDE,
    "report/history.py render read_text": OWN,
    "report/html.py _lean read_text": OWN,
    "report/pytest_benchmark.py write write_text": BESIDE,
    "store/__init__.py create open": "a name of its own, made there and then",
    "store/__init__.py resume open": "a run that was read, and is read again under its lock",
    "studies/_sides.py resolve open": "a lock in the cache",
    "studies/_sides.py _make open": "an archive in memory",
    "studies/_sides.py _make write_text": "a folder of the cache that was made there and then",
    "studies/_sides.py _environment write_text": "the same",
    "studies/baseline.py _put open": "a name of its own, made there and then",
    "studies/shapes.py of read_text": OWN,
    "worker.py main fdopen": "the pipes from the parent",
    "meters/_own_process.py start fdopen": "the pipes to the server of processes of their own",
    "meters/_own_process.py _serve fdopen": "the pipe from the worker",
    "workloads/_apply.py apply copy": "into a folder that check_free was asked of",
    "studies/_knapsack.py _silent open": "the device that swallows what is written",
    "workloads/_packaged.py code read_bytes": OWN,
    "workloads/_prose.py chapters read_bytes": OWN,
    "workloads/_texts.py _lines read_text": OWN,
    "workloads/_trained.py linears safe_open": "the file of an installed package",
}
"""What opens a file without ``files``, and why it may: file, function, call."""


def _opens(call: ast.Call) -> str | None:
    """The name of what opens a file here, past ``hwbench.files``."""
    match call.func:
        case ast.Attribute(value=ast.Name(id="files")):
            return None
        case ast.Attribute(value=ast.Name(id=module), attr=name) if (module, name) in MODULES:
            actual = name
        case ast.Attribute(attr=name) | ast.Name(id=name) if name in OPENERS:
            actual = name
        case _:
            return None
    match call.args:
        case [ast.Call(func=ast.Attribute(value=ast.Name(id="files"), attr="regular")), *_]:
            return None
    return actual


def _opening(path: Path) -> Iterator[str]:
    """File, function and call of everything that opens a file past ``hwbench.files``."""

    def visit(node: ast.AST, function: str) -> Iterator[str]:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            function = node.name
        if isinstance(node, ast.Call) and (name := _opens(node)):
            yield f"{path.relative_to(PACKAGE)} {function} {name}"
        for child in ast.iter_child_nodes(node):
            yield from visit(child, function)

    yield from visit(ast.parse(path.read_text("utf-8")), "")


def test_every_file_is_opened_by_one_module_but_for_these() -> None:
    own = PACKAGE / "files.py"
    actual = {each for path in PACKAGE.rglob("*.py") if path != own for each in _opening(path)}
    assert actual == set(EXCEPTIONS)


@pytest.mark.parametrize(
    ("line", "seen"),
    [
        ("open(p)", True),
        ("p.read_text()", True),
        ("load_file(p)", True),
        ("np.memmap(p)", True),
        ("torch.load(p)", True),
        ("files.read_text(p)", False),
        ("np.memmap(files.regular(p), mode='r')", False),
        ("json.loads(t)", False),
    ],
)
def test_what_opens_a_file_is_seen(line: str, seen: bool) -> None:
    call = ast.parse(line).body[0]
    assert isinstance(call, ast.Expr)
    assert isinstance(call.value, ast.Call)
    assert (_opens(call.value) is not None) is seen


# --- what is read ------------------------------------------------------------------------------


def pipe(path: Path) -> None:
    os.mkfifo(path)


def endless(path: Path) -> None:
    path.symlink_to("/dev/zero")


def large(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(3073 << 22)  # whole records of CIFAR-10


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A folder with the files of a model, as far as names and configuration go."""
    return model_files(tmp_path / "model")


@pytest.mark.parametrize("odd", [pipe, endless])
@pytest.mark.parametrize(
    "name", ["config.json", "model.safetensors", "tokenizer.json", "added_tokens.json"]
)
def test_a_file_of_a_model_that_is_none_is_named_before_it_is_read(
    model: Path, name: str, odd: Callable[[Path], None]
) -> None:
    (model / name).unlink(missing_ok=True)
    odd(model / name)
    assert (checkpoints.unreadable(model) or "").startswith(str(model / name))
    with pytest.raises(OSError, match="not a regular file"):
        files.regular(model / name)


@pytest.mark.parametrize("odd", [pipe, endless, large])
@pytest.mark.parametrize("name", [_sets._TRAINING[2], _sets._TEST, "train.bin", "val.bin"])
def test_a_file_of_data_that_is_none_is_named_before_it_is_read(
    tmp_path: Path, name: str, odd: Callable[[Path], None]
) -> None:
    for each in (*_sets._TRAINING, _sets._TEST):
        (tmp_path / each).write_bytes(bytes([0, *bytes(3072), 1, *bytes(3072)]))
    for each in ("train.bin", "val.bin"):
        (tmp_path / each).write_bytes(bytes(range(100)))
    pictures = "batch" in name
    assert (_sets.no_cifar10(tmp_path) if pictures else _language.no_tokens(tmp_path, 8)) is None
    if not pictures and odd is large:
        return  # only windows of it are read
    (tmp_path / name).unlink()
    odd(tmp_path / name)
    words = _sets.no_cifar10(tmp_path) if pictures else _language.no_tokens(tmp_path, 8)
    assert words is not None
    assert name in words


def pointer(folder: Path) -> None:
    text = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 90868376\n"
    (folder / "model.safetensors").write_text(text)


def pointed_tokenizer(folder: Path) -> None:
    text = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 466247\n"
    (folder / "tokenizer.json").write_text(text)


def variant(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "model.fp16.safetensors")


def adapter_alone(folder: Path) -> None:
    (folder / "config.json").rename(folder / "adapter_config.json")


def adapter_beside(folder: Path) -> None:
    (folder / "adapter_config.json").write_text("{}")


def an_older_layout(folder: Path) -> None:
    inner = folder / "0_Transformer"
    inner.mkdir()
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        (folder / name).rename(inner / name)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (pointer, "model.safetensors is the pointer of a Git LFS file; `git lfs pull`"),
        (pointed_tokenizer, "tokenizer.json is the pointer of a Git LFS file; `git lfs pull`"),
        (variant, "holds no model.safetensors; model.fp16.safetensors would be read under that"),
        (adapter_alone, "holds an adapter without its base model; merge it into the model"),
        (adapter_beside, "holds an adapter beside the model, which would be left out; merge it"),
        (an_older_layout, "holds no config.json; the model lies in 0_Transformer: give that."),
    ],
)
def test_a_known_cause_is_told_in_our_words(
    model: Path, change: Callable[[Path], None], words: str
) -> None:
    change(model)
    result = checkpoints.unreadable(model)
    assert result is not None
    assert words in result
    assert result.count(". ") == 0


# --- what is written ---------------------------------------------------------------------------


@pytest.fixture
def there(hwbench: Call, model: Path) -> Path:
    """Beside the model a run, a text and the configuration of another model."""
    Path(kept(made(1))).rename("a.jsonl")
    Path("texts.txt").write_text("A line.\n")
    os.link("a.jsonl", "hard.json")
    Path("link.json").symlink_to("a.jsonl")
    return model


MODEL_VERBS = (
    ["shapes", "MODEL/config.json", "-o", "{}"],
    ["shapes", "MODEL", "-o", "{}"],
    ["capture", "-m", "MODEL", "--texts", "texts.txt", "-o", "{}"],
    ["choose", "-m", "MODEL", "-b", "bytes=50%", "-o", "{}"],
)


@pytest.mark.parametrize("words", MODEL_VERBS, ids=" ".join)
def test_no_verb_writes_over_a_model_a_text_or_a_run(
    hwbench: Call, there: Path, words: list[str]
) -> None:
    words = [word.replace("MODEL", str(there)) for word in words]
    inputs = ["a.jsonl", "hard.json", "link.json", str(there / "config.json")]
    inputs += [str(there / "model.safetensors")] if words[1].endswith("model") else []
    inputs += ["texts.txt"] if words[0] == "capture" else []
    before = _bytes(Path.cwd()) | _bytes(there)
    for target in inputs:
        code, _, err = hwbench(*(word.format(target) for word in words))
        assert code == 2, (target, err)
        one_sentence(err)
        assert "a bug" not in err
        assert _bytes(Path.cwd()) | _bytes(there) == before


@pytest.mark.parametrize("target", [".", "/", "", "..", "model", "x" * 300, "/dev/null/x"])
@pytest.mark.parametrize("words", MODEL_VERBS, ids=" ".join)
def test_an_output_that_can_be_no_file_is_a_sentence(
    hwbench: Call, there: Path, words: list[str], target: str
) -> None:
    words = [word.replace("MODEL", str(there)) for word in words]
    code, _, err = hwbench(*(word.format(target) for word in words))
    assert code == 2, err
    one_sentence(err)
    assert "a bug" not in err


def _bytes(folder: Path) -> dict[str, bytes]:
    return {str(p): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.mark.parametrize("more", [["-b", "bytes=50%"], ["--plan", "plan.json"]])
def test_a_converted_model_takes_the_place_of_no_other(
    hwbench: Call, there: Path, more: list[str]
) -> None:
    """It is said before anything is measured: neither plan nor run is there."""
    before = _bytes(there)
    code, _, err = hwbench("choose", *more, "--apply", str(there))
    assert (code, "did not convert" in one_sentence(err)) == (2, True)
    code, _, err = hwbench("choose", *more, "--apply", "texts.txt")
    assert (code, "is not a folder" in one_sentence(err)) == (2, True)
    assert _bytes(there) == before


def test_a_converted_model_takes_the_place_of_its_own_kind(model: Path) -> None:
    with pytest.raises(UsageError, match="did not convert"):
        checkpoints.check_free(model)
    (model / checkpoints.CONVERTED).write_text("{}")
    checkpoints.check_free(model)
    checkpoints.check_free(model / "new")
    assert issubclass(UsageError, HwbenchError)


OTHERS = (
    *("model.safetensors.index.json", "model-00001-of-00002.safetensors", "consolidated.00.pth"),
    *("pytorch_model.bin", "pytorch_model.bin.index.json", "pytorch_model-00001-of-00002.bin"),
    *("model.fp16.safetensors", "Model-Q4_K_M.gguf", "adapter_config.json", "model.ckpt"),
    *("adapter_model.safetensors", "tf_model.h5", "flax_model.msgpack", "model.onnx", "model.pt"),
)
"""Files of a model in the forms in which models are published, beside that of the fixture."""


@pytest.mark.parametrize("own", [False, True], ids=["a model", "beside a converted model"])
@pytest.mark.parametrize("name", [*OTHERS, "model.safetensors"])
def test_a_model_in_any_form_is_not_written_over(tmp_path: Path, name: str, own: bool) -> None:
    (tmp_path / name).write_bytes(b"weights")
    if own:
        (tmp_path / checkpoints.CONVERTED).write_text("{}")
    if own and name not in OTHERS:
        checkpoints.check_free(tmp_path)  # a conversion before this one wrote it
        return
    with pytest.raises(UsageError) as told:
        checkpoints.check_free(tmp_path)
    assert f"did not convert ({name}), and it is not written over" in str(told.value)


@pytest.mark.parametrize("name", ["plan.json", "a.jsonl", "tokenizer.json", "README.md", "x.toml"])
def test_a_folder_of_other_files_is_free(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("{}")
    checkpoints.check_free(tmp_path)


def test_a_converted_model_is_not_put_beside_the_shards_of_another(
    hwbench: Call, there: Path
) -> None:
    (there / "model.safetensors").rename(there / "model-00001-of-00001.safetensors")
    (there / "model.safetensors.index.json").write_text('{"weight_map": {}}')
    before = _bytes(there)
    code, _, err = hwbench("choose", "--plan", "plan.json", "--apply", str(there))
    assert (code, "did not convert" in one_sentence(err)) == (2, True)
    assert _bytes(there) == before


@pytest.mark.parametrize("ours", [False, True])
@pytest.mark.parametrize(
    "name", ["config.json", "tokenizer.json", "training_args.bin", "optimizer.pt", "rng_state.pth"]
)
def test_what_holds_no_weights_is_written_beside(tmp_path: Path, name: str, ours: bool) -> None:
    """A configuration that was saved before, and what a trainer leaves."""
    (tmp_path / name).touch()
    if ours:
        for each in ("hwbench.json", "model.safetensors", "config.json"):
            (tmp_path / each).touch()
    checkpoints.check_free(tmp_path)
