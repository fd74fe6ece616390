"""What linear layers a model has, by what its config.json says; one function an architecture.

Shapes are (out_features, in_features), as torch stores them. Queries, keys and values, and gate and
up, stand apart where the checkpoint keeps them apart. The product with the embeddings at the end,
the head, is a linear layer, tied or not; normalisation, convolutions and lookups are none.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from hwbench.errors import UnknownNameError, UsageError, shortened
from hwbench.records import Knob

DECODE, PREFILL, TRAIN = "decode", "prefill", "train"
REGIMES = (DECODE, PREFILL, TRAIN)

TEXT: Mapping[str, tuple[int, ...]] = {
    DECODE: (1, 8, 64),
    PREFILL: (512, 2048, 8192),
    TRAIN: (4096,),
}
"""Tokens at once, by regime, of a model that writes text."""


@dataclass(frozen=True)
class Layer:
    """Linear layers of one shape.

    One token passes through ``count`` of them. ``shipped`` is a format with its knobs where the
    model stores the layer as a product of smaller ones.
    """

    names: tuple[str, ...]
    out_features: int
    in_features: int
    count: int
    tokens: Mapping[str, tuple[int, ...]] = field(default_factory=lambda: TEXT)
    shipped: Mapping[str, Knob] | None = None
    note: str = ""


class Config:
    """Reads the values of a config.json by name."""

    def __init__(self, settings: Mapping[str, Any], where: str) -> None:
        self.settings, self.where = settings, where

    def size(self, name: str, default: int | None = None, *, least: int = 1) -> int:
        """A whole number, by default one above zero.

        Raises:
            UsageError: it is absent and has no default, or is something else.
        """
        value = self.settings.get(name)
        if value is None and default is not None:
            return default
        if value is None:
            raise UsageError(f"{self.where} does not say {name}, which its layers follow from.")
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= 2**24:
            raise UsageError(
                f"{name} in {self.where} must be a whole number between {least} and {2**24}, "
                f"not {shortened(repr(value))}."
            )
        return value

    def places(self, name: str) -> list[int]:
        """Which layers of the depth are meant; none where nothing is said.

        Raises:
            UsageError: it is no list of whole numbers.
        """
        value = self.settings.get(name) or []
        if not isinstance(value, list) or not all(type(each) is int for each in value):
            raise UsageError(
                f"{name} in {self.where} must be a list of whole numbers, "
                f"not {shortened(repr(value))}."
            )
        return value


def layers(settings: Mapping[str, Any], where: str = "config.json") -> list[Layer]:
    """The linear layers of the model that a config.json describes.

    Args:
        settings: the JSON object, as transformers or diffusers write it.
        where: the file's name, for errors.

    Raises:
        UsageError: the architecture is not known, or a value that it needs is absent or wrong.
    """
    kind = settings.get("model_type") or settings.get("_class_name")
    if not isinstance(kind, str):
        raise UsageError(f"{where} names no model_type; hwbench cannot tell its layers.")
    if kind not in _ARCHITECTURES:
        raise UnknownNameError(f"architecture in {where}:", kind, _ARCHITECTURES)
    if kind in _WRAPPED:
        inner = settings.get("text_config")
        if not isinstance(inner, Mapping):
            raise UsageError(f"{where} of type {kind} holds no text_config.")
        settings = {"vocab_size": settings.get("vocab_size"), **inner}
    return _merged(_ARCHITECTURES[kind](Config(settings, where)))


def _merged(unmerged: list[Layer]) -> list[Layer]:
    """Layers of the same shape, tokens and storage as one, with their counts added."""
    by_sides: dict[Any, Layer] = {}
    for each in unmerged:
        key = (
            each.out_features, each.in_features, repr(sorted(each.tokens.items())),
            repr(each.shipped),
        )  # fmt: skip
        if key in by_sides:
            before = by_sides[key]
            by_sides[key] = replace(
                before,
                names=before.names + each.names,
                count=before.count + each.count,
                note=before.note or each.note,
            )
        else:
            by_sides[key] = each
    return list(by_sides.values())


# --- decoders of text -----------------------------------------------------------------------------


def _attention(c: Config, default_head: int | None = None) -> list[Layer]:
    """Queries, keys, values and outputs, with fewer heads of keys and values than of queries."""
    hidden, heads = c.size("hidden_size"), c.size("num_attention_heads")
    key_heads = c.size("num_key_value_heads", heads)
    side = c.size("head_dim", default_head or max(1, hidden // heads))
    depth = c.size("num_hidden_layers")
    return [
        Layer(("q_proj",), heads * side, hidden, depth),
        Layer(("k_proj", "v_proj"), key_heads * side, hidden, 2 * depth),
        Layer(("o_proj",), hidden, heads * side, depth),
    ]


def _gated(hidden: int, inner: int, depth: int, prefix: str = "") -> list[Layer]:
    """A feed-forward part with a gate; nothing where no layer has one."""
    if not inner or not depth:
        return []
    names = (f"{prefix}gate_proj", f"{prefix}up_proj")
    return [
        Layer(names, inner, hidden, 2 * depth),
        Layer((f"{prefix}down_proj",), hidden, inner, depth),
    ]


def _head(c: Config) -> Layer:
    return Layer(("lm_head",), c.size("vocab_size"), c.size("hidden_size"), 1)


def _decoder(c: Config) -> list[Layer]:
    hidden, inner = c.size("hidden_size"), c.size("intermediate_size")
    return [*_attention(c), *_gated(hidden, inner, c.size("num_hidden_layers")), _head(c)]


def _gemma3(c: Config) -> list[Layer]:
    """Published files leave out what is the default of transformers' Gemma3TextConfig."""
    defaults = {
        "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256, "vocab_size": 262208,
    }  # fmt: skip
    values = {key: value for key, value in c.settings.items() if value is not None}
    return _decoder(Config({**defaults, **values}, c.where))


