"""Episodic recall: which earlier segments are read again, and which of their tokens.

Tokens are chosen by their lexical overlap with the query: the sum, over the distinct tokens of the query that a segment
has too, of how rare they are in the bank. It needs no training and no pass of the backbone.

Shape legend: B rows, N bank slots, L fresh tokens per segment, J query tokens, m segments read again, e tokens of each.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from hmt.memory.bank import NO_TOKEN, Bank
from hmt.memory.rows import take

NOT_ASKED = torch.iinfo(torch.int32).max
"""Stands for the query's missing tokens; no vocabulary is that large."""

RARITY_STEPS = 1024
"""Rarity is measured in nats, in steps of this fraction."""


@dataclass(frozen=True)
class Episode:
    """Tokens of earlier segments that are read again, oldest first.

    Attributes:
        ids: (B, m * e) int64.
        valid: (B, m * e) bool.
        segments: (B, m) int64, numbers of the segments they are from; -1 where a row has none to read again.
        starts: (B, m) int64, where in those segments they begin.
        strongest: (B,) int64, number of the segment that matched best; -1 where there is none.
        chosen: (B, N) bool, the slots of these segments.
    """

    ids: Tensor
    valid: Tensor
    segments: Tensor
    starts: Tensor
    strongest: Tensor
    chosen: Tensor


@dataclass(frozen=True)
class Overlap:
    """How much of a query the segments of a bank have.

    Attributes:
        segments: (B, N) float32, for each slot the rarity of the query's distinct tokens that its segment has, summed;
            in steps of 1 / RARITY_STEPS nats.
        tokens: (B, N, L) float32, for each token its rarity if the query has it, else 0.
    """

    segments: Tensor
    tokens: Tensor

    @classmethod
    def of(cls, bank: Bank, candidates: Tensor, ids: Tensor, mask: Tensor) -> Overlap:
        """Overlap of a query with each segment.

        Args:
            bank: Of past segments.
            candidates: Slots (B, N) bool that count, one a segment; how rare a token is is counted over them.
            ids: Query tokens, (B, J).
            mask: (B, J) bool.
        """
        rows, slots, length = bank.tokens.shape
        query = ids.masked_fill(~mask, NOT_ASKED).to(bank.tokens.dtype).sort(dim=1).values
        stored = bank.tokens.flatten(1)
        # Equal tokens of the query all find the first of them, so the others stay without a segment.
        place = torch.searchsorted(query, stored).clamp(max=query.shape[1] - 1)
        same = (query.gather(1, place) == stored) & candidates.repeat_interleave(length, dim=1)
        place = place.view(rows, slots, length)
        same = same.view(rows, slots, length)
        # A column more than the query has takes the tokens that it lacks.
        column = place.masked_fill(~same, query.shape[1])
        has = torch.zeros(rows, slots, query.shape[1] + 1, device=ids.device).scatter_(2, column, 1.0)[..., :-1]
        found_in = has.sum(dim=1)
        # Above 0, and whole numbers, so that sums are exact in any order and ties are ties in any batch.
        rarity = (((candidates.sum(dim=1, keepdim=True) + 1) / (found_in + 0.5)).log() * RARITY_STEPS).ceil()  # (B, J)
        segments = (has * rarity[:, None]).sum(dim=2)
        tokens = rarity.gather(1, place.flatten(1)).view_as(place) * same
        return cls(segments, tokens)


def candidate_slots(bank: Bank, before: Tensor) -> Tensor:
    """The first slot of each segment whose number is below `before` (B,): those that may be read again, (B, N) bool.

    The newest segment never is: its end stands in the window as sensory tokens, and a query made of its own tokens
    would find nothing else.
    """
    return bank.valid & bank.starts & (bank.segments < before[:, None])


def choose_episode(
    bank: Bank, candidates: Tensor, overlap: Overlap, worth: Tensor, num_tokens: int, shortest: int
) -> Episode:
    """The segments worth most, and of each the run of tokens that has most of the query.

    Args:
        bank: Of past segments.
        candidates: Slots (B, N) bool to choose from, one a segment.
        overlap: Of the query with the segments.
        worth: What each slot is worth, (B, N) float32.
        num_tokens: Tokens E to read again. Where a segment has fewer, they come from as many segments as are needed, in
            equal parts.
        shortest: Tokens of the shortest segment.
    """
    count = -(-num_tokens // shortest)
    each = num_tokens // count
    slots = bank.valid.shape[1]
    worth = F.pad(worth.masked_fill(~candidates, -torch.inf), (0, max(count - slots, 0)), value=-torch.inf)
    best, order = worth.sort(dim=1, descending=True, stable=True)
    found = best[:, :count] > -torch.inf
    strongest = order[:, 0]
    # Those that are found come first, in order of age.
    places = order[:, :count].masked_fill(~found, slots).sort(dim=1).values
    found, places = places < slots, places.clamp(max=slots - 1)
    hits = take(overlap.tokens, places)  # (B, m, L)
    runs = F.pad(hits.cumsum(dim=2), (1, 0))
    sums = runs[..., each:] - runs[..., :-each]
    whole = take(bank.tokens, places)[..., each - 1 :] != NO_TOKEN  # a run does not reach beyond its segment
    sums = sums.masked_fill(~whole, -1.0)
    # At a tie the last run: what followed the query's tokens then says more about what follows them now.
    starts = sums.shape[2] - 1 - sums.flip(2).argmax(dim=2)
    runs_of = starts[..., None] + torch.arange(each, device=starts.device)
    tokens = take(bank.tokens, places).long().gather(2, runs_of).clamp(min=0)
    segments = bank.segments.gather(1, places).masked_fill(~found, -1)
    number = bank.segments.gather(1, strongest.clamp(max=slots - 1)[:, None])[:, 0]
    return Episode(
        ids=tokens.flatten(1),
        valid=found.repeat_interleave(each, dim=1),
        segments=segments,
        starts=starts,
        strongest=torch.where(found.any(dim=1), number, -torch.ones_like(number)),
        chosen=bank.valid & (bank.segments[:, :, None] == segments[:, None]).any(dim=2),
    )
