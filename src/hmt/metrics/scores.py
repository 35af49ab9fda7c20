"""Scores of text and of answers, and their bootstrap intervals over documents.

Perplexity sums nats over a whole evaluation and divides once. An interval says what a figure would be with other
documents of the same kind. Documents are drawn with replacement, not tokens: those of one document are too alike. All
figures of an evaluation draw the same documents, so differences are paired.

Source: Efron and Tibshirani, An Introduction to the Bootstrap (1993), chapters 12 and 13 (percentile intervals);
normalization, exact match and F1 as in SQuAD (arXiv:1606.05250, section 6.1); ROUGE-L (Lin, 2004) by the package
rouge-score.
"""

from __future__ import annotations

import math
import re
import string
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from torch import Tensor

from hmt.text.questions import Question

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


@dataclass
class Tally:
    """Nats, and the number of targets that they are of."""

    nats: float = 0.0
    tokens: int = 0

    def add(self, nll: Tensor, counts: Tensor) -> None:
        """Count the targets in `counts` (..., bool) of `nll`, nats of the same shape."""
        self.nats += float(nll[counts].sum())
        self.tokens += int(counts.sum())

    def merge(self, other: Tally) -> None:
        """Count all that another tally has counted."""
        self.nats += other.nats
        self.tokens += other.tokens

    @property
    def mean(self) -> float | None:
        """Nats per target; None if nothing was counted."""
        return self.nats / self.tokens if self.tokens else None

    @property
    def ppl(self) -> float | None:
        """Perplexity; None if nothing was counted."""
        return None if self.mean is None else math.exp(min(self.mean, 700.0))


@dataclass
class Perplexity:
    """Sums over scored targets; never a mean of per-batch perplexities.

    Attributes:
        all: Scored targets.
        causal: Scored targets that the memory prompt cannot have seen.
        documents: Scored targets of each document, by its index.
        text_bytes: UTF-8 bytes of the scored text.
    """

    all: Tally = field(default_factory=Tally)
    causal: Tally = field(default_factory=Tally)
    documents: dict[int, Tally] = field(default_factory=dict)
    text_bytes: int = 0

    def add(self, nll: Tensor, scored: Tensor, causal: Tensor, text_bytes: int, documents: Sequence[int]) -> None:
        """Count a batch.

        Args:
            nll: Nats per target, (B, T - 1).
            scored: Targets that count, (B, T - 1) bool.
            causal: Targets that the memory prompt cannot have seen, (B, T - 1) bool.
            text_bytes: UTF-8 bytes of the batch's scored text.
            documents: Document of each row.

        Raises:
            FloatingPointError: If the nats of a scored target are not finite.
        """
        nll, scored, causal = nll.cpu().double(), scored.cpu(), causal.cpu()
        if not bool(nll[scored].isfinite().all()):
            raise FloatingPointError("the loss of a text is not finite; check the weights and their dtype")
        self.all.add(nll, scored)
        self.causal.add(nll, scored & causal)
        self.text_bytes += text_bytes
        for row, counts, document in zip(nll, scored, documents, strict=True):
            self.documents.setdefault(document, Tally()).add(row, counts)

    @classmethod
    def pooled(cls, parts: Sequence[Perplexity]) -> Perplexity:
        """Return the sums of several."""
        pooled = cls()
        for part in parts:
            pooled.all.merge(part.all)
            pooled.causal.merge(part.causal)
            pooled.text_bytes += part.text_bytes
            for index, tally in part.documents.items():
                pooled.documents.setdefault(index, Tally()).merge(tally)
        return pooled

    @property
    def sums(self) -> Sums:
        """Nats and tokens of each document, in order of their indices."""
        return [(tally.nats, tally.tokens) for _, tally in sorted(self.documents.items())]

    @property
    def bits_per_byte(self) -> float | None:
        """Bits per byte of the scored text; None if nothing was counted."""
        return self.all.nats / math.log(2) / self.text_bytes if self.text_bytes else None

    def result(self) -> dict[str, float | int | None]:
        """Return every metric by name, and the 95% interval of the perplexity over documents."""
        low, high = ratio_interval(self.sums, torch.exp)
        return {name: measure(self) for name, measure in TEXT_METRICS.items()} | {"ppl_low": low, "ppl_high": high}


TEXT_METRICS: dict[str, Callable[[Perplexity], float | int | None]] = {
    "loss": lambda sums: sums.all.mean,
    "ppl": lambda sums: sums.all.ppl,
    "ppl_causal": lambda sums: sums.causal.ppl,
    "bits_per_byte": lambda sums: sums.bits_per_byte,
    "tokens": lambda sums: sums.all.tokens,
    "causal_tokens": lambda sums: sums.causal.tokens,
}
"""Metrics of scored text, by their names in the figures."""


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


ANSWER_METRICS: dict[str, Callable[[str, Question], float]] = {
    "accuracy": lambda text, question: is_correct(text, question.answers, question.choices),
    "exact_match": lambda text, question: exact_match(text, question.answers),
    "f1": lambda text, question: token_f1(text, question.answers),
    "rouge_l": lambda text, question: rouge_l(text, question.answers),
}
"""Metrics of generated answers, by their names in the figures; each is averaged over questions."""
