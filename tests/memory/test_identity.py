"""Digests of weights: exact, and not computed twice."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch

from hmt import HMTForCausalLM
from hmt.memory import identity
from hmt.memory.identity import comparable, same_weights, weights_digest
from tests.conftest import make_model, random_ids


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[torch.Tensor]:
    """What is hashed from here on."""
    tensors: list[torch.Tensor] = []
    hash_of = identity._hash
    monkeypatch.setattr(identity, "_hash", lambda tensor: (tensors.append(tensor), hash_of(tensor))[1])
    return tensors


def test_a_memory_is_refused_by_a_model_with_one_other_value() -> None:
    model, ids = make_model(), random_ids(1, 60)
    memory = model.remember(ids)
    other = copy.deepcopy(model)
    assert other(ids, memory=memory).memory is not None
    with torch.no_grad():
        other.backbone.model.layers[1].self_attn.k_proj.weight[7, 3] += 1e-6
    with pytest.raises(ValueError, match="weights"):
        other(ids, memory=memory)


def test_only_changed_weights_are_hashed_again(hashed: list[torch.Tensor]) -> None:
    weights = [torch.randn(5, 7), torch.randn(3), torch.zeros(())]
    first = weights_digest(weights)
    hashed.clear()
    assert weights_digest(weights) == first
    assert not hashed
    weights[1].mul_(2)
    assert weights_digest(weights) != first
    assert len(hashed) == 2  # its bytes, and its values in bfloat16
    hashed.clear()
    weights_digest(weights, fresh=True)
    assert len(hashed) == 6


def test_shapes_and_formats_count() -> None:
    digests = {weights_digest([tensor]) for tensor in (torch.zeros(4), torch.zeros(2, 2), torch.zeros(2).double())}
    assert len(digests) == 3


def test_digests_in_two_formats_are_compared_after_rounding() -> None:
    weights = torch.randn(50)
    whole, half = weights_digest([weights]), weights_digest([weights.bfloat16()])
    assert same_weights(whole, half)
    assert not same_weights(whole, weights_digest([weights.bfloat16() * 2]))
    assert not same_weights(whole, weights_digest([weights * (1 + 1e-6)]))
    assert not comparable(whole, weights_digest([weights.half()]))


def test_digests_of_large_models_are_kept_until_their_files_change(
    backbone_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hashed: list[torch.Tensor]
) -> None:
    monkeypatch.setenv("HMT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(identity, "CACHED_FROM_BYTES", 0)
    HMTForCausalLM.from_backbone(backbone_dir).save_pretrained(tmp_path / "whole")

    def loads_without_hashing() -> tuple[bool, str]:
        hashed.clear()
        model = HMTForCausalLM.from_pretrained(tmp_path / "whole")
        digest = weights_digest(model.backbone.parameters())
        return not hashed, digest

    (first, computed), (second, kept) = loads_without_hashing(), loads_without_hashing()
    assert (first, second) == (False, True)
    assert computed == kept
    other = HMTForCausalLM.from_pretrained(tmp_path / "whole")
    with torch.no_grad():
        other.backbone.lm_head.weight[5, 5] += 1
    other.save_pretrained(tmp_path / "whole")
    known, changed = loads_without_hashing()
    assert not known
    assert changed != computed
