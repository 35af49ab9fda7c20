"""Questions as tokens: only the answer is learnt, and what supports it is kept and found again."""

from __future__ import annotations

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from hmt.text.answers import TokenQuestion, token_range, tokenize_questions
from hmt.text.batches import IGNORED, Sample, pad
from hmt.text.questions import Question, ask, joined
from tests.conftest import VOCAB
from tests.text.tokenizers import BOS

EOS = 2


def question(
    context: str = "one two three", answer: str = "yes", supporting: tuple[tuple[int, int], ...] = ()
) -> Question:
    """A question."""
    return Question("q", "d", context, " Q? A:", (answer, "other"), (), supporting)


def tokens(asked: Question, tokenizer: PreTrainedTokenizerFast) -> TokenQuestion:
    """Its tokens: one a byte."""
    return tokenize_questions([asked], tokenizer, VOCAB)[0]


def test_a_sample_is_context_prompt_answer_and_end_and_only_the_answer_is_scored(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    (sample,) = tokens(question(), tokenizer).samples(100)
    assert tokenizer.decode(sample.ids) == "one two three Q? A: yes</s>"
    scored = sample.labels != IGNORED
    assert tokenizer.decode(sample.labels[scored]) == " yes</s>"
    assert torch.equal(sample.ids[scored], sample.labels[scored])
    assert scored.sum() == len(" yes") + 1


def test_what_is_shown_does_not_depend_on_the_answer(tokenizer: PreTrainedTokenizerFast) -> None:
    one, other = (tokens(question(answer=answer), tokenizer) for answer in ("yes", "a long one"))
    assert torch.equal(one.shown, other.shown)
    assert tokenizer.decode(one.shown) == question().context + question().prompt


def test_an_answer_continues_its_prompt_with_one_space() -> None:
    assert Question("q", "d", "c", ask("Why?"), ("x",)).continuation("x") == " x"
    assert Question("q", "d", "c", "Again:\n\n", ("x",)).continuation("x") == "x"


def test_padding_is_never_scored_and_rows_keep_their_labels(tokenizer: PreTrainedTokenizerFast) -> None:
    samples = [tokens(question(answer=answer), tokenizer).samples(100)[0] for answer in ("no", "certainly")]
    batch = pad(samples)
    assert (batch.labels != IGNORED).sum(dim=1).tolist() == [len(" no") + 1, len(" certainly") + 1]
    assert batch.attention_mask.sum(dim=1).tolist() == [len(sample) for sample in samples]


def test_of_a_long_context_the_support_stays_and_what_is_nearest(tokenizer: PreTrainedTokenizerFast) -> None:
    context, supporting = joined(["a" * 30, "KEY", "b" * 30, "c" * 10], [1])
    (sample,) = tokens(question(context, "yes", supporting), tokenizer).samples(30)
    assert len(sample) == 30
    text = tokenizer.decode(sample.ids)
    assert text.startswith("KEY")
    assert text.endswith("c" * 10 + " Q? A: yes</s>")
    ((start, end),) = sample.supporting
    assert tokenizer.decode(sample.ids[start:end]) == "KEY"


@pytest.mark.parametrize("sample_tokens", [2, 3, 8, 14, 20, 27, 40])
def test_a_sample_is_never_longer_than_asked_for(sample_tokens: int, tokenizer: PreTrainedTokenizerFast) -> None:
    for answer in ("y", "a rather long answer"):
        for supporting in ((), ((0, 3), (8, 13))):
            whole = tokens(question("one two three", answer, supporting), tokenizer)
            (sample,) = whole.samples(sample_tokens)
            assert len(sample) == min(sample_tokens, len(whole.ids))
            assert (sample.labels != IGNORED).any()
            assert sample.labels[0] == IGNORED
            for start, end in sample.supporting:
                assert 0 <= start < end <= len(sample)


def test_of_a_passage_to_recite_the_beginning_stays_in_both_copies(tokenizer: PreTrainedTokenizerFast) -> None:
    passage = "abcdefghijklmnopqrstuvwxyz" * 4
    recital = Question("r", "d", passage, "\nagain:\n", (passage,), supporting=((0, len(passage)),))
    (sample,) = tokens(recital, tokenizer).samples(60)
    assert tokenizer.decode(sample.ids) == f"{passage[:26]}\nagain:\n{passage[:26]}"


def test_supporting_characters_become_tokens_and_segments(tokenizer: PreTrainedTokenizerFast) -> None:
    context, supporting = joined(["\u00e9" * 10, "KEY", "b" * 30], [1])
    ids = tokens(question(context, "yes", supporting), tokenizer)
    ((start, end),) = ids.supporting
    assert tokenizer.decode(ids.context[start:end]) == "KEY"
    assert (start, end) == (22, 25)  # an accented letter is two bytes
    (sample,) = ids.samples(200)
    assert sample.supporting == ((22, 25),)
    assert sample.supporting_segments(10) == (2,)
    assert sample.supporting_segments(23) == (0, 1)


def test_segments_of_ranges_are_numbered_from_0_and_come_once() -> None:
    ids = torch.arange(50)
    assert Sample(ids, ids, ((0, 10), (9, 11), (40, 41))).supporting_segments(10) == (0, 1, 4)
    assert Sample(ids, ids).supporting_segments(10) == ()


def test_a_range_takes_every_token_that_it_touches() -> None:
    offsets = [(0, 3), (3, 4), (4, 8), (8, 9)]
    assert token_range((3, 4), offsets) == (1, 2)
    assert token_range((2, 5), offsets) == (0, 3)
    assert token_range((9, 12), offsets) is None


def test_bos_begins_the_context_and_moves_what_supports_the_answer(bos_tokenizer: PreTrainedTokenizerFast) -> None:
    context, supporting = joined(["aa", "KEY"], [1])
    asked = tokens(question(context, "yes", supporting), bos_tokenizer)
    assert (asked.ids == BOS).nonzero().flatten().tolist() == [0]
    ((start, end),) = asked.supporting
    assert bos_tokenizer.decode(asked.context[start:end]) == "KEY"
    without_context = tokens(question(""), bos_tokenizer)
    assert without_context.shown[0] == BOS
    assert without_context.answer[-1] == EOS
