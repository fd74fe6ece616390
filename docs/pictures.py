"""A picture of a format, drawn from a small layer of it: what is multiplied, and what is stored.

Chains of factors are drawn as the matrices whose product is W, which is checked; formats that keep
entries as W and the arrays that they store. A format that is not known here is drawn in the second
way.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from html import escape
from typing import Any

import torch
from torch import Tensor

from hwbench import plugins
from hwbench.errors import KnobError
from hwbench.formats._base import Format, Linear

INK = "#6e7781"  # text and frames: readable on white and on near-black
HUES = ("#3f7fd9", "#cf7a1c", "#2a9d6a", "#9562cf")
MUTED = "#8b949e"

SPARSE_SIDE, CHAIN_SIDE = 8, 16
PICTURED: dict[str, dict[str, Any]] = {
    "condensed": {"density": 0.25},
    "bsr": {"density": 0.25, "block_rows": 2, "block_columns": 2},
    "kronecker": {"density": 0.25},
    "armor": {"block": 4},
    "gqsa": {"group": 4, "density": 0.5},
    "block_sparse_kronecker": {"rank": 2, "out_blocks": 4, "in_blocks": 4, "kept_blocks": 6},
    "block_diagonal": {"density": 0.25},
    "monarch": {"density": 0.5, "blocks": 2},
    "blast": {"rank": 3, "blocks": 4},
    "coo": {"density": 0.2},
    "csr": {"density": 0.2},
    "masked_dense": {"density": 0.25},
    "low_rank_sparse": {"rank": 2, "nonzeros": 12},
    "narrow": {"inputs": 3},
    "dictionary": {"atoms": 6, "ratio": 3},
    "quantized_low_rank": {"type": "int8", "group": 4, "kernel": "dequantise", "rank": 2},
    "quantized": {"type": "int8", "group": 4, "kernel": "dequantise"},
}
"""The settings that are drawn; half density where there is none here."""


@dataclass
class Part:
    """One piece of a picture: a grid of cells, or a sign between grids.

    ``hues`` is (rows, columns): 0 leaves a cell empty, k takes the k-th hue, −1 is grey.
    Where there is ``text``, cells show it.
    """

    hues: Tensor | None = None
    sign: str = ""
    label: str = ""
    caption: str = ""
    text: Tensor | None = None
    value: Tensor | None = field(default=None, repr=False)
    cell: float = 0.0


def chain(name: str, spec: Format, layer: Linear) -> list[Part] | None:
    """The matrices whose product is W, the last applied first; None for what is no chain.

    Their product is compared with W before anything is drawn.
    """
    maker = CHAINS.get(name)
    if maker is None:
        return None
    parts = maker(spec, layer)
    product = None
    for part in parts:
        if part.value is not None:
            product = part.value if product is None else product @ part.value
    assert product is not None
    if not torch.allclose(product, layer.to_dense(), atol=1e-5):
        raise AssertionError(f"The picture of {name} does not multiply to its weight.")
    return parts


def _whole(value: Tensor, hue: int, label: str, caption: str) -> Part:
    hues = torch.full(value.shape, hue)
    return Part(hues, label=label, caption=f"{caption} {_shape(value)}", value=value)


def _named(layer: Linear, name: str) -> str:
    return f"{name} {_shape(getattr(layer, name))}"


def _shape(tensor: Tensor) -> str:
    return "×".join(map(str, tensor.shape))


def _diagonal(blocks: Iterable[Tensor], label: str, caption: str) -> Part:
    blocks = list(blocks)
    hues = [torch.full(block.shape, 1 + number % len(HUES)) for number, block in enumerate(blocks)]
    value = torch.block_diag(*blocks)
    return Part(torch.block_diag(*hues), label=label, caption=caption, value=value)


def _low_rank(spec: Any, layer: Any) -> list[Part]:
    del spec
    return [
        _whole(layer.left, 1, "A", "left"),
        _whole(layer.right, 2, "B", "right"),
    ]


def _dictionary(spec: Any, layer: Any) -> list[Part]:
    del spec
    empty = torch.zeros(layer.out_features, len(layer.atoms))
    value = empty.scatter(1, layer.places().long().view_as(layer.values), layer.values.detach())
    sparse = Part(
        (value != 0).long(), label="S", caption=f"{_named(layer, 'values')}, columns", value=value
    )
    return [sparse, _whole(layer.atoms, 2, "D", "atoms")]


def _low_rank_light(spec: Any, layer: Any) -> list[Part]:
    del spec
    rank = layer.right.shape[0]
    wide = torch.cat([torch.eye(rank), layer.right], 1)
    hues = torch.cat([-torch.eye(rank), torch.full(layer.right.shape, 2.0)], 1)
    back = torch.argsort(layer.order())
    part = Part(
        hues[:, back].long(),
        label="[I B] Πᵀ",
        caption=f"right {_shape(layer.right)}, pivots",
        value=wide[:, back],
    )
    return [_whole(layer.left, 1, "A", "left"), part]


def _block_diagonal(spec: Any, layer: Any) -> list[Part]:
    del spec
    return [_diagonal(layer.weights, "diag(W₁, W₂, …)", _named(layer, "weights"))]


def _armor(spec: Any, layer: Any) -> list[Part]:
    del spec
    left, right = torch.block_diag(*layer.left), torch.block_diag(*layer.right)
    value = torch.linalg.solve(left, layer.to_dense()) @ torch.linalg.inv(right)
    value[value.abs() < 1e-4] = 0
    sparse = Part(
        (value != 0).long(), label="S", caption=f"{_named(layer, 'values')}, codes", value=value
    )
    return [
        _diagonal(layer.left, "A", _named(layer, "left")),
        sparse,
        _diagonal(layer.right, "B", _named(layer, "right")),
    ]


def _block_dense(spec: Any, layer: Any) -> list[Part]:
    hues = 1 + torch.arange(layer.dense.shape[1]) // spec.rank % len(HUES)
    dense = Part(
        hues.expand(layer.dense.shape),
        label="D",
        caption=_named(layer, "dense"),
        value=layer.dense.detach(),
    )
    return [dense, _diagonal(layer.blocks, "diag(B₁, B₂, …)", _named(layer, "blocks"))]


def _two_stage(spec: Any, layer: Any) -> list[Part]:
    del spec
    first, second = layer.factors()
    k, l, t, _ = first.shape  # noqa: E741 (the letters of the code)
    places = torch.arange(k * l * t).view(k, l, t).transpose(0, 1).flatten()
    regroup = torch.zeros(k * l * t, k * l * t)
    regroup[torch.arange(k * l * t), places] = 1
    return [
        _diagonal((block.flatten(1) for block in second), "R", _named(layer, "second")),
        Part(-regroup.long(), label="Q", caption="regroup", value=regroup),
        _diagonal((block.flatten(0, 1) for block in first), "L", _named(layer, "first")),
    ]


def _blast(spec: Any, layer: Any) -> list[Part]:
    del spec
    bases_out, couplings, bases_in = layer.bases_out, layer.components(), layer.bases_in
    rank, rows, columns = couplings.shape
    value = torch.zeros(rows, rank, columns, rank)
    spread = torch.arange(rank)
    value[:, spread, :, spread] = couplings
    hues = (value != 0) * (1 + torch.arange(columns) % len(HUES)).view(1, 1, -1, 1)
    middle = Part(
        hues.flatten(2).flatten(0, 1),
        label="diag(s[i, j])",
        caption=_named(layer, "couplings"),
        value=value.flatten(2).flatten(0, 1),
    )
    return [
        _diagonal(bases_out, "U", _named(layer, "bases_out")),
        middle,
        _diagonal(bases_in, "V", _named(layer, "bases_in")),
    ]


def _kronecker(spec: Any, layer: Any) -> list[Part]:
    if spec.inner_first():
        outer, inner = layer.outer.permute(2, 0, 1), layer.inner
    else:
        outer, inner = layer.outer.permute(1, 0, 2), layer.inner.permute(1, 0, 2)
    parts: list[Part] = []
    for r, (a, b) in enumerate(zip(outer, inner, strict=True), 1):
        sign = [Part(sign="+")] if parts else []
        parts += [
            *sign,
            _whole(a, 1, f"A[{r}]", "outer"),
            Part(sign="⊗"),
            _whole(b, 2, f"B[{r}]", "inner"),
        ]
        for part in parts:
            part.value = None
    dense = layer.to_dense()
    rows = torch.arange(dense.shape[0])[:, None] // inner.shape[1]
    columns = torch.arange(dense.shape[1]) // inner.shape[2]
    hues = 1 + (rows + columns) % 2
    whole = Part(hues, label="W", caption="never formed", value=dense)
    return [whole, Part(sign="="), *parts]


CHAINS = {
    "low_rank": _low_rank,
    "dictionary": _dictionary,
    "low_rank_light": _low_rank_light,
    "armor": _armor,
    "block_diagonal": _block_diagonal,
    "block_dense": _block_dense,
    "monarch": _two_stage,
    "btt": _two_stage,
    "blast": _blast,
    "kronecker": _kronecker,
}


# --- what is drawn -----------------------------------------------------------------------------


def picture(name: str) -> str:
    """The SVG of one format."""
    with torch.no_grad():
        spec, layer = example(name)
        parts = chain(name, spec, layer)
        if parts is None:
            return _stored_picture(name, spec, layer)
    drawing = Drawing()
    sides = [Part(sign="←")] if name != "kronecker" else []
    between: list[Part] = []
    for part in parts:
        between += [*(sides if between else []), part]
    drawing.row([_vector("y", spec.out_features), Part(sign="←"), *between, Part(sign="←"),
                 _vector("x", spec.in_features)], 8.0)  # fmt: skip
    return drawing.svg(f"{name}: {_title(spec)}")


def example(name: str) -> tuple[Format, Linear]:
    """A small layer, projected from a fixed random weight."""
    side = CHAIN_SIDE if name in CHAINS else SPARSE_SIDE
    load = plugins.load("formats", name, Format)
    knobs = PICTURED.get(name, {"density": 0.5})
    try:
        spec = load.from_knobs(side, side, **knobs)
    except KnobError:
        spec = load.from_knobs(side, side)
    weight = torch.randn(side, side, generator=torch.Generator().manual_seed(7))
    return spec, spec.project(weight)


def _title(spec: Format) -> str:
    knobs = ", ".join(f"{k} {v}" for k, v in spec.knobs().items() if k != "kernel")
    return f"{spec.out_features} × {spec.in_features}" + (f", {knobs}" if knobs else "")


def _vector(label: str, length: int) -> Part:
    return Part(-torch.ones(length, 1).long(), label=label)


def _stored_picture(name: str, spec: Format, layer: Any) -> str:
    dense = layer.to_dense()
    hues = _by_row(dense)
    values = getattr(layer, "values", None)
    if isinstance(values, Tensor) and values.dim() == 3:  # whole blocks: a hue each
        for number, block in enumerate(values):
            hues[torch.isin(dense, block)] = 1 + number % len(HUES)
    whole = any(tensor.shape == dense.shape for tensor in layer.parameters())
    unstored = 0 in hues and not whole
    w = Part(hues, label="W", caption="zeros are not stored" if unstored else "")
    drawing = Drawing()
    first = [_vector("y", spec.out_features), Part(sign="←"), w]
    factors = []
    if hasattr(layer, "left"):  # low rank beside entries or codes
        entries = dense - layer.left @ layer.right
        entries[entries.abs() < 1e-5] = 0
        hues = _by_row(entries)
        w = Part(hues, label="Q" if hasattr(layer, "codes") else "S")
        factors = [
            _whole(layer.left, 1, "A", "left"),
            _whole(layer.right, 2, "B", "right"),
            Part(sign="+"),
        ]
        first = [*first[:2], *factors, w]
        dense = entries
    drawing.row([*first, Part(sign="←"), _vector("x", spec.in_features)], 15.0)
    named = [*layer.named_parameters(), *layer.named_buffers()]
    stored = [(n, t) for n, t in named if n not in ("bias", "left", "right")]
    drawing.stored(_stored(n, t, dense, hues) for n, t in stored)
    return drawing.svg(f"{name}: {_title(spec)}")


def _by_row(dense: Tensor) -> Tensor:
    rows = torch.arange(dense.shape[0])[:, None].expand(dense.shape)
    return torch.where(dense != 0, 1 + rows % len(HUES), 0)


def _stored(name: str, tensor: Tensor, dense: Tensor, hues: Tensor) -> Part:
    """One stored tensor: numbers are shown, values have the hue of their place in W."""
    kind = str(tensor.dtype).removeprefix("torch.")
    shape = _shape(tensor)
    flat = tensor.reshape(1, -1) if tensor.dim() < 2 else tensor.reshape(-1, tensor.shape[-1])
    if tensor.dim() == 3:  # a line for each row of W, or blocks side by side
        by_row = tensor.shape[0] == dense.shape[0]
        flat = tensor.flatten(1) if by_row else torch.cat(list(tensor), 1)
    label, caption = name, f"{shape} {kind}"
    if tensor.dtype == torch.bool:
        return Part(-flat.long(), label=label, caption=caption)
    if not tensor.is_floating_point():
        return Part(torch.zeros(flat.shape).long(), label=label, caption=caption, text=flat)
    places = torch.full(flat.shape, -1)
    for place in (dense != 0).nonzero().tolist():
        places[(flat - dense[place[0], place[1]]).abs() < 1e-6] = hues[place[0], place[1]]
    return Part(places, label=label, caption=caption)


# --- how it is drawn ---------------------------------------------------------------------------


class Drawing:
    """Collects shapes; ``svg`` puts a canvas around them."""

    GAP, TOP, LIMIT = 14.0, 26.0, 760.0

    def __init__(self) -> None:
        self.shapes: list[str] = []
        self.right = self.bottom = self.GAP

    def row(self, parts: list[Part], cell: float) -> None:
        """Grids and signs from left to right around one line."""
        tallest = max(len(part.hues) for part in parts if part.hues is not None) * cell
        middle, x = self.TOP + tallest / 2, self.GAP
        for part in parts:
            x = self._place(part, x, middle, cell) + self.GAP
        self.right = max(self.right, x)
        self.bottom = max(self.bottom, self.TOP + tallest + 24)

    def stored(self, parts: Iterable[Part]) -> None:
        """Arrays to the right of what there is, from left to right and then below."""
        left, cell = self.right + 26, 17.0
        x, y, depth = left, self.TOP, 0.0
        for part in parts:
            assert part.hues is not None
            rows, columns = part.hues.shape
            width = max(columns * cell, 8.2 * len(part.label) + 7.2 * len(part.caption))
            if x > left and x + width > self.LIMIT:
                x, y, depth = left, y + depth + 28, 0.0
            label = f"{part.label}  {part.caption}"
            self._grid(part.hues, x, y, cell, part.text)
            self._text(x, y - 7, label, anchor="start", size=11)
            depth = max(depth, rows * cell)
            x += width + self.GAP
            self.right = max(self.right, x)
            self.bottom = max(self.bottom, y + rows * cell + 28)
        line = f"M{left - 20:g} {self.TOP - 16:g}V{self.bottom - 8:g}"
        self.shapes.append(f'<path d="{line}" stroke="{MUTED}" stroke-opacity=".5"/>')
        self._text(left, self.bottom - 10, "stored", anchor="start", size=11)

    def _place(self, part: Part, x: float, middle: float, cell: float) -> float:
        if part.hues is None:
            if part.sign == "←":
                self._arrow(x, middle)
                return x + 20
            self._text(x + 7, middle + 6, part.sign, size=18)
            return x + 14
        rows, columns = part.hues.shape
        top = middle - rows * cell / 2
        self._grid(part.hues, x, top, cell, part.text)
        centre = x + columns * cell / 2
        self._text(centre, top - 8, part.label, size=13)
        if part.caption:
            self._text(centre, top + rows * cell + 15, part.caption, size=11)
        return x + columns * cell

    def _grid(self, hues: Tensor, x: float, y: float, cell: float, text: Tensor | None) -> None:
        rows, columns = hues.shape
        self.shapes.append(
            f'<rect x="{x:g}" y="{y:g}" width="{columns * cell:g}" height="{rows * cell:g}" '
            f'rx="1.5" fill="{MUTED}" fill-opacity=".1" stroke="{MUTED}" stroke-opacity=".55"/>'
        )
        by_hue: dict[int, list[str]] = {}
        for i, line in enumerate(hues.tolist()):
            for j, hue in enumerate(line):
                left, top = x + j * cell + 0.75, y + i * cell + 0.75
                if text is not None:
                    said = str(int(text[i, j]))
                    self._text(
                        left + cell / 2 - 0.75,
                        top + cell / 2 + 2.8,
                        said,
                        size=9 if len(said) < 3 else 7,
                    )
                elif hue:
                    side = cell - 1.5
                    by_hue.setdefault(hue, []).append(
                        f"M{left:g} {top:g}h{side:g}v{side:g}h-{side:g}z"
                    )
        for hue, path in sorted(by_hue.items()):
            colour = MUTED if hue < 0 else HUES[hue - 1]
            self.shapes.append(f'<path fill="{colour}" d="{"".join(path)}"/>')

    def _arrow(self, x: float, y: float) -> None:
        self.shapes.append(
            f'<path d="M{x + 20:g} {y:g}H{x + 2:g}m6 -5l-6 5l6 5" fill="none" stroke="{INK}" '
            f'stroke-width="1.6" stroke-linecap="round" stroke-linejoin="round"/>'
        )

    def _text(self, x: float, y: float, text: str, *, anchor: str = "middle", size: float) -> None:
        self.shapes.append(
            f'<text x="{x:g}" y="{y:g}" text-anchor="{anchor}" font-size="{size}">'
            f"{escape(text)}</text>"
        )

    def svg(self, title: str) -> str:
        """The file."""
        width, height = self.right, self.bottom
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" '
            f'width="{width:g}" height="{height:g}" fill="{INK}" role="img" '
            f'font-family="system-ui, -apple-system, Segoe UI, Helvetica, Arial, sans-serif">\n'
            f"<title>{escape(title)}</title>\n" + "\n".join(self.shapes) + "\n</svg>\n"
        )
