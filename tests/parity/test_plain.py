"""What the ratios are measured against computes the same."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from tests.conftest import make_model, random_ids

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

from plain import PlainArrangement


def test_the_plain_arrangement_gives_the_same_logits_and_the_same_loss() -> None:
    model = make_model(memory_injection="published", mem_recall_context=4).eval()
    ids = random_ids(2, 150)
    plain = PlainArrangement(model)
    with torch.no_grad():
        output = model(ids, labels=ids)
        torch.testing.assert_close(plain.read(ids), output.logits, atol=2e-5, rtol=0)
        torch.testing.assert_close(plain.loss(ids), output.loss, atol=1e-5, rtol=0)


def test_other_arrangements_are_refused() -> None:
    with pytest.raises(ValueError, match="published injection"):
        PlainArrangement(make_model(memory_injection="gated"))
