"""Bootstrap intervals over documents."""

from __future__ import annotations

import math

import pytest
import torch

from hmt.metrics.intervals import paired_change, perplexity_change, ratio_interval


def test_documents_that_agree_leave_no_doubt() -> None:
    low, high = ratio_interval([(20.0, 10), (40.0, 20), (2.0, 1)], torch.exp)
    assert low == high == pytest.approx(math.exp(2))


def test_a_mean_of_many_has_the_interval_that_is_known_for_it() -> None:
    values = torch.randn(400, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    low, high = ratio_interval([(float(value), 1) for value in values])
    assert low is not None
    assert high is not None
    half = 1.96 * float(values.std()) / 20
    assert low == pytest.approx(float(values.mean()) - half, abs=0.1 * half)
    assert high == pytest.approx(float(values.mean()) + half, abs=0.1 * half)


def test_long_documents_count_for_more() -> None:
    low, high = ratio_interval([(1.0, 1), (0.0, 999)])
    assert low == 0
    assert high == pytest.approx(1.0)  # where the short one alone is drawn
    percent, *_ = paired_change([(1.0, 1), (0.0, 999)], [(0.0, 1), (0.0, 999)], perplexity_change)
    assert percent == pytest.approx(100 * math.expm1(1e-3))


def test_differences_are_paired_by_document() -> None:
    easy_and_hard = [(10.0, 10), (50.0, 10), (90.0, 10)]
    better = [(nats - 1, tokens) for nats, tokens in easy_and_hard]
    percent, low, high = paired_change(better, easy_and_hard, perplexity_change)
    assert percent == pytest.approx(100 * math.expm1(-0.1))
    assert low == pytest.approx(percent)  # though the documents themselves lie far apart
    assert high == pytest.approx(low)


def test_a_single_document_has_no_interval() -> None:
    assert ratio_interval([(3.0, 2)]) == (None, None)
    assert paired_change([(3.0, 2)], [(4.0, 2)]) == (-0.5, None, None)
