"""`hmt generate`: continue a text of any length, streaming to the terminal."""

from __future__ import annotations

import logging
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hmt.options import ModelOptions, OutputOptions, SamplingOptions

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

    from hmt.model.modeling_hmt import HMTForCausalLM

logger = logging.getLogger(__name__)


@dataclass(kw_only=True)
class GenerateOptions(SamplingOptions, OutputOptions, ModelOptions):
    """Continue a prompt; with --memory, answer from a long text that hmt remember has read."""

    prompt: str | None = None
    """Prompt to continue."""
    prompt_file: Path | None = None
    """UTF-8 text file with the prompt."""
    memory: Path | None = None
    """Memory file to start from, written by hmt remember."""
    chat: bool = False
    """Format the prompt as a user message with the tokenizer's chat template."""
    explain: bool = False
    """Show the passages recalled for the prompt."""

    def check(self) -> None:
        """Raise a ValueError that names the first flag that makes no sense."""
        super().check()
        if (self.prompt is None) == (self.prompt_file is None):
            raise ValueError("give the text to continue with one of --prompt and --prompt_file")


def run(options: GenerateOptions) -> tuple[dict[str, Any], str]:
    """Continue the prompt; the text appears on standard output as it is generated.

    Returns:
        The continuation and its figures; with `explain`, the recalled passages.

    Raises:
        ValueError: If the prompt is empty or not UTF-8, or the tokenizer has no chat template.
        OSError: If the prompt file or the memory cannot be read.
    """
    import torch

    from hmt.files import read_text
    from hmt.memory.state import MemoryState
    from hmt.model.generation import GenerateOutput
    from hmt.model.loading import load
    from hmt.report.recollection import describe_recall, recalled_passages, recalled_segments
    from hmt.text.streaming import TerminalStreamer

    prompt = options.prompt if options.prompt_file is None else read_text(options.prompt_file)
    if not prompt:
        raise ValueError("the prompt is empty")
    model, tokenizer = load(options)
    input_ids = _encode(prompt, options, model, tokenizer)
    memory = None if options.memory is None else MemoryState.load(options.memory, device=model.device)
    torch.manual_seed(options.seed)
    streamer = TerminalStreamer(tokenizer)
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


def _encode(prompt: str, options: GenerateOptions, model: HMTForCausalLM, tokenizer: PreTrainedTokenizerBase) -> Tensor:
    """Encode the prompt as (1, T) token ids on the model's device."""
    import torch

    from hmt.text.batches import check_vocabulary, text_ids
    from hmt.text.chat import ChatTemplate

    if not options.chat:
        begins = options.memory is None
        return text_ids("the prompt", prompt, tokenizer, len(model.embedding_table), begins=begins)[None].to(
            model.device
        )
    ids = ChatTemplate(tokenizer).opening([{"role": "user", "content": prompt}])
    check_vocabulary(ids, len(model.embedding_table))
    return torch.tensor([ids], device=model.device)
