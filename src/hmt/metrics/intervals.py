"""Bootstrap intervals over documents: what a figure would be with other documents of the same kind.

Documents are drawn with replacement, not tokens: those of one document are too alike. All figures of an evaluation draw
the same documents, so differences are paired.

Source: Efron and Tibshirani, An Introduction to the Bootstrap (1993), chapters 12 and 13 (percentile intervals).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

RESAMPLES = 2000
CONFIDENCE = 0.95
SEED = 0

Sums = Sequence[tuple[float, float]]
"""Total and count of each document, such as nats and tokens."""

Interval = tuple[float | None, float | None]


def ratio_interval(sums: Sums, figure: Callable[[Tensor], Tensor] = torch.clone) -> Interval:
    """Return the 95% interval of a function of sum(totals) / sum(counts).

    Args:
        sums: Total and count of each document.
        figure: Function of the ratios (draws,) float64, such as `torch.exp` for a perplexity.

    Returns:
        Low and high; None with fewer than two documents.
    """
    return _interval(figure(_ratios(sums))) if len(sums) > 1 else (None, None)


def perplexity_change(ours: Tensor, theirs: Tensor) -> Tensor:
    """Return the change in percent between the perplexities of two mean losses, in nats."""
    return 100 * torch.expm1(ours - theirs)


def paired_change(
    sums: Sums, reference: Sums, change: Callable[[Tensor, Tensor], Tensor] = torch.sub
) -> tuple[float, float | None, float | None]:
    """Return the change of sum(totals) / sum(counts) from a reference, and its 95% interval, documents paired.

    Args:
        sums: Total and count of each document.
        reference: The same of the reference, in the same order.
        change: Function of the two ratios, such as `perplexity_change`.

    Returns:
        Change, low and high; no interval with fewer than two documents.
    """
    ours, theirs = (torch.tensor(part, dtype=torch.float64).sum(dim=0) for part in (sums, reference))
    value = float(change(ours[0] / ours[1], theirs[0] / theirs[1]))
    if len(sums) < 2:
        return value, None, None
    return value, *_interval(change(_ratios(sums), _ratios(reference)))


def _ratios(sums: Sums) -> Tensor:
    """sum(totals) / sum(counts) of each draw, (draws,)."""
    values = torch.tensor(sums, dtype=torch.float64)
    generator = torch.Generator().manual_seed(SEED)
    drawn = torch.randint(len(sums), (RESAMPLES, len(sums)), generator=generator)
    totals = values[drawn].sum(dim=1)
    return totals[:, 0] / totals[:, 1]


def _interval(figures: Tensor) -> Interval:
    outside = (1 - CONFIDENCE) / 2
    low, high = figures.quantile(torch.tensor([outside, 1 - outside], dtype=torch.float64)).tolist()
    return low, high
