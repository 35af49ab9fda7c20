"""Windows of raw text: each target sees what it is said to see."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from hmt.evaluation import windows
from hmt.evaluation.windows import WindowedBackbone
from hmt.text.batches import IGNORED
from tests.conftest import make_backbone, random_ids


def labelled(ids: Tensor, targets: int) -> Tensor:
    """Labels of the last targets."""
    return ids.masked_fill(torch.arange(ids.shape[1]) < ids.shape[1] - targets, IGNORED)


@torch.no_grad()
def nats(backbone: PreTrainedModel, context: Tensor, target: Tensor) -> Tensor:
    """Nats of one target (B,) after a context (B, T)."""
    return torch.nn.functional.cross_entropy(backbone(context).logits[:, -1].float(), target, reduction="none")


@pytest.mark.parametrize("family", ["llama", "mistral", "gpt2", "opt_projected", "gemma2", "mamba"])
@pytest.mark.parametrize("chunk", [1024, 16])
@torch.no_grad()
def test_a_window_that_holds_the_text_is_one_plain_forward_pass(
    family: str, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(windows, "CHUNK_POSITIONS", chunk)
    backbone, ids = make_backbone(family), random_ids(2, 60)
    output = WindowedBackbone(backbone, 512, 256).score(ids, labelled(ids, 25))
    expected = torch.nn.functional.cross_entropy(
        backbone(ids).logits[:, :-1].float().transpose(1, 2), ids[:, 1:], reduction="none"
    )
    assert torch.allclose(output.nll[:, -25:], expected[:, -25:], atol=1e-4)
    assert not output.nll[:, :-25].any()
    assert output.scored_mask.sum() == 50
    assert float(output.loss) == pytest.approx(float(expected[:, -25:].mean()), abs=1e-4)


@pytest.mark.parametrize("stride", [1, 5, 8])
def test_a_sliding_window_is_what_brute_force_gives(stride: int) -> None:
    backbone, ids, window, targets = make_backbone(), random_ids(2, 50), 16, 23
    output = WindowedBackbone(backbone, window, stride).score(ids, labelled(ids, targets))
    first = ids.shape[1] - targets
    for column in range(first, ids.shape[1]):
        last = min(column - (column - first) % stride + stride, ids.shape[1]) - 1  # that shares the window
        context = ids[:, last - window : column]
        assert window - stride < context.shape[1] <= window
        expected = nats(backbone, context, ids[:, column])
        assert torch.allclose(output.nll[:, column - 1], expected, atol=1e-5)


def test_tokens_that_are_read_are_counted() -> None:
    backbone = make_backbone()
    assert WindowedBackbone(backbone, None).read_tokens(100, 20) == 100
    assert WindowedBackbone(backbone, 512, 256).read_tokens(100, 20) == 100
    # The first window of 8 targets ends before token 87 and begins at 71.
    assert WindowedBackbone(backbone, 16, 8).read_tokens(100, 20) == 100 - 71
