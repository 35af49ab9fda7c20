"""Recalled text, as it is shown."""

from __future__ import annotations

from typing import Any

import pytest

from hmt.model.generation import GenerateOutput
from hmt.report.recollection import RecalledSegment, describe_recall, recalled_segments
from tests.conftest import make_model


def written(tokenizer: Any, text: str, **fields: Any) -> GenerateOutput:
    """A few tokens behind a text, and what was recalled for them."""
    ids = tokenizer(text, return_tensors="pt").input_ids
    out = make_model(segment_length=40, **fields).generate(
        ids, max_new_tokens=12, output_recall=True, return_dict_in_generate=True, eos_token_id=None
    )
    assert isinstance(out, GenerateOutput)
    return out


@pytest.mark.parametrize("mode", ["hmt", "backbone"])
def test_what_was_read_again_is_shown_below_its_segment(tokenizer: Any, mode: str) -> None:
    text = "The key is under the mat. Nobody knows it. Many other things are said here. Where is the key now? It is "
    out = written(tokenizer, text, mode=mode, num_recalled_tokens=8)
    segments = recalled_segments(out.recall, out.memory, tokenizer)
    again = [one for one in segments if one.read_again]
    assert again
    for one in again:
        assert one.text is not None
        assert all(part in one.text for part in one.read_again)
    assert f"\n           read again  {' '.join(again[0].read_again[0].split())}" in describe_recall(segments)


@pytest.mark.parametrize("mode", ["hmt", "backbone"])
def test_what_was_copied_is_shown_below_its_segment(tokenizer: Any, mode: str) -> None:
    out = written(tokenizer, "The key is under the mat. Nobody knows it. " * 6, mode=mode, copy_context=4)
    segments = recalled_segments(out.recall, out.memory, tokenizer)
    copied = [one for one in segments if one.copied]
    assert copied
    assert out.recall is not None
    runs = {str(tokenizer.decode(run)) for _, run in out.recall.copied_runs() if len(run) > 1}
    assert {part for one in copied for part in one.copied} <= runs
    said = describe_recall(segments)
    assert f"\n           copied      {' '.join(copied[0].copied[0].split())}" in said
    assert mode == "hmt" or f"segment {copied[0].number:>5}       -  " in said


def test_segments_stand_with_their_share_and_their_text() -> None:
    assert describe_recall([]) == "nothing was recalled"
    lines = describe_recall([RecalledSegment(3, 0.5, "a\n b", ("a",)), RecalledSegment(12, 0.0, None)]).splitlines()
    assert lines == [
        "segment     3   50.0%  a b",
        "           read again  a",
        "segment    12       -  (no longer kept)",
    ]
