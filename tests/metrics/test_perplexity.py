"""Perplexity: one sum, one division."""

from __future__ import annotations

import math

import pytest
import torch

from hmt.metrics.perplexity import Perplexity, second_half
from hmt.metrics.resources import Meter


def test_nats_are_summed_over_everything_and_divided_once() -> None:
    perplexity = Perplexity()
    first = torch.tensor([[1.0, 2.0, 9.0]])
    second = torch.tensor([[4.0, 4.0, 4.0]])
    perplexity.add(first, torch.tensor([[True, True, False]]), torch.tensor([[True, False, True]]), 1, 10, [0])
    perplexity.add(second, torch.tensor([[True, True, True]]), torch.tensor([[False, False, True]]), 2, 20, [1])
    result = perplexity.result()
    assert result["tokens"] == 5
    assert result["loss"] == pytest.approx(15 / 5)
    assert result["ppl"] == pytest.approx(math.exp(3))
    assert result["ppl_causal"] == pytest.approx(math.exp((1 + 4) / 2))
    assert result["causal_tokens"] == 2
    assert result["ppl_last_segment_mean"] == pytest.approx((math.exp(2) + math.exp(4)) / 2)
    assert result["bits_per_byte"] == pytest.approx(15 / math.log(2) / 30)
    assert perplexity.sums == [(3.0, 2), (12.0, 3)]


def test_the_second_half_of_a_segment_has_half_a_segment_before_it() -> None:
    # Tokens 0 to 9 in segments of 4: targets are the tokens from 1, and those in the second halves 2, 3, 6 and 7.
    assert [token for token, late in enumerate(second_half(9, 4).tolist(), start=1) if late] == [2, 3, 6, 7]
    assert second_half(9, None).all()
    perplexity = Perplexity()
    nll = torch.arange(1.0, 10.0)[None]
    perplexity.add(nll, nll > 3, nll > 0, 4, 10, [0])
    assert perplexity.result()["ppl_second_half"] == pytest.approx(math.exp((6 + 7) / 2))
    assert perplexity.result()["second_half_tokens"] == 2


def test_counting_in_parts_and_merging_is_counting_at_once() -> None:
    nll = torch.rand(3, 12, generator=torch.Generator().manual_seed(0))
    every = torch.ones_like(nll, dtype=torch.bool)
    whole, first, second = Perplexity(), Perplexity(), Perplexity()
    whole.add(nll, every, every, 5, 30, [0, 1, 0])
    first.add(nll[:2], every[:2], every[:2], 5, 20, [0, 1])
    second.add(nll[2:], every[2:], every[2:], 5, 10, [0])
    first.merge(second)
    assert first.result() == pytest.approx(whole.result())
    assert first.sums[0][1] == 24


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
