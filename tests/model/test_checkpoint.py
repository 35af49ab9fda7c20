"""Save and load: what goes into the directory, and that nothing changes on the way."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from hmt import HMTConfig, HMTForCausalLM
from tests.conftest import FAMILIES, make_backbone, make_model, random_ids


def names(folder: Path) -> set[str]:
    """Files of a directory."""
    return {file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()}


def holds_backbone(folder: Path) -> bool:
    """Whether the backbone's weights are in a checkpoint, too."""
    return any(name.startswith("backbone.") for name in load_file(folder / "model.safetensors"))


def assert_same_model(got: HMTForCausalLM, expected: HMTForCausalLM) -> None:
    """Same weights, same output, same settings."""
    ids = random_ids(1, 60)
    with torch.no_grad():
        # Some kernels round by where a weight lies in memory, hence the tolerance beside equal weights.
        torch.testing.assert_close(got.eval()(ids).logits, expected.eval()(ids).logits, atol=1e-4, rtol=0)
    for name, value in expected.memory.state_dict().items():
        assert torch.equal(got.memory.state_dict()[name], value), name
    assert got.config.segment_length == expected.config.segment_length
    assert got.identity().accepts(expected.identity())


@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_comes_back_as_it_was(family: str, tmp_path: Path) -> None:
    model = make_model(family, memory_injection="published" if family == "gpt2" else "gated")
    model.save_pretrained(tmp_path)
    assert "model.safetensors" in names(tmp_path)
    assert_same_model(HMTForCausalLM.from_pretrained(tmp_path), model)


@pytest.mark.parametrize("mode", ["hmt", "short_term", "rmt", "backbone"])
def test_the_auto_classes_know_the_model(mode: str, tmp_path: Path) -> None:
    model = make_model(mode=mode)
    model.save_pretrained(tmp_path)
    assert isinstance(AutoConfig.from_pretrained(tmp_path), HMTConfig)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert isinstance(loaded, HMTForCausalLM)
    assert_same_model(loaded, model)


def test_shards_and_bfloat16_come_back(tmp_path: Path) -> None:
    model = make_model("qwen2")
    model.save_pretrained(tmp_path, max_shard_size="50KB")
    assert "model.safetensors.index.json" in names(tmp_path)
    assert_same_model(HMTForCausalLM.from_pretrained(tmp_path), model)
    half = HMTForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert half.backbone.dtype == torch.bfloat16
    assert {p.dtype for p in half.memory.parameters()} == {torch.float32}


def test_tied_embeddings_stay_tied(tmp_path: Path) -> None:
    model = make_model("gemma2")
    assert model.backbone.lm_head.weight is model.backbone.model.embed_tokens.weight
    model.save_pretrained(tmp_path)
    loaded = HMTForCausalLM.from_pretrained(tmp_path)
    assert loaded.backbone.lm_head.weight is loaded.backbone.model.embed_tokens.weight


def test_a_frozen_backbone_that_can_be_found_again_is_left_out(backbone_dir: Path, tmp_path: Path) -> None:
    model = HMTForCausalLM.from_backbone(backbone_dir, sensory="reread", segment_length=20, num_sensory=4).eval()
    model.freeze_backbone()
    with torch.no_grad():
        for parameter in model.memory.parameters():
            parameter.add_(0.01 * torch.randn_like(parameter))
    model.save_pretrained(tmp_path)
    assert names(tmp_path) == {"config.json", "generation_config.json", "manifest.json", "model.safetensors"}
    assert not holds_backbone(tmp_path)
    assert_same_model(HMTForCausalLM.from_pretrained(tmp_path), model)
    model.save_pretrained(tmp_path, save_backbone=True)
    assert holds_backbone(tmp_path)
    assert_same_model(HMTForCausalLM.from_pretrained(tmp_path), model)


