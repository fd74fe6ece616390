"""Write docs/formats.md and a picture of each format, from what the formats say of themselves.

Run it as ``.venv/bin/python docs/make_formats.py`` after a format was added or changed. Names,
knobs, kernels, reasons and papers come from ``hwbench list formats --details --json``, pictures
and the table of costs from the formats' code, and the words from docs/formats.toml.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pictures

from hwbench import plugins
from hwbench.cli.list_ import where_it_runs
from hwbench.errors import KnobError
from hwbench.formats._base import FORWARD, Format
from hwbench.formats._gather import DENSE_GRADIENT_DENSITY

HERE = Path(__file__).parent
PAGE = HERE / "formats.md"
PICTURES = HERE / "formats"

DEFAULTS = {
    "index": "0",
    "stored": "item · P + I",
    "chain": "0",
    "forward": "2 · tokens · P",
    "step": "6 · tokens · P",
    "between": "0",
    "copied": "0",
}
"""The formulas of a format whose entry in formats.toml does not give them."""

PROBED = ("does not run here", "computes a wrong product", "overflows on this processor")
"""Words of a reason that this machine gave, not the format."""

KNOBS = {
    "kernel": "which implementation applies the weight",
    "rank": "the inner size of the factors, or the number of terms",
    "block": "side of a square block",
    "blocks": "groups of inputs",
    "in_blocks": "groups of inputs",
    "out_blocks": "groups of outputs",
    "order": "`blocked` or `strided`: which outputs form a group",
    "columns": "which columns of x are taken as they are: `pivoted`, or the `first`",
    "nonzeros": "kept entries",
    "sparse": "what S keeps: single `entries`, or whole `columns`",
    "atoms": "rows of the dictionary, from which outputs are added up",
    "ratio": "atoms for each one that an output uses",
    "fan_in": "kept weights of each output",
    "gradient": "of the kept values: from a `dense` product, `sampled`, or `auto`, by the device",
    "index_dtype": "what an index is stored as",
    "kept_blocks": "stored blocks",
    "kept_groups": "groups that stay, of all rows",
    "block_rows": "outputs in a block",
    "block_columns": "inputs in a block",
    "n": "kept of each group",
    "m": "neighbours in a group",
    "inputs": "columns, or directions of the inputs, that are kept",
    "rotate": "whether directions are kept, in place of columns",
    "type": "what a weight is stored as",
    "group": "neighbouring weights of a row that share a scale",
    "activations": "`none`, or `dynamic`: each token is rounded to int8 by a scale of its own, "
    "or to fp8 where torchao multiplies that",
    "rounding": "`nearest`, or `gptq`: each column's error is made up for by the columns after it",
}

INTRODUCTION = """\
# Formats

<!-- Written by docs/make_formats.py. Edit docs/formats.toml or the format, and `make docs`. -->

A format says how the weight W of a linear layer, of `out` × `in`, is stored and applied: y = W x
for each of the `tokens` rows of the input. `hwbench list formats --details` prints the facts of
this page for the formats that are installed, with what this machine says; [method.md](method.md)
says how each is measured.

## How to read the formulas

`item` and `index` are the bytes of a value and of an index. A multiply-add is two FLOPs. **P** is
the number of stored parameters, without the bias; **density** is P / (out · in); **I** is the
bytes of indices and masks. **Between** is how many values a token a kernel writes and reads
between its factors, **copied** how many it copies to lay them out anew. **D** is the number of
entries of the weight's gradient that are computed: P (knob `gradient` is `sampled`), or all
out · in of a dense product of which the kept are picked (`dense`). `auto` is dense from a density
of {dense} on where the device is a CPU, and always on a GPU. What a kernel moves in a forward
call is

    item · (tokens · (in + out) + P) + I  +  2 · item · tokens · (between + copied)

Formulas hold for the default kernel and for sizes that the blocks divide; other sizes are padded
with zeros, and other kernels have costs of their own, which `hwbench run` prints and stores with
each case.

*When it wins* says what these formulas imply and nothing else: with few tokens the stored bytes
decide, with many the FLOPs, as long as FLOP a byte stay above what the device can feed. How near
to that a kernel comes is measured, not modelled.
"""

TABLE = """\
## What the formulas give

A forward call of a layer of {side} × {side} in bfloat16 with default kernels, relative to dense:
FLOPs, then the bytes moved with 1 token and with {tokens}, at density {first} and at density
{second}. Where a format cannot have a density exactly, it has the largest setting below it; —
where it has none. Nothing here is measured: `.venv/bin/python docs/make_formats.py` computes it
from each format's cost model.

