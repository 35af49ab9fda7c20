"""Fit the weights of copying on some texts, and measure them on others, beside those that a new model starts with.

    python benchmarks/copying.py --texts stdlib wikitext pg19=DIR --windows 128 512 --context 16k

The backbone stays as it is; 3 * (C + 1) weights are fitted on documents of the train split, by least nats over all
texts and windows alike, and measured on documents of the validation split. A window has `--fresh-share` of fresh
tokens, the rest is the plain sliding window; what is copied from has left it.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
import tyro
from environment import write
from hmt.memory.copying import Copies, Copying
from torch import Tensor
from tqdm import tqdm

from hmt import HMTForCausalLM
from hmt.metrics.intervals import difference_interval, difference_percent
from hmt.model.backbone import head
from hmt.options import parse_count
from hmt.pretrained import load_tokenizer
from hmt.report.table import format_table
from hmt.text.batches import tokenize
from hmt.text.tasks import load_documents

COLUMNS = {"text": "text", "window": "window", "plain": "plain", "start": "start", "fitted": "fitted",
           "gain_percent": "gain of fitted %", "interval": "95%"}  # fmt: skip


@dataclass
class Options:
    """What to fit and to measure."""

    texts: tuple[str, ...] = ("stdlib",)
    """Tasks, each as NAME or NAME=DIRECTORY."""
    windows: tuple[int, ...] = (128, 512)
    """Window sizes W."""
    fresh_share: float = 0.125
    """Share of the window that is fresh tokens."""
    context: str = "16k"
    """Tokens of a document up to its last target; shorter documents are taken whole."""
    target_tokens: int = 512
    """Last tokens of each, which are scored, and those before them in their segment."""
    documents: int = 12
    """Documents of each text and split."""
    copy_context: int = 4
    """Tokens C of the longest context."""
    regularisation: float = 1e-4
    """What the squared weights count in the loss."""
    iterations: int = 20
    """Of L-BFGS."""
    model_name: str = "smollm2-135m"
    """Backbone."""
    name: str = "copying"
    """Of the file under results/."""


@dataclass(frozen=True)
class Piece:
    """Targets of a segment: logits of the backbone alone, what copying adds to them, and the tokens that came."""

    logits: Tensor
    copies: Copies
    targets: Tensor

    def nats(self, plain: bool = False) -> Tensor:
        """Of all targets, summed."""
        logits = self.logits.float()
        if not plain:
            logits = self.copies.add_to(logits, torch.arange(len(logits)))
        return F.cross_entropy(logits, self.targets, reduction="sum")


Text = dict[tuple[str, int], list[list[Piece]]]
"""Of each text and window: of each document its pieces."""


def main(options: Options) -> None:
    """Read, fit, measure and write."""
    torch.manual_seed(0)
    model = HMTForCausalLM.from_backbone(
        options.model_name, dtype="bfloat16", mode="backbone", segment_length=max(options.windows),
        copy_context=options.copy_context,
    ).eval()  # fmt: skip
    train, validation = (read(options, model, split) for split in ("train", "validation"))
    copying = model.memory.copying
    assert copying is not None
    with torch.no_grad():
        before = nats_of(validation)
    fit(options, copying, train)
    with torch.no_grad():
        after, plain = nats_of(validation), nats_of(validation, plain=True)
    rows = [row(key, validation[key], plain[key], before[key], after[key]) for key in validation]
    weights = [[round(value, 3) for value in one] for one in copying.weights.tolist()]
    names = [text.partition("=")[0] for text in options.texts]
    path = write(options.name, {"options": vars(options) | {"texts": names}, "weights": weights, "rows": rows})
    sys.stdout.write(f"{format_table(rows, COLUMNS)}\nweights {weights}\nwritten to {path}\n")


@torch.no_grad()
def read(options: Options, model: HMTForCausalLM, split: str) -> Text:
    """Pieces of all texts of a split."""
    tokenizer = load_tokenizer(options.model_name)
    found: Text = {}
    for text in options.texts:
        name, _, directory = text.partition("=")
        documents = tokenize(load_documents(directory or name, split), tokenizer, len(model.embedding_table))
        least = max(options.windows) + options.target_tokens
        long = [document.ids for document in documents if len(document.ids) > least + 1]
        chosen = long[:: max(len(long) // options.documents, 1)][: options.documents]
        for window in options.windows:
            fresh = round(options.fresh_share * window)
            reader = model.variant(
                segment_length=window, num_sensory=window - fresh, mem_recall_context=parse_count(options.context)
            )
            done = tqdm(chosen, desc=f"{split} {name} {window}", disable=None)
            found[name, window] = [read_document(options, reader, ids) for ids in done]
    return found


def read_document(options: Options, reader: HMTForCausalLM, ids: Tensor) -> list[Piece]:
    """The last targets before `context`; the segments before them are remembered unread."""
    ids = ids[None, : parse_count(options.context) + 1]
    fresh, last = reader.config.fresh_tokens, ids.shape[1] - 1
    first = (last - options.target_tokens) // fresh * fresh
    state, pieces = reader.remember(ids[:, :first]), []
    for start in range(first, last, fresh):
        end = min(start + fresh, last)
        output, state = reader.step(ids[:, start:end], state, return_logits=False)
        assert output.hidden is not None
        assert output.copies is not None
        logits = head(reader.backbone, output.hidden[0])
        pieces.append(Piece(logits, output.copies, ids[0, start + 1 : end + 1]))
    return pieces


def nats_of(text: Text, plain: bool = False) -> dict[tuple[str, int], list[float]]:
    """Nats of each document."""
    return {
        key: [float(sum(piece.nats(plain) for piece in pieces)) for pieces in documents]
        for key, documents in text.items()
    }


def fit(options: Options, copying: Copying, text: Text) -> None:
    """Find the weights of least nats a target, each text and window counting alike."""
    weights = copying.weights.requires_grad_()
    optimizer = torch.optim.LBFGS([weights], max_iter=options.iterations, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        total = options.regularisation * weights.pow(2).sum()
        total.backward()
        for documents in text.values():
            targets = sum(len(piece.targets) for pieces in documents for piece in pieces)
            for piece in (piece for pieces in documents for piece in pieces):
                nats = piece.nats() / targets / len(text)
                nats.backward()
                total = total + nats.detach()
        sys.stderr.write(f"{float(total.detach()):.5f} nats\n")
        return total.detach()

    optimizer.step(loss)


def row(
    key: tuple[str, int], documents: list[list[Piece]], plain: list[float], before: list[float], after: list[float]
) -> dict[str, Any]:
    """Perplexities of a text and window, and what copying gains with a 95% interval over documents."""
    counts = [sum(len(piece.targets) for piece in pieces) for pieces in documents]
    ours, theirs = ([*zip(nats, counts, strict=True)] for nats in (after, plain))
    low, high = difference_interval(ours, theirs)
    ppls = {
        name: float(torch.tensor(sum(nats) / sum(counts)).exp())
        for name, nats in (("plain", plain), ("start", before), ("fitted", after))
    }
    return {
        "text": key[0], "window": key[1], "documents": len(documents), "targets": sum(counts), **ppls,
        "gain_percent": -difference_percent(ours, theirs),
        "interval": None if low is None or high is None else f"{-high:.1f} to {-low:.1f}",
    }  # fmt: skip


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