def _experts(
    hidden: int, inner: int, *, depth: int, used: int, experts: int, fused: bool = False
) -> list[Layer]:
    """The experts that one token is sent to, in all layers that have some, and the router.

    Many tokens count as if all took the same experts: the FLOPs are those of any routing, the bytes
    the least.
    """
    note = f"{used} of {experts} experts a token, all tokens the same"
    names = ["gate_up_proj"] if fused else ["gate_proj", "up_proj"]
    width = 2 * inner if fused else inner
    return [
        Layer(("router",), experts, hidden, depth),
        Layer(
            tuple(f"experts.{name}" for name in names),
            width, hidden, len(names) * used * depth, note=note,
        ),
        Layer(("experts.down_proj",), hidden, inner, used * depth, note=note),
    ]  # fmt: skip


def _qwen3_moe(c: Config) -> list[Layer]:
    hidden, depth = c.size("hidden_size"), c.size("num_hidden_layers")
    only = c.places("mlp_only_layers")
    step = c.size("decoder_sparse_step", 1)
    sparse = sum(1 for layer in range(depth) if layer not in only and (layer + 1) % step == 0)
    parts = _attention(c, default_head=128)
    if sparse < depth:
        parts += _gated(hidden, c.size("intermediate_size"), depth - sparse)
    if sparse:
        parts += _experts(
            hidden, c.size("moe_intermediate_size"), depth=sparse,
            used=c.size("num_experts_per_tok"), experts=c.size("num_experts"),
        )  # fmt: skip
    return [*parts, _head(c)]


def _gpt_oss(c: Config) -> list[Layer]:
    hidden, depth = c.size("hidden_size"), c.size("num_hidden_layers")
    experts = _experts(
        hidden, c.size("intermediate_size"), depth=depth, used=c.size("num_experts_per_tok"),
        experts=c.size("num_local_experts"), fused=True,
    )  # fmt: skip
    return [*_attention(c), *experts, _head(c)]


