"""A trained decoder with every inner linear layer replaced: how well it still predicts a text."""

from __future__ import annotations

import inspect
import platform
import statistics
from itertools import starmap
from operator import mul
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hwbench import environment, quantities
from hwbench.analysis import blocks
from hwbench.checkpoints import smollm2
from hwbench.devices._base import Device
from hwbench.errors import UnknownNameError
from hwbench.formats._base import FORWARD, Format, Linear
from hwbench.formats._gram import Seen
from hwbench.records import Case, Cost
from hwbench.workloads import _decoding, _packaged, _whole
from hwbench.workloads._base import (
    DTYPES,
    WEIGHTINGS,
    Subject,
    Workload,
    blind,
    layer_format,
    layers_cost,
    project_seeing,
)
from hwbench.workloads._decoding import Kept, Sight
from hwbench.workloads._likelihood import of_nats
from hwbench.workloads._llama import Llama

CODE = (
    *("formats/*.py", "checkpoints/smollm2.py", "data/alice29.txt"),
    *(
        f"workloads/{name}.py"
        for name in (
            *("_base", "_blocks", "_converted", "_decoding", "_likelihood", "_llama", "_own"),
            *("_prose", "_whole"),
        )
    ),
    "workloads/compress_lm.py",
)
"""The files of hwbench that decide a score."""
MOST = 64
"""Windows of either part of the text."""
FEWEST = 8


