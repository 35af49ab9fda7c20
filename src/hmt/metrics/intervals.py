"""Bootstrap intervals: how far a figure would move with other documents of the same kind.

What varies from document to document is the documents, so these are drawn anew, with replacement, and not tokens: those
of one document are too alike. All figures of an evaluation draw the same documents, so differences are paired.

Source: Efron and Tibshirani, An Introduction to the Bootstrap (1993), chapters 12 and 13 (percentile intervals).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

RESAMPLES = 2000
CONFIDENCE = 0.95
SEED = 0

Sums = Sequence[tuple[float, float]]
"""What each document adds to a total and to its count, such as nats and tokens."""

Interval = tuple[float | None, float | None]


def ratio_interval(sums: Sums, figure: Callable[[Tensor], Tensor] = torch.clone) -> Interval:
    """95% interval of a function of sum(totals) / sum(counts).

    Args:
        sums: Of each document.
        figure: What is made of the ratios (draws,) float64, such as `torch.exp` for a perplexity.

    Returns:
        Low and high; None where there are fewer than two documents.
    """
    return _interval(figure(_ratios(sums))) if len(sums) > 1 else (None, None)


def difference_interval(sums: Sums, reference: Sums) -> Interval:
    """95% interval of the change in per cent from the reference's perplexity to that of `sums`, documents paired.

    Args:
        sums: Nats and tokens of each document.
        reference: The same of the reference, in the same order.
    """
    if len(sums) < 2:
        return None, None
    return _interval(100 * torch.expm1(_ratios(sums) - _ratios(reference)))


def difference_percent(sums: Sums, reference: Sums) -> float:
    """Change in per cent from the reference's perplexity to that of `sums`."""
    ours, theirs = (sum(nats for nats, _ in part) / sum(tokens for _, tokens in part) for part in (sums, reference))
    return 100 * math.expm1(ours - theirs)


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
