"""Scores of written answers."""

from __future__ import annotations

import sys

import pytest

from hmt.metrics import answers
from hmt.metrics.answers import chosen, exact_match, is_correct, rouge_l, token_f1


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
    answers._rouge_scorer.cache_clear()
    monkeypatch.setitem(sys.modules, "rouge_score.rouge_scorer", None)
    with pytest.raises(ImportError, match="the extra answers"):
        rouge_l("a", ["a"])
    answers._rouge_scorer.cache_clear()
