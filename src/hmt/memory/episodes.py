"""Episodic recall: which tokens of earlier segments are read again.

What is read again is one run of the past text. It is chosen by the phrases that it shares with the query: two to four
tokens in a row, each distinct phrase counted once, by its length and by how rare it is in the past. Single tokens do
not count: where words of the query stand together again, what followed them says much about what follows them now;
where they stand apart, little. It needs no training and no pass of the backbone.

Shape legend: B rows, N bank slots, L fresh tokens per segment, T past tokens, J query tokens, E tokens read again.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from hmt.memory.bank import NO_TOKEN, Bank
from hmt.memory.rows import pack, packing_order, take

PHRASE_WEIGHTS = {2: 1, 3: 2, 4: 4}
"""What a phrase of so many tokens, one more each, counts; a longer one counts on top of the shorter ones in it."""

RARITY_STEPS = 1024
"""Rarity is measured in nats, in steps of this fraction: whole numbers add up alike in any order."""

_BELOW_TOKEN = 32
"""Bits of a key below those that say how its phrase began: a token."""

_NOTHING = -1
"""A key that no other is equal to."""


@dataclass(frozen=True)
class Episode:
    """A run of past tokens that is read again.

    Attributes:
        ids: (B, E) int64.
        valid: (B, E) bool.
        segments: (B, E) int64, numbers of the segments that the tokens are from; -1 where a row has none to read again.
        strongest: (B,) int64, number of the segment in the middle of the run; -1 where there is none.
        chosen: (B, N) bool, the slots of these segments.
    """

    ids: Tensor
    valid: Tensor
    segments: Tensor
    strongest: Tensor
    chosen: Tensor


@dataclass(frozen=True)
class Past:
    """The tokens that a bank can give back, as one text.

    Attributes:
        ids: (B, T) int64, oldest first, each row from the left.
        valid: (B, T) bool.
        slots: (B, T) int64, the slot of the bank that each is from.
    """

    ids: Tensor
    valid: Tensor
    slots: Tensor

    @classmethod
    def of(cls, bank: Bank, usable: Tensor) -> Past:
        """The usable tokens (B, N, L) bool of a bank, each segment's in one slot; segments that left leave no gap."""
        length = bank.tokens.shape[2]
        stored = bank.tokens.flatten(1).long()
        valid = usable.flatten(1) & (stored != NO_TOKEN)
        order = packing_order(valid)[:, : int(valid.sum(dim=1).max())]
        return cls(take(stored, order), valid.gather(1, order), order.div(length, rounding_mode="floor"))

    @property
    def lengths(self) -> Tensor:
        """(B,) int64."""
        return self.valid.sum(dim=1)

    @cached_property
    def told(self) -> Tensor:
        """The tokens, (B, T) int64, and NO_TOKEN behind the last of each row, which no token is equal to."""
        return self.ids.masked_fill(~self.valid, NO_TOKEN)


def candidate_slots(bank: Bank, before: Tensor) -> Tensor:
    """The first slot of each segment whose number is below `before` (B,): those that may be read again, (B, N) bool.

    The newest segment never is: its end stands in the window as sensory tokens, and a query made of its own tokens
    would find nothing else.
    """
    return bank.valid & bank.starts & (bank.segments < before[:, None])


def shared_phrases(past: Past, ids: Tensor, mask: Tensor, count: int) -> Tensor:
    """What each run of `count` tokens of the past has of a query.

    Args:
        past: Tokens.
        ids: Query tokens, (B, J).
        mask: (B, J) bool.
        count: Tokens of a run.

    Returns:
        (B, T) int64, for the run that begins at each token: the rarity of the distinct phrases that it shares with the
        query, by their length, summed; in steps of 1 / RARITY_STEPS nats.
    """
    ids, mask = pack(ids.long(), mask)
    rows, width = ids.shape
    asked, told = ids.masked_fill(~mask, _NOTHING), past.ids.masked_fill(~past.valid, _NOTHING)
    names_asked, names_told = _names(asked, told)
    ends = torch.arange(told.shape[1], device=ids.device).expand(rows, -1)
    changes = F.pad(torch.zeros_like(told), (0, 1))
    for tokens, weight in PHRASE_WEIGHTS.items():
        names_asked, names_told = _names(_longer(names_asked, asked, width), _longer(names_told, told, width))
        found = names_told < width
        times = torch.zeros(rows, width + 1, device=ids.device).scatter_add_(1, names_told, found.float())
        rarity = ((past.lengths[:, None] + 1) / (times + 0.5)).log().clamp(min=0).mul(RARITY_STEPS).ceil().long()
        # It counts for the runs that hold it whole and begin behind the last place where it was.
        first = torch.maximum(_last_place(names_told) - tokens + 2, ends - count + 1).clamp(min=0)
        beyond = (ends - tokens + 2).clamp(min=0)
        worth = weight * rarity.gather(1, names_told) * (found & (first < beyond))
        changes.scatter_add_(1, first, worth).scatter_add_(1, beyond, -worth)
    return changes.cumsum(dim=1)[:, :-1]


