"""A trained model with every linear layer replaced: how much of what it does is kept."""

from __future__ import annotations

from itertools import starmap
from operator import mul
from pathlib import Path

import torch
from msgspec.structs import replace
from torch import Tensor

from hwbench import checkpoints as models
from hwbench import quantities
from hwbench.devices._base import Device
from hwbench.errors import SuiteError, UnknownNameError, UsageError
from hwbench.formats._base import STEP, Format, Linear
from hwbench.quantities import Quantity
from hwbench.records import Case, Cost
from hwbench.workloads import _distill, _planned, _reading, _texts, _whole
from hwbench.workloads._base import (
    DTYPES,
    MANY,
    NONE,
    WEIGHTINGS,
    Subject,
    Workload,
    added,
    blind,
    generator,
    layer_format,
    layers_cost,
    project_seeing,
)

_CALLS, _WARM = 5, 2  # forward passes: their median is the latency; and untimed ones before them
_LATENCY_BATCH = 16  # sentences of one pass
_UNHEALED = {
    quantities.EMBEDDING_COSINE: quantities.UNHEALED_SCORE,
    quantities.PERPLEXITY: quantities.UNHEALED_PERPLEXITY,
}


class Compress(Workload):
    """Replace every linear layer of a trained model by its projection; the score is what it keeps.

    The model is all-MiniLM-L6-v2, or the one that ``model`` names: a folder, or NAME@COMMIT in the
    cache of the Hugging Face Hub. The score of an encoder is the mean cosine similarity of sentence
    embeddings to those of the original; that of a causal model its perplexity (lower is better,
    the first token of a sentence is not scored). Both are taken on held-out sentences.

    A seed draws three quarters of the held-out and of the calibration sentences, and orders the
    healing. Beside the score stand, for encoders, ``retrieval_agreement`` (the part of each
    sentence's three nearest that stays), for causal models ``original_perplexity``,
    ``perplexity_ratio`` and ``next_token_divergence``; the latency, bytes and parameters of the
    whole model; and, where it was healed, ``unhealed_score`` or ``unhealed_perplexity``.

    Encoders are judged without a teacher, too, on all held-out sentences, of which every two mean
    about the same: ``partner_top1`` and ``partner_mrr`` say how often and how early a sentence
    finds its partner, ``centred_lead`` how far the centred cosine to it is above the mean of those
    to the others. Their intervals are those of a bootstrap over pairs.

    Options: ``weighting`` (none; activations: columns count as much as the calibration text uses
    them; gram: the outputs on that text count, with all of XᵀX), ``heal`` (steps of distillation, 0
    for none), ``model``, ``plan`` (the file of a plan of ``hwbench choose``, which then says the
    format of each layer, how it is projected, and on which texts), ``text`` (sentences, or prose:
    passages of a book, which are longer), ``depth`` (for dense alone: the share of the blocks that
    are kept, the first ones) and ``seeds``. The shape of the case stands for the model's layers;
    the knobs are resolved for each of them.
    """

    SCORE = quantities.EMBEDDING_COSINE
    QUANTITIES = (
        *(quantities.RETRIEVAL_AGREEMENT, quantities.ORIGINAL_PERPLEXITY),
        *(quantities.PARTNER_TOP1, quantities.PARTNER_MRR, quantities.PARTNER_MRR_LOW),
        *(quantities.PARTNER_MRR_HIGH, quantities.CENTRED_LEAD, quantities.CENTRED_LEAD_LOW),
        *(quantities.CENTRED_LEAD_HIGH, quantities.PAIR_MRR, quantities.PAIR_LEADS),
        *(quantities.PERPLEXITY_RATIO, quantities.NEXT_TOKEN_DIVERGENCE),
        *(*_UNHEALED.values(), quantities.MODEL_SECONDS),
        *(quantities.MODEL_BYTES, quantities.MODEL_PARAMETERS),
    )
    OPTIONS = {  # noqa: RUF012 (declared in the base)
        "weighting": "none", "heal": 0, "model": "", "plan": "", "text": _texts.SENTENCES,
        "seeds": 1, "depth": 1.0,
    }  # fmt: skip
    LIMITS = {"heal": (0, MANY), "depth": (0, 1)}  # noqa: RUF012 (declared in the base)
    AXES = ()

    def check(self, case: Case) -> None:
        weighting = str(self.options(case)["weighting"])
        if weighting not in WEIGHTINGS:
            raise UnknownNameError("weighting", weighting, WEIGHTINGS)
        if (text := str(self.options(case)["text"])) not in _texts.TEXTS:
            raise UnknownNameError("text", text, _texts.TEXTS)
        options = self.options(case)
        _whole.check_depth(case, float(options["depth"]))
        if float(options["depth"]) < 1 and (options["heal"] or options["plan"]):
            raise SuiteError("depth goes with no healing and no plan.")

    def quantity(self, case: Case) -> Quantity:
        if not self._unreadable(case) and models.kind(self._folder(case)) == models.CAUSAL:
            return quantities.PERPLEXITY
        return self.SCORE

    def cost(self, case: Case, described: Format) -> Cost | None:
        """Parameters and bytes of all linear layers together, at rest."""
        if self._unreadable(case):
            return None
        if plan := self._plan(case):
            kinds = (replace(case, format=each.format, knobs=each.knobs) for each in plan.layers)
            costs = [
                layers_cost(kind, [each.shape])
                for kind, each in zip(kinds, plan.layers, strict=True)
            ]
            return added(costs)
        return layers_cost(case, self._shapes(case))

    def density(self, case: Case, described: Format) -> float:
        if not self._unreadable(case) and (plan := self._plan(case)):
            cost = self.cost(case, described)
            assert cost is not None
            return cost.parameters / sum(starmap(mul, (each.shape for each in plan.layers)))
        if self._unreadable(case) or float(self.options(case)["depth"]) == 1:
            return described.density()
        whole = _reading.reader(self._folder(case)).shapes(self._folder(case))
        return sum(starmap(mul, self._shapes(case))) / sum(starmap(mul, whole))

    def _shapes(self, case: Case) -> list[tuple[int, int]]:
        """The shapes of every linear layer that is kept."""
        folder, depth = self._folder(case), float(self.options(case)["depth"])
        shapes = _reading.reader(folder).shapes(folder)
        if depth == 1 or models.kind(folder) != models.BERT:
            return shapes
        blocks = int(models.config(folder)["num_hidden_layers"])
        return shapes[: len(shapes) // blocks * _whole.shorter(depth, blocks)]

    def unsupported(self, case: Case, described: Format, device: Device) -> str | None:
        if reason := self._unreadable(case):
            return reason
        if (
            float(self.options(case)["depth"]) < 1
            and models.kind(self._folder(case)) != models.BERT
        ):
            return "depth drops blocks of encoders of type bert; those of other models all stay."
        if reason := blind(described, str(self.options(case)["weighting"])):
            return reason
        if self.options(case)["heal"] and (reason := _reading.no_outputs(self._folder(case))):
            return reason
        direction = STEP if self.options(case)["heal"] else "forward"
        kind = device.torch_device.type
        return described.unsupported(kind, DTYPES[case.dtype], direction)

    def prepare(self, case: Case, described: Format, device: Device, seed: int) -> Subject:
        where, folder, options = device.torch_device, self._folder(case), self.options(case)
        text = str(options["text"])
        reader = _reading.reader(folder)
        original = reader.load(folder).to(where, DTYPES[case.dtype])
        (ids, mask), texts = (
            tuple(t.to(where) for t in reader.tokens(folder, _reading.drawn(lines, seed)))
            for lines in (_texts.calibration(text), _texts.held_out(text))
        )
        quantity, weighting = self.quantity(case), str(options["weighting"])
        depth = float(options["depth"])
        subject = Subject(step=lambda _: None, score_name=quantity.name)

        def project(weight: Tensor, activations: Tensor | None) -> Linear:
            described = layer_format(case, *weight.shape)
            return project_seeing(described, weight, activations, weighting).trust_versions()

        def score() -> float:
            if plan := self._plan(case):
                lines = _reading.drawn(_texts.calibration(plan.text), seed)
                seen = (t.to(where) for t in reader.tokens(folder, lines))
                with torch.no_grad():
                    student = _planned.converted(
                        original, plan, _distill.activations(original, *seen)
                    )
            else:
                inputs = None
                if weighting != NONE:
                    inputs = _distill.activations(original, ids, mask)
                with torch.no_grad():
                    student = _distill.compressed(original, project, inputs)
            with torch.no_grad():
                if depth < 1:
                    student.shorten(depth)
                kept, beside = original.judge(student, *texts)
            if steps := int(options["heal"]):
                subject.beside[_UNHEALED[quantity].name] = kept
                source = generator(device, seed, 7)
                _distill.heal(student, original, ids, mask, steps, source)
                with torch.no_grad():
                    kept, beside = original.judge(student, *texts)
            with torch.no_grad():
                batch = tuple(each[:_LATENCY_BATCH] for each in texts)
                seconds = _whole.latency(lambda: student(*batch), device, _CALLS, _WARM)
                whole = (t.to(where) for t in reader.tokens(folder, _texts.held_out()))
                pairs = original.paired(student, *whole)
            subject.beside |= {
                **beside,
                **pairs,
                quantities.MODEL_SECONDS.name: seconds,
                **_whole.size(student),
            }
            return kept

        subject.score = score
        return subject

    def _folder(self, case: Case) -> Path:
        return _reading.folder(str(self.options(case)["model"]))

    def _unreadable(self, case: Case) -> str | None:
        options = self.options(case)
        if reason := _reading.unreadable(str(options["model"])):
            return reason
        try:
            self._plan(case)
        except UsageError as error:
            return str(error)
        return None

    def _plan(self, case: Case) -> models.LayerPlan | None:
        """The case's plan of formats by layer; None without one."""
        path = str(self.options(case)["plan"])
        return models.layer_plan(Path(path)) if path else None
