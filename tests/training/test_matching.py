"""Baselines get the budget of what they are compared with: as many tokens, about as many parameters."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from hmt import HMTForCausalLM
from hmt.cli import train
from hmt.training.matching import budget_of, is_trained, matched_options, matched_path
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
def test_a_baseline_reads_as_many_tokens_as_the_memory_did(mode: str, trained: Any) -> None:
    done = trained()
    budget = budget_of(str(done.save_ckpt))
    assert budget.tokens == tokens_of(done.save_ckpt) == 4 * 2 * 26 + 6 * 3 * 26
    options = matched_options(budget, mode)
    assert not is_trained(options)
    figures = train.run(options)[0]
    sample = 3 * options.fresh_tokens
    assert budget.tokens <= figures["tokens"] < budget.tokens + sample
    assert is_trained(options)
    assert (options.seed, options.task_name, options.bptt_depth) == (done.seed, done.task_name, done.bptt_depth)
    assert HMTForCausalLM.from_pretrained(matched_path(str(done.save_ckpt), mode)).config.mode == mode


def test_the_adapter_of_a_baseline_is_about_as_large_as_the_memory_was(trained: Any) -> None:
    done = trained(mem_recall_hidden_dim=64)
    memory, _ = parameters(HMTForCausalLM.from_pretrained(done.save_ckpt))
    options = matched_options(budget_of(str(done.save_ckpt)), "backbone")
    assert options.use_lora
    assert options.learning_rate == done.memory_learning_rate
    train.run(options)
    _, adapter = parameters(HMTForCausalLM.from_pretrained(options.save_ckpt))
    assert adapter == pytest.approx(memory, rel=0.1)
    assert matched_options(budget_of(str(done.save_ckpt)), "backbone", 1e-4).learning_rate == 1e-4


def test_what_was_trained_of_the_backbone_is_trained_again(trained: Any) -> None:
    adapted = matched_options(budget_of(str(trained(use_lora=True, lora_rank=3).save_ckpt)), "backbone")
    assert (adapted.use_lora, adapted.lora_rank, adapted.learning_rate) == (True, 3, 1e-5)
    whole = trained("whole", train_backbone=True)
    options = matched_options(budget_of(str(whole.save_ckpt)), "backbone")
    assert (options.use_lora, options.train_backbone) == (False, True)
    assert options.model_name == whole.model_name  # and not the backbone that was trained


def test_the_tokens_of_earlier_stages_count_too(trained: Any) -> None:
    first = trained("first", hmt_stage_1=True, training_step=4)
    second = trained("second", hmt_stage_2=True, training_step=6, load_from_ckpt=str(first.save_ckpt))
    assert budget_of(str(second.save_ckpt)).tokens == tokens_of(first.save_ckpt) + tokens_of(second.save_ckpt)
    assert tokens_of(second.save_ckpt) == 6 * 3 * 26


def test_another_run_in_the_same_place_is_named(trained: Any) -> None:
    done = trained()
    train.run(matched_options(budget_of(str(done.save_ckpt)), "rmt"))
    trained(training_step=9)
    with pytest.raises(ValueError, match=r"ckpt.matched-rmt was trained with .*; remove it, or move it away"):
        is_trained(matched_options(budget_of(str(done.save_ckpt)), "rmt"))


def test_a_checkpoint_that_says_nothing_of_its_training_cannot_be_matched(backbone_dir: Path, tmp_path: Path) -> None:
    HMTForCausalLM.from_backbone(str(backbone_dir), segment_length=32, num_sensory=4).save_pretrained(tmp_path / "new")
    with pytest.raises(FileNotFoundError, match="what was spent on this checkpoint is not known"):
        budget_of(str(tmp_path / "new"))


def test_rows_of_an_evaluation_have_the_budget_of_its_checkpoint(
    trained: Any, task_dir: Path, tmp_path: Path, run_cli: Any, caplog: Any
) -> None:
    caplog.set_level("INFO")
    checkpoint = trained().save_ckpt
    command = (
        "evaluate", "--load_from_ckpt", checkpoint, "--task_name", task_dir, "--lengths", "128", "--match_budget",
        "--modes", "sliding,backbone,rmt,hmt", "--json", tmp_path / "figures.json",
    )  # fmt: skip
    status, _, complaint = run_cli(*command)
    assert status == 0, complaint
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert [(one["mode"], one["budget_tokens"]) for one in figures["matched"]] == [
        ("backbone", tokens_of(checkpoint)), ("rmt", tokens_of(checkpoint)),
    ]  # fmt: skip
    assert [row["row"] for row in figures["rows"]] == ["sliding", "backbone", "rmt", "hmt"]
    rows = {row["row"]: row["ppl"] for row in figures["rows"]}
    status, _, complaint = run_cli(*(part for part in command if part != "--match_budget"))
    assert status == 0, complaint
    plain = {row["row"]: row["ppl"] for row in json.loads((tmp_path / "figures.json").read_text())["rows"]}
    assert rows["hmt"] == plain["hmt"]
    assert all(rows[row] != plain[row] for row in ("sliding", "backbone", "rmt"))
    caplog.clear()
    assert run_cli(*command)[0] == 0
    assert "ckpt.matched-backbone is trained already" in caplog.text
    assert "training" not in caplog.text.replace("is trained already", "")


def test_the_stages_share_a_number_of_tokens_like_their_steps(trained: Any) -> None:
    torch.manual_seed(0)
    done = trained(stage_1_step=100, training_step=100, max_tokens=1000)
    stored = json.loads((done.save_ckpt / "training" / "progress.json").read_text())["progress"]
    assert 1000 <= stored["tokens"] < 1000 + 3 * 26
    lines = (done.record / "metrics.jsonl").read_text().splitlines()
    stages = [json.loads(line)["stage"] for line in lines]
    assert stages.count("1") == 10  # 500 tokens in samples of 52
    assert stages.count("2") == 7
