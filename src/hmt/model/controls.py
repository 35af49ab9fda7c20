"""Controls: what is left of a memory's worth when what it recalls is made meaningless.

If neither control costs anything, the memory is not used, whatever its perplexity.

Shape legend: B rows, T tokens of a text, L fresh tokens per segment.
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


def with_uniform_recall(model: HMTForCausalLM) -> HMTForCausalLM:
    """The same weights, but every filled slot is recalled alike.

    Raises:
        ValueError: If the model recalls nothing.
    """
    variant = model.variant()
    if variant.memory.recall is None:
        raise ValueError(f"mode {model.config.mode} recalls nothing that could be made uniform")
    variant.memory.recall.uniform = True
    return variant


def partners(documents: Sequence[int]) -> list[int]:
    """For each text the index of another one: the next of another document, or the next of the same if there is none.

    Raises:
        ValueError: If there is only one text.
    """
    if len(documents) < 2:
        raise ValueError(
            "a shuffled memory needs a second text of the same length, there is one; raise --max_documents or "
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
    read. What their own segments leave behind joins the other text's bank, as it would their own.

    Args:
        model: Reads.
        batches: Input ids and labels, (B, T) each, of all texts; every row's targets begin at the same column.
        documents: The document of each text, in order of batches, then rows.

    Yields:
        nll and masks of each batch, as `forward` gives them.

    Raises:
        ValueError: If there is only one text.
    """
    others = partners(documents)
    opened = [_read_to_targets(model, ids, labels) for ids, labels in batches]
    rows = [(state.bank, row) for _, state in opened for row in range(state.batch_size)]
    done = 0
    for (ids, labels), (before, state) in zip(batches, opened, strict=True):
        theirs = [rows[other] for other in others[done : done + len(ids)]]
        done += len(ids)
        column = int(state.tokens_read[0])
        after = model(
            ids[:, column:],
            labels=labels[:, column:],
            memory=replace(state, bank=_join(theirs)),
            return_logits=False,
        )
        joined = HMTOutput(memory=after.memory)
        for name in ("nll", "scored_mask", "causal_mask"):
            setattr(joined, name, torch.cat([getattr(before, name), getattr(after, name)], dim=1))
        yield joined


def _read_to_targets(model: HMTForCausalLM, ids: Tensor, labels: Tensor) -> tuple[HMTOutput, MemoryState]:
    """Read whole segments up to the one in which the targets begin; with two reading speeds, up to the targets.

    Returns:
        The output up to and including that segment's first token, which is predicted from the segment before, and the
        state before that token.
    """
    first = int((labels >= 0).any(dim=0).nonzero()[0])
    # Within a segment the banks change hands only where segments begin at columns of their own.
    inside = model.config.rolling or model.config.speed_tokens
    column = first if inside else first // model.config.fresh_tokens * model.config.fresh_tokens
    output = model(ids[:, : column + 1], labels=labels[:, : column + 1], return_logits=False)
    return output, model.remember(ids[:, :column]) if column else model.initial_state(len(ids))


def _join(rows: Sequence[tuple[Bank, int]]) -> Bank:
    """Rows of banks of one width as one bank."""
    return Bank(
        **{f.name: torch.cat([getattr(bank, f.name)[row : row + 1] for bank, row in rows]) for f in fields(Bank)}
    )
