"""`hmt generate`: continue a text of any length, streaming to the terminal."""

from __future__ import annotations

import logging
import time
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from hmt.cli.writing import GenerateOptions
from hmt.files import read_text
from hmt.memory.state import MemoryState
from hmt.model.generation import GenerateOutput
from hmt.model.loading import load
from hmt.report.recollection import describe_recall, recalled_passages, recalled_segments
from hmt.text.batches import check_vocabulary, tokenize
from hmt.text.chat import ChatTemplate
from hmt.text.documents import Document
from hmt.text.special_tokens import beginning_token_ids
from hmt.text.streaming import TerminalStreamer

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
        # BOS begins a text; a prompt that goes on from a memory begins none.
        beginning = beginning_token_ids(tokenizer) if options.memory is None else []
        input_ids = torch.tensor([[*beginning, *document.ids.tolist()]], device=model.device)
    memory = None if options.memory is None else MemoryState.load(options.memory, device=model.device)
    torch.manual_seed(options.seed)
    streamer = TimedStreamer(tokenizer)
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
    passages = recalled_passages(out.recall, tokenizer)
    segments = recalled_segments(out.recall, out.memory, tokenizer)
    figures["recalled"] = [asdict(passage) for passage in passages]
    figures["recalled_segments"] = [asdict(segment) for segment in segments]
    return figures, describe_recall(segments, passages)


class TimedStreamer(TerminalStreamer):
    """Writes to the terminal, and notes when the first token came.

    Attributes:
        first_token: Time of `time.perf_counter` at the first new token, 0 before.
    """

    first_token = 0.0

    def put(self, value: Tensor) -> None:
        """Write one token, or skip the prompt."""
        if self.prompt_seen and not self.first_token:
            self.first_token = time.perf_counter()
        super().put(value)
