"""Draw docs/gallery.png: a photograph as each format of the suite ``image`` keeps it.

Run it as ``.venv/bin/python docs/make_gallery.py`` after the suite or a projection was changed.
"""

from __future__ import annotations

import io
from pathlib import Path

import matplotlib as mpl
import torch
from PIL import Image, PngImagePlugin

mpl.use("agg")
import matplotlib.pyplot as plt

from hwbench import plugins, suite
from hwbench.formats._base import Format
from hwbench.records import Case
from hwbench.workloads._pictures import grey, psnr

OUT = Path(__file__).parent / "gallery.png"
PICTURE, COLUMNS = "china", 3
KEY = "cases"
"""The entry of the PNG that names what was drawn."""


def cases() -> list[Case]:
    """The cases of the suite with the picture that is drawn."""
    every = suite.build(suite.read("image"), "cpu").cases
    return [case for case in every if case.options["picture"] == PICTURE]


def name(case: Case) -> str:
    """The format and its knobs, as the suite writes them."""
    return " ".join([case.format, *(f"{knob}={value}" for knob, value in case.knobs.items())])


def drawn(case: Case, exact: torch.Tensor) -> tuple[torch.Tensor, str]:
    """The picture that the format keeps, and the words above it."""
    described = plugins.load("formats", case.format, Format).from_knobs(
        case.out_features, case.in_features, **case.knobs
    )
    with torch.no_grad():
        near = described.project(exact).to_dense()
    share = f"{described.density():.3g} of the values"
    return near, f"{case.format}: {psnr(exact, near):.1f} dB\n{share}"


def main() -> None:
    """Draw the photograph and what is left of it, best first."""
    own = cases()
    exact = grey(PICTURE, own[0].out_features, own[0].in_features)
    panels_of = [drawn(case, exact) for case in own]
    panels_of.sort(key=lambda each: -psnr(exact, each[0]))
    panels = [(exact, f"the photograph\n{exact.shape[0]}×{exact.shape[1]} values"), *panels_of]
    rows = -(-len(panels) // COLUMNS)
    figure, axes = plt.subplots(rows, COLUMNS, figsize=(12, 2.95 * rows), layout="constrained")
    for axis in axes.flat:
        axis.axis("off")
    for axis, (picture, title) in zip(axes.flat, panels, strict=False):
        axis.imshow(picture, cmap="gray", vmin=-0.5, vmax=0.5, interpolation="antialiased")
        axis.set_title(title, fontsize=11)
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=100, bbox_inches="tight", pad_inches=0.1)
    facts = PngImagePlugin.PngInfo()
    facts.add_text(KEY, "\n".join(map(name, own)))
    # 64 greys are enough to see, and half the file
    Image.open(buffer).convert("L").quantize(64).save(OUT, optimize=True, pnginfo=facts)


if __name__ == "__main__":
    main()
