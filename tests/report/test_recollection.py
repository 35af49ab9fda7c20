"""Recalled text and tables, as people read them."""

from __future__ import annotations

from typing import Any

import torch

from hmt.model.generation import GenerateOutput
from hmt.report.recollection import RecalledPassage, RecalledSegment, describe_recall, recalled_passages
from hmt.terminal import format_table
from tests.conftest import make_rolling


def test_a_recalled_passage_is_shown_as_it_stands_in_the_text(tokenizer: Any) -> None:
    model = make_rolling(segment_length=60, num_recalled_tokens=24)
    text = "The key is under the mat. Nobody knows it.\n" + "Many other things are said here as well. " * 6
    memory = model.remember(torch.tensor([tokenizer(text)["input_ids"]]))
    question = torch.tensor([tokenizer("Nobody knows")["input_ids"]])
    out = model.generate(
        question, memory=memory, max_new_tokens=3, output_recall=True, return_dict_in_generate=True, eos_token_id=None
    )
    assert isinstance(out, GenerateOutput)
    (passage,) = recalled_passages(out.recall, tokenizer)
    assert "Nobody knows" in passage.text
    assert text[passage.start : passage.start + passage.tokens] == passage.text
    assert passage.text.strip().splitlines()[0] in describe_recall([], [passage])


def test_segments_stand_with_their_share_and_their_text() -> None:
    assert describe_recall([], []) == "nothing was recalled"
    passage = RecalledPassage(start=1200, tokens=4, score=2.5, text="a\n b")
    segments = [RecalledSegment(3, 0.5, "a\n b"), RecalledSegment(12, 0.25, None)]
    lines = describe_recall(segments, [passage]).splitlines()
    assert lines[0].startswith("recalled tokens 1,200 to 1,204")
    assert lines[1:3] == ["    a", "     b"]
    assert lines[3:] == ["segment     3   50.0%  a b", "segment    12   25.0%  (no longer kept)"]


def test_a_table_lines_up() -> None:
    rows = [{"name": "a", "n": 1, "x": 2.5}, {"name": "longer", "n": 12345, "x": None}]
    assert format_table(rows, {"name": "row", "n": "count", "x": "value"}).splitlines() == [
        "row      count  value",
        "------  ------  -----",
        "a            1   2.50",
        "longer  12,345      -",
    ]