def _gpt2(c: Config) -> list[Layer]:
    hidden, depth = c.size("n_embd"), c.size("n_layer")
    inner = c.size("n_inner", 4 * hidden)
    return [
        Layer(("attn.c_attn",), 3 * hidden, hidden, depth),
        Layer(("attn.c_proj",), hidden, hidden, depth),
        Layer(("mlp.c_fc",), inner, hidden, depth),
        Layer(("mlp.c_proj",), hidden, inner, depth),
        Layer(("lm_head",), c.size("vocab_size"), hidden, 1),
    ]


# --- DeepSeek: layers that are stored as products -------------------------------------------------


def _deepseek_v3(c: Config) -> list[Layer]:
    """Queries of low rank, keys and values of low rank; DeepSeek-V3, 2024, arXiv:2412.19437.

    A normalisation stands between the two factors of each, so the product is that of the shapes
    and costs alone.
    """
    hidden, heads, depth = (
        c.size(name) for name in ("hidden_size", "num_attention_heads", "num_hidden_layers")
    )
    plain, turned = c.size("qk_nope_head_dim"), c.size("qk_rope_head_dim")
    value = c.size("v_head_dim")
    queries, pairs = heads * (plain + turned), heads * (plain + value)
    ranks = c.size("q_lora_rank"), c.size("kv_lora_rank")
    dense = min(depth, c.size("first_k_dense_replace", least=0))
    wide = c.size("moe_intermediate_size")
    parts = [
        Layer(("q_a_proj · q_b_proj",), queries, hidden, depth, shipped=_low_rank(ranks[0])),
        Layer(("kv_a_proj · kv_b_proj",), pairs, hidden, depth, shipped=_low_rank(ranks[1])),
        Layer(("kv_a_proj, the part of positions",), turned, hidden, depth),
        Layer(("o_proj",), hidden, heads * value, depth),
        *_gated(hidden, c.size("intermediate_size"), dense),
    ]
    if depth > dense:
        parts += _experts(
            hidden, wide, depth=depth - dense, used=c.size("num_experts_per_tok"),
            experts=c.size("n_routed_experts"),
        )  # fmt: skip
        shared = wide * c.size("n_shared_experts", least=0)
        parts += _gated(hidden, shared, depth - dense, "shared_experts.")
    return [*parts, _head(c)]


def _deepseek_v4(c: Config) -> list[Layer]:
    """Queries of low rank, outputs block-diagonal then dense, one head of keys that are values too.

    Left out: compressors, indexers and hyper-connections.
    """
    hidden, heads, depth = (
        c.size(name) for name in ("hidden_size", "num_attention_heads", "num_hidden_layers")
    )
    side, wide = c.size("head_dim"), c.size("moe_intermediate_size")
    outputs: dict[str, Knob] = {
        "name": "block_dense", "blocks": c.size("o_groups"), "rank": c.size("o_lora_rank"),
    }  # fmt: skip
    queries = _low_rank(c.size("q_lora_rank"))
    return [
        Layer(("q_a_proj · q_b_proj",), heads * side, hidden, depth, shipped=queries),
        Layer(("kv_proj",), side, hidden, depth),
        Layer(("o_a_proj · o_b_proj",), hidden, heads * side, depth, shipped=outputs),
        *_experts(
            hidden, wide, depth=depth, used=c.size("num_experts_per_tok"),
            experts=c.size("n_routed_experts"),
        ),
        *_gated(hidden, wide * c.size("n_shared_experts", least=0), depth, "shared_experts."),
        _head(c),
    ]  # fmt: skip


def _low_rank(rank: int) -> dict[str, Knob]:
    return {"name": "low_rank", "rank": rank}


# --- encoders, pictures and sound -----------------------------------------------------------------


