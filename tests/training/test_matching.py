"""Baselines get the budget of what they are compared with: as many tokens, about as many parameters."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from hmt import HMTForCausalLM
from hmt.cli import train
from hmt.cli.parser import parse
from hmt.training.matching import matched_settings
from hmt.training.options import TrainOptions

SMALL: dict[str, Any] = {"segment_length": 32, "num_sensory": 4, "mem_recall_hidden_dim": 16, "batch_size": 1}


@pytest.fixture
def trained(backbone_dir: Path, task_dir: Path, tmp_path: Path) -> Any:
    """Trains a checkpoint in two stages, with more settings."""

    def fit(name: str = "ckpt", **fields: Any) -> TrainOptions:
        given = {"stage_1_step": 4, "training_step": 6, "bptt_depth": 3, "save_ckpt": tmp_path / name}
        options = TrainOptions(model_name=str(backbone_dir), task_name=str(task_dir), **SMALL | given | fields)
        train.run(options)
        return options

    return fit


def tokens_of(path: Path) -> int:
    """Tokens that a run says it has read."""
    return json.loads((path / "training" / "progress.json").read_text())["progress"]["tokens"]


def parameters(model: HMTForCausalLM) -> tuple[int, int]:
    """Of the memory, and of the adapter."""
    adapter = sum(p.numel() for name, p in model.backbone.named_parameters() if "lora_" in name)
    return sum(p.numel() for p in model.memory.parameters()), adapter


@pytest.mark.parametrize("mode", ["backbone", "rmt"])
def test_a_baseline_reads_as_many_tokens_as_the_memory_did(mode: str, trained: Any, run_cli: Any) -> None:
    done = trained()
    budget = tokens_of(done.save_ckpt)
    command = ("train", "--match_budget", done.save_ckpt, "--mode", mode)
    assert run_cli(*command)[0] == 0
    baseline = done.save_ckpt.with_name(f"ckpt.matched-{mode}")
    assert budget <= tokens_of(baseline) < budget + 3 * 32
    options = json.loads((baseline / "training" / "progress.json").read_text())["options"]
    same = ("seed", "task_name", "bptt_depth", "batch_size")
    assert [options[name] for name in same] == [getattr(done, name) for name in same]
    assert HMTForCausalLM.from_pretrained(baseline).config.mode == mode
    assert run_cli(*command)[0] == 0  # there is nothing left to train
    assert tokens_of(baseline) < budget + 3 * 32


def test_the_adapter_of_a_baseline_is_about_as_large_as_the_memory_was(trained: Any) -> None:
    done = trained(mem_recall_hidden_dim=64)
    memory, _ = parameters(HMTForCausalLM.from_pretrained(done.save_ckpt))
    options = parse("train", ["--match_budget", str(done.save_ckpt)])
    assert (options.mode, options.use_lora, options.learning_rate) == ("backbone", True, done.memory_learning_rate)
    train.run(options)
    _, adapter = parameters(HMTForCausalLM.from_pretrained(options.save_ckpt))
    assert adapter == pytest.approx(memory, rel=0.1)
    flags = ["--match_budget", str(done.save_ckpt), "--learning_rate", "1e-4", "--save_ckpt", "elsewhere"]
    options = parse("train", flags)
    assert (options.learning_rate, options.save_ckpt) == (1e-4, Path("elsewhere"))


def test_what_was_trained_of_the_backbone_is_trained_again(trained: Any) -> None:
    adapted = matched_settings(str(trained(use_lora=True, lora_rank=3).save_ckpt), "backbone")
    assert (adapted["use_lora"], adapted["lora_rank"], adapted["learning_rate"]) == (True, 3, 1e-5)
    whole = trained("whole", train_backbone=True)
    settings = matched_settings(str(whole.save_ckpt), "backbone")
    assert (settings["use_lora"], settings["train_backbone"]) == (False, True)
    assert settings["model_name"] == whole.model_name  # and not the backbone that was trained


def test_the_tokens_of_earlier_stages_count_too(trained: Any) -> None:
    first = trained("first", hmt_stage_1=True, training_step=4)
    second = trained("second", hmt_stage_2=True, training_step=6, load_from_ckpt=str(first.save_ckpt))
    tokens = matched_settings(str(second.save_ckpt), "rmt")["max_tokens"]
    assert tokens == tokens_of(first.save_ckpt) + tokens_of(second.save_ckpt) == (4 * 2 + 6 * 3) * 26


def test_a_checkpoint_without_a_training_cannot_be_matched(backbone_dir: Path, tmp_path: Path) -> None:
    HMTForCausalLM.from_backbone(str(backbone_dir), segment_length=32, num_sensory=4).save_pretrained(tmp_path / "new")
    with pytest.raises(FileNotFoundError, match="--match_budget"):
        matched_settings(str(tmp_path / "new"), "rmt")


def test_the_stages_share_a_number_of_tokens_like_their_steps(trained: Any) -> None:
    done = trained(stage_1_step=100, training_step=100, max_tokens=1000)
    stored = json.loads((done.save_ckpt / "training" / "progress.json").read_text())["progress"]
    assert 1000 <= stored["tokens"] < 1000 + 3 * 26
    lines = (done.record / "metrics.jsonl").read_text().splitlines()
    stages = [json.loads(line)["stage"] for line in lines]
    assert stages.count("1") == 10  # 500 tokens in samples of 52
    assert stages.count("2") == 7
