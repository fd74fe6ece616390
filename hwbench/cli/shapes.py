"""``hwbench shapes``: a suite of a model's linear layers, from its config.json."""

from __future__ import annotations

from pathlib import Path

import typer

from hwbench import files
from hwbench.cli import _shared

_REGIMES = ("decode", "prefill", "train")


def shapes(
    model: str = typer.Argument(
        ...,
        help="A config.json, a folder that holds one, a name in the Hugging Face Hub's cache, "
        "or a shipped suite such as llama_3_1_8b.",
    ),
    regime: list[str] | None = typer.Option(
        None, "--regime", help="decode, prefill and train.  \\[default: all three]"
    ),
    out: Path | None = typer.Option(
        None, "--out", "-o", help="The suite's file.  \\[default: print it]"
    ),
) -> None:
    """Write a suite of a model's linear layers, with how often each stands in the model.

    Only config.json is read, and nothing is downloaded. hwbench run --suite runs what it writes.
    """
    from hwbench.studies import shapes as studies

    written = studies.of(model, _shared.listed(regime) or _REGIMES)
    if out is None:
        for line in written.splitlines():
            _shared.say(line)
        return
    files.refuse_inputs([out], [files.named(model)])
    aside = _shared.is_stream(out)
    files.write_text(out, written, "the suite ")
    _shared.say(f"The suite is in {out}. Run it with: hwbench run --suite {out}", error=aside)
