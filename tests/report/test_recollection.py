"""Recalled text, as it is shown."""

from __future__ import annotations

from typing import Any

from hmt.report.recollection import RecalledSegment, describe_recall, recalled_segments
from tests.conftest import make_model


def test_what_was_read_again_is_shown_below_its_segment(tokenizer: Any) -> None:
    text = "The key is under the mat. Nobody knows it. Many other things are said here. Where is the key now? It is "
    ids = tokenizer(text, return_tensors="pt").input_ids
    for mode in ("hmt", "backbone"):
        model = make_model(mode=mode, num_recalled_tokens=8, segment_length=40)
        out = model.generate(
            ids, max_new_tokens=12, output_recall=True, return_dict_in_generate=True, eos_token_id=None
        )
        segments = recalled_segments(out.recall, out.memory, tokenizer)
        again = [one for one in segments if one.read_again]
        assert again
        for one in again:
            assert all(part in one.text for part in one.read_again)
        said = describe_recall(segments)
        assert f"\n           read again  {' '.join(again[0].read_again[0].split())}" in said


def test_what_was_copied_is_shown_below_its_segment(tokenizer: Any) -> None:
    text = "The key is under the mat. Nobody knows it. " * 6
    ids = tokenizer(text, return_tensors="pt").input_ids
    for mode in ("hmt", "backbone"):
        model = make_model(mode=mode, copy_context=4, segment_length=40)
        out = model.generate(
            ids, max_new_tokens=12, output_recall=True, return_dict_in_generate=True, eos_token_id=None
        )
        segments = recalled_segments(out.recall, out.memory, tokenizer)
        copied = [one for one in segments if one.copied]
        assert copied
        runs = [tokenizer.decode(run) for _, run in out.recall.copied_runs()]
        assert {part for one in copied for part in one.copied} <= set(runs)
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
