"""Ask about a text that was remembered: write an answer, or weigh answers that are given.

Shape legend: B rows, T tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from hmt.memory.state import MemoryState
from hmt.model.hmt import HMTForCausalLM
from hmt.text.batches import IGNORED


def write_answer(model: HMTForCausalLM, state: MemoryState | None, prompt: Tensor, max_new_tokens: int) -> Tensor:
    """Continue a prompt greedily.

    Args:
        model: Writes.
        state: Memory of what was read before, of one row; it stays as it is.
        prompt: (T,) int64, at least one token.
        max_new_tokens: At most; an end-of-sequence token ends it sooner.

    Returns:
        The new tokens alone, (at most max_new_tokens,).
    """
    ids = model.generate(
        prompt[None].to(model.device), memory=state, max_new_tokens=max_new_tokens, do_sample=False, num_beams=1
    )
    assert isinstance(ids, Tensor)
    return ids[0, len(prompt) :]


@torch.no_grad()
def answer_nats(
    model: HMTForCausalLM, state: MemoryState | None, prompt: Tensor, answers: Sequence[Tensor]
) -> list[float]:
    """Nats of each of several answers to a prompt, side by side.

    Args:
        model: Reads.
        state: Memory of what was read before, of one row; it stays as it is.
        prompt: (T,) int64, at least one token.
        answers: (tokens,) int64 each.
    """
    longest = max(len(answer) for answer in answers)
    ids = torch.zeros(len(answers), len(prompt) + longest, dtype=torch.long)
    labels = torch.full_like(ids, IGNORED)
    mask = torch.zeros_like(ids, dtype=torch.bool)
    for row, answer in enumerate(answers):
        end = len(prompt) + len(answer)
        ids[row, :end] = torch.cat([prompt, answer])
        labels[row, len(prompt) : end] = answer
        mask[row, :end] = True
    memory = None if state is None else state.map(lambda tensor: tensor.repeat_interleave(len(answers), dim=0))
    output = model(
        ids.to(model.device),
        attention_mask=mask.to(model.device),
        labels=labels.to(model.device),
        memory=memory,
        return_logits=False,
    )
    return output.nll.sum(dim=1).tolist()