def _longer(names: Tensor, last: Tensor, none: int) -> Tensor:
    """Keys of the phrases that end at each token `last` (B, M): the name of the phrase before it, and the token."""
    before = F.pad(names[:, :-1], (1, 0), value=none)
    return ((before << _BELOW_TOKEN) + last).where((before < none) & (last != _NOTHING), _NOTHING)


def _names(asked: Tensor, told: Tensor) -> tuple[Tensor, Tensor]:
    """The first place in the query of each key, (B, J) of it and (B, T) of the past; J where it has none."""
    width = asked.shape[1]
    sorted_keys, order = asked.sort(dim=1, stable=True)

    def named(keys: Tensor) -> Tensor:
        place = torch.searchsorted(sorted_keys, keys.contiguous()).clamp(max=width - 1)
        same = (sorted_keys.gather(1, place) == keys) & (keys != _NOTHING)
        return order.gather(1, place).masked_fill(~same, width)

    return named(asked), named(told)


def _last_place(names: Tensor) -> Tensor:
    """For each place (B, T) the place before it that has the same name; far below 0 where there is none."""
    ordered, places = names.sort(dim=1, stable=True)
    nowhere = torch.full_like(names[:, :1], -2 * names.shape[1] - 2)
    before = torch.cat([nowhere, places[:, :-1].where(ordered[:, 1:] == ordered[:, :-1], nowhere)], dim=1)
    return torch.zeros_like(names).scatter(1, places, before)


def choose_episode(
    bank: Bank, candidates: Tensor, ids: Tensor, mask: Tensor, count: int, worth: Tensor | None = None
) -> Episode:
    """The run of past tokens that has most of a query; at a tie the newest, which is nearest to what comes next.

    Args:
        bank: Of past segments.
        candidates: Slots (B, N) bool to choose from, one a segment.
        ids: Query tokens, (B, J).
        mask: (B, J) bool.
        count: Tokens E to read again.
        worth: What each slot is worth, (B, N) float32: the run is then one within the segment that is worth most, or
            around it where the segment is shorter. Without, it may be anywhere.
    """
    past = Past.of(bank, candidates[:, :, None].expand_as(bank.tokens))
    width = past.ids.shape[1]
    if not width:
        nothing = ids.new_zeros(len(ids), count)
        return Episode(
            nothing, nothing.bool(), nothing - 1, nothing.new_full((len(ids),), -1), torch.zeros_like(bank.valid)
        )
    starts = torch.arange(width, device=ids.device)
    last = (past.lengths - count).clamp(min=0)[:, None]
    allowed = starts <= last
    if worth is not None:
        best = worth.masked_fill(~candidates, -torch.inf).argmax(dim=1, keepdim=True)
        inside = (past.slots == best) & past.valid
        begin = torch.where(inside, starts, width).amin(dim=1, keepdim=True)
        end = torch.where(inside, starts + 1, 0).amax(dim=1, keepdim=True)
        low, high = (torch.minimum(one.clamp(min=0), last) for one in (begin, end - count))
        allowed = (starts >= torch.minimum(low, high)) & (starts <= torch.maximum(low, high))
    shared = shared_phrases(past, ids, mask, count).masked_fill(~allowed, -1)
    start = width - 1 - shared.flip(1).argmax(dim=1, keepdim=True)
    places = start + torch.arange(count, device=ids.device)
    valid = places < past.lengths[:, None]
    places = places.clamp(max=width - 1)
    segments = bank.segments.gather(1, past.slots.gather(1, places)).masked_fill(~valid, -1)
    middle = (valid.sum(dim=1, keepdim=True) // 2).clamp(max=count - 1)
    return Episode(
        ids=past.ids.gather(1, places) * valid,
        valid=valid,
        segments=segments,
        strongest=segments.gather(1, middle)[:, 0],
        chosen=bank.valid & (bank.segments[:, :, None] == segments[:, None]).any(dim=2),
    )
