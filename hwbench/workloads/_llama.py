"""A Llama in plain torch, read from the GGUF file of SmolLM2; nothing is executed.

Touvron et al., LLaMA, 2023, arXiv:2302.13971: RMSNorm (arXiv:1910.07467), rotary embeddings
(arXiv:2104.09864), grouped-query attention (arXiv:2305.13245) and SwiGLU (arXiv:2002.05202). The
logits come from the embeddings' weight. Modules have the names of the weights in Hugging Face's
layout.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any, Self

import torch
import torch.nn.functional as F  # noqa: N812 (the name that everybody knows)
from torch import Tensor, nn

from hwbench.checkpoints import smollm2
from hwbench.errors import UsageError


class Llama(nn.Module):
    """A decoder; its outputs are logits, (batch, tokens, vocabulary). Padding is on the right."""

    def __init__(self, config: smollm2.Config) -> None:
        super().__init__()
        self.config = config
        self.model: Any = nn.ModuleDict(
            {
                "embed_tokens": nn.Embedding(config.vocab_size, config.hidden_size),
                "layers": nn.ModuleList([_Layer(config) for _ in range(config.num_hidden_layers)]),
                "norm": nn.RMSNorm(config.hidden_size, config.rms_norm_eps),
            }
        )

    def embedded(self, ids: Tensor) -> Tensor:
        """The inputs of the first layer, (batch, tokens, hidden)."""
        return self.model["embed_tokens"](ids)

    def logits(self, last: Tensor) -> Tensor:
        """Logits of the last layer's output: (…, hidden) → (…, vocabulary)."""
        return F.linear(self.model["norm"](last), self.model["embed_tokens"].weight)

    def states(self, ids: Tensor, mask: Tensor) -> list[Tensor]:
        del mask  # no token looks to its right, where all padding is
        x, turned = self.embedded(ids), self._turned(ids.shape[1])
        outputs = []
        for layer in self.model["layers"]:
            x = layer(x, turned)
            outputs.append(x)
        return outputs

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Logits, (batch, tokens, vocabulary)."""
        return self.logits(self.states(ids, mask)[-1])

    def visited(self, ids: Tensor) -> Iterator[tuple[str, nn.Linear, Tensor]]:
        """Every linear layer with its inputs at these ids, one block of the model after another.

        Only the activations of one block exist at once.

        Args:
            ids: (texts, tokens), without padding.

        Yields:
            The name, the layer, and (texts · tokens, in_features): one tensor for all layers in a
            row that see the same.
        """
        x, turned = self.embedded(ids), self._turned(ids.shape[1])
        for place, block in enumerate(self.model["layers"]):
            inputs: dict[str, Tensor] = {}
            own = {n: m for n, m in block.named_modules() if isinstance(m, nn.Linear)}
            hooks = [m.register_forward_pre_hook(_keeper(inputs, n)) for n, m in own.items()]
            try:
                x = block(x, turned)
            finally:
                for hook in hooks:
                    hook.remove()
            for name, linear in own.items():
                yield f"model.layers.{place}.{name}", linear, inputs[name]

    def shorten(self, blocks: int) -> None:
        """Keep the first blocks alone."""
        self.model["layers"] = self.model["layers"][:blocks]

    def linears(self) -> dict[str, nn.Linear]:
        return {n: m for n, m in self.named_modules() if isinstance(m, nn.Linear)}

    def _turned(self, tokens: int) -> tuple[Tensor, Tensor]:
        """Cosines and sines of the rotary angles, (tokens, size of a head)."""
        weight = self.model["embed_tokens"].weight
        size = self.config.hidden_size // self.config.num_attention_heads
        steps = torch.arange(0, size, 2, device=weight.device, dtype=torch.float32) / size
        places = torch.arange(tokens, device=weight.device, dtype=torch.float32)
        angles = torch.outer(places, self.config.rope_theta**-steps).repeat(1, 2)
        return angles.cos().to(weight.dtype), angles.sin().to(weight.dtype)

    @classmethod
    def unreadable(cls, folder: Path) -> str | None:
        try:
            config = smollm2.config(folder)
        except UsageError as error:
            return str(error)
        sizes = (config.hidden_size, config.num_attention_heads, config.num_key_value_heads)
        if config.hidden_size % config.num_attention_heads or sizes[1] % sizes[2]:
            return f"{folder} has {sizes[1]} heads over {sizes[2]} of keys, of {sizes[0]} numbers."
        return None

    @classmethod
    def load(cls, folder: Path) -> Self:
        with torch.device("meta"):
            model = cls(smollm2.config(folder))
        tensors = {name: torch.from_numpy(values) for name, values in smollm2.weights(folder)}
        model.load_state_dict(tensors, assign=True)
        return model.eval().requires_grad_(False)

    @classmethod
    def shapes(cls, folder: Path) -> list[tuple[int, int]]:
        return list(_shapes(folder))

    @classmethod
    def blocks(cls, folder: Path) -> int:
        """How many blocks the model has."""
        return smollm2.config(folder).num_hidden_layers


@lru_cache(maxsize=4)
def _shapes(folder: Path) -> tuple[tuple[int, int], ...]:
    """The shape of every linear layer; planning asks for it once per case."""
    with torch.device("meta"):
        model = Llama(smollm2.config(folder))
    return tuple((m.out_features, m.in_features) for m in model.linears().values())


class _Layer(nn.Module):
    def __init__(self, config: smollm2.Config) -> None:
        super().__init__()
        hidden, inner = config.hidden_size, config.intermediate_size
        self.size = hidden // config.num_attention_heads
        keys = self.size * config.num_key_value_heads
        sides = {"q_proj": hidden, "k_proj": keys, "v_proj": keys, "o_proj": hidden}
        self.self_attn: Any = nn.ModuleDict(
            {name: nn.Linear(hidden, out, bias=False) for name, out in sides.items()}
        )
        self.mlp: Any = nn.ModuleDict(
            {
                "gate_proj": nn.Linear(hidden, inner, bias=False),
                "up_proj": nn.Linear(hidden, inner, bias=False),
                "down_proj": nn.Linear(inner, hidden, bias=False),
            }
        )
        self.input_layernorm = nn.RMSNorm(hidden, config.rms_norm_eps)
        self.post_attention_layernorm = nn.RMSNorm(hidden, config.rms_norm_eps)

    def forward(self, x: Tensor, turned: tuple[Tensor, Tensor]) -> Tensor:
        x = x + self._attended(self.input_layernorm(x), turned)
        normed, mlp = self.post_attention_layernorm(x), self.mlp
        return x + mlp["down_proj"](F.silu(mlp["gate_proj"](normed)) * mlp["up_proj"](normed))

    def _attended(self, x: Tensor, turned: tuple[Tensor, Tensor]) -> Tensor:
        q, k, v = (
            self.self_attn[name](x).unflatten(-1, (-1, self.size)).transpose(1, 2)
            for name in ("q_proj", "k_proj", "v_proj")
        )
        share = q.shape[1] // k.shape[1]  # heads that look at the same keys and values
        k, v = (each.repeat_interleave(share, dim=1) for each in (_rotated(k, turned), v))
        attended = F.scaled_dot_product_attention(_rotated(q, turned), k, v, is_causal=True)
        return self.self_attn["o_proj"](attended.transpose(1, 2).flatten(2))


def _rotated(x: Tensor, turned: tuple[Tensor, Tensor]) -> Tensor:
    """Each pair of numbers of a head, half a head apart, turned by the angle of its place."""
    first, second = x.chunk(2, dim=-1)
    return x * turned[0] + torch.cat((-second, first), dim=-1) * turned[1]


def _keeper(
    captured: dict[str, Tensor], name: str
) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
    def keep(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        rows = inputs[0].detach().flatten(0, -2)
        last = next(reversed(captured.values()), rows)
        same = last.data_ptr() == rows.data_ptr() and last.shape == rows.shape
        captured[name] = last if same else rows

    return keep


def encoded(file: Path, text: str) -> list[int]:
    """The ids of a text's tokens; none is put before it or after it."""
    ids: list[int] = _tokenizer(file).encode(text, add_special_tokens=False).ids
    return ids


@lru_cache(maxsize=1)
def _tokenizer(file: Path) -> Any:
    """Byte-level byte-pair encoding with every digit on its own, as SmolLM2 was trained with."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    tokens, merges = smollm2.vocabulary(file)
    pairs = [(left, right) for left, right in (merge.split(" ", 1) for merge in merges)]
    tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, pairs))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    return tokenizer
