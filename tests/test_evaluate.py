"""Evaluation: the same targets at every length, and figures that can be computed by hand."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from hmt import HMTForCausalLM
from hmt.cli.evaluate import evaluate_rows
from hmt.evaluation.options import EvaluateOptions
from hmt.text.batches import TokenDocument
from tests.conftest import byte_tokenizer, make_backbone, make_model, make_rolling, random_ids


def options(**fields: object) -> EvaluateOptions:
    """Options for the tiny model."""
    return EvaluateOptions(**{"sensory": "reread", "segment_length": 20} | fields)  # type: ignore[arg-type]


def texts(*lengths: int) -> list[TokenDocument]:
    """Random documents."""
    return [TokenDocument(str(n), random_ids(1, length, seed=n)[0]) for n, length in enumerate(lengths)]


@torch.no_grad()
def test_isolated_segments_score_as_the_backbone_on_each_alone(tokenizer: PreTrainedTokenizerFast) -> None:
    documents = texts(100, 120)
    result = evaluate_rows(
        make_model(), tokenizer, documents, options(lengths="80,40", modes="isolated", target_tokens=25)
    )
    backbone = make_backbone()
    for row in result["rows"]:
        assert row["read_tokens"] == {80: 65, 40: 40}[row["context_tokens"]]  # whole segments before 25 targets
        nats = []
        for document in documents:
            sample = document.ids[80 - row["read_tokens"] : 80]
            logits = torch.cat([backbone(segment[None]).logits[0] for segment in sample.split(20)])
            nll = torch.nn.functional.cross_entropy(logits[:-1], sample[1:], reduction="none")
            nats += nll[-25:].tolist()
        assert row["tokens"] == 50
        assert row["loss"] == pytest.approx(sum(nats) / 50, abs=1e-5)
        assert row["ppl"] == pytest.approx(math.exp(sum(nats) / 50), rel=1e-5)
        assert row["ppl_causal"] == pytest.approx(row["ppl"])


def test_the_rows_read_as_they_are_named_with_one_window(tokenizer: PreTrainedTokenizerFast) -> None:
    names = "backbone,isolated,rmt,short_term,hmt,hmt_previous"
    rows = evaluate_rows(make_model(), tokenizer, texts(90), options(lengths="80", modes=names))["rows"]
    assert [row["row"] for row in rows] == names.split(",")
    assert [row["num_sensory"] for row in rows] == [4, 0, 0, 4, 4, 4]
    assert {row["segment_length"] for row in rows} == {20}
    by_name = {row["row"]: row for row in rows}
    assert by_name["hmt"]["causal_tokens"] < by_name["hmt"]["tokens"]
    assert by_name["hmt_previous"]["causal_tokens"] == by_name["hmt_previous"]["tokens"] == 40


def test_plain_rows_are_the_same_whatever_the_model_keeps_and_recalls(tokenizer: PreTrainedTokenizerFast) -> None:
    chosen = options(lengths="120", modes="recompute,sliding,sinks,isolated,backbone", segment_length=40)
    models = (
        make_model(segment_length=40, num_sensory=32),
        make_model(segment_length=40, num_sensory=32, num_memory_tokens=2, inject_autoencoder=False),
        make_rolling(segment_length=40, num_sinks=4, num_recalled_tokens=10),
        make_rolling(segment_length=40, num_sinks=4, num_recalled_tokens=0, num_memory_tokens=1),
    )
    found = [
        {row["row"]: row["loss"] for row in evaluate_rows(model, tokenizer, texts(150), chosen)["rows"]}
        for model in models
    ]
    for losses in found[1:]:
        assert losses == pytest.approx(found[0], abs=1e-5)
    assert len({round(loss, 3) for loss in found[0].values()}) == 5


def test_a_rolling_window_is_divided_as_its_row_says(tokenizer: PreTrainedTokenizerFast) -> None:
    names = "sliding,sinks,recall,hmt_cache"
    rows = evaluate_rows(make_rolling(), tokenizer, texts(90), options(lengths="80", modes=names, sensory="cache"))
    by_name = {row["row"]: row for row in rows["rows"]}
    assert {row["segment_length"] for row in by_name.values()} == {24}
    # W = sinks + recalled passages + prompts + sensory tokens + the token that is read.
    sensory = {"sliding": 24 - 1, "sinks": 24 - 3 - 1, "recall": 24 - 3 - 8 - 1, "hmt_cache": 24 - 3 - 8 - 2 - 1}
    assert {name: row["num_sensory"] for name, row in by_name.items()} == sensory
    assert {row["causal_tokens"] for row in by_name.values()} == {40}
    assert by_name["sinks"]["positions_per_token"] == 1 < by_name["hmt_cache"]["positions_per_token"]


def test_a_policy_is_chosen_when_a_model_is_evaluated(
    run_cli: Any, backbone_dir: Path, task_dir: Path, tmp_path: Path
) -> None:
    flags = (
        "--model_name", backbone_dir, "--task_name", task_dir, "--segment_length", 40, "--num_sensory", 4,
        "--sensory", "reread", "--mem_recall_hidden_dim", 16, "--mem_recall_context", 3, "--lengths", 600,
        "--target_tokens", 100,
        "--mode", "hmt", "--memory_injection", "published", "--retention_protected", 1, "--json", tmp_path / "out.json",
    )  # fmt: skip
    losses = {}
    for policy in ("fifo", "usage", "attention", "merge"):
        status, _, complaint = run_cli("evaluate", *flags, "--memory_policy", policy)
        assert status == 0, complaint
        losses[policy] = json.loads((tmp_path / "out.json").read_text())["rows"][0]["loss"]
    assert len(set(losses.values())) == 4
    status, _, complaint = run_cli("evaluate", *flags, "--memory_policy", "newest")
    assert status == 2
    assert complaint.endswith("memory_policy must be one of fifo, usage, attention, merge, got 'newest'\n")


@pytest.mark.parametrize(
    ("fields", "row"),
    [({"mode": "rmt"}, "rmt"), ({}, "hmt"), ({"sensory": "cache"}, "recall"),
     ({"sensory": "cache", "num_recalled_tokens": 0}, "sinks"),
     ({"sensory": "cache", "num_memory_tokens": 1}, "hmt_cache")],
    ids=str,
)  # fmt: skip
def test_the_row_is_that_of_the_model_where_none_is_named(fields: dict[str, Any], row: str) -> None:
    assert options(**fields).rows == [row]


def test_spans_side_by_side_score_as_one_by_one(tokenizer: PreTrainedTokenizerFast) -> None:
    losses = [
        [row["loss"] for row in evaluate_rows(
            make_model(), tokenizer, texts(100, 130, 90), options(lengths="60,80", modes="hmt,rmt", batch_size=size)
        )["rows"]]
        for size in (1, 3)
    ]  # fmt: skip
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)


def test_evaluation_leaves_the_model_as_it_was(tokenizer: PreTrainedTokenizerFast) -> None:
    model = make_model()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    evaluate_rows(model, tokenizer, texts(90), options(lengths="80", modes="backbone,hmt"))
    assert model.config.mode == "hmt"
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.fixture
def replicas(backbone_dir: Path, tmp_path: Path) -> list[Path]:
    """Two checkpoints of one backbone, with memories of different seeds."""
    for seed in (0, 1):
        torch.manual_seed(seed)
        model = HMTForCausalLM.from_backbone(
            str(backbone_dir), sensory="reread", segment_length=32, num_sensory=4, mem_recall_hidden_dim=16,
            memory_gain=2.0, num_recalled_tokens=0,
        )  # fmt: skip
        model.memory.injection.base.data.normal_()
        model.save_pretrained(tmp_path / f"seed-{seed}")
        byte_tokenizer().save_pretrained(tmp_path / f"seed-{seed}")
    return [tmp_path / f"seed-{seed}" for seed in (0, 1)]


def test_checkpoints_of_several_seeds_are_one_table(
    replicas: list[Path], task_dir: Path, tmp_path: Path, run_cli: Any
) -> None:
    command = (
        "evaluate",
        "--task_name",
        task_dir,
        "--lengths",
        128,
        "--modes",
        "sliding,hmt",
        "--json",
        tmp_path / "f",
    )
    ppls = []
    for checkpoint in replicas:
        status, _, complaint = run_cli(*command, "--load_from_ckpt", checkpoint)
        assert status == 0, complaint
        ppls.append(json.loads((tmp_path / "f").read_text())["rows"][1]["ppl"])
    status, said, complaint = run_cli(*command, "--load_from_ckpt", replicas[0], "--replicas", replicas[1])
    assert status == 0, complaint
    assert "spread" in said
    figures = json.loads((tmp_path / "f").read_text())
    assert figures["checkpoints"] == [str(checkpoint) for checkpoint in replicas]
    assert figures["rows"][1]["ppls"] == pytest.approx(ppls)
    assert figures["rows"][1]["ppl_spread"] == pytest.approx(abs(ppls[1] - ppls[0]))
    assert figures["rows"][1]["ppl_spread"] > 0


def test_questions_are_asked_of_every_checkpoint(replicas: list[Path], tmp_path: Path, run_cli: Any) -> None:
    rows = [{"name": f"q{n}", "context": "a" * 70, "prompt": f"{n}?", "answers": "b"} for n in range(2)]
    (tmp_path / "questions.test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    status, _, complaint = run_cli(
        "evaluate", "--task_name", tmp_path, "--load_from_ckpt", replicas[0], "--replicas", replicas[1],
        "--max_new_tokens", 3, "--json", tmp_path / "f", "--predictions", tmp_path / "p",
    )  # fmt: skip
    assert status == 0, complaint
    (row,) = json.loads((tmp_path / "f").read_text())["rows"]
    assert row["questions"] == 2
    assert row["f1_spread"] >= 0
    asked = [json.loads(line)["checkpoint"] for line in (tmp_path / "p").read_text().splitlines()]
    assert asked == [str(checkpoint) for checkpoint in replicas for _ in rows]


def test_a_replica_that_is_not_there_is_named_at_once(replicas: list[Path], task_dir: Path, run_cli: Any) -> None:
    status, _, complaint = run_cli(
        "evaluate", "--task_name", task_dir, "--load_from_ckpt", replicas[0], "--replicas", "./nowhere"
    )
    assert (status, complaint) == (2, "hmt evaluate: no checkpoint directory at ./nowhere\n")
