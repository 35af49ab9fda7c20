"""Read what is to be judged without letting the memory see it first.

With a "prefix" query the prompt of a segment has seen that segment's first J tokens, so the logits before them are no
probabilities of what comes next. Here such a segment is read in two steps: up to its J-th token under the prompt of a
"previous" query, the rest under its own. So every logit depends on earlier tokens alone and is the one that `generate`
writes by, and the state afterwards is that of reading in one piece. In all other settings a segment is one step.

Shape legend: B rows, T tokens, J query tokens, l tokens of a part, D embedding size.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from hmt.memory.state import MemoryState
from hmt.model.outputs import StepOutput
from hmt.model.reading import SegmentReader
from hmt.model.stream import Segment, Stream


def causal_states(
    model: SegmentReader, input_ids: Tensor, attention_mask: Tensor, state: MemoryState
) -> Iterator[tuple[Segment, StepOutput]]:
    """Read texts so that no hidden state has seen a later token.

    Args:
        model: Reads.
        input_ids: (B, T), padded on the right.
        attention_mask: (B, T) bool, real tokens.
        state: What was read before.

    Yields:
        A part of each row, whose slots are columns, and the output of its tokens.
    """
    stream = Stream(input_ids, attention_mask, state)
    asks_itself = model.config.queries and model.config.recall_query == "prefix"
    while True:
        room = model.segment_tokens(state) - state.pending_counts
        if asks_itself:
            ahead = model.query_tokens(state) - 1 - state.pending_counts
            room = torch.where((ahead > 0) & state.bank.filled, ahead, room)
        segment = stream.cut(room)
        if segment is None:
            return
        query = model._causal_query(state, model._add(state, segment.ids, segment.mask))
        output, state = model.step(segment.ids, state, segment_mask=segment.mask, query=query, return_logits=False)
        yield segment, output
