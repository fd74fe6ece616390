"""What the tests of ``compress`` share: a model in its layout."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hwbench.workloads import _texts

VOCABULARY = 400


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
