"""``hwbench capture``: what the layers of a model see of a text, for ``run --activations``."""

from __future__ import annotations

from pathlib import Path

import typer

import hwbench
from hwbench.cli import _shared


def capture(
    model: str = typer.Option(..., "--model", "-m", help="A folder, or a name on the Hub."),
    texts: Path = typer.Option(..., "--texts", help="A file with a text a line."),
    out: Path = typer.Option(Path("acts.safetensors"), "--out", "-o", help="The file to write."),
    layers: str = typer.Option("*", "--layers", help="A pattern of names of weights."),
    rows: int = typer.Option(4096, "--rows", min=2, help="The most tokens of each layer."),
) -> None:
    """Write what each linear layer of a model sees of a text, under the name of its weight.

    hwbench run --weights MODEL:NAME --activations FILE then scores formats by the error of the
    layer's outputs.
    """
    aside = _shared.is_stream(out)
    shapes = hwbench.capture(model, texts, out, layers=layers, rows=rows)
    few = min(shape[0] for shape in shapes.values())
    most = max(shape[0] for shape in shapes.values())
    tokens = f"{most}" if few == most else f"{few} to {most}"
    _shared.say(
        f"What {len(shapes)} layers see at {tokens} tokens is in {out}. Score formats on it with: "
        f"hwbench run --weights MODEL.safetensors:{next(iter(shapes))} --activations {out}",
        error=aside,
    )