| format | FLOPs at {first} | bytes, 1 | bytes, {tokens} \
| FLOPs at {second} | bytes, 1 | bytes, {tokens} |
|---|--:|--:|--:|--:|--:|--:|
"""

SIDE, TOKENS, DENSITIES = 4096, 1024, (0.5, 0.1)

# --- facts -------------------------------------------------------------------------------------


def facts() -> list[dict[str, Any]]:
    """The descriptions of the formats, as on a machine without a GPU, wherever it runs."""
    answer = subprocess.run(
        [sys.executable, "-m", "hwbench", "list", "formats", "--details", "--json"],
        env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
        cwd=HERE.parent,
        check=True,
        capture_output=True,
        text=True,
    )
    return list(json.loads(answer.stdout))


def words() -> dict[str, dict[str, Any]]:
    """The entries of formats.toml, with every formula."""
    written = tomllib.loads((HERE / "formats.toml").read_text(encoding="utf-8"))
    return {name: {**DEFAULTS, **entry} for name, entry in written.items()}


def built_in() -> list[str]:
    """The formats of this repository, in the order of the page."""
    words_of = words()
    own = [
        n for n in plugins.names("formats") if (HERE.parent / f"hwbench/formats/{n}.py").exists()
    ]
    return sorted(own, key=lambda name: (words_of.get(name, {}).get("order", 99), name))


# --- the page ----------------------------------------------------------------------------------


def page(details: Iterable[dict[str, Any]]) -> str:
    """The text of docs/formats.md."""
    of = {each["name"]: each for each in details}
    words_of, names = words(), built_in()
    sections = [_section(of[name], words_of.get(name, {})) for name in names]
    return "\n".join([INTRODUCTION.format(dense=DENSE_GRADIENT_DENSITY), _table(names), *sections])


def _table(names: list[str]) -> str:
    head = TABLE.format(side=SIDE, tokens=TOKENS, first=DENSITIES[0], second=DENSITIES[1])
    rows = []
    for name in names:
        cells = [cell for density in DENSITIES for cell in _relative(name, density)]
        rows.append(f"| [{name}](#{name}) | {' | '.join(cells)} |\n")
    return head + "".join(rows)


def _relative(name: str, density: float) -> list[str]:
    dense = _described("dense", SIDE, 1.0)
    try:
        ours = _described(name, SIDE, 1.0 if name == "dense" else density)
    except KnobError:
        return ["—"] * 3
    ratios = []
    for tokens, quantity in ((TOKENS, "flops"), (1, "bytes"), (TOKENS, "bytes")):
        costs = [f.cost(tokens, 2, FORWARD) for f in (ours, dense)]
        a, b = (
            c.flops if quantity == "flops" else c.compulsory_bytes + c.intermediate_bytes
            for c in costs
        )
        ratios.append(f"{a / b:.3g}" if a < 10 * b else f"{a / b:.0f}")
    return ratios


def _described(name: str, side: int, density: float, **knobs: Any) -> Format:
    return plugins.load("formats", name, Format).from_knobs(side, side, density=density, **knobs)


def _section(fact: dict[str, Any], words_of: dict[str, Any]) -> str:
    name = fact["name"]
    maths = [words_of["maths"], ""] if words_of else []
    lines = [
        f"## {name}",
        "",
        fact["summary"],
        "",
        f'<img src="formats/{name}.svg" alt="{name}: how W is made and what is stored">',
        "",
        *maths,
        *_markdown(fact["description"]),
        *_costs(words_of),
        "| knob | default | what it is |",
        "|---|---|---|",
        *(_knob_row(knob, fact) for knob in fact["knobs"]),
        "",
        *_places(fact),
    ]
    if words_of:
        lines += [f"**When it wins.** {words_of['wins']}", ""]
    if fact["paper"]:
        lines += [f"**Paper.** {_linked(fact['paper'])}.", ""]
    return "\n".join(lines)


def _markdown(description: str) -> list[str]:
    return [description.replace("``", "`"), ""] if description else []


def _costs(words_of: dict[str, Any]) -> list[str]:
    if not words_of:
        return []
    rows = [
        ("parameters P", "parameters"),
        ("index bytes I", "index"),
        ("stored bytes", "stored"),
        ("multiply-adds a token of the chain C", "chain"),
        ("FLOPs, forward", "forward"),
        ("FLOPs, forward and backward", "step"),
        ("between, values a token", "between"),
        ("copied, values a token", "copied"),
    ]
    found = []
    for label, key in rows:
        note = f" ({words_of[f'{key}_note']})" if f"{key}_note" in words_of else ""
        if words_of[key] != "0":
            formula = (
                words_of[key] if words_of["index"] != "0" else words_of[key].removesuffix(" + I")
            )
            found.append(f"| {label} | {formula}{note} |")
    return ["| cost | |", "|---|---|", *found, ""]


def _knob_row(knob: str, fact: dict[str, Any]) -> str:
    if knob not in fact["defaults"]:
        default = "required, or a `density`"
    elif fact["defaults"][knob] is None:
        default = "from the shape and the other knobs"
    else:
        default = f"`{fact['defaults'][knob]}`"
    meaning = KNOBS.get(knob, "")
    if knob == "kernel":
        meaning = ", ".join(f"`{kernel}`" for kernel in fact["kernels"])
    return f"| `{knob}` | {default} | {meaning} |"


def _places(fact: dict[str, Any]) -> list[str]:
    """Where it runs; what only a device can say is told as such."""
    probed = False
    reasons: dict[str, dict[str, str]] = {}
    for kernel, of_kernel in fact["by_kernel"].items():
        reasons[kernel] = dict(of_kernel)
        for place, reason in of_kernel.items():
            if any(words in reason for words in PROBED):
                probed |= place.startswith("cuda")
                reasons[kernel][place] = ""
    runs, refused = where_it_runs(reasons)
    lines = [f"**Runs on** {' · '.join(runs)}."]
    if probed:
        lines[0] += (
            " Whether the device and the build of torch have the kernel is asked by one small "
            "product; where they have not, the reason says what was answered."
        )
    if refused:
        lines += ["", "**Not on**", "", *(f"* {place}: {reason}" for place, reason in refused)]
    return [*lines, ""]


def _linked(paper: str) -> str:
    return re.sub(r"arXiv:(\d+\.\d+)", r"[arXiv:\1](https://arxiv.org/abs/\1)", paper)


def main() -> None:
    """Write the page, and the pictures of the formats that there are."""
    PAGE.write_text(page(facts()), encoding="utf-8")
    PICTURES.mkdir(exist_ok=True)
    for old in PICTURES.glob("*.svg"):
        if old.stem not in built_in():
            old.unlink()
    for name in built_in():
        (PICTURES / f"{name}.svg").write_text(pictures.picture(name), encoding="utf-8")


if __name__ == "__main__":
    main()
