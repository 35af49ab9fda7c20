"""Score continuations of contexts; a context is read once, however many continuations it has.

Shape legend: B rows, T tokens, C contexts, V vocabulary, D embedding size.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from hmt.memory.state import MemoryState
from hmt.model.backbone import head
from hmt.model.losses import CHUNK_POSITIONS
from hmt.model.modeling_hmt import HMTForCausalLM
from hmt.model.outputs import StepOutput
from hmt.model.stream import Stream
from hmt.model.text_recall import recall_for_prompt
from hmt.text.batches import IGNORED, Sample, pad

Tokens = tuple[int, ...]


@dataclass(frozen=True)
class Answer:
    """Log-likelihood of one continuation.

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

    The memory reads a context once, all but its last token, which predicts the first that is scored; each continuation
    goes on from a copy of it. No prompt sees what is scored: a log-likelihood is that with which `generate` would write
    the continuation.

    Args:
        model: In evaluation mode.
        requests: Context and continuation of each, as token ids, none empty.
        batch_size: Rows read side by side at most.
        memory: Of what was read before every context, one row; nothing where None.

    Yields:
        One answer for each request.
    """
    contexts: dict[Tokens, Context] = {}
    for number, (ids, continuation) in enumerate(requests):
        context = contexts.setdefault(tuple(ids), Context(tuple(ids)))
        context.endings[tuple(continuation[:-1])].append((continuation[-1], number))
    for group in _groups(list(contexts.values()), batch_size):
        state = _remembered(model, group, memory)
        rows = [Row(place, context, inner) for place, context in enumerate(group) for inner in context.endings]
        rows.sort(key=lambda row: -len(row.inner))
        for start in range(0, len(rows), batch_size):
            yield from _score(model, rows[start : start + batch_size], state)


def _groups(contexts: list[Context], batch_size: int) -> Iterator[list[Context]]:
    """Contexts to be read side by side, of about one length: all with something to remember, or all without."""
    group: list[Context] = []
    rows = 0
    for context in sorted(contexts, key=lambda one: (-len(one.ids), -one.longest)):
        other = group and (len(group[0].ids) > 1) != (len(context.ids) > 1)
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


def _remembered(model: HMTForCausalLM, group: list[Context], memory: MemoryState | None) -> MemoryState:
    """The memory of each context without its last token, a row each."""
    if memory is None:
        state = model.initial_state(len(group))
    else:
        state = memory.map(lambda tensor: tensor.repeat_interleave(len(group), dim=0))
    if len(group[0].ids) == 1:
        return state
    batch = pad([_sample(context.ids[:-1]) for context in group])
    state, prompt = recall_for_prompt(model, batch.input_ids, batch.attention_mask, state)
    return model.remember(prompt.rest, state, prompt.mask)


@torch.no_grad()
def _score(model: HMTForCausalLM, rows: list[Row], state: MemoryState) -> Iterator[Answer]:
    """Go on from the memory of each row's context."""
    batch = pad([_sample(row.context.ids[-1:] + row.inner) for row in rows])
    ids, mask = batch.input_ids, batch.attention_mask
    last = mask.sum(dim=1) - 1  # column of each row's last token
    columns = torch.arange(ids.shape[1])
    scored = columns < last[:, None]
    targets = F.pad(ids[:, 1:], (0, 1)).masked_fill(~scored, IGNORED)
    places = torch.tensor([row.memory_row for row in rows])
    nats = torch.zeros(len(rows), dtype=torch.float64)
    greedy = torch.ones(len(rows), dtype=torch.bool)
    endings: dict[int, Tensor] = {}
    state = state.map(lambda tensor: tensor[places])
    for part, output, _ in model.steps(Stream(ids, mask, state), state, causal=True):
        cost, right = _cost(model, output, part.of(targets, IGNORED))
        nats += cost.sum(dim=1).double().cpu()
        greedy &= right.all(dim=1).cpu()
        ending = ((part.slots == last[:, None]) & part.mask).flatten().nonzero()[:, 0]
        ended = ending.div(part.ids.shape[1], rounding_mode="floor")
        endings |= dict(zip(ended.tolist(), _logits(model, output, ending).log_softmax(dim=-1), strict=True))
    for number, row in enumerate(rows):
        likeliest = int(endings[number].argmax())
        for token, request in row.context.endings[row.inner]:
            total = float(endings[number][token]) - float(nats[number])
            if math.isnan(total):
                raise FloatingPointError("a log-likelihood is not a number; check the weights and their dtype")
            yield Answer(request, total, bool(greedy[number]) and token == likeliest)


def _logits(model: HMTForCausalLM, output: StepOutput, places: Tensor) -> Tensor:
    """Logits (n, V) after some places of a step, each row times its columns, plus column."""
    if output.logits is not None:
        return output.logits.flatten(0, 1)[places].float()
    assert output.hidden is not None
    return head(model.backbone, output.hidden.flatten(0, 1)[places]).float()


def _cost(model: HMTForCausalLM, output: StepOutput, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Nats of each target (B, l), 0 where it is IGNORED, and whether it is the likeliest token (True where IGNORED)."""
    assert output.hidden is not None
    targets = targets.to(output.hidden.device)
    scored = targets != IGNORED
    nats = torch.zeros(targets.shape, device=targets.device)
    right = torch.ones_like(scored)
    costs, hits = [], []
    for places in scored.flatten().nonzero()[:, 0].split(CHUNK_POSITIONS):
        logits, wanted = _logits(model, output, places), targets.flatten()[places]
        costs.append(F.cross_entropy(logits, wanted, reduction="none"))
        hits.append(logits.argmax(dim=-1) == wanted)
    return nats.masked_scatter(scored, torch.cat(costs)), right.masked_scatter(scored, torch.cat(hits))
