"""A tokenizer that begins every text with BOS, as those of Llama do."""

from __future__ import annotations

import pytest
from transformers import PreTrainedTokenizerFast

from tests.text.tokenizers import templated


@pytest.fixture
def bos_tokenizer() -> PreTrainedTokenizerFast:
    """Tokens are bytes, after <s>."""
    return templated("<s> $A")
