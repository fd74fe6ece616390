"""Options of the command line, each once: those that several verbs have, and those of ``run``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

# --- of several verbs ---------------------------------------------------------------------------

Device = Annotated[str, typer.Option("--device", "-d", help="auto, cpu, cuda or cuda:N.")]
Threads = Annotated[
    int | None,
    typer.Option(
        "--threads",
        min=1,
        help="Threads on a CPU.  \\[default: OMP_NUM_THREADS, else the usable cores]",
    ),
]
ASuite = Annotated[str, typer.Option("--suite", "-s", help="A shipped suite, or a TOML file.")]
Threshold = Annotated[str, typer.Option("--threshold", help="The smallest change that counts.")]
PrintJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
RowsAsJson = Annotated[bool, typer.Option("--json", help="Print rows as JSON instead of a table.")]

# --- of hwbench run, by the panels of its help --------------------------------------------------

WHAT, EFFORT = "What is measured", "How much effort"
WHERE, OUTPUT = "Where", "What comes of it"

Suite = Annotated[
    str | None,
    typer.Option(
        "--suite",
        "-s",
        help="A shipped suite by name, or a TOML file.  \\[default: linear]",
        rich_help_panel=WHAT,
    ),
]
Devices = Annotated[
    str,
    typer.Option(
        "--device", "-d", help="auto, cpu, cuda, cuda:N, or a list of them.", rich_help_panel=WHERE
    ),
]
Replicates = Annotated[
    int | None,
    typer.Option(
        "--replicates",
        "-r",
        min=1,
        max=1000,
        help="Fresh processes that visit every case.",
        rich_help_panel=EFFORT,
    ),
]
Quick = Annotated[
    bool,
    typer.Option(
        "--quick", help="One replicate, short budgets: a first look.", rich_help_panel=EFFORT
    ),
]
TimeBudget = Annotated[
    str | None,
    typer.Option(
        "--time-budget",
        help="A complete, coarser answer in about this time, such as 90s; what is left of it goes "
        "to pairs that are too close to call.",
        rich_help_panel=EFFORT,
    ),
]
Formats = Annotated[
    list[str] | None,
    typer.Option(
        "--format",
        "-f",
        help="Only these formats, and dense. Repeat, or use commas.",
        rich_help_panel=WHAT,
    ),
]
Filter = Annotated[
    str | None,
    typer.Option(
        "--filter",
        help="Only matching cases: tokens=16,direction=step or a part of an id.",
        rich_help_panel=WHAT,
    ),
]
Shape = Annotated[
    list[str] | None,
    typer.Option("--shape", help="OUTxIN, such as 4096x11008.", rich_help_panel=WHAT),
]
Tokens = Annotated[
    list[str] | None,
    typer.Option("--tokens", help="Batch × sequence: 16,512.", rich_help_panel=WHAT),
]
Dtype = Annotated[
    list[str] | None,
    typer.Option("--dtype", help="float32, bfloat16 or float16.", rich_help_panel=WHAT),
]
Density = Annotated[
    list[str] | None,
    typer.Option(
        "--density", help="Kept fraction of the dense parameters: 0.5,0.1.", rich_help_panel=WHAT
    ),
]
Stored = Annotated[
    list[str] | None,
    typer.Option(
        "--stored",
        help="Stored bytes over those of dense, in place of a density: 0.25.",
        rich_help_panel=WHAT,
    ),
]
Model = Annotated[
    str | None,
    typer.Option(
        "--model",
        help="For --suite compress: an encoder or causal model, as a folder in Hugging Face's "
        "layout, or as a name on its Hub, which is downloaded.  "
        "\\[default: the packaged all-MiniLM-L6-v2]",
        rich_help_panel=WHAT,
    ),
]
Data = Annotated[
    Path | None,
    typer.Option(
        "--data",
        help="For --suite training_cifar10 or training_gpt2: your folder of the data.",
        rich_help_panel=WHAT,
    ),
]
Weights = Annotated[
    str | None,
    typer.Option(
        "--weights",
        metavar="FILE[:TENSOR]",
        help="Your own layer, of a .safetensors or .gguf file: its shape is timed, its weights are "
        "scored. A pattern takes up to 64.",
        rich_help_panel=WHAT,
    ),
]
Activations = Annotated[
    Path | None,
    typer.Option(
        "--activations",
        help="What the layer of --weights sees, rows × in_features, of a .safetensors file: "
        "adds the error of its outputs.",
        rich_help_panel=WHAT,
    ),
]
Allocator = Annotated[
    str | None,
    typer.Option(
        "--allocator",
        help="Memory that a call frees on a CPU: kept for the next call, or given to the system's "
        "allocator (system), whose times depend on what ran before.  \\[default: kept]",
        rich_help_panel=EFFORT,
    ),
]
Energy = Annotated[
    bool,
    typer.Option(
        "--energy",
        help="Joules a call, where the device has a counter: 2 s a case.",
        rich_help_panel=WHAT,
    ),
]
NoScores = Annotated[
    bool,
    typer.Option(
        "--no-scores", help="Leave the accuracy part of the suite out.", rich_help_panel=WHAT
    ),
]
Cores = Annotated[
    str | None,
    typer.Option(
        "--cores",
        help="Stay on these cores, such as 0-3,8.  \\[default: all that are allowed]",
        rich_help_panel=WHERE,
    ),
]
Seed = Annotated[
    int, typer.Option("--seed", help="Seeds all data and all orders.", rich_help_panel=EFFORT)
]
Resume = Annotated[
    Path | None,
    typer.Option("--resume", help="Finish a run that was cut off.", rich_help_panel=OUTPUT),
]
Cluster = Annotated[
    str | None,
    typer.Option(
        "--cluster",
        help="A Ray cluster that runs: auto, or ray://HOST:PORT.",
        rich_help_panel=WHERE,
    ),
]
OnKinds = Annotated[
    list[str] | None,
    typer.Option(
        "--on",
        help="Only these kinds of device of the cluster: A100,RTX4090.",
        rich_help_panel=WHERE,
    ),
]
Shards = Annotated[
    int | None,
    typer.Option(
        "--shards",
        min=1,
        help="Shares that equal devices cut each replicate into.",
        rich_help_panel=WHERE,
    ),
]
Wait = Annotated[
    str | None,
    typer.Option(
        "--wait",
        help="How long to wait for a kind of device of the cluster whose machines all went away.  "
        "\\[default: 10m]",
        rich_help_panel=WHERE,
    ),
]
OutFolder = Annotated[
    Path, typer.Option("--out", "-o", help="Folder for the run file.", rich_help_panel=OUTPUT)
]
RunAsJson = Annotated[
    bool,
    typer.Option("--json", help="Print rows as JSON instead of a table.", rich_help_panel=OUTPUT),
]
PrintPath = Annotated[
    bool,
    typer.Option(
        "--print-path",
        help="Print the path of the run file and nothing else.",
        rich_help_panel=OUTPUT,
    ),
]

# --- of hwbench choose ----------------------------------------------------------------------------

ChosenModel = Annotated[
    str | None,
    typer.Option(
        "--model", "-m", help="A folder, or a name on the Hub.  \\[default: all-MiniLM-L6-v2]"
    ),
]
Budget = Annotated[
    str | None,
    typer.Option(
        "--budget",
        "-b",
        help="Of all linear layers bytes=50% or params=50%; of a pass of the model time=-30%.",
    ),
]
Objective = Annotated[
    str | None,
    typer.Option(
        "--objective",
        help="kl (of next tokens), cosine (of embeddings), output (of the model) or error (of "
        "layers: quick, and can mislead).  \\[default: kl for a model that predicts the next "
        "token, else cosine]",
    ),
]
TriedFormats = Annotated[
    list[str] | None,
    typer.Option("--format", "-f", help="The formats to try, beside dense."),
]
TriedDensities = Annotated[
    list[str] | None,
    typer.Option(
        "--density",
        help="The densities to try.  \\[default: 0.75,0.5,0.25,0.1 and the budget's; of bytes, "
        "where the budget is]",
    ),
]
TimedTokens = Annotated[
    int | None,
    typer.Option("--tokens", min=1, help="Tokens at once when timed.  \\[default: 128]"),
]
TimedReplicates = Annotated[
    int | None,
    typer.Option("--replicates", min=1, help="Fresh processes that time.  \\[default: 3]"),
]
FromRun = Annotated[
    Path | None,
    typer.Option("--from", help="Choose from a run of an earlier choose; no layer is measured."),
]
Plan = Annotated[
    Path | None,
    typer.Option("--plan", help="Take the plan of this file, made again from its run."),
]
Apply = Annotated[
    Path | None,
    typer.Option(
        "--apply", help="Measure the whole model as planned, and write it to this folder."
    ),
]
PlanFile = Annotated[
    Path | None,
    typer.Option("--out", "-o", help="The plan's file.  \\[default: plan.json]"),
]
Runs = Annotated[Path, typer.Option("--runs", help="Folder for run files.")]