@pytest.mark.parametrize("by_name", [True, False])
def test_an_adapter_is_saved_in_the_format_of_peft(by_name: bool, backbone_dir: Path, tmp_path: Path) -> None:
    source = backbone_dir if by_name else make_backbone()
    model = HMTForCausalLM.from_backbone(source, sensory="reread", segment_length=20, num_sensory=4).eval()
    model.add_lora(rank=4)
    trainable = {name for name, p in model.backbone.named_parameters() if p.requires_grad}
    assert trainable
    assert all("lora_" in name for name in trainable)
    with torch.no_grad():
        for name, parameter in model.backbone.named_parameters():
            if "lora_" in name:
                parameter.normal_(std=0.1)
    model.save_pretrained(tmp_path)
    assert {"adapter/adapter_config.json", "adapter/adapter_model.safetensors"} <= names(tmp_path)
    assert holds_backbone(tmp_path) != by_name
    loaded = HMTForCausalLM.from_pretrained(tmp_path)
    assert_same_model(loaded, model)
    alone = PeftModel.from_pretrained(make_backbone(), tmp_path / "adapter").eval()
    ids = random_ids(1, 30)
    with torch.no_grad():
        torch.testing.assert_close(alone(ids).logits, model.backbone(ids).logits, atol=1e-5, rtol=0)
    base = json.loads((tmp_path / "adapter/adapter_config.json").read_text())["base_model_name_or_path"]
    assert base == (str(backbone_dir) if by_name else None)


def test_an_adapter_is_float32_on_a_backbone_in_half_precision(backbone_dir: Path, tmp_path: Path) -> None:
    model = HMTForCausalLM.from_backbone(
        backbone_dir, dtype="bfloat16", sensory="reread", segment_length=20, num_sensory=4
    )
    model.add_lora(rank=4)
    with torch.no_grad():
        for name, parameter in model.backbone.named_parameters():
            if "lora_" in name:
                parameter.normal_(std=0.1)
    model.save_pretrained(tmp_path)
    loaded = HMTForCausalLM.from_pretrained(tmp_path, dtype="bfloat16")
    assert_same_model(loaded, model.eval())
    dtypes = {"lora_" in name: parameter.dtype for name, parameter in loaded.backbone.named_parameters()}
    assert dtypes == {True: torch.float32, False: torch.bfloat16}


def test_settings_can_change_when_loading(tmp_path: Path) -> None:
    model = make_model()
    model.save_pretrained(tmp_path)
    loaded = HMTForCausalLM.from_pretrained(tmp_path, mode="short_term", segment_length=40)
    assert (loaded.config.mode, loaded.config.fresh_tokens) == ("short_term", 34)
    assert torch.equal(loaded.memory.injection.base, model.memory.injection.base)


def test_a_variant_shares_its_parameters(model: HMTForCausalLM) -> None:
    variant = model.variant(mode="short_term", segment_length=40)
    assert variant.backbone is model.backbone
    assert variant.memory.injection.base is model.memory.injection.base
    assert variant.memory.recall is None
    again = variant.variant(mode="hmt")
    assert again.memory.injection.base is model.memory.injection.base
    assert again.memory.recall is not None


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"segment_length": 5}, "segment_length.*5"),
        ({"mem_recall_hidden_dim": 8}, "mem_recall_hidden_dim.*16.*8"),
        ({"memory_injection": "published"}, "memory_injection.*gated.*published"),
    ],
)
def test_settings_that_do_not_fit_the_weights_are_refused(fields: dict[str, Any], message: str, tmp_path: Path) -> None:
    make_model().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=message):
        HMTForCausalLM.from_pretrained(tmp_path, **fields)


def test_what_is_no_checkpoint_is_refused(backbone_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="llama"):
        HMTForCausalLM.from_pretrained(backbone_dir)
    with pytest.raises(FileNotFoundError, match="none"):
        HMTForCausalLM.from_pretrained(tmp_path / "none")
    with pytest.raises(OSError, match=r"config\.json"):
        HMTForCausalLM.from_pretrained(tmp_path)


def test_an_unknown_field_is_refused(backbone_dir: Path) -> None:
    with pytest.raises(ValueError, match="block_size"):
        HMTForCausalLM.from_backbone(backbone_dir, block_size=12)


def test_a_config_can_be_given_whole(backbone_dir: Path) -> None:
    config = HMTConfig(segment_length=24, num_sensory=2)
    model = HMTForCausalLM.from_backbone(backbone_dir, config, num_sensory=3)
    assert (model.config.segment_length, model.config.num_sensory) == (24, 3)
    assert model.config.backbone_config.model_type == "llama"