def _plain(
    hidden: int, inner: int, depth: int, tokens: Mapping[str, tuple[int, ...]], names: str
) -> list[Layer]:
    """A transformer's layer with attention of full width and a feed-forward part without gate."""
    attention, up, down = names.split("|")
    own = tuple(attention.split())
    return [
        Layer(own, hidden, hidden, len(own) * depth, tokens),
        Layer((up,), inner, hidden, depth, tokens),
        Layer((down,), hidden, inner, depth, tokens),
    ]


_ENCODER = "query key value attention.output.dense|intermediate.dense|output.dense"


def _bert(c: Config) -> list[Layer]:
    tokens = {PREFILL: (128, 2048), TRAIN: (4096,)}
    hidden, inner = c.size("hidden_size"), c.size("intermediate_size")
    return _plain(hidden, inner, c.size("num_hidden_layers"), tokens, _ENCODER)


def _vit(c: Config) -> list[Layer]:
    """One picture, eight, and a step of sixty-four; a token for each patch, and one for all."""
    one = (c.size("image_size", 224) // c.size("patch_size", 16)) ** 2 + 1
    tokens = {PREFILL: (one, 8 * one), TRAIN: (64 * one,)}
    hidden, inner = c.size("hidden_size"), c.size("intermediate_size")
    return _plain(hidden, inner, c.size("num_hidden_layers"), tokens, _ENCODER)


def _whisper(c: Config) -> list[Layer]:
    """The encoder, and the decoder's keys and values of it, see frames; the rest sees tokens."""
    hidden, frames = c.size("d_model"), c.size("max_source_positions", 1500)
    sound = {PREFILL: (frames,), TRAIN: (8 * frames,)}
    text = {DECODE: TEXT[DECODE], TRAIN: (8 * c.size("max_target_positions", 448),)}
    decoder = c.size("decoder_layers")
    own = "q_proj k_proj v_proj out_proj"
    cross = "encoder_attn.q_proj encoder_attn.out_proj"
    return [
        *_plain(
            hidden, c.size("encoder_ffn_dim"), c.size("encoder_layers"), sound,
            f"{own}|fc1|fc2",
        ),
        Layer(
            ("encoder_attn.k_proj", "encoder_attn.v_proj"), hidden, hidden, 2 * decoder, sound
        ),
        *_plain(
            hidden, c.size("decoder_ffn_dim"), decoder, text, f"{own} {cross}|fc1|fc2"
        ),
        Layer(("proj_out",), c.size("vocab_size"), hidden, 1, text),
    ]  # fmt: skip


def _dit(c: Config) -> list[Layer]:
    """A diffusion transformer; Peebles and Xie, 2022, arXiv:2212.09748. One picture, and eight."""
    heads, depth = c.size("num_attention_heads"), c.size("num_layers")
    hidden = heads * c.size("attention_head_dim")
    one = (c.size("sample_size") // c.size("patch_size")) ** 2
    tokens = {PREFILL: (one, 8 * one), TRAIN: (32 * one,)}
    names = "to_q to_k to_v to_out|ff.net.0.proj|ff.net.2"
    pictures = {PREFILL: (1, 8), TRAIN: (32,)}
    return [
        *_plain(hidden, 4 * hidden, depth, tokens, names),
        Layer(("norm1.linear",), 6 * hidden, hidden, depth, pictures, note="a row a picture"),
    ]


_WRAPPED = ("gemma3", "mistral3")
_ARCHITECTURES: dict[str, Callable[[Config], list[Layer]]] = {
    "bert": _bert,
    "deepseek_v3": _deepseek_v3,
    "deepseek_v4": _deepseek_v4,
    "gemma3": _gemma3,
    "gemma3_text": _gemma3,
    "gpt2": _gpt2,
    "gpt_oss": _gpt_oss,
    "kimi_k2": _deepseek_v3,
    "llama": _decoder,
    "mistral": _decoder,
    "mistral3": _decoder,
    "qwen2": _decoder,
    "qwen3": _decoder,
    "qwen3_moe": _qwen3_moe,
    "vit": _vit,
    "whisper": _whisper,
    "DiTTransformer2DModel": _dit,
}
