"""What the tests of ``compress`` share: a model in its layout."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from hwbench.workloads import _texts

VOCABULARY = 400


ENCODER = {
    "model_type": "bert", "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1,
    "num_attention_heads": 2, "vocab_size": 30522, "max_position_embeddings": 128,
    "type_vocab_size": 2, "layer_norm_eps": 1e-12,
}  # fmt: skip

SPECIAL = ("<s>", "<pad>", "</s>")
"""The first tokens of the vocabulary."""


def write(folder: Path, model: Any, template: str = "$A") -> Path:
    """A model of ``transformers`` in its layout, with a tokenizer learned from the texts.

    Args:
        folder: is made if it is not there.
        model: any that can be saved.
        template: what a text ``$A`` and special tokens become, such as ``<s> $A </s>``.
    """
    from tokenizers import Tokenizer, pre_tokenizers, processors, trainers
    from tokenizers.models import BPE
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=list(SPECIAL),
    )
    tokenizer.train_from_iterator(_texts.calibration(), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=template, special_tokens=[(each, i) for i, each in enumerate(SPECIAL)]
    )
    model.save_pretrained(folder)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(folder)
    return folder


def encoder(folder: Path) -> Path:
    """A random encoder of one layer in Hugging Face's layout, with the packaged tokenizer."""
    import torch
    from safetensors.torch import save_file

    from hwbench.workloads import _trained
    from hwbench.workloads._bert import Bert

    (folder / "config.json").write_text(json.dumps(ENCODER))
    tokenizer = (_trained.folder() / "tokenizer.json").read_text(encoding="utf-8")
    (folder / "tokenizer.json").write_text(tokenizer, encoding="utf-8")
    model, source = Bert(ENCODER), torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3, generator=source)
    save_file(dict(model.state_dict()), folder / "model.safetensors")
    return folder


def decoder(folder: Path) -> Path:
    """A random Llama of three layers with weights that are large enough to matter."""
    import torch
    import transformers

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = transformers.LlamaConfig(
            hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=2,
            num_key_value_heads=1, max_position_embeddings=64, vocab_size=VOCABULARY,
            bos_token_id=0, eos_token_id=0,
        )  # fmt: skip
        model = transformers.LlamaForCausalLM(config)
        with torch.no_grad():
            for value in model.parameters():
                value.mul_(4.0)
        return write(folder, model)
