"""`hmt generate`: continue a text of any length, streaming to the terminal."""

from __future__ import annotations

import logging
import sys
import time
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor
from transformers import TextStreamer

from hmt.files import read_text
from hmt.memory.state import MemoryState
from hmt.model.generation import GenerateOutput
from hmt.model.loading import load
from hmt.options import GenerateOptions
from hmt.report.recollection import describe_recall, recalled_segments
from hmt.terminal import escaped
from hmt.text.batches import check_vocabulary, tokenize
from hmt.text.chat import ChatTemplate
from hmt.text.documents import Document

logger = logging.getLogger(__name__)


def run(options: GenerateOptions) -> tuple[dict[str, Any], str]:
    """Continue the prompt; the text appears on standard output while it is made.

    Returns:
        The continuation and its figures, and what was recalled if that was asked for.

    Raises:
        ValueError: If the prompt is empty or not UTF-8, or there is no chat template to put it into.
        OSError: If the prompt file cannot be read.
    """
    prompt = options.prompt if options.prompt_file is None else read_text(options.prompt_file)
    if not prompt:
        raise ValueError("the prompt is empty")
    model, tokenizer = load(options)
    if options.chat:
        ids = ChatTemplate(tokenizer).opening([{"role": "user", "content": prompt}])
        check_vocabulary(ids, len(model.embedding_table))
        input_ids = torch.tensor([ids], device=model.device)
    else:
        document = tokenize([Document("prompt", prompt)], tokenizer, len(model.embedding_table))[0]
        input_ids = document.ids[None].to(model.device)
    memory = None if options.memory is None else MemoryState.load(options.memory, device=model.device)
    torch.manual_seed(options.seed)
    streamer = TimedStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
    started = time.perf_counter()
    out = model.generate(
        input_ids,
        memory=memory,
        streamer=streamer,
        output_recall=options.explain,
        return_dict_in_generate=True,
        **options.sampling,
    )
    seconds = time.perf_counter() - started
    assert isinstance(out, GenerateOutput)
    assert out.sequences is not None
    new_ids = out.sequences[0, input_ids.shape[1] :]
    first = streamer.first_token - started
    figures: dict[str, Any] = {
        "prompt_tokens": input_ids.shape[1],
        "new_tokens": len(new_ids),
        "text": tokenizer.decode(new_ids, skip_special_tokens=True),
        "seconds": seconds,
        "seconds_to_first_token": first,
    }
    logger.info(
        "%d tokens after a prompt of %s, %.1f s, the first after %.2f s",
        len(new_ids), f"{input_ids.shape[1]:,}", seconds, first,
    )  # fmt: skip
    if not options.explain:
        return figures, ""
    segments = recalled_segments(out.recall, out.memory, tokenizer)
    figures["recalled"] = [asdict(segment) for segment in segments]
    return figures, describe_recall(segments)


class TimedStreamer(TextStreamer):
    """Writes to the terminal, and notes when the first token came."""

    first_token = 0.0

    def put(self, value: Tensor) -> None:
        """Write one token, or leave out the prompt."""
        if not self.next_tokens_are_prompt and not self.first_token:
            self.first_token = time.perf_counter()
        super().put(value)

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        """Write a piece of text; a terminal is shown its control characters escaped."""
        super().on_finalized_text(escaped(text) if sys.stdout.isatty() else text, stream_end)
