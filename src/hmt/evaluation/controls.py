"""A control: the worth of a memory when its bank is another text's. A memory that loses nothing by it is not used.

Shape legend: B rows, T tokens of a text.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import fields, replace

import torch
from torch import Tensor

from hmt.memory.bank import Bank
from hmt.memory.state import MemoryState
from hmt.model.modeling_hmt import HMTForCausalLM
from hmt.model.outputs import HMTOutput


def donors(documents: Sequence[int]) -> list[int]:
    """Return for each text the index of another: the next of another document, or of the same if there is none.

    Raises:
        ValueError: If there is only one text.
    """
    if len(documents) < 2:
        raise ValueError(
            "a shuffled memory needs a second text of the same length, got one; raise --max_documents or "
            "--spans_per_document, or lower --lengths"
        )
    found = []
    for index, document in enumerate(documents):
        following = [*range(index + 1, len(documents)), *range(index)]
        found.append(next((other for other in following if documents[other] != document), following[0]))
    return found


@torch.no_grad()
def score_with_other_banks(
    model: HMTForCausalLM, batches: Sequence[tuple[Tensor, Tensor]], documents: Sequence[int]
) -> Iterator[HMTOutput]:
    """Score texts of one length with another text's bank; sensory tokens and all else are their own.

    Each text is read up to the segment in which its targets begin. There the banks change hands, and the targets are
    read. What their own segments leave behind joins the other text's bank.

    Args:
        model: The memory under test.
        batches: Input ids and labels, (B, T) each, of all texts; every row's targets begin at the same column.
        documents: The document of each text, in order of batches, then rows.

    Yields:
        nll, masks and memory of each batch, as `forward` gives them.

    Raises:
        ValueError: If there is only one text.
    """
    others = donors(documents)
    opened = [_read_to_targets(model, ids, labels) for ids, labels in batches]
    banks = [(state.bank, row) for _, state in opened for row in range(state.batch_size)]
    done = 0
    for (ids, labels), (before, state) in zip(batches, opened, strict=True):
        bank = _joined([banks[other] for other in others[done : done + len(ids)]])
        done += len(ids)
        column = int(state.tokens_read[0])
        after = model(ids[:, column:], labels=labels[:, column:], memory=replace(state, bank=bank), return_logits=False)
        output = HMTOutput(memory=after.memory)
        for name in ("nll", "scored_mask", "causal_mask"):
            setattr(output, name, torch.cat([getattr(before, name), getattr(after, name)], dim=1))
        yield output


def _read_to_targets(model: HMTForCausalLM, ids: Tensor, labels: Tensor) -> tuple[HMTOutput, MemoryState]:
    """Read up to the segment in which the targets begin; the output includes that segment's first token.

    With segments that begin at a column of each row's own, banks change hands where the targets begin.
    """
    first = int((labels >= 0).any(dim=0).nonzero()[0])
    inside = model.config.rolling or model.config.speed_tokens
    column = first if inside else first // model.config.fresh_tokens * model.config.fresh_tokens
    output = model(ids[:, : column + 1], labels=labels[:, : column + 1], return_logits=False)
    return output, model.remember(ids[:, :column]) if column else model.initial_state(len(ids))


def _joined(rows: Sequence[tuple[Bank, int]]) -> Bank:
    """Rows of banks of one width as one bank."""
    return Bank(
        **{f.name: torch.cat([getattr(bank, f.name)[row : row + 1] for bank, row in rows]) for f in fields(Bank)}
    )
