"""A trained model with every linear layer replaced: how much of what it does is kept."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from hwbench import checkpoints as models
from hwbench import quantities
from hwbench.devices._base import Device
from hwbench.errors import UnknownNameError, UsageError
from hwbench.formats._base import STEP, Format, Linear
from hwbench.quantities import Quantity
from hwbench.records import Case, Cost
from hwbench.workloads import _distill, _texts, _trained
from hwbench.workloads._base import DTYPES, Subject, Workload, generator, layer_format, layers_cost
from hwbench.workloads._bert import Bert
from hwbench.workloads._causal import Causal
from hwbench.workloads._encoder import Encoder
from hwbench.workloads._models import Model

WEIGHTINGS = ("none", "activations")
_SHARE = 0.75  # of the texts belong to one seed
_CALLS = 5  # forward passes of which the median is the model's latency
_LATENCY_BATCH = 16
_UNHEALED = {
    quantities.EMBEDDING_COSINE: quantities.UNHEALED_SCORE,
    quantities.PERPLEXITY: quantities.UNHEALED_PERPLEXITY,
}
_READERS: dict[str, type[Model]] = {
    models.BERT: Bert,
    models.ENCODER: Encoder,
    models.CAUSAL: Causal,
}


class Compress(Workload):
    """Replace every linear layer of a trained model by its projection; the score is what it keeps.

    The model is all-MiniLM-L6-v2, or the one that ``model`` names: a folder, or NAME@COMMIT in the
    cache of the Hugging Face Hub. The score of an encoder is the mean cosine similarity of sentence
    embeddings to those of the original; that of a causal model its perplexity (lower is better,
    the first token of a sentence is not scored). Both are taken on held-out sentences.

    A seed draws three quarters of the held-out and of the calibration sentences, and orders the
    healing. Beside the score stand, for encoders, ``retrieval_agreement`` (the part of each
    sentence's three nearest that stays), for causal models ``original_perplexity`` and
    ``perplexity_ratio``; the latency, bytes and parameters of the whole model; and, where it was
    healed, ``unhealed_score`` or ``unhealed_perplexity``.

    Options: ``weighting`` (none, or activations: columns count as much as the calibration text
    uses them), ``heal`` (steps of distillation, 0 for none), ``model`` and ``seeds``. The shape of
    the case stands for the model's layers; the knobs are resolved for each of them.
    """

    SCORE = quantities.EMBEDDING_COSINE
    QUANTITIES = (
        *(quantities.RETRIEVAL_AGREEMENT, quantities.ORIGINAL_PERPLEXITY),
        *(quantities.PERPLEXITY_RATIO, *_UNHEALED.values(), quantities.MODEL_SECONDS),
        *(quantities.MODEL_BYTES, quantities.MODEL_PARAMETERS),
    )
    OPTIONS = {"weighting": "none", "heal": 0, "model": "", "seeds": 1}  # noqa: RUF012 (declared in the base)
    AXES = ()

    def check(self, case: Case) -> None:
        weighting = str(self.options(case)["weighting"])
        if weighting not in WEIGHTINGS:
            raise UnknownNameError("weighting", weighting, WEIGHTINGS)

    def quantity(self, case: Case) -> Quantity:
        if not self._unreadable(case) and models.kind(self._folder(case)) == models.CAUSAL:
            return quantities.PERPLEXITY
        return self.SCORE

    def cost(self, case: Case, described: Format) -> Cost | None:
        """Parameters and bytes of all linear layers together, at rest."""
        if self._unreadable(case):
            return None
        folder = self._folder(case)
        return layers_cost(case, _reader(folder).shapes(folder))

    def unsupported(self, case: Case, described: Format, device: Device) -> str | None:
        if reason := self._unreadable(case):
            return reason
        direction = STEP if self.options(case)["heal"] else "forward"
        kind = device.torch_device.type
        return described.unsupported(kind, DTYPES[case.dtype], direction)

    def prepare(self, case: Case, described: Format, device: Device, seed: int) -> Subject:
        where, folder, options = device.torch_device, self._folder(case), self.options(case)
        reader = _reader(folder)
        original = reader.load(folder).to(where, DTYPES[case.dtype])
        (ids, mask), texts = (
            tuple(t.to(where) for t in reader.tokens(folder, _drawn(lines, seed)))
            for lines in (_texts.calibration(), _texts.held_out())
        )
        quantity = self.quantity(case)
        subject = Subject(step=lambda _: None, score_name=quantity.name)

        def project(weight: Tensor, activations: Tensor | None) -> Linear:
            described = layer_format(case, *weight.shape)
            return described.project(weight, activations=activations).trust_versions()

        def score() -> float:
            seen = None
            if options["weighting"] == "activations":
                seen = _distill.activations(original, ids, mask)
            with torch.no_grad():
                student = _distill.compressed(original, project, seen)
                kept, beside = original.judge(student, *texts)
            if steps := int(options["heal"]):
                subject.beside[_UNHEALED[quantity].name] = kept
                source = generator(device, seed, 7)
                _distill.heal(student, original, ids, mask, steps, source)
                with torch.no_grad():
                    kept, beside = original.judge(student, *texts)
            with torch.no_grad():
                seconds = _latency(student, texts, device)
            subject.beside |= {**beside, quantities.MODEL_SECONDS.name: seconds, **_size(student)}
            return kept

        subject.score = score
        return subject

    def _folder(self, case: Case) -> Path:
        model = str(self.options(case)["model"])
        return models.folder(model) if model else _trained.folder()

    def _unreadable(self, case: Case) -> str | None:
        if not self.options(case)["model"]:
            return _trained.missing() or models.no_package("tokenizers")
        try:
            folder = self._folder(case)
        except UsageError as error:  # no such folder or name on this machine
            return str(error)
        return (
            models.unreadable(folder)
            or models.missing(folder)
            or _reader(folder).unreadable(folder)
        )


def _reader(folder: Path) -> type[Model]:
    """The class that reads the model of this folder."""
    return _READERS[models.kind(folder)]


def _drawn(texts: list[str], seed: int) -> list[str]:
    """The texts of a seed, in their order."""
    source = torch.Generator().manual_seed(seed)
    count = round(_SHARE * len(texts))
    picked = torch.randperm(len(texts), generator=source)[:count]
    return [texts[i] for i in sorted(picked.tolist())]


def _latency(model: Model, texts: tuple[Tensor, ...], device: Device) -> float:
    """Seconds of one forward pass of sixteen sentences: the median of a few, after two."""
    batch = tuple(t[:_LATENCY_BATCH] for t in texts)
    times = []
    for _ in range(_CALLS + 2):
        start = device.mark()
        model(*batch)
        times.append(device.seconds(start, device.mark()))
    return sorted(times[2:])[_CALLS // 2]


def _size(model: Model) -> dict[str, float]:
    """Parameters and bytes of the whole model, embeddings included."""
    held = [*model.parameters(), *model.buffers()]
    return {
        quantities.MODEL_PARAMETERS.name: float(sum(p.numel() for p in model.parameters())),
        quantities.MODEL_BYTES.name: float(sum(t.numel() * t.element_size() for t in held)),
    }
