"""Retention: what stays in a memory bank that has become too large.

A policy is one class with one method. `scores` says what each slot is worth, and whole segments leave, the least worth
first; a policy that does something else than dropping overrides `make_room`. Policies are modules, so that they can
learn; what they learn must also act on what is recalled (`recall_bias`), for dropping has no gradient.

Shape legend: B rows, N bank slots, R memory embeddings per segment, D embedding size.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import initialization as init  # leaves alone what a checkpoint has filled

from hmt.config import MemoryConfig
from hmt.memory.bank import Bank
from hmt.memory.rows import put, take

HEAD_DIM = 16
"""Width of a head of the attention policy."""

LEAST_SCORE = 1e-6
"""Attention below this is not told apart, so that its logarithm stays finite."""


class RetentionPolicy(nn.Module):
    """Base class: derive from it, override `scores`, and register the class under a name.

    Args:
        config: The memory's settings.
        width: Embedding size D; 0 where the bank keeps tokens only.
    """

    needs_embeddings = False
    """True if the policy makes no sense for a bank that keeps tokens only."""

    learns = False
    """True if its scores, positive numbers, can be trained: they then take part in the retention loss."""

    def __init__(self, config: MemoryConfig, width: int) -> None:
        super().__init__()
        if self.needs_embeddings and not width:
            raise ValueError(
                f"memory_policy {config.memory_policy} compares memory embeddings, which mode backbone has none of"
            )
        self.config = config
        self.width = width

    def initialise(self) -> None:
        """Draw what the policy has to learn; nothing by default."""

    def scores(self, bank: Bank) -> Tensor:
        """Worth of each slot, (B, N); those of empty slots are ignored. At a tie the older leaves."""
        raise NotImplementedError(f"{type(self).__name__} must override scores or make_room")

    def make_room(self, bank: Bank, capacity: int) -> Bank:
        """A bank that is wider than `capacity`, with at most so many slots a row.

        Segments leave whole, those of the lowest mean score first; so with R embeddings a segment at most
        R * (capacity // R) slots stay.
        """
        with torch.no_grad():  # what stays is a choice
            worth = bank.per_segment(self.scores(bank).float().cpu()).masked_fill(~bank.valid, -torch.inf)
        newest_first = torch.argsort(worth.flip(1), dim=1, descending=True, stable=True)
        rank = torch.argsort(newest_first, dim=1).flip(1)
        kept = bank.valid & (rank < capacity)
        whole = bank.per_segment(kept.float()) == 1
        return bank.keep(kept & whole, capacity)

    def recall_bias(self, bank: Bank) -> Tensor | None:
        """Addend of the recall logits of each slot, (B, N) float32, or None."""
        return None


POLICIES: dict[str, type[RetentionPolicy]] = {}
Policy = TypeVar("Policy", bound=type[RetentionPolicy])


def register_policy(name: str) -> Callable[[Policy], Policy]:
    """Make a retention policy known as `memory_policy=name`, as a decorator of its class.

    Raises:
        ValueError: If the name belongs to another class already.
        TypeError: If it is no class derived from `RetentionPolicy`.
    """

    def register(policy: Policy) -> Policy:
        if not (isinstance(policy, type) and issubclass(policy, RetentionPolicy)):
            raise TypeError(f"a retention policy is a class derived from RetentionPolicy, got {policy!r}")
        if POLICIES.setdefault(name, policy) is not policy:
            raise ValueError(f"memory_policy {name!r} is {POLICIES[name].__name__} already")
        return policy

    return register


def retention_policy(name: str) -> type[RetentionPolicy]:
    """The policy of this name.

    Raises:
        ValueError: If there is none; names those that exist.
    """
    if name not in POLICIES:
        raise ValueError(f"memory_policy must be one of {', '.join(POLICIES)}, got {name!r}")
    return POLICIES[name]


@register_policy("fifo")
class Fifo(RetentionPolicy):
    """The oldest leaves, embedding by embedding: what the published program does."""

    def make_room(self, bank: Bank, capacity: int) -> Bank:
        """Keep the newest slots."""
        newer = bank.valid.flip(1).cumsum(dim=1).flip(1)
        return bank.keep(bank.valid & (newer <= capacity), capacity)


@register_policy("usage")
class LeastUsed(RetentionPolicy):
    """The least recalled leaves; the newest `retention_protected` segments had no time to be recalled and stay."""

    def scores(self, bank: Bank) -> Tensor:
        """Decayed sum of the recall weights a slot has received."""
        protected = self.config.retention_protected * self.config.segment_slots
        newer = bank.valid.flip(1).cumsum(dim=1).flip(1)
        return bank.usage.masked_fill(newer <= protected, torch.inf)


@register_policy("attention")
class LeastAttended(RetentionPolicy):
    """The slot that the others attend to least leaves.

    The attention a slot receives is also a bias of its recall logits: what helps when it is recalled learns to be kept.
    A new policy attends by similarity (both projections start as the same one), evenly enough not to disturb recall.
    """

    needs_embeddings = True
    learns = True

    def __init__(self, config: MemoryConfig, width: int) -> None:
        super().__init__(config, width)
        self.heads = config.retention_heads
        self.wq = nn.Linear(width, self.heads * HEAD_DIM)  # its bias asks for slots that all the others want
        self.wk = nn.Linear(width, self.heads * HEAD_DIM, bias=False)

    def initialise(self) -> None:
        """Start with one random projection for queries and keys, of the length that makes their product a cosine."""
        init.normal_(self.wq.weight, std=(self.width * HEAD_DIM) ** -0.5)
        init.copy_(self.wk.weight, self.wq.weight)
        init.zeros_(self.wq.bias)

    def scores(self, bank: Bank) -> Tensor:
        """Attention that a slot receives from the slots of other segments, mean over heads and those slots."""
        with torch.autocast(bank.embeddings.device.type, enabled=False):
            values = bank.embeddings.float()
            values = values * torch.rsqrt(values.pow(2).mean(dim=-1, keepdim=True) + 1e-12)
            values = values.to(self.wq.weight.dtype)
            query, key = (
                part.unflatten(-1, (self.heads, HEAD_DIM)).transpose(1, 2)
                for part in (self.wq(values), self.wk(values))
            )
            logits = (query @ key.transpose(2, 3)).float()  # (B, heads, N, N)
        others = bank.segments[:, :, None] != bank.segments[:, None, :]
        others = (others & bank.valid[:, :, None] & bank.valid[:, None, :]).to(logits.device)
        attention = logits.masked_fill(~others[:, None], torch.finfo(logits.dtype).min).softmax(dim=-1).mean(dim=1)
        received, askers = (attention * others).sum(dim=1), others.sum(dim=1)
        return torch.where(askers > 0, received / askers.clamp(min=1), torch.ones_like(received))

    def recall_bias(self, bank: Bank) -> Tensor:
        """Logarithm of the attention received: a slot that is not worth keeping is not worth recalling."""
        return self.scores(bank).clamp(min=LEAST_SCORE).log()


@register_policy("merge")
class MergeNeighbours(RetentionPolicy):
    """The two neighbours by age that are most alike become one: nothing is thrown away, near duplicates cost nothing.

    Alike is the mean cosine of their embeddings. The mean is weighted by the number of segments that each stands for;
    their usage is added. Number and tokens are those of the one that stands for more segments, at a tie the newer.
    """

    needs_embeddings = True

    def make_room(self, bank: Bank, capacity: int) -> Bank:
        """Merge pairs until the capacity holds."""
        size = self.config.prompt_tokens
        count = bank.valid.sum(dim=1, keepdim=True)
        place = torch.arange(bank.valid.shape[1], device=count.device)
        # Another policy may have left a part of the oldest segment, which has no partner for each of its slots.
        bank = bank.keep(bank.valid & (place >= count % size), int((count - count % size).max()))
        while (widest := bank.valid.shape[1]) > capacity:
            bank = self._merge(bank, bank.valid.sum(dim=1) > capacity)
            bank = bank.keep(bank.valid, widest - size)
        return bank

    def _merge(self, bank: Bank, rows: Tensor) -> Bank:
        """One pair of each of some rows (B,) merged into the place of its older half."""
        size = self.config.prompt_tokens
        alike = F.cosine_similarity(bank.embeddings[:, size:].float(), bank.embeddings[:, :-size].float(), dim=-1)
        alike = alike.unflatten(1, (-1, size)).mean(dim=2)  # (B, segments - 1)
        partner_filled = bank.valid[:, size::size]
        older = alike.cpu().masked_fill(~partner_filled, -torch.inf).argmax(dim=1, keepdim=True) * size
        older = older + torch.arange(size, device=older.device)  # (B, R) slots
        left = bank.map(lambda values: take(values, older))
        right = bank.map(lambda values: take(values, older + size))
        together = left.merged + right.merged
        share = (left.merged / together)[..., None].to(left.embeddings.device)
        merged = left.embeddings.float() * share + right.embeddings.float() * (1 - share)
        heavier = left.merged > right.merged
        one = Bank(
            embeddings=merged.to(bank.embeddings.dtype),
            valid=left.valid,
            segments=torch.where(heavier, left.segments, right.segments),
            usage=left.usage + right.usage,
            tokens=torch.where(heavier[..., None], left.tokens, right.tokens),
            merged=together,
        )
        gone = torch.zeros_like(bank.valid).scatter(1, older + size, True) & rows[:, None]
        done = {f.name: put(getattr(bank, f.name), older, getattr(one, f.name), rows) for f in fields(Bank)}
        return Bank(**done | {"valid": bank.valid & ~gone})
