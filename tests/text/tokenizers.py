"""Tokenizers of bytes that add special tokens to a text."""

from __future__ import annotations

from tokenizers import processors
from transformers import PreTrainedTokenizerFast

from tests.conftest import byte_tokenizer

BOS = 1
"""Id of <s>."""


def templated(template: str) -> PreTrainedTokenizerFast:
    """A tokenizer that puts a text ($A) between special tokens, such as "<s> $A </s>"."""
    tokenizer = byte_tokenizer()
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=template, special_tokens=[("<s>", BOS), ("</s>", 2)]
    )
    return tokenizer
