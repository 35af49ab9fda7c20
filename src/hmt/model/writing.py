"""Write on from a state, one position of the backbone per token.

The unfinished segment's window, [prompt | recalled | sensory | tokens so far], stays in the backbone's cache. It is
read anew only where it changes in front: at the start of a segment, and, with a "prefix" query, once more when the J
tokens that the query reads are there; until then what is recalled is that of a "previous" query. A full segment is
closed by feeding the trailing prompt on the cache.

Shape legend: B rows, R memory embeddings per segment, D embedding size, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hmt.memory.copying import Copied, Copies
from hmt.memory.state import MemoryState
from hmt.model.backbone import CachedWindow, embed, vocabulary_size
from hmt.model.outputs import Recollection
from hmt.model.prediction import predict
from hmt.model.reading import SegmentReader
from hmt.model.segment import Fresh, Recalled
from hmt.model.splice import splice


class SegmentWriter:
    """A text being written: a `MemoryState` and, beside it, the cache of its last window.

    Args:
        model: What reads and remembers.
        state: What was read before; what is written goes on from here.
        keep_recollections: Note what is recalled, and where tokens are copied from.

    Attributes:
        state: The state after every token fed so far: that of reading the same text.
        recollections: What was recalled since the first window was opened, where that is asked for; it grows with the
            text.
        copied: Where the tokens that were chosen followed the same words before, likewise.
    """

    def __init__(self, model: SegmentReader, state: MemoryState, keep_recollections: bool = False) -> None:
        self.model = model
        self.state = state
        self.recollections: list[Recollection] | None = [] if keep_recollections else None
        self.copied: list[Copied] = []
        self._offers: list[tuple[Copies, Tensor, Tensor]] = []
        self._window: CachedWindow | None = None
        self._recalled: Recalled | None = None

    def open(self) -> Tensor:
        """Read the unfinished segment into a new window; some row must have a token in it.

        Returns:
            Logits (B, V) float32 after each row's newest token; 0 in rows without one.
        """
        model, state = self.model, self.state
        none = state.pending_ids[:, :0], state.pending_valid[:, :0]
        fresh = model._add(state, *none)
        self._recalled = model._recall(state, fresh, model._causal_query(state, fresh))
        self._note(self._recalled)
        window = splice(*model._pieces(state, self._recalled, *none), pad="left")
        self._window, hidden = CachedWindow.open(model.backbone, window.embeddings, window.mask, model.autoencoder)
        rows, copies = state.pending_counts.nonzero()[:, 0], self._recalled.copies(state, *none)
        logits = torch.zeros(len(hidden), vocabulary_size(model.backbone), dtype=torch.float32, device=hidden.device)
        return logits.index_copy(0, rows, self.predict(hidden[rows, -1], copies, rows, rows))

    def feed(self, tokens: Tensor, running: Tensor) -> Tensor:
        """Read one more token of the running rows.

        Args:
            tokens: (B,) int64.
            running: (B,) bool; the others stay as they are.

        Returns:
            Logits (B, V) float32 after each running row's token.
        """
        self._offers.clear()
        model, ids, mask = self.model, tokens[:, None], running[:, None]
        rows = torch.arange(len(ids), device=ids.device)
        fresh = model._add(self.state, ids, mask)
        stale = self._window is None or self._completes_query(fresh)
        if stale and fresh.complete.any():
            query = model._causal_query(self.state, fresh)
            output, self.state = model.step(ids, self.state, segment_mask=mask, query=query, return_logits=False)
            assert output.hidden is not None
            self._note(output)
            self._window = None
            return self.predict(output.hidden[:, 0], output.copies, rows, rows)
        if stale:
            self.state = model._after(self.state, fresh, self.state.bank)
            return self.open()
        assert self._window is not None
        assert self._recalled is not None
        hidden = self._window.append(embed(model.backbone, ids))[:, 0]
        logits = self.predict(hidden, self._recalled.copies(self.state, ids, mask), rows, rows)
        if fresh.complete.any():
            self._close(fresh)
        else:
            self.state = model._after(self.state, fresh, self.state.bank)
        return logits

    def predict(self, hidden: Tensor, copies: Copies | None, places: Tensor, rows: Tensor) -> Tensor:
        """Logits (n, V) float32 after the newest token of some rows, and a note of what the next may be copied from.

        Args:
            hidden: Last hidden states, (n, D).
            copies: Of the step that they are from.
            places: (n,) int64, where in that step they are: row times its columns, plus column.
            rows: (n,) int64, each once.
        """
        if copies is not None and self.recollections is not None:
            self._offers.append((copies, places, rows))
        return predict(self.model.backbone, hidden, copies, places)

    def note_choice(self, tokens: Tensor, running: Tensor) -> None:
        """Note where the tokens (B,) that the running rows (B,) write next are copied from, if that is asked for."""
        if not self._offers:
            return
        matched, segments = torch.zeros_like(tokens), torch.full_like(tokens, -1)
        for copies, places, rows in self._offers:
            matched[rows], segments[rows] = copies.origins(tokens[rows], places)
        self.copied.append(Copied(tokens, matched * running, segments.where(running, -1)))
        self._offers.clear()

    def _note(self, recollection: Recollection) -> None:
        if self.recollections is not None:
            self.recollections.append(recollection.alone())

    def _completes_query(self, fresh: Fresh) -> bool:
        """Whether some row now has the last of the tokens that its query reads, so that its prompt changes."""
        config = self.model.config
        if not config.queries or config.recall_query != "prefix":
            return False
        reached = fresh.mask.sum(dim=1) == self.model.query_tokens(self.state)
        return bool((reached & (fresh.new > 0) & self.state.bank.filled).any())

    def _close(self, fresh: Fresh) -> None:
        """Feed the trailing prompt, remember what it leaves behind, and let the window go."""
        assert self._window is not None
        assert self._recalled is not None
        trailing = self._recalled.trailing
        # One position at a time: recurrent backbones go on from their state in no other way.
        left_behind = [self._window.append(trailing[:, i : i + 1]) for i in range(trailing.shape[1])]
        embeddings = torch.cat(left_behind, dim=1) if left_behind else trailing
        self.state = self.model._remember(self.state, fresh, self._recalled, embeddings)
        self._window = None
