"""An encoder of any type that ``transformers`` knows, as its ``AutoModel`` makes it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from hwbench import checkpoints as models
from hwbench.workloads._embeddings import Embedder
from hwbench.workloads._transformers import Pretrained


class Encoder(Pretrained, Embedder):
    """An encoder without its pooler: that reads the last hidden states, and nothing reads it."""

    AUTO = "AutoModel"
    UNUSED = ("pooler",)

    def __init__(self, model: Any, folder: Path) -> None:
        super().__init__(model, folder)
        self.pooling = models.pooling(folder)

    def states(self, ids: Tensor, mask: Tensor) -> list[Tensor]:
        output = self.model(input_ids=ids, attention_mask=mask.long(), output_hidden_states=True)
        return [*output.hidden_states[1:-1], output.last_hidden_state]
