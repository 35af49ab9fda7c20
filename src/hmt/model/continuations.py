"""What continuations of contexts cost. A context is read once, however many continuations it has.

Shape legend: B rows, T tokens, C contexts, V vocabulary, D embedding size.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from hmt.memory.state import MemoryState
from hmt.model.backbone import head
from hmt.model.causal import causal_states
from hmt.model.hmt import HMTForCausalLM
from hmt.model.scoring import CHUNK_POSITIONS
from hmt.text.batches import IGNORED, Sample, pad

Tokens = tuple[int, ...]


@dataclass(frozen=True)
class Answer:
    """What one continuation costs.

    Attributes:
        number: Which request it is.
        loglikelihood: Of all its tokens, in nats, at most 0.
        greedy: Each of its tokens is the likeliest one.
    """

    number: int
    loglikelihood: float
    greedy: bool


@dataclass
class Context:
    """A context and its continuations.

    Attributes:
        ids: Its tokens, at least one.
        endings: A continuation without its last token -> that last token of each request, and the request's number.
            Continuations that differ in their last token alone are one row: a question with one-token answers costs
            as much as one of them.
    """

    ids: Tokens
    endings: dict[Tokens, list[tuple[int, int]]] = field(default_factory=lambda: defaultdict(list))

    @property
    def longest(self) -> int:
        """Tokens read for the longest of its continuations."""
        return len(self.ids) + max(map(len, self.endings))


@dataclass(frozen=True)
class Row:
    """A row of a batch: a continuation (without its last token) of the context in this row of the memory."""

    memory_row: int
    context: Context
    inner: Tokens


def answers(
    model: HMTForCausalLM,
    requests: Sequence[tuple[Sequence[int], Sequence[int]]],
    batch_size: int,
    memory: MemoryState | None = None,
) -> Iterator[Answer]:
    """Score continuations, the longest first.

    The memory reads the whole segments of a context once; each continuation goes on from a copy of it. No prompt sees
    what is scored: a log-likelihood is that with which `generate` would write the continuation.

    Args:
        model: In evaluation mode.
        requests: Context and continuation of each, as token ids, none empty.
        batch_size: Rows read side by side at most.
        memory: Of what was read before every context, one row and nothing unfinished; nothing where None.

    Yields:
        One answer for each request.
    """
    contexts: dict[Tokens, Context] = {}
    for number, (ids, continuation) in enumerate(requests):
        context = contexts.setdefault(tuple(ids), Context(tuple(ids)))
        context.endings[tuple(continuation[:-1])].append((continuation[-1], number))
    length = model.config.fresh_tokens
    for group in _groups(list(contexts.values()), batch_size, length):
        state = _remembered(model, group, length, memory)
        rows = [Row(place, context, inner) for place, context in enumerate(group) for inner in context.endings]
        rows.sort(key=lambda row: -len(row.inner))
        for start in range(0, len(rows), batch_size):
            yield from _score(model, rows[start : start + batch_size], state, length)


def _groups(contexts: list[Context], batch_size: int, length: int) -> Iterator[list[Context]]:
    """Contexts to be read side by side, of about one length: all with whole segments to remember, or all without."""
    group: list[Context] = []
    rows = 0
    for context in sorted(contexts, key=lambda one: (-_whole(one, length), -one.longest)):
        other = group and bool(_whole(group[0], length)) != bool(_whole(context, length))
        if group and (other or rows + len(context.endings) > batch_size):
            yield group
            group, rows = [], 0
        group.append(context)
        rows += len(context.endings)
    if group:
        yield group


def _sample(ids: tuple[int, ...]) -> Sample:
    tokens = torch.tensor(ids)
    return Sample(tokens, tokens)


def _whole(context: Context, length: int) -> int:
    """Tokens of a context's whole segments; its last token is left, since it predicts the first that is scored."""
    return (len(context.ids) - 1) // length * length


def _remembered(model: HMTForCausalLM, group: list[Context], length: int, memory: MemoryState | None) -> MemoryState:
    """The memory of the whole segments of each context, a row each."""
    if memory is None:
        state = model.initial_state(len(group))
    else:
        state = memory.map(lambda tensor: tensor.repeat_interleave(len(group), dim=0))
    if not _whole(group[0], length):
        return state
    batch = pad([_sample(context.ids[: _whole(context, length)]) for context in group])
    return model.remember(batch.input_ids.to(model.device), state, batch.attention_mask.to(model.device))


@torch.no_grad()
def _score(model: HMTForCausalLM, rows: list[Row], state: MemoryState, length: int) -> Iterator[Answer]:
    """Go on from the memory of each row's context."""
    device = model.device
    rests = [row.context.ids[_whole(row.context, length) :] for row in rows]
    batch = pad([_sample(rest + row.inner) for rest, row in zip(rests, rows, strict=True)])
    ids, mask = batch.input_ids.to(device), batch.attention_mask.to(device)
    last = mask.sum(dim=1) - 1  # column of each row's last token
    before = torch.tensor([len(rest) - 1 for rest in rests], device=device)  # column that predicts the first
    columns = torch.arange(ids.shape[1], device=device)
    scored = (columns >= before[:, None]) & (columns < last[:, None])
    targets = F.pad(ids[:, 1:], (0, 1)).masked_fill(~scored, IGNORED)
    places = torch.tensor([row.memory_row for row in rows], device=device)
    nats = torch.zeros(len(rows), dtype=torch.float64)
    greedy = torch.ones(len(rows), dtype=torch.bool)
    endings: dict[int, Tensor] = {}
    for start, hidden in causal_states(model, ids, mask, state.map(lambda tensor: tensor[places])):
        part = slice(start, start + hidden.shape[1])
        cost, right = _cost(model, hidden, targets[:, part])
        nats += cost.sum(dim=1).double().cpu()
        greedy &= right.all(dim=1).cpu()
        here = ((last >= part.start) & (last < part.stop)).nonzero().flatten()
        ended = head(model.backbone, hidden[here, last[here] - start]).float().log_softmax(dim=-1)
        endings |= dict(zip(here.tolist(), ended, strict=True))
    for number, row in enumerate(rows):
        likeliest = int(endings[number].argmax())
        for token, request in row.context.endings[row.inner]:
            total = float(endings[number][token]) - float(nats[number])
            yield Answer(request, total, bool(greedy[number]) and token == likeliest)


def _cost(model: HMTForCausalLM, hidden: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Nats of each target (B, l), 0 where it is IGNORED, and whether it is the likeliest token (True where IGNORED)."""
    scored = targets != IGNORED
    nats = torch.zeros(targets.shape, device=hidden.device)
    right = torch.ones_like(scored)
    costs, hits = [], []
    for states, wanted in zip(
        hidden[scored].split(CHUNK_POSITIONS), targets[scored].split(CHUNK_POSITIONS), strict=True
    ):
        logits = head(model.backbone, states).float()
        costs.append(F.cross_entropy(logits, wanted, reduction="none"))
        hits.append(logits.argmax(dim=-1) == wanted)
    return nats.masked_scatter(scored, torch.cat(costs)), right.masked_scatter(scored, torch.cat(hits))
