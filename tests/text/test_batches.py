"""Tokens and samples: what is scored, and that nothing crosses documents."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from hmt.text import batches, encoding
from hmt.text.batches import (
    Sample,
    TokenDocument,
    aligned_length,
    cut,
    pad,
    plan_spans,
    scored_targets,
    shuffled,
    text_ids,
    tokenize,
)
from hmt.text.documents import Document
from tests.text.tokenizers import BOS


def documents(*lengths: int) -> list[TokenDocument]:
    """Documents whose tokens tell where they are from: 1000 * document + place."""
    return [TokenDocument(str(n), 1000 * n + torch.arange(length)) for n, length in enumerate(lengths, start=1)]


def sample(ids: Tensor) -> Sample:
    """Tokens that are all scored."""
    return Sample(ids, ids)


def test_nothing_is_added_to_a_text_but_what_the_tokenizer_begins_texts_with(
    tokenizer: PreTrainedTokenizerFast, bos_tokenizer: PreTrainedTokenizerFast
) -> None:
    text = "caf\u00e9\n\n two"
    (document,) = tokenize([Document("a", text)], tokenizer, 300)
    assert tokenizer.decode(document.ids) == text
    for short in (True, False):
        (begun,) = tokenize([Document("a", text * (1 if short else 20_000))], bos_tokenizer, 300)
        assert begun.ids[:2].tolist() == [BOS, int(document.ids[0])]
        assert (begun.ids == BOS).sum() == 1


def test_a_prompt_begins_with_bos_unless_something_was_read_before_it(bos_tokenizer: PreTrainedTokenizerFast) -> None:
    begins, goes_on = (text_ids("p", "ab", bos_tokenizer, 300, begins=begins) for begins in (True, False))
    assert begins.tolist() == [BOS, *goes_on.tolist()]
    assert bos_tokenizer.decode(goes_on) == "ab"
    with pytest.raises(ValueError, match="p is not UTF-8"):
        text_ids("p", "\ud800", bos_tokenizer, 300, begins=True)


def test_many_tokens_lie_in_a_file_and_are_the_same(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = ["a first text " * 50, "", "naïve " * 3000, "a last one"]
    files = [tmp_path / f"{number}.txt" for number in range(len(texts))]
    for file, text in zip(files, texts, strict=True):
        file.write_text(text)
    held = tokenize([Document(file.name, text) for file, text in zip(files, texts, strict=True)], tokenizer, 300)
    monkeypatch.setattr(batches, "HELD_BYTES", 1000)
    monkeypatch.setattr(encoding, "PART_CHARACTERS", 500)
    monkeypatch.setattr(encoding, "MARGIN_CHARACTERS", 100)
    mapped = tokenize((Document(file.name, file) for file in files), tokenizer, 300)
    assert [document.name for document in mapped] == [document.name for document in held]
    for one, other in zip(mapped, held, strict=True):
        assert torch.equal(one.ids, other.ids)
    assert [len(document.ids) for document in mapped] == [len(text.encode()) for text in texts]
    assert len(cut(mapped, 100)) == len(cut(held, 100))


def test_a_document_in_a_file_is_read_when_it_is_looked_at(tmp_path: Path) -> None:
    file = tmp_path / "text.txt"
    document = Document("a", file)
    file.write_bytes(b" \r\n \n")
    assert document.is_blank
    file.write_bytes(b"one\r\ntwo")
    assert not document.is_blank
    assert document.text == "".join(document.pieces()) == "one\ntwo"
    file.write_bytes(b"one \xff")
    with pytest.raises(ValueError, match=r"text\.txt"):
        _ = document.text


def test_a_vocabulary_that_does_not_fit_is_refused(tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(ValueError, match="50"):
        tokenize([Document("a", "hello")], tokenizer, 50)


def test_training_samples_do_not_cross_documents_and_all_come_once_an_epoch() -> None:
    samples = cut(documents(100, 35, 9), sample_tokens=20)
    rows = list(islice(shuffled(samples, seed=0), 14))
    assert all(len({int(token) // 1000 for token in row.ids}) == 1 for row in rows)
    for epoch in (rows[:7], rows[7:]):
        assert sorted(int(row.ids[0]) for row in epoch) == [1000, 1020, 1040, 1060, 1080, 2000, 2020]


def test_the_order_of_samples_is_that_of_the_seed_and_can_be_taken_up_anywhere() -> None:
    samples = cut(documents(400), 20)

    def order(seed: int, skip: int = 0) -> list[int]:
        return [int(row.ids[0]) for row in islice(shuffled(samples, seed, skip), 70 - skip)]

    assert order(3) == order(3)
    assert order(3) != order(4)
    for skip in (1, 20, 45):
        assert order(3, skip) == order(3)[skip:]


def test_samples_can_be_taken_as_they_stand() -> None:
    rows = islice(shuffled(cut(documents(60), 20), seed=None, skip=1), 5)
    assert [int(row.ids[0]) for row in rows] == [1020, 1040, 1000, 1020, 1040]


def test_scored_targets_are_those_of_the_loss() -> None:
    rows = [sample(torch.arange(10)), sample(torch.arange(4))]
    assert scored_targets(rows, None) == 9 + 3
    assert scored_targets(rows, 5) == 5 + 3
    labels = torch.tensor([-100, -100, 7, 8, -100])
    assert scored_targets([Sample(torch.arange(5), labels)], None) == 2
    assert scored_targets([Sample(torch.arange(5), labels)], 2) == 1


def test_documents_that_are_too_short_to_train_on_are_refused() -> None:
    with pytest.raises(ValueError, match=r"50 tokens.* 20"):
        cut(documents(20, 10), 50)


def test_padding_is_never_scored() -> None:
    batch = pad([sample(torch.arange(1, 4)), sample(torch.arange(1, 6))])
    assert batch.input_ids.tolist() == [[1, 2, 3, 0, 0], [1, 2, 3, 4, 5]]
    assert batch.labels.tolist() == [[1, 2, 3, -100, -100], [1, 2, 3, 4, 5]]
    assert batch.attention_mask.sum(1).tolist() == [3, 5]


def test_a_batch_says_which_segments_its_rows_rest_on() -> None:
    ids = torch.arange(25)
    samples = [Sample(ids, ids, ((9, 12),)), Sample(ids[:8], ids[:8])]
    labels = ids.clone()
    labels[:20] = -100
    answer = Sample(ids, labels, ((9, 12),))  # its first token is predicted by segment 1, the others by segment 2
    batch = pad([answer, *samples], 10)
    assert batch.supporting.nonzero().tolist()[:4] == [[0, 1, 0], [0, 1, 1], [0, 2, 0], [0, 2, 1]]
    assert batch.supporting[1].sum() == 6
    assert not batch.supporting[2].any()
    assert pad(samples[1:], 10).supporting is None
    assert pad(samples).supporting is None


def test_every_context_length_scores_the_same_tokens() -> None:
    texts = documents(500, 90, 260)
    spans = plan_spans(texts, longest=200, target_tokens=30, spans_per_document=3, max_documents=None)
    assert {span.document for span in spans} == {0, 2}
    for span in spans:
        scored = []
        for length in (40, 100, 200):
            ids, labels = span.sample(texts[span.document].ids, length)
            assert len(ids) == length
            scored.append(labels[labels != -100].tolist())
        assert scored[0] == scored[1] == scored[2]
        assert len(scored[0]) == 30
    first = [range(span.start, span.end) for span in spans if span.document == 0]
    assert [r.stop for r in first] == [200, 350, 500]


def test_targets_start_at_the_beginning_of_a_segment_at_every_length() -> None:
    for length in (100, 137, 200, 1000):
        read = aligned_length(length, target_tokens=30, fresh_tokens=14)
        assert length - 14 < read <= length
        assert (read - 30) % 14 == 0
    assert aligned_length(40, target_tokens=30, fresh_tokens=14) == 40


def test_too_short_documents_are_named() -> None:
    with pytest.raises(ValueError, match=r"--lengths.* 90"):
        plan_spans(documents(50, 90), 200, 30, 1, None)