@pytest.mark.parametrize("by_name", [True, False])
def test_a_checkpoint_of_stage_1_keeps_what_it_learnt_when_recall_is_added(
    by_name: bool, backbone_dir: Path, tmp_path: Path
) -> None:
    source = backbone_dir if by_name else make_backbone()
    model = HMTForCausalLM.from_backbone(source, mode="short_term", sensory="reread", segment_length=20, num_sensory=4)
    model.freeze_backbone()
    with torch.no_grad():
        for parameter in model.memory.parameters():
            parameter.add_(torch.randn_like(parameter))
    model.save_pretrained(tmp_path)
    loaded = HMTForCausalLM.from_pretrained(tmp_path, mode="hmt")
    for name, value in model.memory.state_dict().items():
        assert torch.equal(loaded.memory.state_dict()[name], value), name
    added = [loaded.memory.summary_prompt, loaded.memory.recall.wq.weight, loaded.memory.recall.wk.weight]
    assert all(parameter.abs().max() > 0 and parameter.isfinite().all() for parameter in added)
    assert HMTForCausalLM.from_pretrained(tmp_path, mode="backbone")(random_ids(1, 30)).logits.isfinite().all()


def test_weights_that_were_trained_are_saved_whatever_is_frozen_later(backbone_dir: Path, tmp_path: Path) -> None:
    model = HMTForCausalLM.from_backbone(backbone_dir, sensory="reread", segment_length=20, num_sensory=4)
    with torch.no_grad():
        model.backbone.model.embed_tokens.weight.add_(0.001)
    model.freeze_backbone()
    model.save_pretrained(tmp_path / "first")
    second = HMTForCausalLM.from_pretrained(tmp_path / "first")
    assert_same_model(second, model)
    second.freeze_backbone()
    second.save_pretrained(tmp_path / "second")
    assert_same_model(HMTForCausalLM.from_pretrained(tmp_path / "second"), model)


def test_nothing_stale_stays_in_a_directory_that_is_saved_to_again(backbone_dir: Path, tmp_path: Path) -> None:
    adapted = HMTForCausalLM.from_backbone(backbone_dir, sensory="reread", segment_length=20, num_sensory=4)
    adapted.add_lora()
    adapted.save_pretrained(tmp_path)
    plain = HMTForCausalLM.from_backbone(backbone_dir, sensory="reread", segment_length=20, num_sensory=4)
    plain.save_pretrained(tmp_path)
    loaded = HMTForCausalLM.from_pretrained(tmp_path)
    assert not loaded.has_adapter
    assert_same_model(loaded, plain)


def test_an_adapter_takes_the_training_state_of_its_backbone(model: HMTForCausalLM) -> None:
    model.add_lora()
    ids = random_ids(1, 30)
    assert not any(module.training for module in model.modules())
    assert torch.equal(model(ids).logits, model(ids).logits)


def test_parameters_that_a_full_checkpoint_lacks_are_fitted_to_its_backbone(tmp_path: Path) -> None:
    backbone = make_model(mode="backbone")
    backbone.save_pretrained(tmp_path)
    loaded = HMTForCausalLM.from_pretrained(tmp_path, mode="hmt")
    assert torch.equal(loaded.memory.injection.base[0], backbone.embedding_table[1])  # the embedding of BOS
    assert loaded.memory.injection.rms_scale == pytest.approx(backbone.embedding_table.pow(2).mean().sqrt().item())


def test_settings_go_over_a_config_that_is_given(tmp_path: Path) -> None:
    model = make_model()
    model.save_pretrained(tmp_path)
    assert HMTForCausalLM.from_pretrained(tmp_path, config=model.config, mode="rmt").config.mode == "rmt"
    with pytest.raises(ValueError, match="segment_length"):
        AutoModelForCausalLM.from_pretrained(tmp_path, segment_length=5)


