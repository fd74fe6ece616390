"""A trained encoder with every linear layer replaced: how much of its embeddings is kept."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from hwbench import plugins
from hwbench.devices._base import Device
from hwbench.errors import UnknownNameError
from hwbench.formats._base import STEP, Format, Linear
from hwbench.records import ITEM_BYTES, Case, Cost, Quantity
from hwbench.workloads import _distill, _encoder, _texts, _trained
from hwbench.workloads._base import DTYPES, Subject, Workload, generator

WEIGHTINGS = ("none", "activations")
_SHARE = 0.75  # of the texts belong to one seed
_CALLS = 5  # forward passes of which the median is the model's latency
_LATENCY_BATCH = 16


class Compress(Workload):
    """Replace every linear layer of all-MiniLM-L6-v2 by its projection; the score is cosine.

    The score is the mean cosine similarity of sentence embeddings to those of the original, on
    held-out sentences. A seed draws three quarters of the held-out and of the calibration
    sentences, and orders the healing. Beside it: ``retrieval_agreement`` (the part of each
    sentence's three nearest that stays), the latency, bytes and parameters of the whole model,
    and, where it was healed, ``unhealed_score``.

    Options: ``weighting`` (none, or activations: columns count as much as the calibration text
    uses them), ``heal`` (steps of distillation, 0 for none), ``model`` (the folder of another
    encoder of type 'bert' with config.json, model.safetensors and tokenizer.json) and ``seeds``.
    The shape of the case stands for the model's layers; the knobs are resolved for each of them.
    """

    TIMED = False
    SCORE = Quantity(name="embedding_cosine", unit="", better="higher")
    OPTIONS = {"weighting": "none", "heal": 0, "model": "", "seeds": 1}  # noqa: RUF012 (declared in the base)
    AXES = ()

    def cost(self, case: Case, described: Format) -> Cost | None:
        """Parameters and bytes of all linear layers together, at rest."""
        if self._unreadable(case):
            return None
        item = ITEM_BYTES[case.dtype]
        each = [
            _resized(described, case, *shape).cost(0, item, "forward")
            for shape in _encoder.shapes(self._folder(case))
        ]
        parts = ("parameters", "stored_bytes", "flops", "dense_flops", "compulsory_bytes")
        return Cost(**{part: sum(getattr(cost, part) for cost in each) for part in parts})

    def unsupported(self, case: Case, described: Format, device: Device) -> str | None:
        options = self.options(case)
        if options["weighting"] not in WEIGHTINGS:
            raise UnknownNameError("weighting", str(options["weighting"]), WEIGHTINGS)
        if reason := self._unreadable(case):
            return reason
        direction = STEP if options["heal"] else "forward"
        kind = device.torch_device.type
        return described.unsupported(kind, DTYPES[case.dtype], direction)

    def prepare(self, case: Case, described: Format, device: Device, seed: int) -> Subject:
        where = device.torch_device
        folder = self._folder(case)
        original = _encoder.load(folder).to(where, DTYPES[case.dtype])
        calibration = _drawn(_texts.calibration(), seed)
        ids, mask = (t.to(where) for t in _encoder.tokens(folder, calibration))
        texts = tuple(t.to(where) for t in _encoder.tokens(folder, _drawn(_texts.held_out(), seed)))
        subject = Subject(step=lambda _: None, score_name=self.SCORE.name)
        options = self.options(case)
        steps = int(options["heal"])

        def project(weight: Tensor, activations: Tensor | None) -> Linear:
            return _resized(described, case, *weight.shape).project(weight, activations=activations)

        def score() -> float:
            seen = None
            if options["weighting"] == "activations":
                seen = _distill.activations(original, ids, mask)
            with torch.no_grad():
                student = _distill.compressed(original, project, seen)
                wanted = original(*texts)
                kept = _cosine(student(*texts), wanted)
            if steps:
                subject.beside["unhealed_score"] = kept
                source = generator(device, seed, 7)
                _distill.heal(student, original, ids, mask, steps, source)
            with torch.no_grad():
                found = student(*texts)
                subject.beside |= {
                    "retrieval_agreement": _distill.agreement(found, wanted),
                    "model_seconds": _latency(student, texts, device),
                    **_size(student),
                }
                return _cosine(found, wanted)

        subject.score = score
        return subject

    def _folder(self, case: Case) -> Path:
        model = str(self.options(case)["model"])
        return Path(model).expanduser() if model else _trained.folder()

    def _unreadable(self, case: Case) -> str | None:
        if not self.options(case)["model"]:
            return _trained.missing() or _trained.no_package("tokenizers")
        reason = _trained.no_package("safetensors") or _trained.no_package("tokenizers")
        return reason or _encoder.unreadable(self._folder(case))


def _resized(described: Format, case: Case, out_features: int, in_features: int) -> Format:
    """The format of one layer, resolved from the knobs as they were written."""
    del described
    kind = plugins.load("formats", case.format, Format)
    return kind.from_knobs(out_features, in_features, **case.knobs)


def _drawn(texts: list[str], seed: int) -> list[str]:
    """The texts of a seed, in their order."""
    source = torch.Generator().manual_seed(seed)
    count = round(_SHARE * len(texts))
    picked = torch.randperm(len(texts), generator=source)[:count]
    return [texts[i] for i in sorted(picked.tolist())]


def _cosine(found: Tensor, wanted: Tensor) -> float:
    return float((found.double() * wanted.double()).sum(-1).mean())


def _latency(model: _encoder.Encoder, texts: tuple[Tensor, ...], device: Device) -> float:
    """Seconds of one forward pass of sixteen sentences: the median of a few, after two."""
    batch = tuple(t[:_LATENCY_BATCH] for t in texts)
    times = []
    for _ in range(_CALLS + 2):
        start = device.mark()
        model(*batch)
        times.append(device.seconds(start, device.mark()))
    return sorted(times[2:])[_CALLS // 2]


def _size(model: _encoder.Encoder) -> dict[str, float]:
    """Parameters and bytes of the whole model, embeddings included."""
    held = [*model.parameters(), *model.buffers()]
    return {
        "model_parameters": float(sum(p.numel() for p in model.parameters())),
        "model_bytes": float(sum(t.numel() * t.element_size() for t in held)),
    }
