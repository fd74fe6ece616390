"""The command line: one sentence and the right exit code for everything a user can get wrong."""

from __future__ import annotations

import itertools
import json
import os
import re
import subprocess
import sys
import threading
import webbrowser
from pathlib import Path

import pytest
from _check import TINY, Call, one_sentence
from _faulty import install, uninstall

from hwbench import environment, suite
from hwbench.cli import list_
from hwbench.errors import UsageError
from hwbench.measure import run as runner
from hwbench.protocol import FormatDetails
from hwbench.store import read_run
from hwbench.studies import doctor


@pytest.fixture
def tiny(tmp_path: Path) -> str:
    path = tmp_path / "tiny.toml"
    path.write_text(TINY)
    return str(path)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["rum"], "Did you mean 'run'"),
        (["run", "--sweet", "x"], "No such option"),
        (["run", "--suite", "linaer"], "did you mean 'linear'"),
        (["run", "--suite", "none.toml"], "Cannot read the suite none.toml"),
        (["run", "--suite", "bad.toml"], "is not valid TOML"),
        (["run", "--replicates", "0"], "greater than or equal to 1"),
        (["run", "--time-budget", "soon"], "is not a duration"),
        (["run", "--shape", "4096"], "--shape is OUTxIN"),
        (["run", "--shape", "0x4"], "shape must be a whole number between 1"),
        (["run", "--shape", "99999999999x4"], "shape must be a whole number between 1"),
        (["run", "--tokens", "-1"], "tokens must be a whole number"),
        (["run", "--tokens", "many"], "--tokens takes numbers"),
        (["run", "--dtype", "int8"], "Unknown dtype 'int8'"),
        (["run", "--dtype", "bfloat61"], "did you mean 'bfloat16'"),
        (["run", "--suite", "projection", "--tokens", "16"], "--tokens would change nothing: "),
        (
            ["run", "--suite", "compress", "--shape", "8x8", "--dtype", "bfloat16"],
            "--shape and --dtype would change nothing: the suite compress has no timed cases",
        ),
        (["run", "--density", "half"], "--density takes numbers"),
        (["run", "--format", "monrach"], "did you mean 'monarch'"),
        (["run", "--filter", "tokns=1"], "did you mean 'tokens'"),
        (["run", "--filter", "tokens=77"], "leaves no case"),
        (["run", "--suite", "compress", "--model", "/nowhere"], "There is no folder '/nowhere'"),
        (["run", "--suite", "compress", "--model", "."], "holds no config.json"),
        (["run", "--suite", "smoke", "--model", "."], "smoke has no such case"),
        (["run", "--resume", "bad.toml", "--model", "."], "--resume goes on with the suite"),
        *(
            (["run", "--resume", "bad.toml", *option], "--resume goes on with the suite, the plan")
            for option in (
                *(["--replicates", "3"], ["--quick"], ["--no-scores"], ["--out", "elsewhere"]),
                *(["--seed", "1"], ["--device", "cpu"], ["--threads", "1"], ["--energy"]),
                ["--allocator", "system"],
            )
        ),
        *(
            (["run", "--resume", "bad.toml", *option], "--resume takes --on, --shards and --wait")
            for option in (["--shards", "4"], ["--on", "A100"], ["--wait", "10m"])
        ),
        *(
            (["run", "--suite", "smoke", *option], "need --cluster, or a list in --device")
            for option in (["--shards", "4"], ["--on", "A100"])
        ),
        (["run", "--suite", "smoke", "--wait", "5m"], "--wait needs --cluster"),
        (["run", "--suite", "smoke", "--device", "cpu,fake", "--wait", "5m"], "--wait needs"),
        (["run", "--density", "nan"], "--density takes finite numbers, not 'nan'"),
        (["run", "--density", "0.5,inf"], "--density takes finite numbers, not 'inf'"),
        (["run", "--stored=-inf"], "--stored takes finite numbers, not '-inf'"),
        (["run", "--tokens", "9" * 400], "tokens must be a whole number"),
        (["ceilings", "--threads", "99999"], "--threads must be between 1 and 4096"),
        (["run", "--resume=~nobody-of-that-name/x.jsonl"], "there is no such user"),
        (["profile", "-f", "dense", "--shape", "8x8,4x4"], "takes one case, and these options"),
        (["profile", "-f", "blast", "--knob", "blocks=[2,4]"], "takes one case, and these options"),
        (["run", "--suite", "training_cifar10", "--data", "none"], "--data 'none' is not a folder"),
        (["run", "--suite", "training_gpt2", "--data", "none"], "--data 'none' is not a folder"),
        (["run", "--suite", "training", "--data", "."], "--data is for suites that ask for it"),
        (["run", "--device", "cdua"], "Unknown device 'cdua'; did you mean 'cuda'"),
        (["run", "--device", "gpu"], "Unknown device 'gpu'; did you mean 'cuda'"),
        (["run", "--resume", "none.jsonl"], "Cannot read the run none.jsonl"),
        (["run", "--resume", "bad.toml"], "is not a run file"),
        (["run", "--resume", "bad.toml", "--suite", "smoke"], "--resume goes on with the suite"),
        (["report"], "Missing argument 'runs': Run files, or folders"),
        (["plot", "runs"], "Missing option '--kind' / '-k': roofline, pareto, crossover, heatmap"),
        (["export", "runs"], "Missing option '--to': csv, json, parquet, pytest-benchmark or"),
        (["baseline", "list", "--old"], "See hwbench baseline list --help."),
        (["report", "none.jsonl"], "There is no run file none.jsonl"),
        (["report", "bad.toml"], "is not a run file"),
        (["report", "."], "holds no run file"),
        (["list", "formts"], "did you mean 'formats'"),
        (["export", "bad.toml", "--to", "csv", "--out", "x.csv"], "is not a run file"),
        (["plot", "bad.toml", "--kind", "roofline", "--out", "x.png"], "is not a run file"),
    ],
)
def test_a_mistake_is_one_sentence_and_exit_2(hwbench, arguments, words):
    Path("bad.toml").write_text("= nonsense")
    code, out, err = hwbench(*arguments)
    assert code == 2
    assert words in err
    assert out == ""
    assert "Traceback" not in err
    assert len(err.strip().splitlines()) == 1


