"""What is pushed to a hub says what it is; nothing is uploaded here."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from huggingface_hub import HfApi, ModelCard
from safetensors.torch import load_file

from hmt import HMTForCausalLM
from hmt.model.identity import backbone_weights, weights_digest
from tests.conftest import make_model


@pytest.fixture
def uploaded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A hub that keeps what it gets in this folder, one file of which it may have already."""
    folder = tmp_path / "uploaded"

    def upload(self: HfApi, repo_id: str, folder_path: str, **more: Any) -> str:
        shutil.copytree(folder_path, folder, dirs_exist_ok=True)
        return f"https://hub/{repo_id}/commit/1"

    monkeypatch.setattr(HfApi, "create_repo", lambda self, repo_id, **_: SimpleNamespace(repo_id=f"me/{repo_id}"))
    monkeypatch.setattr(HfApi, "file_exists", lambda self, repo_id, name, **_: (folder / name).exists())
    monkeypatch.setattr(HfApi, "upload_folder", upload)
    return folder


def test_what_is_made_from_a_directory_is_complete_and_names_no_path(backbone_dir: Path, uploaded: Path) -> None:
    model = HMTForCausalLM.from_backbone(backbone_dir, segment_length=40, num_sensory=4)
    model.freeze_backbone()
    assert model.push_to_hub("tiny-hmt") == "https://hub/me/tiny-hmt/commit/1"
    card = ModelCard.load(uploaded / "README.md")
    assert card.data.library_name == "hmt"
    assert card.data.pipeline_tag == "text-generation"
    assert "# tiny-hmt" in card.text
    assert 'from_pretrained("me/tiny-hmt")' in card.text
    assert "| `segment_length` | 40 |" in card.text
    assert "all weights of the backbone" in card.text
    assert (uploaded / "tokenizer.json").exists()
    assert str(backbone_dir.parent) not in card.text  # no directory of this machine is published
    assert str(backbone_dir.parent) not in (uploaded / "config.json").read_text()
    loaded = HMTForCausalLM.from_pretrained(uploaded)  # without the directory, which others do not have
    ids = torch.tensor([[5, 6, 7]])
    torch.testing.assert_close(loaded(ids).logits, model.eval()(ids).logits)
    assert model.config.backbone_source == str(backbone_dir)


def test_a_hub_backbone_is_linked_with_its_revision(uploaded: Path) -> None:
    model = make_model()
    model.config.backbone_source, model.config.backbone_revision = "someone/base", "v2"
    model.config.backbone_digest = weights_digest(backbone_weights(model).values())
    model.add_lora()
    model.push_to_hub("tiny-hmt")
    card = ModelCard.load(uploaded / "README.md")
    assert card.data.base_model == "someone/base"
    assert "[someone/base](https://huggingface.co/someone/base) at revision `v2`" in card.text
    assert "LoRA adapter" in card.text
    assert "The backbone was frozen" in card.text
    assert not any(name.startswith("backbone.") for name in load_file(uploaded / "model.safetensors"))
    adapter = (uploaded / "adapter" / "adapter_config.json").read_text()
    assert '"base_model_name_or_path": "someone/base"' in adapter
    assert '"revision": "v2"' in adapter


def test_saving_can_push_and_a_card_that_is_there_is_left_alone(uploaded: Path, tmp_path: Path) -> None:
    uploaded.mkdir()
    (uploaded / "README.md").write_text("mine")
    model = make_model()
    model.save_pretrained(tmp_path / "local", push_to_hub=True, repo_id="tiny-hmt")
    assert (uploaded / "README.md").read_text() == "mine"
    again = HMTForCausalLM.from_pretrained(uploaded)
    ids = torch.tensor([[5, 6, 7]])
    torch.testing.assert_close(again(ids).logits, model(ids).logits)
    assert (tmp_path / "local" / "model.safetensors").exists()
