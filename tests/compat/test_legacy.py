"""Weights of the published program in every form they come in, and what is wrong with those that do not fit."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from hmt import HMTForCausalLM
from tests.conftest import byte_tokenizer, random_ids
from tests.parity.test_golden import GOLDEN

CASE = GOLDEN / "llama-hmt"
FLAGS = ("--segment_length", 18, "--num_sensory", 4, "--mem_recall_hidden_dim", 32)


def convert(
    run_cli: Any, state: Path, out: Path, *more: Any, backbone: Path = CASE / "backbone"
) -> tuple[int, str, str]:
    """Run `hmt convert` on the golden Llama's settings."""
    return run_cli("convert", "--state", state, "--backbone", backbone, "--out", out, *FLAGS, *more)


@torch.no_grad()
def logits(folder: Path) -> torch.Tensor:
    """Logits of a converted checkpoint on a fixed text."""
    return HMTForCausalLM.from_pretrained(folder)(random_ids(1, 50) % 200).logits


@pytest.fixture
def weights() -> dict[str, torch.Tensor]:
    """The golden Llama's weights under the published names."""
    return load_file(CASE / "reference_state.safetensors")


@pytest.mark.parametrize("form", ["pth", "bin", "wrapped", "untied"])
def test_every_form_gives_the_same_model(form: str, weights: dict, tmp_path: Path, run_cli: Any) -> None:
    convert(run_cli, CASE / "reference_state.safetensors", tmp_path / "expected")
    if form == "wrapped":
        weights = {f"module.{name}": value for name, value in weights.items()}
    if form == "untied":  # a tied head is often left out
        del weights["memory_cell.model.lm_head.weight"]
    state = tmp_path / f"model_weights.{'bin' if form == 'bin' else 'pth'}"
    torch.save(weights, state)
    status, said, complaint = convert(run_cli, state, tmp_path / "got")
    assert status == 0, complaint
    assert "memory_cell.mem_map" in said
    assert torch.equal(logits(tmp_path / "got"), logits(tmp_path / "expected"))


def test_lora_weights_become_an_adapter(weights: dict, tmp_path: Path, run_cli: Any) -> None:
    convert(run_cli, CASE / "reference_state.safetensors", tmp_path / "base")
    plain = logits(tmp_path / "base")
    prefix = "memory_cell.model."
    published, merged = {}, dict(weights)
    for name, value in weights.items():
        inner = name.removeprefix(prefix)
        if not name.startswith(prefix):
            published[name] = value
        elif inner.endswith(("q_proj.weight", "v_proj.weight")):
            module = f"{prefix}base_model.model.{inner.removesuffix('.weight')}"
            down, up = torch.randn(4, value.shape[1]) * 0.3, torch.randn(value.shape[0], 4) * 0.3
            published[f"{module}.base_layer.weight"] = value
            published[f"{module}.lora_A.default.weight"] = down
            published[f"{module}.lora_B.default.weight"] = up
            merged[name] = value + up @ down * 32 / 4
        else:
            published[f"{prefix}base_model.model.{inner}"] = value
    save_file(published, tmp_path / "lora.safetensors")
    save_file(merged, tmp_path / "merged.safetensors")
    assert convert(run_cli, tmp_path / "lora.safetensors", tmp_path / "lora")[0] == 0
    assert convert(run_cli, tmp_path / "merged.safetensors", tmp_path / "merged")[0] == 0
    assert (tmp_path / "lora/adapter/adapter_config.json").is_file()
    torch.testing.assert_close(logits(tmp_path / "lora"), logits(tmp_path / "merged"), atol=1e-4, rtol=0)
    assert (logits(tmp_path / "lora") - plain).abs().max() > 1e-3


def test_the_tokenizer_beside_the_backbone_goes_along(tmp_path: Path, run_cli: Any) -> None:
    folder = tmp_path / "backbone"
    byte_tokenizer().save_pretrained(folder)
    (folder / "config.json").write_text((CASE / "backbone/config.json").read_text())
    convert(run_cli, CASE / "reference_state.safetensors", tmp_path / "out", backbone=folder)
    assert (tmp_path / "out/tokenizer.json").is_file()


class Malicious:
    """Runs a command when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        """Touch a file."""
        return os.system, (f"touch {self.path}",)


def test_a_pickle_that_wants_to_run_something_is_refused(tmp_path: Path, run_cli: Any) -> None:
    torch.save({"mem": Malicious(tmp_path / "ran")}, tmp_path / "weights.pth")
    status, _, complaint = convert(run_cli, tmp_path / "weights.pth", tmp_path / "out")
    assert status == 2
    assert "weights.pth" in complaint
    assert not (tmp_path / "ran").exists()
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.pop("cross_attn.wq.weight"), "recall.wq.weight"),
        (
            lambda w: w.update({"mem": torch.zeros(1, 7)}),
            "(1, 7)",
        ),
        (lambda w: w.update({"surprise": torch.zeros(1)}), "surprise"),
        (lambda w: w.pop("memory_cell.model.model.norm.weight"), "model.norm.weight"),
        (
            lambda w: w.update({"memory_cell.model.model.layers.9.x": torch.zeros(1)}),
            "model.layers.9.x",
        ),
    ],
    ids=["missing", "shape", "foreign", "backbone", "layer"],
)
def test_weights_that_do_not_fit_are_named(
    change: Any, message: str, weights: dict, tmp_path: Path, run_cli: Any
) -> None:
    change(weights)
    save_file(weights, tmp_path / "state.safetensors")
    status, _, complaint = convert(run_cli, tmp_path / "state.safetensors", tmp_path / "out")
    assert status == 2
    assert message in complaint
    assert complaint.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_missing_files_are_named(tmp_path: Path, run_cli: Any) -> None:
    for state, backbone, message in (
        (tmp_path / "none.pth", CASE / "backbone", str(tmp_path / "none.pth")),
        (tmp_path, CASE / "backbone", str(tmp_path)),
        (CASE / "reference_state.safetensors", tmp_path, "config.json"),
    ):
        status, _, complaint = convert(run_cli, state, tmp_path / "out", backbone=backbone)
        assert status == 2
        assert message in complaint
