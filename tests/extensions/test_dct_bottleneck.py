"""The DCT bottleneck: an orthonormal projection before every MLP, and what it loses."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from hmt import HMTConfig, HMTForCausalLM
from hmt.extensions.dct_bottleneck import DctBottleneck, cosine_transform, mlps
from tests.conftest import FAMILIES, make_backbone, make_model, random_ids


def bottleneck(model: HMTForCausalLM) -> DctBottleneck:
    """The bottleneck of a model."""
    found = model.extensions["dct_bottleneck"]
    assert isinstance(found, DctBottleneck)
    return found


@pytest.mark.parametrize("size", [1, 2, 32, 576])
def test_the_cosine_transform_is_orthonormal_and_scipys(size: int) -> None:
    matrix = cosine_transform(size)
    torch.testing.assert_close(matrix @ matrix.T, torch.eye(size), atol=1e-5, rtol=0)
    fft = pytest.importorskip("scipy.fft")
    expected = torch.from_numpy(fft.dct(torch.eye(size).numpy(), norm="ortho", axis=0))
    torch.testing.assert_close(matrix, expected, atol=1e-5, rtol=0)


def test_the_middle_band_passes_and_the_ends_are_dropped() -> None:
    model = make_model(inject_autoencoder=True, autoencoder_low=0.25, autoencoder_high=0.5)
    projection = bottleneck(model).projection(32)
    torch.testing.assert_close(projection @ projection, projection, atol=1e-5, rtol=0)
    waves = cosine_transform(32)
    torch.testing.assert_close(waves[8:16] @ projection, waves[8:16], atol=1e-5, rtol=0)
    for dropped in (waves[:8], waves[16:]):
        assert (dropped @ projection).abs().max() < 1e-5


@pytest.mark.parametrize("family", [name for name in FAMILIES if name != "mamba"])
@torch.no_grad()
def test_every_layer_of_every_family_loses_its_bands(family: str) -> None:
    assert len(mlps(make_backbone(family))) == 2
    model, ids = make_model(family, inject_autoencoder=True), random_ids(1, 50)
    changed = model(ids).logits
    assert 0 < bottleneck(model).error < 1
    assert (changed - make_model(family)(ids).logits).abs().max() > 1e-3
    nothing = make_model(family, inject_autoencoder=True, autoencoder_low=0, autoencoder_high=0)
    torch.testing.assert_close(nothing(ids).logits, make_model(family)(ids).logits, atol=2e-3, rtol=0)
    assert bottleneck(nothing).error < 1e-5


def test_a_family_without_mlps_is_named() -> None:
    with pytest.raises(ValueError, match="mamba"):
        make_model("mamba", inject_autoencoder=True)


@pytest.mark.parametrize(("low", "high"), [(-0.1, 0.2), (0.5, 0.5)])
def test_bands_must_leave_something(low: float, high: float) -> None:
    with pytest.raises(ValueError, match=r"autoencoder_low .*autoencoder_high"):
        HMTConfig(inject_autoencoder=True, autoencoder_low=low, autoencoder_high=high).check()


@torch.no_grad()
def test_the_error_is_that_of_what_was_dropped() -> None:
    model = make_model(inject_autoencoder=True)
    ids = random_ids(1, 30)
    model(ids)  # tries the backbone once, whose inputs are not the model's
    bottleneck(model).reset()
    seen = []
    for mlp in mlps(model.backbone):
        mlp.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))  # before the autoencoder's
    model(ids)
    projection = bottleneck(model).projection(32)
    lost = torch.cat([((x - x @ projection).norm(dim=-1) / x.norm(dim=-1)).flatten() for x in seen])
    assert bottleneck(model).error == pytest.approx(float(lost.mean()), abs=1e-4)
    bottleneck(model).reset()
    assert bottleneck(model).error is None


@torch.no_grad()
def test_variants_of_one_backbone_read_with_it_and_without() -> None:
    plain, ids = make_model(), random_ids(1, 50)
    expected = plain(ids).logits
    with_bands = plain.variant(inject_autoencoder=True)
    assert not torch.allclose(with_bands(ids).logits, expected, atol=1e-3)
    assert torch.equal(plain(ids).logits, expected)
    assert bottleneck(with_bands.variant(mode="rmt")).config.bottleneck == with_bands.config.bottleneck


def test_it_survives_saving_lora_and_recomputation(tmp_path: Path) -> None:
    pytest.importorskip("peft")
    model, ids = make_model("opt", inject_autoencoder=True), random_ids(1, 50)
    model.add_lora(target_modules=["fc1", "q_proj"])
    expected = model(ids).logits
    model.save_pretrained(tmp_path)
    again = HMTForCausalLM.from_pretrained(tmp_path)
    torch.testing.assert_close(again(ids).logits, expected, atol=1e-4, rtol=0)
    gradients = []
    for recompute in (False, True):
        model.train()
        model.checkpoint_segments = recompute
        model.zero_grad()
        torch.manual_seed(0)
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        model(ids, labels=ids).loss.backward()
        gradients.append(model.memory.summary_prompt.grad.clone())
    torch.testing.assert_close(*gradients, atol=1e-5, rtol=1e-3)