@torch.no_grad()
@pytest.mark.parametrize("adapted", [False, True])
def test_reading_another_way_changes_no_weight(adapted: bool, tmp_path: Path) -> None:
    model, ids = make_model(), random_ids(1, 40)
    if adapted:
        model.add_lora(rank=2, dropout=0.0)
    for parameter in model.backbone.parameters():
        parameter.add_(0.1 * torch.randn_like(parameter))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    loss = model(ids, labels=ids).loss
    model.variant(mode="rmt")
    model.variant(mode="backbone")
    HMTForCausalLM.from_backbone(model.backbone)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    model.save_pretrained(tmp_path / "saved")
    if not adapted:
        loaded = HMTForCausalLM.from_pretrained(tmp_path / "saved")
        assert torch.equal(
            loaded.variant(num_sensory=4).variant(num_sensory=model.config.num_sensory)(ids, labels=ids).loss, loss
        )


def frozen(source: PreTrainedModel | Path | str, **fields: Any) -> HMTForCausalLM:
    """A model whose memory alone learns."""
    model = HMTForCausalLM.from_backbone(
        source, **{"sensory": "reread", "segment_length": 20, "num_sensory": 4} | fields
    ).eval()
    model.freeze_backbone()
    return model


@torch.no_grad()
def randomize(parameters: Any) -> None:
    """Give an adapter an effect."""
    for parameter in parameters:
        if parameter.requires_grad:
            parameter.add_(0.3 * torch.randn_like(parameter))


def rewrite(folder: Path, change: Any, file: str = "model.safetensors") -> None:
    """Change the weights of a checkpoint as something does that knows no manifest."""
    weights = load_file(folder / file)
    change(weights)
    save_file(weights, folder / file, metadata={"format": "pt"})
    (folder / "manifest.json").unlink(missing_ok=True)


def test_a_relative_backbone_is_found_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for place in ("here", "there"):
        make_backbone(seed=len(place)).save_pretrained(tmp_path / place / "models/mine")
    monkeypatch.chdir(tmp_path / "here")
    model = frozen("models/mine")
    model.save_pretrained("run")
    monkeypatch.chdir(tmp_path / "there")
    assert_same_model(HMTForCausalLM.from_pretrained("../here/run"), model)


def test_a_backbone_within_the_checkpoint_moves_with_it(tmp_path: Path) -> None:
    make_backbone().save_pretrained(tmp_path / "run/base")
    model = frozen(tmp_path / "run/base")
    model.save_pretrained(tmp_path / "run")
    (tmp_path / "run").rename(tmp_path / "moved")
    assert_same_model(HMTForCausalLM.from_pretrained(tmp_path / "moved"), model)


def test_another_backbone_at_the_source_is_refused_in_any_comparable_format(tmp_path: Path) -> None:
    make_backbone().save_pretrained(tmp_path / "base")
    frozen(tmp_path / "base").save_pretrained(tmp_path / "run")
    for dtype in (None, "bfloat16", "float16"):
        HMTForCausalLM.from_pretrained(tmp_path / "run", dtype=dtype)
    rewrite(tmp_path / "base", lambda weights: weights["model.norm.weight"][7:8].add_(0.1))
    for dtype in (None, "bfloat16"):
        with pytest.raises(OSError, match=str(tmp_path / "base")):
            HMTForCausalLM.from_pretrained(tmp_path / "run", dtype=dtype)


def test_one_changed_value_is_saved(backbone_dir: Path, tmp_path: Path) -> None:
    model = frozen(backbone_dir)
    model.identity()  # which has hashed every weight
    model.backbone.model.layers[1].mlp.up_proj.weight.data[33, 5] += 1e-5  # past autograd's counter of versions
    model.save_pretrained(tmp_path)
    assert holds_backbone(tmp_path)
    assert_same_model(HMTForCausalLM.from_pretrained(tmp_path), model)


def test_a_checkpoint_without_a_backbone_needs_one_that_has_a_name(model: HMTForCausalLM, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="save_backbone"):
        model.save_pretrained(tmp_path, save_backbone=False)