@pytest.mark.parametrize("arguments", [[], ["baseline"]])
def test_without_a_verb_there_is_the_help_and_no_more(hwbench, arguments):
    code, out, err = hwbench(*arguments)
    assert (code, err) == (2, "")
    assert "Usage:" in out


@pytest.mark.parametrize("columns", [80, 120])
def test_help_fits_the_terminal_and_has_no_types_of_flags(hwbench, monkeypatch, columns):
    """No line of a docstring ends long before the frame does, but where a paragraph ends."""
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setattr("typer.rich_utils.MAX_WIDTH", columns)
    for verb in ("run", "check", "history", "baseline prune"):
        code, out, _ = hwbench(*verb.split(), "--help")
        assert code == 0
        assert "bool" not in out
        about = re.split(r"\n *[╭]", out)[0].partition("Usage:")[2]
        lines = [line.strip() for line in about.splitlines()[1:]]
        for line, after in itertools.pairwise(lines):
            if line and after:
                assert len(f"{line} {after.split()[0]}") > columns - 4, (verb, line, after)


@pytest.mark.skipif(environment.nvidia_devices() > 0, reason="this machine has an NVIDIA GPU")
def test_cuda_without_a_gpu_is_one_sentence_and_exit_2(hwbench):
    code, _, err = hwbench("run", "--suite", "smoke", "--device", "cuda")
    assert code == 2
    assert len(err.strip().splitlines()) == 1
    assert "CUDA" in err or "NVIDIA" in err


def test_the_simulated_device_is_of_another_package_and_unknown_without_it(hwbench, monkeypatch):
    from hwbench import plugins

    last = hwbench("list", "devices")[1].splitlines()[-1]
    assert last.startswith("fake  A machine whose time moves")
    monkeypatch.setattr(plugins, "_external", lambda kind: {})
    code, _, err = hwbench("run", "--suite", "smoke", "--device", "fake")
    assert code == 2
    assert err == "hwbench: Unknown device 'fake'; known: cpu, cuda.\n"


def test_a_folder_that_cannot_be_written_is_one_sentence_and_exit_2(hwbench, tiny):
    Path("file").write_text("")
    code, _, err = hwbench("run", "--suite", tiny, "--device", "fake", "--out", "file/runs")
    assert code == 2
    assert "choose another with --out" in err


def test_a_knob_that_cannot_be_is_one_sentence_and_exit_2(hwbench, tiny):
    path = Path(tiny)
    path.write_text(TINY.replace("density = 0.5", "rank = 99", 1))
    code, _, err = hwbench("run", "--suite", tiny, "--device", "fake")
    assert code == 2
    assert "rank of low_rank must be between 1 and 16" in err


def test_run_and_resume_go_through(hwbench, tiny):
    code, out, err = hwbench("run", "--suite", tiny, "--device", "fake", "--threads", "1")
    assert (code, err) == (0, "")
    assert "low_rank" in out
    (path,) = Path("runs").glob("*.jsonl")
    assert str(path) in out
    assert read_run(path).complete
    code, out, _ = hwbench("run", "--resume", str(path), "--json")
    assert code == 0
    assert {row["format"] for row in json.loads(out)} == {"dense", "low_rank"}


