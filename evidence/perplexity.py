"""Whether the perplexity of ``compress_lm`` is the one that transformers finds.

SmolLM2-135M is scored as the workload scores it, dense and in formats. The same matrices, the
projected ones as ``to_dense`` gives them, then go into transformers' ``LlamaForCausalLM``, and its
own loss is taken on the first of the same windows, in float32. Each line has both perplexities on
these windows, and the perplexity of all windows over that of the model as it was. Lines of
``--out`` are kept: a call that was broken off goes on where it stopped. Lines of other windows, or
of other code, are measured again.
"""

from __future__ import annotations

import argparse
import math
import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import _kept
import torch
from torch import Tensor

import hwbench
from hwbench.checkpoints import smollm2
from hwbench.devices.cpu import Cpu
from hwbench.formats._base import Linear
from hwbench.formats._gram import Seen
from hwbench.workloads import _decoding, _prose
from hwbench.workloads._base import WEIGHTINGS, project_seeing
from hwbench.workloads._decoding import Sight
from hwbench.workloads._llama import Llama, encoded

CASES = ("dense", "csr:0.5:none", "low_rank:0.5:gram")
"""Format, density and what the projection sees."""
AGREED = 1e-4
"""How far the two perplexities may be apart, of one of them."""


class Row(NamedTuple):
    """One case."""

    case: str
    ours: float
    theirs: float
    ratio: float  # on all windows, over the original

    def apart(self) -> float:
        """How far the two perplexities are apart, of transformers'."""
        return abs(self.ours - self.theirs) / self.theirs


def projection(case: str) -> tuple[Callable[[Tensor, Seen | None], Linear], str]:
    """The projection of a layer, and the inputs that it sees."""
    name, *rest = case.split(":")
    density = {"density": float(rest[0])} if rest else {}
    weighting = rest[1] if len(rest) > 1 else WEIGHTINGS[0]
    kind = hwbench.get_format(name)

    def project(weight: Tensor, seen: Seen | None) -> Linear:
        described = kind.from_knobs(*weight.shape, **density)
        return project_seeing(described, weight, seen, weighting)

    return project, weighting


def transformers_nats(original: Llama, matrices: dict[str, Tensor], windows: Tensor) -> list[float]:
    """Nats a token of each window, by transformers' own loss.

    Args:
        original: where configuration, embeddings and norms come from.
        matrices: of every inner linear layer, by its name.
        windows: token ids, (windows, tokens).
    """
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = original.config
    config = LlamaConfig(
        **{name: getattr(sizes, name) for name in sizes._fields if name != "rope_theta"},
        rope_parameters={"rope_type": "default", "rope_theta": sizes.rope_theta},
        tie_word_embeddings=True,
    )
    model = LlamaForCausalLM(config).eval()
    values = {**original.state_dict(), **{f"{name}.weight": w for name, w in matrices.items()}}
    values["lm_head.weight"] = values["model.embed_tokens.weight"]
    model.load_state_dict(values)
    with torch.no_grad():
        return [float(model(input_ids=x, labels=x).loss) for x in windows.split(1)]


def measured(case: str, windows: int, checked: int) -> Row:
    """Both perplexities of one case, on the first of the windows that are scored."""
    project, weighting = projection(case)
    file = smollm2.path()
    original = Llama.load(file)
    dense: list[Tensor] = []

    def keeping(weight: Tensor, seen: Seen | None) -> Linear:
        layer = project(weight, seen)
        dense.append(layer.to_dense().detach())
        return layer

    with torch.no_grad(), tempfile.TemporaryDirectory() as folder:
        result = _decoding.kept(
            file, keeping, Sight(weighting, 16), windows, Cpu(), Path(folder) / "blocks"
        )
    matrices: dict[str, Any] = dict(zip(original.linears(), dense, strict=True))
    ids = _prose.windows(partial(encoded, file), "evaluation", windows)[:checked]
    theirs = transformers_nats(original, matrices, ids)
    ours, before, after = map(fmean, (result.nats[:checked], result.original_nats, result.nats))
    return Row(case, math.exp(ours), math.exp(fmean(theirs)), math.exp(after - before))


def rows_of(cases: Sequence[str], windows: int, checked: int, out: Path) -> Iterator[Row]:
    """The rows of these cases; what ``out`` holds already is not measured again."""
    settings = {"windows": windows, "checked": checked}
    stored = {each["case"]: Row(**each) for each in _kept.rows(out, __file__, settings)}
    print(_kept.told(out, sum(case in stored for case in cases), len(cases)), flush=True)
    for case in cases:
        if case not in stored:
            stored[case] = measured(case, windows, checked)
            _kept.keep(out, __file__, settings, [stored[case]._asdict()])
        yield stored[case]


def main() -> None:
    """Measure what is missing, print a line for each case, and fail where the two disagree."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cases", nargs="*", default=CASES, help="FORMAT:DENSITY:WEIGHTING")
    parser.add_argument("--windows", type=int, default=32, help="that are scored")
    parser.add_argument("--checked", type=int, default=8, help="… of which transformers scores")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, default=Path("perplexity.jsonl"))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows = []
    for row in rows_of(options.cases, options.windows, options.checked, options.out):
        rows.append(row)
        print(
            f"{row.case}: {row.ours:.6g}, by transformers {row.theirs:.6g}, apart "
            f"{row.apart():.1e}; on all windows {row.ratio:.4g} times the original",
            flush=True,
        )
    if worst := [row.case for row in rows if row.apart() > AGREED]:
        raise SystemExit(f"{', '.join(worst)}: the perplexities are more than {AGREED:g} apart.")


if __name__ == "__main__":
    main()
