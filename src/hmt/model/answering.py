"""Ask about a text that was remembered: write an answer, or weigh answers that are given.

Shape legend: T tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from hmt.memory.state import MemoryState
from hmt.model import continuations
from hmt.model.modeling_hmt import HMTForCausalLM


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


def answer_nats(
    model: HMTForCausalLM, state: MemoryState | None, prompt: Tensor, answers: Sequence[Tensor]
) -> list[float]:
    """Nats of each of several answers to a prompt, with which `generate` would write them.

    Args:
        model: Reads.
        state: Memory of what was read before, of one row; it stays as it is.
        prompt: (T,) int64, at least one token.
        answers: (tokens,) int64 each, at least one.
    """
    requests = [(prompt.tolist(), answer.tolist()) for answer in answers]
    costs = continuations.answers(model, requests, len(answers), state)
    return [-cost.loglikelihood for cost in sorted(costs, key=lambda cost: cost.number)]