def test_a_resumed_run_in_which_a_case_failed_is_5_too(hwbench, tiny):
    assert hwbench("run", "--suite", tiny, "--device", "fake", "--threads", "1")[0] == 0
    (path,) = Path("runs").glob("*.jsonl")
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace('"status":"ok"', '"status":"crashed"', 1), encoding="utf-8")
    whole = hwbench("run", "--resume", str(path))
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]), encoding="utf-8")
    cut = hwbench("run", "--resume", str(path), "--print-path")
    for code, _, err in (whole, cut):
        assert (code, "1 case was wrong, crashed or timed out" in err) == (5, True)
    assert read_run(path).complete


def test_a_home_folder_that_no_shell_put_in_is_found(hwbench, tiny, tmp_path, monkeypatch):
    """A shell replaces ~ at the begin of a word alone, and not in --resume=~/runs/x.jsonl."""
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    words = ("--suite", tiny, "--device", "fake", "--threads", "1", "--out=~/runs", "--print-path")
    code, out, err = hwbench("run", *words)
    assert code == 0, err
    path = Path(out.strip())
    assert path.parent == home / "runs"
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    path.write_text("".join(lines[:-3]), encoding="utf-8")
    code, out, err = hwbench("run", f"--resume=~/runs/{path.name}", "--print-path")
    assert (code, out.strip()) == (0, str(path)), err
    assert read_run(path).complete
    assert hwbench("report", "~/runs", "--out=~/page.html")[0] == 0
    assert hwbench("export", f"~/runs/{path.name}", "--to", "csv", "--out=~/rows.csv")[0] == 0
    assert hwbench("baseline", "promote", "~/runs", "--out=~/kept")[0] == 0
    assert {each.name for each in home.iterdir()} == {"runs", "page.html", "rows.csv", "kept"}
    assert not Path("~").exists()


@pytest.mark.parametrize("target", ["", ".", "/", "..", "folder", "x" * 300 + ".png"])
def test_a_figure_that_can_be_no_file_is_one_sentence(hwbench, golden, target):
    Path("folder").mkdir()
    code, _, err = hwbench("plot", str(golden), "--kind", "pareto", "--out", target)
    assert code == 2
    one_sentence(err)


def written_to(pipe, call):
    """What a pipe received, and what the call said."""
    os.mkfifo(pipe)
    read = []
    reader = threading.Thread(target=lambda: read.append(Path(pipe).read_bytes()), daemon=True)
    reader.start()
    said = call()
    reader.join(60)
    return read[0], said


@pytest.mark.parametrize(
    ("words", "begins"),
    [
        ("export RUN --to json -o", b"["),
        ("export RUN --to csv -o", b"case,"),
        ("report RUN -o", b"<!doctype html>"),
        ("report RUN --format md -o", b"#"),
        ("compare RUN RUN -o", b"<!doctype html>"),
        ("history FOLDER -o", b"<!doctype html>"),
        ("check RUN -b RUN --json-out", b"{"),
        ("shapes llama_3_1_8b -o", b"schema = 1"),
        ("share RUN -o", b"{"),
    ],
)
def test_a_stream_gets_what_was_asked_for_and_nothing_that_is_said(hwbench, golden, words, begins):
    places = {"RUN": str(golden), "FOLDER": str(golden.parent)}
    words = [places.get(word, word) for word in words.split()]
    data, (code, out, err) = written_to("pipe", lambda: hwbench(*words, "pipe"))
    assert code in (0, 6), err
    assert data.startswith(begins)
    assert out == ""
    assert err
    code, out, err = hwbench(*words, "file")
    assert out, "of a file it is said where that is"
    assert len(Path("file").read_bytes()) == pytest.approx(len(data), rel=0.01)


def test_our_own_output_is_a_stream_also_where_it_is_a_file(tmp_path):
    (tmp_path / "rows.json").touch()
    code = (
        "import sys; sys.argv[0] = 'hwbench'; from hwbench.cli import _shared; from pathlib import "
        "Path; print([_shared.is_stream(Path(each)) for each in sys.argv[1:]], file=sys.stderr)"
    )
    with (tmp_path / "rows.json").open("w") as out:
        ended = subprocess.run(
            [sys.executable, "-c", code, "/dev/stdout", "rows.json", "other.json", "/dev/null"],
            stdout=out, stderr=subprocess.PIPE, cwd=tmp_path, text=True, check=True,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
        )  # fmt: skip
    assert ended.stderr == "[True, True, False, True]\n"