def test_a_backbone_may_be_an_adapter_of_peft(backbone_dir: Path, tmp_path: Path) -> None:
    adapted: Any = get_peft_model(
        AutoModelForCausalLM.from_pretrained(backbone_dir), LoraConfig(r=2, target_modules=["q_proj"])
    )
    randomize(adapted.parameters())
    adapted.save_pretrained(tmp_path / "base")
    model, ids = frozen(tmp_path / "base"), random_ids(1, 30)
    torch.testing.assert_close(model.backbone(ids).logits, adapted.eval()(ids).logits)
    for save_backbone in (False, True):
        model.save_pretrained(tmp_path / "run", save_backbone=save_backbone)
        assert_same_model(HMTForCausalLM.from_pretrained(tmp_path / "run"), model)


@pytest.mark.parametrize("family", ["llama", "gemma2"])
@pytest.mark.parametrize("by_name", [True, False])
@pytest.mark.parametrize("wrapper", [{"trainable_token_indices": [5, 6]}, {"modules_to_save": ["lm_head"]}])
@torch.no_grad()
def test_whatever_peft_wraps_has_its_plain_name(
    wrapper: dict[str, Any], by_name: bool, family: str, tmp_path: Path
) -> None:
    backbone, ids = make_backbone(family), random_ids(1, 60)  # Gemma's head is tied to its embeddings
    backbone.save_pretrained(tmp_path / "base")
    model = frozen(tmp_path / "base" if by_name else backbone)
    plain = set(model.state_dict())
    model.backbone.add_adapter(LoraConfig(r=2, target_modules=["q_proj"], **wrapper))
    randomize(model.backbone.parameters())
    model.save_pretrained(tmp_path / "run")
    assert holds_backbone(tmp_path / "run") != by_name
    assert {name for name in load_file(tmp_path / "run/model.safetensors") if not name.startswith("adapter.")} <= plain
    loaded = HMTForCausalLM.from_pretrained(tmp_path / "run")
    assert_same_model(loaded, model.eval())
    adapted = loaded(ids).logits
    for each in (loaded, model):
        each.backbone.disable_adapters()
    torch.testing.assert_close(loaded(ids).logits, model(ids).logits)
    assert not torch.allclose(loaded(ids).logits, adapted)


