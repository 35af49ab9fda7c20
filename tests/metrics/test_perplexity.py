"""Perplexity: one sum, one division."""

from __future__ import annotations

import math

import pytest
import torch

from hmt.metrics.perplexity import Perplexity
from hmt.metrics.resources import Meter


def test_nats_are_summed_over_everything_and_divided_once() -> None:
    perplexity = Perplexity()
    first = torch.tensor([[1.0, 2.0, 9.0]])
    second = torch.tensor([[4.0, 4.0, 4.0]])
    perplexity.add(first, torch.tensor([[True, True, False]]), torch.tensor([[True, False, True]]), 1, 10)
    perplexity.add(second, torch.tensor([[True, True, True]]), torch.tensor([[False, False, True]]), 2, 20)
    result = perplexity.result()
    assert result["tokens"] == 5
    assert result["loss"] == pytest.approx(15 / 5)
    assert result["ppl"] == pytest.approx(math.exp(3))
    assert result["ppl_causal"] == pytest.approx(math.exp((1 + 4) / 2))
    assert result["causal_tokens"] == 2
    assert result["ppl_last_segment_mean"] == pytest.approx((math.exp(2) + math.exp(4)) / 2)
    assert result["bits_per_byte"] == pytest.approx(15 / math.log(2) / 30)


def test_nothing_scored_gives_nothing() -> None:
    assert Perplexity().result()["ppl"] is None


def test_the_meter_sees_what_a_block_takes() -> None:
    with Meter(torch.device("cpu")) as small:
        pass
    with Meter(torch.device("cpu")) as large:
        torch.ones(50_000_000).sum()
    assert large.seconds > small.seconds >= 0
    if small.peak_bytes is not None:
        assert large.peak_bytes - small.peak_bytes > 150e6