def test_who_waits_for_ceilings_is_told_before_they_are_measured(hwbench, capsys, monkeypatch):
    said = []

    def stop(*_):
        said.append(capsys.readouterr().err)
        raise UsageError("Enough.")

    monkeypatch.setattr("hwbench.measure.ceilings.measure", stop)
    assert hwbench("ceilings", "--device", "fake")[0] == 2
    assert said == ["Measuring sizes and working sets, about a minute …\n"]


def test_report_export_plot_list_compare_and_history_read_a_run(hwbench, golden):
    run, path = read_run(golden), str(golden)
    assert hwbench("report", path, "--out", "page.html")[0] == 0
    page = Path("page.html").read_text(encoding="utf-8")
    assert all(name in page for name in {p.case.format for p in run.planned.values()})
    assert hwbench("report", str(golden.parent))[0] == 0
    code, _, err = hwbench("report", path, "--out", "page.html/page.html")
    assert (code, "Cannot write the report" in err) == (2, True)
    assert hwbench("export", path, "--to", "csv", "--out", "rows.csv")[0] == 0
    assert len(Path("rows.csv").read_text().splitlines()) == 1 + len(run.results)
    assert hwbench("plot", path, "--kind", "roofline", "--out", "figure.png")[0] == 0
    assert Path("figure.png").read_bytes()[:4] == b"\x89PNG"
    code, out, _ = hwbench("list", "runs", "--out", str(golden.parent))
    assert (code, "complete" in out) == (0, True)
    assert f"{run.header.suite} on {run.header.machine}" in out
    assert run.header.created[:10] in out
    assert hwbench("list", "runs", str(golden.parent))[1] == out
    assert hwbench("list", "runs", str(golden.parent), "more")[0] == 2
    code, out, _ = hwbench("compare", path, path)
    assert (code, run.header.run in out) == (0, True)
    code, _, err = hwbench("history", str(golden.parent), "--out", "history.html")
    assert (code, err) == (0, "")


@pytest.mark.parametrize(("opens", "told"), [(True, ""), (False, "No browser could be started")])
def test_a_page_is_opened_where_that_is_asked_for(hwbench, golden, monkeypatch, opens, told):
    opened = []
    monkeypatch.setattr(webbrowser, "open", lambda uri: opened.append(uri) or opens)
    code, _, err = hwbench("report", str(golden), "--out", "page.html", "--open")
    assert (code, told in err) == (0, True)
    assert opened == [Path("page.html").resolve().as_uri()]
    assert hwbench("report", str(golden), "--format", "md", "--open")[0] == 2
    assert len(opened) == 1


def test_suites_are_listed_with_their_cases(hwbench):
    rows = {row["name"]: row for row in json.loads(hwbench("list", "suites", "--json")[1])}
    for name in ("linear", "models/minilm_l6"):
        planned = runner.with_anchors(suite.build(suite.read(name), "cpu").cases)
        assert rows[name]["cases"] == len(planned)
        assert rows[name]["about"].endswith(f"({len(planned)} cases)")


def test_quick_is_one_replicate(hwbench, tiny):
    code, _, _ = hwbench("run", "-s", tiny, "-d", "fake", "--quick", "--threads", "1")
    assert code == 0
    (path,) = Path("runs").glob("*.jsonl")
    assert {r.replicate for r in read_run(path).results} == {0}


def test_list_alone_says_what_can_be_listed(hwbench):
    code, out, err = hwbench("list")
    assert (code, err) == (0, "")
    assert [line.split()[:3] for line in out.splitlines()] == [
        ["hwbench", "list", kind] for kind in ("formats", "suites", "devices", "runs")
    ]


def test_list_json_and_details(hwbench):
    code, out, _ = hwbench("list", "formats", "--json")
    assert code == 0
    assert {"dense", "low_rank"} <= {row["name"] for row in json.loads(out)}
    code, out, _ = hwbench("list", "formats", "--details", "--json")
    assert code == 0
    details = {row["name"]: row for row in json.loads(out)}
    assert details["low_rank"]["knobs"] == ["kernel", "rank"]
    assert "CUDA" in details["semi_structured"]["unsupported"]["cpu float32 forward"]


