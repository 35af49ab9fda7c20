"""Perplexity is exp(sum of nats / targets); intervals cover what they say; answers are scored as their metrics say."""

from __future__ import annotations

import math
import sys

import pytest
import torch

from hmt.metrics import scores
from hmt.metrics.scores import (
    TEXT_METRICS,
    Perplexity,
    chosen,
    exact_match,
    is_correct,
    paired_change,
    perplexity_change,
    ratio_interval,
    rouge_l,
    token_f1,
)


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
    monkeypatch.setitem(TEXT_METRICS, "nats", lambda sums: sums.all.nats)
    assert Perplexity().result()["nats"] == 0


def test_a_loss_that_is_not_finite_is_no_perplexity() -> None:
    counts = torch.tensor([[True, False]])
    Perplexity().add(torch.tensor([[1.0, torch.nan]]), counts, counts, 1, [0])  # not scored
    with pytest.raises(FloatingPointError):
        Perplexity().add(torch.tensor([[torch.nan, 1.0]]), counts, counts, 1, [0])


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


def test_case_articles_and_punctuation_do_not_count() -> None:
    assert exact_match("The Eiffel Tower.", ["eiffel tower", "tower"]) == 1
    assert exact_match("the tower in Paris", ["eiffel tower"]) == 0


def test_f1_is_of_the_words_that_are_shared_with_the_best_answer() -> None:
    assert token_f1("red red box", ["red box lid", "door"]) == pytest.approx(2 * 2 / 6)
    assert token_f1("", ["door"]) == 0
    assert token_f1("the", [""]) == 1


def test_rouge_l_is_of_the_longest_common_subsequence() -> None:
    assert rouge_l("police killed the gunman", ["police kill the gunman"]) == pytest.approx(1.0)
    assert rouge_l("the gunman kill police", ["police kill the gunman"]) == pytest.approx(0.5)


def test_the_choice_that_is_named_first_counts() -> None:
    choices = ("yes", "no", "maybe")
    assert chosen("It is not known, so maybe; no.", choices) == "maybe"
    assert chosen("NO, yes", choices) == "no"
    assert chosen("nobody knows", choices) is None
    assert chosen("yes and no", ("yes", "yes and no")) == "yes and no"
    assert is_correct("Yes, it is.", ["yes"], choices) == 1
    assert is_correct("Not yes but... I mean no", ["no"], choices) == 0


def test_without_choices_an_answer_is_right_where_it_holds_an_accepted_one() -> None:
    assert is_correct("The code is 4711, I think", ["4711"]) == 1
    assert is_correct("The code is 47110", ["4711"]) == 0


def test_a_missing_package_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    scores._rouge_scorer.cache_clear()
    monkeypatch.setitem(sys.modules, "rouge_score.rouge_scorer", None)
    with pytest.raises(ImportError, match="the extra answers"):
        rouge_l("a", ["a"])
    scores._rouge_scorer.cache_clear()
