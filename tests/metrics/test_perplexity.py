"""Perplexity: one sum, one division."""

from __future__ import annotations

import math

import pytest
import torch

from hmt.metrics.perplexity import METRICS, Perplexity


def test_nats_are_summed_over_everything_and_divided_once() -> None:
    perplexity = Perplexity()
    first = torch.tensor([[1.0, 2.0, 9.0]])
    second = torch.tensor([[4.0, 4.0, 4.0]])
    perplexity.add(first, torch.tensor([[True, True, False]]), torch.tensor([[True, False, True]]), 10, [0])
    perplexity.add(second, torch.tensor([[True, True, True]]), torch.tensor([[False, False, True]]), 20, [1])
    result = perplexity.result()
    assert result["tokens"] == 5
    assert result["loss"] == pytest.approx(15 / 5)
    assert result["ppl"] == pytest.approx(math.exp(3))
    assert result["ppl_causal"] == pytest.approx(math.exp((1 + 4) / 2))
    assert result["causal_tokens"] == 2
    assert result["bits_per_byte"] == pytest.approx(15 / math.log(2) / 30)
    assert perplexity.sums == [(3.0, 2), (12.0, 3)]


def test_counting_in_parts_and_pooling_is_counting_at_once() -> None:
    nll = torch.rand(3, 12, generator=torch.Generator().manual_seed(0))
    every = torch.ones_like(nll, dtype=torch.bool)
    whole, first, second = Perplexity(), Perplexity(), Perplexity()
    whole.add(nll, every, every, 30, [0, 1, 0])
    first.add(nll[:2], every[:2], every[:2], 20, [0, 1])
    second.add(nll[2:], every[2:], every[2:], 10, [0])
    assert Perplexity.pooled([first, second]).result() == pytest.approx(whole.result())


def test_nothing_scored_gives_nothing() -> None:
    assert Perplexity().result()["ppl"] is None


def test_a_registered_metric_is_among_the_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(METRICS, "nats", lambda sums: sums.all.nats)
    assert Perplexity().result()["nats"] == 0


def test_a_loss_that_is_not_finite_is_no_perplexity() -> None:
    counts = torch.tensor([[True, False]])
    Perplexity().add(torch.tensor([[1.0, torch.nan]]), counts, counts, 1, [0])  # not scored
    with pytest.raises(FloatingPointError):
        Perplexity().add(torch.tensor([[torch.nan, 1.0]]), counts, counts, 1, [0])
