"""Read what is to be judged without letting the memory see it first.

With a "prefix" query the prompt of a segment has seen that segment's first J tokens, so the logits before them are no
probabilities of what comes next. Here such a segment is read in two steps: up to its J-th token under the prompt of a
"previous" query, the rest under its own. So every logit depends on earlier tokens alone and is the one that `generate`
writes by, and the state afterwards is that of reading in one piece. In all other settings a segment is one step.

Shape legend: B rows, T tokens, J query tokens, L fresh tokens per segment, D embedding size.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from hmt.memory.state import MemoryState
from hmt.model.reading import Query, SegmentReader


def causal_states(
    model: SegmentReader, input_ids: Tensor, attention_mask: Tensor, state: MemoryState
) -> Iterator[tuple[int, Tensor]]:
    """Last hidden states of texts, none of which has seen a later token.

    Args:
        model: Reads.
        input_ids: (B, T), padded on the right.
        attention_mask: (B, T) bool, real tokens.
        state: What was read before: whole segments, nothing unfinished.

    Yields:
        The first column of a part, and the hidden states (B, l, D) of its columns; the parts follow each other.

    Raises:
        ValueError: If the state holds tokens of an unfinished segment.
    """
    if state.pending_ids.shape[1]:
        raise ValueError(f"the memory must end with a segment, {state.pending_ids.shape[1]} tokens are unfinished")
    config = model.config
    length, count = config.fresh_tokens, config.summary_tokens
    ahead = count - 1 if config.queries and config.recall_query == "prefix" else 0
    start = place = 0  # of the next part: in the text, and in its segment
    while start < input_ids.shape[1]:
        waits = place < ahead and state.bank.valid.shape[1] > 0
        columns = slice(start, start + (ahead if waits else length) - place)
        query = Query(state.tail_ids[:, -count:], state.tail_valid[:, -count:]) if waits else None
        ids, mask = input_ids[:, columns], attention_mask[:, columns]
        output, state = model.step(ids, state, segment_mask=mask, query=query, return_logits=False)
        assert output.hidden is not None
        yield start, output.hidden
        start, place = columns.stop, ahead if waits else 0
