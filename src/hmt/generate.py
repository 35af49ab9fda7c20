"""`hmt generate`: continue a text of any length, streaming to the terminal."""

from __future__ import annotations

import logging
import time
from typing import Any

import torch
from transformers import TextStreamer

from hmt.memory.state import MemoryState
from hmt.model.loading import load
from hmt.options import GenerateOptions
from hmt.text.batches import tokenize
from hmt.text.documents import Document, read_text

logger = logging.getLogger(__name__)


def run(options: GenerateOptions) -> tuple[dict[str, Any], str]:
    """Continue the prompt; the text appears on standard output while it is made.

    Returns:
        The prompt, the continuation and its figures, and nothing more to print.

    Raises:
        ValueError: If the prompt is empty, or not UTF-8.
        OSError: If the prompt file cannot be read.
    """
    prompt = options.prompt if options.prompt_file is None else read_text(options.prompt_file)
    if not prompt:
        raise ValueError("the prompt is empty")
    model, tokenizer = load(options)
    document = tokenize([Document("prompt", prompt)], tokenizer, len(model.embedding_table))[0]
    input_ids = document.ids[None].to(model.device)
    memory = None if options.memory is None else MemoryState.load(options.memory, device=model.device)
    torch.manual_seed(options.seed)
    started = time.perf_counter()
    sampling: dict[str, Any] = {
        "do_sample": options.do_sample,
        "temperature": options.temperature,
        "top_k": options.top_k,
        "top_p": options.top_p,
        "repetition_penalty": options.repetition_penalty,
    }
    sequences = model.generate(
        input_ids,
        memory=memory,
        max_new_tokens=options.max_new_tokens,
        streamer=TextStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True),
        **sampling,
    )
    seconds = time.perf_counter() - started
    new_ids = sequences[0, input_ids.shape[1] :]
    figures = {
        "prompt_tokens": input_ids.shape[1],
        "new_tokens": len(new_ids),
        "text": tokenizer.decode(new_ids, skip_special_tokens=True),
        "seconds": seconds,
    }
    logger.info("%d tokens after a prompt of %s, %.1f s", len(new_ids), f"{input_ids.shape[1]:,}", seconds)
    return figures, ""
