"""Scores of a generated answer against the accepted ones.

Source: normalization, exact match and F1 as in SQuAD (arXiv:1606.05250, section 6.1); ROUGE-L (Lin, 2004) by the
package rouge-score.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

from hmt.text.questions import Question

ARTICLES = re.compile(r"\b(a|an|the)\b")
PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalized(text: str) -> str:
    """Return the text in lower case, without punctuation and articles, one space between words."""
    return " ".join(ARTICLES.sub(" ", text.lower().translate(PUNCTUATION)).split())


def exact_match(prediction: str, answers: Sequence[str]) -> float:
    """Return 1 if the prediction is one of the answers, normalized; else 0."""
    return float(any(normalized(prediction) == normalized(answer) for answer in answers))


def token_f1(prediction: str, answers: Sequence[str]) -> float:
    """Return the highest harmonic mean of precision and recall over the words shared with an answer."""
    return max(_f1(normalized(prediction).split(), normalized(answer).split()) for answer in answers)


def _f1(predicted: list[str], wanted: list[str]) -> float:
    if not predicted or not wanted:
        return float(predicted == wanted)
    return 2 * (Counter(predicted) & Counter(wanted)).total() / (len(predicted) + len(wanted))


def rouge_l(prediction: str, answers: Sequence[str]) -> float:
    """Return the highest F-measure of the longest common subsequence of words, stemmed.

    Raises:
        ImportError: If rouge-score is not installed; names the extra.
    """
    return max(_rouge_scorer().score(answer, prediction)["rougeL"].fmeasure for answer in answers)


@cache
def _rouge_scorer() -> Any:
    try:
        from rouge_score.rouge_scorer import RougeScorer
    except ImportError as error:
        raise ImportError("ROUGE-L needs rouge-score, the extra answers: pip install rouge-score") from error
    return RougeScorer(["rougeL"], use_stemmer=True)


def chosen(prediction: str, choices: Sequence[str]) -> str | None:
    """Return the choice that the prediction names first, as a word of its own; the longest of those at one place."""
    text = prediction.lower()
    found = []
    for choice in choices:
        if match := re.search(rf"(?<!\w){re.escape(choice.lower())}(?!\w)", text):
            found.append((match.start(), -len(choice), choice))
    return min(found)[2] if found else None


def is_correct(prediction: str, answers: Sequence[str], choices: Sequence[str] = ()) -> float:
    """Return 1 if the prediction names a right choice first or, without choices, holds an accepted answer; else 0."""
    if choices:
        choice = chosen(prediction, choices)
        return 0.0 if choice is None else exact_match(choice, answers)
    words = f" {normalized(prediction)} "
    wanted = [normalized(answer) for answer in answers]
    return float(any(answer and f" {answer} " in words for answer in wanted))


METRICS: dict[str, Callable[[str, Question], float]] = {
    "accuracy": lambda text, question: is_correct(text, question.answers, question.choices),
    "exact_match": lambda text, question: exact_match(text, question.answers),
    "f1": lambda text, question: token_f1(text, question.answers),
    "rouge_l": lambda text, question: rouge_l(text, question.answers),
}
"""Metrics of generated answers, by their names in the figures; each is averaged over questions."""
