"""A causal language model, through ``transformers``."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Self

import torch
import torch.nn.functional as F  # noqa: N812 (the name that everybody knows)
from torch import Tensor, nn

from hwbench.errors import first_line, shortened
from hwbench.quantities import NEXT_TOKEN_DIVERGENCE, ORIGINAL_PERPLEXITY, PERPLEXITY_RATIO
from hwbench.workloads._likelihood import WORST, perplexity
from hwbench.workloads._models import Model
from hwbench.workloads._transformers import Pretrained

_AT_ONCE = 4  # texts at a time: the logits of two models exist for each
_TRIED = 5  # tokens at which logits of the last states are held against the model's own
_OWN, _HEAD = "own", "head"  # how logits come from the last states


class Causal(Pretrained):
    """A model that predicts the next token; its outputs are logits, (batch, tokens, vocabulary).

    What makes the logits of the last states stays as it is: the layer that does so mostly shares
    its weight with the embeddings, and a layer before it changes no state.
    """

    AUTO = "AutoModelForCausalLM"

    def __init__(self, model: Any, folder: Path) -> None:
        super().__init__(model, folder)
        self._folder = folder
        self._by = ""
        self._unlike = "they were not held against its own"

    @classmethod
    def load(cls, folder: Path) -> Self:
        loaded = super().load(folder)
        loaded.find_outputs()
        return loaded

    def linears(self) -> dict[str, nn.Linear]:
        """The linear layers that the states pass through."""
        inner = {id(each) for each in self.model.base_model.modules()}
        return {name: each for name, each in super().linears().items() if id(each) in inner}

    def states(self, ids: Tensor, mask: Tensor) -> list[Tensor]:
        output = (
            self.model.base_model(  # without the logits, which are most of a small model's work
                input_ids=ids,
                attention_mask=mask.long(),
                output_hidden_states=True,
                use_cache=False,
            )
        )
        hidden = output.hidden_states
        # A model without an inner one gives logits in the place of its last states.
        return [*hidden[1:-1], getattr(output, "last_hidden_state", hidden[-1])]

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Logits, (batch, tokens, vocabulary)."""
        return self.model(input_ids=ids, attention_mask=mask.long(), use_cache=False).logits

    def logits(self, states: Tensor) -> Tensor:
        """Logits, (tokens, vocabulary), of last states, (tokens, hidden); see ``no_outputs``.

        The model's own code makes them: many types scale or cap what their head gives.
        """
        if self._by == _HEAD:
            return self.model.get_output_embeddings()(states)
        inner, given = self.model.base_model, _Given((states.unsqueeze(0),))
        inner.forward = lambda *_, **__: given
        try:
            ids = torch.zeros(1, len(states), dtype=torch.int64, device=states.device)
            return self.model(input_ids=ids, use_cache=False).logits[0]
        finally:
            del inner.forward  # the method of the class is back

    def no_outputs(self) -> str | None:
        if self._by:
            return None
        return (
            f"The logits of the model in {self._folder} cannot be had from its last states alone "
            f"({self._unlike}), so what happens to the next token is not known."
        )

    @torch.no_grad()
    def find_outputs(self) -> None:
        """Find how the logits come from the last states: by what gives the model's own logits."""
        ids = torch.arange(_TRIED).remainder(self.vocabulary()).unsqueeze(0)
        mask = torch.ones_like(ids, dtype=torch.bool)
        exact, last = self(ids, mask)[0], self.states(ids, mask)[-1][0]
        near = float(torch.finfo(exact.dtype).eps ** 0.5 * exact.abs().max())
        reasons = []
        for by in (_OWN, _HEAD):
            self._by = by
            try:
                apart = float((self.logits(last) - exact).abs().max())
            except Exception as error:  # noqa: BLE001 (the boundary: others' code given our states)
                reasons.append(shortened(first_line(error)))
                continue
            if apart <= near:
                return
            reasons.append(
                f"off by {apart:.2g} where the largest is {float(exact.abs().max()):.2g}"
            )
        self._by, self._unlike = "", "; ".join(dict.fromkeys(reasons))

    def apart(self, ours: Tensor, target: Tensor, mask: Tensor) -> Tensor:
        """The divergence of the next token's distribution from the wanted one, in nats."""
        logs, targets = (F.log_softmax(self.logits(each[mask]), -1) for each in (ours, target))
        return F.kl_div(logs, targets, log_target=True, reduction="batchmean")

    def judge(self, student: Model, ids: Tensor, mask: Tensor) -> tuple[float, dict[str, float]]:
        """The student's perplexity; beside it this model's own, their ratio, and the divergence.

        The divergence is of the next token's distribution from this model's, in nats a token.
        """
        before, after = (perplexity(each(ids, mask), ids, mask) for each in (self, student))
        return after, {
            ORIGINAL_PERPLEXITY.name: before,
            PERPLEXITY_RATIO.name: after / before,
            NEXT_TOKEN_DIVERGENCE.name: self._diverged(student, ids, mask),
        }

    def _diverged(self, student: Model, ids: Tensor, mask: Tensor) -> float:
        total = 0.0
        for some, own in zip(ids.split(_AT_ONCE), mask.split(_AT_ONCE), strict=True):
            target, obtained = (F.log_softmax(each(some, own)[own], -1) for each in (self, student))
            lost = F.kl_div(obtained, target, reduction="sum", log_target=True)
            total += float(lost.nan_to_num(WORST, WORST))
        return max(0.0, total / int(mask.sum()))


class _Given(tuple[Tensor, ...]):
    """What the inner model gives, where its last states are given and nothing else is."""

    __slots__ = ()

    @property
    def last_hidden_state(self) -> Tensor:
        return self[0]

    def __getattr__(self, name: str) -> None:
        if name.startswith("__"):
            raise AttributeError(name)
