"""Validation while training: samples like those that are trained on, of a split that is not."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from hmt.text.batches import Batch, Readable, Sample, cut, pad


def held_out(documents: Sequence[Readable], sample_tokens: int, count: int) -> list[Sample]:
    """Samples spread evenly over the documents, at most `count`."""
    samples = cut(documents, sample_tokens)
    stride = max(len(samples) / count, 1)
    return [samples[int(number * stride)] for number in range(min(count, len(samples)))]


@torch.no_grad()
def score(
    accelerator: Accelerator,
    model: nn.Module,
    samples: list[Sample],
    batch_size: int,
    loss_tokens: int | None,
    distances: Counter[int] | None = None,
) -> dict[str, float]:
    """Mean nats per scored target and perplexity, over all processes.

    Args:
        accelerator: Of the run.
        model: Reads.
        samples: Of all processes.
        batch_size: Rows that a process reads side by side.
        loss_tokens: Score only the last so many tokens of a sample.
        distances: Takes how often each recall distance was seen by this process, where it is wanted.

    Every process reads the same number of batches, so that those that gather weights can do it together.
    """
    training = model.training
    model.eval()
    rank, processes = accelerator.process_index, accelerator.num_processes
    sums = torch.zeros(2, dtype=torch.float64, device=accelerator.device)
    for start in range(0, len(samples), batch_size * processes):
        group = samples[start : start + batch_size * processes]
        own = group[rank::processes]
        batch = pad(own or group[:1])
        with accelerator.autocast():  # whether the model was prepared for it or not
            nats, targets = _sums(accelerator, model, batch, loss_tokens, distances if own else None)
        if own:
            sums += torch.stack([nats, targets])
    model.train(training)
    nats, targets = accelerator.reduce(sums, reduction="sum").tolist()
    loss = nats / targets
    return {"loss": loss, "ppl": math.exp(min(loss, 700.0)), "targets": targets}


def _sums(
    accelerator: Accelerator, model: nn.Module, batch: Batch, loss_tokens: int | None, distances: Counter[int] | None
) -> tuple[Tensor, Tensor]:
    """Nats, and how many targets they are of."""
    output = model(
        batch.input_ids.to(accelerator.device),
        attention_mask=batch.attention_mask.to(accelerator.device),
        labels=batch.labels.to(accelerator.device),
        loss_tokens=loss_tokens,
        return_logits=False,
        output_recall=distances is not None,
    )
    if distances is not None:
        distances.update(output.recall.distances)
    return output.nll.sum().double(), output.scored_mask.sum().double()