def test_a_format_is_listed_by_name_with_why_its_kernel_is_the_default(hwbench):
    code, out, _ = hwbench("list", "formats", "csr", "semi_structured", "bsr")
    assert code == 0
    assert [line for line in out.splitlines() if line[:1].strip()] == [
        "csr", "semi_structured", "bsr",
    ]  # fmt: skip
    words = " ".join(out.split())
    assert "Kernels: gather sums rows of xᵀ with embedding_bag" in words, "its docstring"
    assert "default gather; on this CPU it runs in more dtypes or directions than native" in words
    assert "default cusparselt, which does not run on this CPU" in words
    code, out, _ = hwbench("list", "formats", "csr", "--json")
    assert [row["name"] for row in json.loads(out)] == ["csr"]
    assert hwbench("list", "formats", "csrr")[0] == 2
    assert "did you mean 'csr'" in hwbench("list", "formats", "csrr")[2]
    code, _, err = hwbench("list", "suites", "csr")
    assert (code, "takes no names" in err) == (2, True)


@pytest.mark.parametrize(
    ("runs", "said"),
    [
        ({"a": ["cpu x"], "b": ["cpu x"]}, "a; on this CPU all kernels run in the same"),
        ({"a": ["cpu x", "cpu y"], "b": ["cpu y"]}, "a; on this CPU it runs in more"),
        ({"a": ["cpu x"], "b": ["cpu x", "cpu y"]}, "does not run as cpu y, which others do"),
        ({"a": ["cpu x"], "b": ["cpu y"]}, "does not run as cpu y, which others do"),
        ({"a": ["cuda x"], "b": ["cpu x"]}, "a, which does not run on this CPU"),
    ],
)
def test_the_default_kernel_is_explained_by_where_kernels_run(runs, said):
    each = FormatDetails(
        name="f", summary="", description="", knobs=[], defaults={"kernel": "a"}, kernels=[*runs],
        paper="", unsupported={}, by_kernel={
            kernel: {p: "" if p in of else "no" for p in ("cpu x", "cpu y", "cuda x")}
            for kernel, of in runs.items()
        },
    )  # fmt: skip
    assert said in list_._why_default(each)


def test_failed_cases_are_exit_5_and_the_rest_is_shown(hwbench, tiny, tmp_path, monkeypatch):
    site = tmp_path / "site"
    site.mkdir()
    install(site, monkeypatch)
    try:
        path = Path(tiny)
        path.write_text(
            TINY.replace('{ name = "dense" }', '{ name = "dense" }, { name = "wrong" }')
        )
        code, out, err = hwbench("run", "--suite", tiny, "--device", "fake", "--threads", "1")
        assert code == 5
        assert "1 case was wrong, crashed or timed out" in err
        assert "relative error" in out
        assert "low_rank" in out
        path.write_text(TINY.replace("[16, 16]", "[8388608, 8388608]"))
        code, _, err = hwbench("run", "--suite", tiny, "--device", "fake", "--threads", "1")
        assert code == 5
        assert "Nothing could be measured" in err
    finally:
        uninstall()


def test_a_density_out_of_reach_alone_is_exit_5_and_says_what_can_be_reached(hwbench):
    only = TINY[TINY.rindex("[[cases]]") :].replace("0.5", "0.05")
    Path("only.toml").write_text(f'schema = 1\nname = "only"\n{only}')
    code, outcome, error = hwbench("run", "--suite", "only.toml", "--device", "fake")
    assert (code, error.splitlines()[-1]) == (
        5, "hwbench: Nothing could be measured; the reasons are listed above."
    )  # fmt: skip
    assert "unsupported: low_rank cannot reach density 0.05; rank 1 has density 0.125." in outcome
    assert re.search(r"low_rank +\(0\.05\) .* unsupported", outcome)
    asked = ("run", "--suite", "only.toml", "--device", "fake", "--print-path")
    code, path, error = hwbench(*asked)
    assert (code, error.splitlines()[-1]) == (
        5, "hwbench: Nothing could be measured; hwbench show lists the reasons."
    )  # fmt: skip
    assert "rank 1 has density 0.125." in hwbench("show", path.strip())[1]


def test_a_bug_is_exit_70_and_never_1(hwbench, monkeypatch):
    monkeypatch.setattr("hwbench.suite.read", lambda name: 1 / 0)
    code, _, err = hwbench("run")
    assert code == 70
    assert "a bug: ZeroDivisionError" in err
    assert "Traceback" not in err
    code, _, err = hwbench("--debug", "run")
    assert code == 70
    assert "Traceback" in err
    hwbench("--version")


def test_a_run_on_a_busy_machine_begins_with_a_warning(
    hwbench: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "busy_now", lambda: "Other processes keep 1.9 of 2 cores busy.")
    code, out, err = hwbench(
        "run", "--suite", "smoke", "--device", "fake", "--filter", "format=dense"
    )
    assert code == 0
    assert err.startswith("Other processes keep 1.9 of 2 cores busy.\n")
    assert "Other processes" not in out
