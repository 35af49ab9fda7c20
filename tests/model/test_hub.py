"""Pushing to a hub; nothing is uploaded here."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load_file
from transformers.utils import hub

from hmt import HMTForCausalLM
from hmt.memory.identity import weights_digest
from hmt.model.adapter import backbone_weights
from tests.conftest import make_model


@pytest.fixture
def uploaded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A hub that keeps what it gets in this folder."""
    folder = tmp_path / "uploaded"

    def upload(self: Any, working_dir: str, repo_id: str, *_: Any, **__: Any) -> str:
        shutil.copytree(working_dir, folder, dirs_exist_ok=True)
        return f"https://hub/{repo_id}/commit/1"

    api = SimpleNamespace(create_repo=lambda repo_id, **_: SimpleNamespace(repo_id=f"me/{repo_id}"))
    monkeypatch.setattr(hub, "hf_api", lambda: api)
    monkeypatch.setattr(
        hub, "create_and_tag_model_card", lambda _, tags, **__: ModelCard(f"---\ntags: {tags}\n---\n# a card")
    )
    monkeypatch.setattr(HMTForCausalLM, "_upload_modified_files", upload)
    return folder


@pytest.mark.parametrize("saving", [False, True])
def test_a_model_of_a_local_backbone_is_pushed_whole_and_names_no_path(
    saving: bool, backbone_dir: Path, uploaded: Path, tmp_path: Path
) -> None:
    model = HMTForCausalLM.from_backbone(backbone_dir, segment_length=40, num_sensory=4).eval()
    model.freeze_backbone()
    if saving:
        model.save_pretrained(tmp_path / "local", push_to_hub=True, repo_id="tiny-hmt")
        assert not any(name.startswith("backbone.") for name in load_file(tmp_path / "local" / "model.safetensors"))
    else:
        assert model.push_to_hub("tiny-hmt", private=True) == "https://hub/me/tiny-hmt/commit/1"
    assert "hmt" in ModelCard.load(uploaded / "README.md").data.tags
    assert str(backbone_dir.parent) not in (uploaded / "config.json").read_text()
    loaded = HMTForCausalLM.from_pretrained(uploaded)
    ids = torch.tensor([[5, 6, 7]])
    torch.testing.assert_close(loaded(ids).logits, model(ids).logits)
    assert model.config.backbone_source == str(backbone_dir)


def test_a_backbone_of_the_hub_is_named_with_its_revision_and_left_out(uploaded: Path) -> None:
    model = make_model()
    model.config.backbone_source, model.config.backbone_revision = "someone/base", "v2"
    model.config.backbone_digest = weights_digest(backbone_weights(model).values())
    model.add_lora()
    model.push_to_hub("tiny-hmt")
    assert not any(name.startswith("backbone.") for name in load_file(uploaded / "model.safetensors"))
    adapter = (uploaded / "adapter" / "adapter_config.json").read_text()
    assert '"base_model_name_or_path": "someone/base"' in adapter
    assert '"revision": "v2"' in adapter