def test_an_adapter_around_the_whole_model_is_saved_by_peft(tmp_path: Path) -> None:
    make_model().save_pretrained(tmp_path / "base")
    around = LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
    adapted = get_peft_model(HMTForCausalLM.from_pretrained(tmp_path / "base"), around)
    randomize(adapted.parameters())
    inner, ids = adapted.eval().base_model.model, random_ids(1, 60)
    expected = inner(ids).logits
    with pytest.raises(ValueError, match="PeftModel"):  # which has what is not in the model itself
        inner.save_pretrained(tmp_path / "lost")
    adapted.save_pretrained(tmp_path / "adapter")
    again = PeftModel.from_pretrained(HMTForCausalLM.from_pretrained(tmp_path / "base"), tmp_path / "adapter").eval()
    torch.testing.assert_close(again.base_model.model(ids).logits, expected)
    adapted.merge_and_unload().save_pretrained(tmp_path / "merged")
    merged = HMTForCausalLM.from_pretrained(tmp_path / "merged")
    torch.testing.assert_close(merged(ids).logits, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("by_name", [True, False])
def test_a_resized_vocabulary_is_that_of_every_part(by_name: bool, backbone_dir: Path, tmp_path: Path) -> None:
    model = frozen(backbone_dir if by_name else make_backbone(), mode="backbone", sensory="cache", ngram_cache=4)
    randomize(model.memory.parameters())
    learned = {name: value.clone() for name, value in model.memory.named_parameters()}
    model.resize_token_embeddings(304, mean_resizing=False)
    assert model.config.vocab_size == model.backbone.config.vocab_size == 304
    assert all(torch.equal(value, learned[name]) for name, value in model.memory.named_parameters())
    model.save_pretrained(tmp_path)
    loaded = HMTForCausalLM.from_pretrained(tmp_path)
    assert loaded.config.vocab_size == loaded.backbone.config.vocab_size == 304
    assert_same_model(loaded, model)


DAMAGES = {
    "missing": lambda name: lambda weights: weights.pop(name),
    "unexpected": lambda name: lambda weights: weights.update({f"{name}.more": torch.zeros(1)}),
    "shape": lambda name: lambda weights: weights.update({name: weights[name][:1].repeat(2, 1)}),
    "nan": lambda name: lambda weights: weights[name].view(-1)[-1:].fill_(float("nan")),
    "infinite": lambda name: lambda weights: weights[name].view(-1)[-1:].fill_(float("inf")),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_incomplete_and_broken_weights_are_refused_in_one_line(damage: str, backbone_dir: Path, tmp_path: Path) -> None:
    backbone, memory = "backbone.model.layers.0.mlp.up_proj.weight", "memory.recall.wq.weight"
    for number, (source, name) in enumerate(
        ((backbone_dir, memory), (make_backbone(), memory), (make_backbone(), backbone))
    ):
        folder = tmp_path / str(number)
        frozen(source).save_pretrained(folder)
        rewrite(folder, DAMAGES[damage](name))
        with pytest.raises(OSError, match=name.replace(".", r"\.")) as caught:
            HMTForCausalLM.from_pretrained(folder)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("damage", ["missing", "unexpected", "nan"])
def test_an_incomplete_or_broken_adapter_is_refused(damage: str, backbone_dir: Path, tmp_path: Path) -> None:
    model = frozen(backbone_dir)
    model.add_lora(rank=2)
    model.save_pretrained(tmp_path)
    name = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
    rewrite(tmp_path, DAMAGES[damage](name), "adapter/adapter_model.safetensors")
    (tmp_path / "manifest.json").unlink(missing_ok=True)
    with pytest.raises(OSError, match=r"layers\.0\.self_attn\.q_proj\.lora_A"):
        HMTForCausalLM.from_pretrained(tmp_path)


def test_a_memory_weight_may_be_new_only_where_the_checkpoint_reads_without_it(tmp_path: Path) -> None:
    make_model(mode="short_term").save_pretrained(tmp_path)
    HMTForCausalLM.from_pretrained(tmp_path, mode="hmt")
    rewrite(tmp_path, DAMAGES["missing"]("memory.injection.base"))
    with pytest.raises(OSError, match=r"memory\.injection\.base"):
        HMTForCausalLM.from_pretrained(tmp_path, mode="hmt")


@pytest.mark.parametrize("sharded", [True, False])
def test_files_that_differ_from_the_manifest_are_refused(sharded: bool, tmp_path: Path) -> None:
    make_model().save_pretrained(tmp_path, **({"max_shard_size": "50KB"} if sharded else {}))
    file = max(tmp_path.glob("*.safetensors"))
    whole = file.read_bytes()
    flipped = bytearray(whole)
    flipped[-9] ^= 1
    for damaged in (bytes(flipped), whole[:-4], None):
        file.unlink() if damaged is None else file.write_bytes(damaged)
        with pytest.raises(OSError, match=file.name):
            HMTForCausalLM.from_pretrained(tmp_path)
    file.write_bytes(whole)
    HMTForCausalLM.from_pretrained(tmp_path, verify=True)
    for content in ("[]", "null", '{"model.safetensors": {}}', "{" * 20_000):
        (tmp_path / "manifest.json").write_text(content)
        with pytest.raises(OSError, match="manifest"):
            HMTForCausalLM.from_pretrained(tmp_path)


def test_verify_compares_more_than_the_fast_checksum(tmp_path: Path) -> None:
    make_model().save_pretrained(tmp_path)
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    manifest["model.safetensors"]["sha256"] = "0" * 64
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    HMTForCausalLM.from_pretrained(tmp_path)
    with pytest.raises(OSError, match=r"model\.safetensors"):
        HMTForCausalLM.from_pretrained(tmp_path, verify=True)


def test_a_checkpoint_of_an_earlier_version_is_read(backbone_dir: Path, tmp_path: Path) -> None:
    model = frozen(backbone_dir)
    model.save_pretrained(tmp_path)
    os.rename(tmp_path / "model.safetensors", tmp_path / "memory.safetensors")
    (tmp_path / "manifest.json").unlink()
    assert_same_model(HMTForCausalLM.from_pretrained(tmp_path), model)
