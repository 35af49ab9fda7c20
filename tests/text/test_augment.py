"""Mixed and dilated documents know where each token is from."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import count, islice
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from hmt.cli.train import _Texts
from hmt.evaluation.options import EvaluateOptions
from hmt.text.augment import augment, dilate, interleave, read_enough
from hmt.text.batches import TokenDocument, cut
from hmt.text.documents import Document
from hmt.text.tasks import iter_documents
from hmt.training.options import TrainOptions
from tests.conftest import make_model


def documents(*lengths: int) -> list[TokenDocument]:
    """Documents whose tokens tell where they are from: 1000 * (document + 1) + place."""
    return [TokenDocument(str(n), 1000 * (n + 1) + torch.arange(length)) for n, length in enumerate(lengths)]


def check_origins(mixed: TokenDocument) -> None:
    assert mixed.origins is not None
    assert mixed.origins.tolist() == [int(token) // 1000 - 1 for token in mixed.ids]


def test_two_documents_take_turns_and_the_longer_one_ends() -> None:
    first, alone = interleave(documents(5, 9, 4), 2)
    assert first.ids.tolist() == [
        1000, 1001, 2000, 2001, 1002, 1003, 2002, 2003, 1004, 2004, 2005, 2006, 2007, 2008
    ]  # fmt: skip
    assert alone.ids.tolist() == [3000, 3001, 3002, 3003]
    for mixed in (first, alone):
        check_origins(mixed)


def test_filler_follows_every_so_many_tokens() -> None:
    (stretched, _) = dilate(documents(5, 3), 2, filler=0)
    assert stretched.ids.tolist() == [1000, 1001, 0, 0, 1002, 1003, 0, 0, 1004, 0, 0]
    check_origins(stretched)
    assert -1 in stretched.origins.tolist()  # type: ignore[union-attr]


def test_samples_keep_the_origins_of_their_tokens() -> None:
    for sample in cut(interleave(documents(30, 30), 4), 10):
        assert sample.origins is not None
        assert sample.origins.tolist() == [int(token) // 1000 - 1 for token in sample.ids]


def test_the_options_say_what_is_done(tokenizer: PreTrainedTokenizerFast) -> None:
    texts = documents(6, 6)
    assert [one.ids.tolist() for one in augment(texts, EvaluateOptions(), tokenizer, 300)] == [
        one.ids.tolist() for one in texts
    ]
    (mixed,) = augment(texts, EvaluateOptions(interleave_dataset=True, interleave_len=3), tokenizer, 300)
    assert mixed.ids.tolist()[:6] == [1000, 1001, 1002, 2000, 2001, 2002]
    dilated = augment(texts, EvaluateOptions(dilate_dataset=True, dilate_len=3, dilate_str="#!"), tokenizer, 300)
    assert tokenizer.decode(dilated[0].ids[3:6]) == "###"
    with pytest.raises(ValueError, match="interleave_dataset and dilate_dataset"):
        EvaluateOptions(dilate_dataset=True, interleave_dataset=True).check()


def test_evaluation_scores_mixed_text(tmp_path: Path, backbone_dir: Path, run_cli: Any) -> None:
    (tmp_path / "test").mkdir()
    for name in "ab":
        (tmp_path / "test" / f"{name}.txt").write_text(name * 100)
    status, _, complaint = run_cli(
        "evaluate", "--model_name", backbone_dir, "--task_name", tmp_path, "--segment_length", 20, "--num_sensory", 4,
        "--lengths", 150, "--interleave_dataset", "--interleave_len", 10, "--json", tmp_path / "figures.json",
    )  # fmt: skip
    assert status == 0, complaint
    (span,) = json.loads((tmp_path / "figures.json").read_text())["spans"]
    assert span["document"] == "test/a.txt + test/b.txt"


def endless() -> Iterator[Document]:
    """A short document and a long one in turn, without end."""
    return (Document(str(number), "x" * (50 if number % 2 else 10)) for number in count())


@pytest.mark.parametrize(
    ("more", "expected"),
    [({}, 6), ({"interleave_dataset": True}, 3), ({"dilate_dataset": True, "dilate_len": 10}, 6)],
    ids=str,
)
def test_no_more_is_read_than_makes_enough_long_documents(
    more: dict[str, Any], expected: int, tokenizer: PreTrainedTokenizerFast
) -> None:
    texts = endless()
    found = read_enough(texts, EvaluateOptions(**more), tokenizer, 300, 40, 3)
    assert len(found) == expected
    assert sum(len(document.ids) >= 40 for document in found) == 3
    assert next(texts).name == "6"
    everything = read_enough(islice(endless(), 7), EvaluateOptions(**more), tokenizer, 300, 40, None)
    assert all(torch.equal(one.ids, other.ids) for one, other in zip(found[:3], everything[:3], strict=True))


@pytest.mark.parametrize("enough", [None, 3])
def test_a_stream_without_long_documents_comes_to_an_end(
    enough: int | None, tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hmt.text.augment.MAX_STREAMED", 20)
    assert len(read_enough(endless(), EvaluateOptions(streaming=True), tokenizer, 300, 90, enough)) == 20


def test_documents_are_read_one_by_one(tmp_path: Path) -> None:
    (tmp_path / "test.jsonl").write_text('{"text": " "}\n{"text": "a"}\nnot json\n')
    texts = iter_documents(str(tmp_path), "test")
    assert next(texts).text == "a"
    with pytest.raises(ValueError, match="line 3"):
        next(texts)


def test_evaluation_and_training_read_as_far_as_they_need(
    backbone_dir: Path, tmp_path: Path, run_cli: Any, tokenizer: PreTrainedTokenizerFast
) -> None:
    row = json.dumps({"text": "a story that goes on " * 8}) + "\n"
    (tmp_path / "test.jsonl").write_text(json.dumps({"text": "short"}) + "\n" + row * 2 + "not json\n")
    status, _, complaint = run_cli(
        "evaluate", "--model_name", backbone_dir, "--task_name", tmp_path, "--segment_length", 20, "--num_sensory", 4,
        "--lengths", "80", "--max_documents", 2,
    )  # fmt: skip
    assert status == 0, complaint
    texts = _Texts(TrainOptions(task_name=str(tmp_path)), tokenizer, make_model())
    assert [len(document.ids) for document in texts._held_out("test", 80, 2)] == [5, 168, 168]
    with pytest.raises(ValueError, match="line 4"):
        texts._held_out("test", 80, 3)