class CompressLm(Workload):
    """Replace every inner linear layer of SmolLM2-135M by its projection; the score is perplexity.

    The text is Alice's Adventures in Wonderland, in windows of 256 tokens: projections see windows
    of the first six chapters, scores are taken on windows of the last six. The embeddings, whose
    weight also makes the logits, stay as they are.

    Beside the score stand the original's perplexity, the ratio of both with its interval over
    windows (``perplexity_ratio_low`` and ``_high``), ``next_token_divergence`` and
    ``top1_agreement``, a value a window, as are ``window_nats``; seconds of a pass of one window by
    the layers' own kernels, bytes and parameters of the whole model, and ``kernel_logits_error``,
    by how much the logits of these kernels differ from those of Ŵ on one window.

    The weights lie on a grid of 4 bits, so formats of 4 bits are better judged on another model.
    Scores are kept by all that they follow from; what is kept is not measured again.

    Options: ``weighting`` (as in ``compress``), ``calibration`` and ``windows``, how many windows
    the projections see and how many are scored, and ``depth``, for dense alone: the share of the
    blocks that the model keeps, the first ones. The shape of the case stands for the layers of the
    model; the knobs are resolved for each of them.
    """

    SCORE = quantities.PERPLEXITY
    QUANTITIES = (
        *(quantities.ORIGINAL_PERPLEXITY, quantities.PERPLEXITY_RATIO),
        *(quantities.PERPLEXITY_RATIO_LOW, quantities.PERPLEXITY_RATIO_HIGH),
        *(quantities.NEXT_TOKEN_DIVERGENCE, quantities.TOP1_AGREEMENT, quantities.WINDOW_NATS),
        *(quantities.KERNEL_LOGITS_ERROR, quantities.MODEL_SECONDS),
        *(quantities.MODEL_BYTES, quantities.MODEL_PARAMETERS),
    )
    OPTIONS = {"weighting": "none", "calibration": 16, "windows": 32, "depth": 1.0}  # noqa: RUF012 (declared in the base)
    LIMITS = {"calibration": (1, MOST), "windows": (FEWEST, MOST), "depth": (0, 1)}  # noqa: RUF012 (declared in the base)
    AXES = ()

    def check(self, case: Case) -> None:
        options = self.options(case)
        if options["weighting"] not in WEIGHTINGS:
            raise UnknownNameError("weighting", str(options["weighting"]), WEIGHTINGS)
        _whole.check_depth(case, float(options["depth"]))

    def cost(self, case: Case, described: Format) -> Cost | None:
        """Parameters and bytes of all inner linear layers together, at rest."""
        if smollm2.missing():
            return None
        return layers_cost(case, self._shapes(case))

    def density(self, case: Case, described: Format) -> float:
        if smollm2.missing() or float(self.options(case)["depth"]) == 1:
            return described.density()
        whole, remaining = Llama.shapes(smollm2.path()), self._shapes(case)
        return sum(starmap(mul, remaining)) / sum(starmap(mul, whole))

    def _shapes(self, case: Case) -> list[tuple[int, int]]:
        """The shapes of every inner linear layer that is kept."""
        shapes, blocks = Llama.shapes(smollm2.path()), Llama.blocks(smollm2.path())
        remaining = _whole.shorter(float(self.options(case)["depth"]), blocks)
        return shapes[: len(shapes) // blocks * remaining]

    def unsupported(self, case: Case, described: Format, device: Device) -> str | None:
        if reason := smollm2.missing() or Llama.unreadable(smollm2.path()):
            return reason
        if case.dtype != "float32":
            return f"compress_lm scores in float32, not in {case.dtype}."
        if reason := blind(described, str(self.options(case)["weighting"])):
            return reason
        return described.unsupported(device.torch_device.type, DTYPES[case.dtype], FORWARD)

    def prepare(self, case: Case, described: Format, device: Device, seed: int) -> Subject:
        options, subject = self.options(case), Subject(step=lambda _: None)
        subject.score_name = quantities.PERPLEXITY.name
        weighting = str(options["weighting"])

        def project(weight: Tensor, inputs: Seen | None) -> Linear:
            described = layer_format(case, *weight.shape)
            return project_seeing(described, weight, inputs, weighting).trust_versions()

        def score() -> float:
            file = self._file(case, described, device)
            result = _read(file)
            if result is None:
                with torch.no_grad():
                    result = _decoding.kept(
                        smollm2.path(),
                        project,
                        Sight(weighting, int(options["calibration"])),
                        int(options["windows"]),
                        device,
                        environment.cache_folder() / "projections" / file.stem,
                        float(options["depth"]),
                    )
                environment.keep(file, result._asdict())
            subject.score_seconds = result.score_seconds
            subject.beside |= _beside(result)
            return of_nats(statistics.fmean(result.nats))

        subject.score = score
        return subject

    def _file(self, case: Case, described: Format, device: Device) -> Path:
        facts: dict[str, Any] = {
            "model": smollm2.content(smollm2.path()),
            "format": case.format,
            "knobs": case.knobs,
            "options": self.options(case),
            "code": _packaged.code(inspect.getsourcefile(type(described)) or "", CODE),
            "torch": torch.__version__,
            "machine": [
                *(platform.node(), platform.machine(), device.torch_device.type),
                *(case.dtype, torch.get_num_threads()),
            ],
        }
        return _packaged.file_of(facts)


def _beside(result: Kept) -> dict[str, float | list[float]]:
    """The quantities beside the score, by their names."""
    before, after = (statistics.fmean(each) for each in (result.original_nats, result.nats))
    ratio = blocks.log_ratio(result.nats, result.original_nats)
    return {
        quantities.ORIGINAL_PERPLEXITY.name: of_nats(before),
        quantities.PERPLEXITY_RATIO.name: of_nats(after - before),
        quantities.KERNEL_LOGITS_ERROR.name: result.kernel_error,
        quantities.MODEL_SECONDS.name: result.seconds,
        quantities.PERPLEXITY_RATIO_LOW.name: of_nats(ratio.low),
        quantities.PERPLEXITY_RATIO_HIGH.name: of_nats(ratio.high),
        quantities.NEXT_TOKEN_DIVERGENCE.name: result.divergence,
        quantities.TOP1_AGREEMENT.name: result.agreement,
        quantities.WINDOW_NATS.name: result.nats,
        **result.sizes,
    }


def _read(file: Path) -> Kept | None:
    """Reads the kept scores; None where there is no file, or another program's."""
    stored = environment.kept(file)
    if set(stored) != set(Kept._fields):
        return None
    windows = [stored[name] for name in ("nats", "original_nats", "divergence", "agreement")]
    if not all(isinstance(each, list) and len(each) >= FEWEST for each in windows):
        return None
    if not isinstance(stored["sizes"], dict) or len({len(each) for each in windows}) > 1:
        return None
    numbers = [stored[name] for name in ("kernel_error", "seconds", "score_seconds")]
    numbers += [*stored["sizes"].values(), *(value for each in windows for value in each)]
    return Kept(**stored) if all(map(_packaged.is_amount, numbers)) else None
