"""Mixed and dilated documents know where each token is from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from hmt.options import EvaluateOptions
from hmt.text.augment import augment, dilate, interleave
from hmt.text.batches import TokenDocument, cut


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
    with pytest.raises(ValueError, match="exclude each other"):
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
