"""The published command lines run as they are, on local stand-ins of the hub's names."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from hmt.cli.command import run
from hmt.cli.parser import parse
from hmt.compat.published import PublishedOptions
from hmt.training.options import TrainOptions
from tests.conftest import byte_tokenizer, make_backbone, make_model, random_ids

TRAIN = (
    "--task_name wikitext --task_config wikitext-103-raw-v1 --batch_size 1 --segment_length 128 --bptt_depth 2 "
    "--num_sensory 32 --mem_recall_context 20 --mem_recall_hidden_dim 1024 --training_step 2000 --eval_step 200 "
    "--learning_rate 3e-6 --lr_decay --lr_decay_gamma 0.8 --use_lora --fp16 --wandb_project wikitext "
    "--wandb_run opt13b_wiki103_train --num_epochs 5"
)
TEST = (
    "--task_name wikitext --task_config wikitext-103-raw-v1 --batch_size 1 --segment_length 128 "
    "--mem_recall_context 20 --load_from_ckpt ./ckpt_wiki103 --inference_only --test_step 100"
)
PG19 = (
    "--task_name=emozilla/pg19 --use_lora --learning_rate=1e-4 --model_name=meta-llama/Llama-2-7b-hf --lr_decay "
    "--lr_decay_gamma=0.6 --training_step=600 --num_sensory=32 --bptt_depth=6 --train_set_split=50 --num_seg_save=8 "
    "--batch_size=2 --test_length=30000"
)
FLAGS = """
task_name task_subset task_config batch_size num_seg_save seed model_name segment_length bptt_depth sum_fraction
test_length training_step eval_step test_step learning_rate lr_decay use_lora lr_decay_gamma num_sensory
mem_recall_hidden_dim rmt_only baseline_only segment_alignment hmt_stage_1 hmt_stage_2 save_ckpt load_from_ckpt
mem_recall_context token_file train_set_split interleave_dataset interleave_len plot_hist fuse_size timing
inference_only dynamic dilate_dataset dilate_len dilate_str train_memory_map inject_autoencoder generate streaming
shuffle shuffle_train cache_dir wandb_project wandb_run wandb_entity num_epochs fp16 gradient_accumulation_steps
"""


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Directories that stand for the models and data sets of the commands."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    for family in ("opt", "llama"):
        make_backbone(family).save_pretrained(tmp_path / family)
        byte_tokenizer().save_pretrained(tmp_path / family)
    for number, split in enumerate(("train", "validation", "test")):
        folder = tmp_path / "text" / split
        folder.mkdir(parents=True)
        for book in range(8):
            lines = [f"item {i * (number + book + 1) % 7} is in box {i * 3 % 5}.\n" for i in range(200)]
            (folder / f"{book}.txt").write_text("".join(lines))
    monkeypatch.setenv(
        "HMT_HUB_MAP",
        "facebook/opt-1.3b=opt,meta-llama/Llama-2-7b-hf=llama,Salesforce/wikitext=text,emozilla/pg19=text",
    )
    return tmp_path


def published(line: str, *more: object) -> int:
    return run(["published", *shlex.split(line), *map(str, more)])


@pytest.fixture
def shortened(monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands as published, with less work behind them."""
    training = PublishedOptions.training

    def short(options: PublishedOptions) -> TrainOptions:
        return replace(training(options), training_step=2, eval_step=2, test_step=2, test_length=600)

    monkeypatch.setattr(PublishedOptions, "training", short)
    monkeypatch.setenv("WANDB_MODE", "disabled")


@pytest.mark.usefixtures("shortened")
def test_the_published_commands_run_one_after_the_other(hub: Path, capsys: Any) -> None:
    assert published(TRAIN, "--save_ckpt", "./ckpt_wiki103") == 0
    trained = capsys.readouterr().out
    assert "for 2 steps" in trained
    record = json.loads((hub / "ckpt_wiki103.run" / "run.json").read_text())["options"]
    expected = {"memory_injection": "published", "loss_tokens": 94, "use_lora": True, "lora_rank": 8, "seed": 3407,
                "lr_decay_gamma": 0.8, "memory_learning_rate": 3e-6, "segment_length": 128,
                "mem_recall_context": 20}  # fmt: skip
    assert {name: record[name] for name in expected} == expected
    assert published(TEST) == 0
    tested = capsys.readouterr().out
    assert tested.startswith("test: loss ")
    assert tested.strip() in trained  # the same weights, the same samples
    before = sorted(path.name for path in hub.iterdir() if path.is_dir() and "ckpt" in path.name)
    assert published(PG19) == 0
    said = capsys.readouterr().out
    assert "for 2 steps" in said
    assert sorted(path.name for path in hub.iterdir() if path.is_dir() and "ckpt" in path.name) == before
    assert "2 samples of up to 600 tokens" in said


@pytest.mark.usefixtures("shortened")
def test_flags_that_were_typed_must_fit_the_checkpoint_and_others_come_from_it(hub: Path, capsys: Any) -> None:
    assert published(TRAIN, "--save_ckpt", "ckpt_wiki103", "--sum_fraction", 0.25) == 0
    capsys.readouterr()
    chosen = parse("published", shlex.split(TEST))
    settings = chosen.training()
    expected = {"num_sensory": 32, "mem_recall_hidden_dim": 1024, "sum_fraction": 0.25, "use_lora": True,
                "model_name": "facebook/opt-1.3b", "memory_injection": "published",
                "train_backbone": False}  # fmt: skip
    assert {name: getattr(settings, name) for name in expected} == expected
    for line in (TEST, TRAIN + " --load_from_ckpt ckpt_wiki103"):
        for flag, value in (("mem_recall_hidden_dim", 64), ("model_name", "meta-llama/Llama-2-7b-hf")):
            assert published(line, f"--{flag}", value) == 2
            complaint = capsys.readouterr().err
            assert complaint.count("\n") == 1
            assert flag in complaint
            assert str(value) in complaint
    assert published(TEST, "--model_name", "opt") == 0  # the directory that the hub's name stands for
    generate = ["--prompt", "It", "--load_from_ckpt", "ckpt_wiki103"]
    with pytest.raises(ValueError, match="model_name"):
        parse("generate", [*generate, "--model_name", "llama"])
    train = ["--load_from_ckpt", "ckpt_wiki103"]
    with pytest.raises(ValueError, match="lora_rank"):
        parse("train", [*train, "--lora_rank", "4"])
    assert parse("train", train).use_lora
    assert not parse("train", [*train, "--train_backbone"]).use_lora


@pytest.mark.usefixtures("shortened")
def test_a_checkpoint_of_another_mode_is_tested_in_it(hub: Path, capsys: Any) -> None:
    for flags, mode in (("--rmt_only", "rmt"), ("--dynamic", "hmt")):
        assert published(TRAIN, "--save_ckpt", "ckpt_wiki103", flags) == 0
        settings = parse("published", shlex.split(TEST)).training()
        assert (settings.mode, settings.dynamic_reading) == (mode, flags == "--dynamic")
        trained = capsys.readouterr().out
        assert published(TEST) == 0
        assert capsys.readouterr().out.strip() in trained


def test_paragraphs_of_the_hub_become_articles_long_enough_to_test_on(hub: Path, capsys: Any) -> None:
    """No paragraph has 2,000 tokens; the command that the program's README gives needs samples of that length."""
    for folder in (hub / "text").iterdir():
        shutil.rmtree(folder)
    for split in ("train", "validation", "test"):
        rows = [
            row
            for article in range(3)
            for row in ("", f" = {split} {article} = \n", "", *[f" Line {n} of {article} .\n" for n in range(140)])
        ]
        pq.write_table(pa.table({"text": rows}), hub / "text" / f"{split}-00000-of-00001.parquet")
    short = TRAIN.replace("--training_step 2000 --eval_step 200", "--training_step 2 --eval_step 1")
    assert published(short, "--test_length", 2000, "--test_step", 2) == 0
    assert "2 samples of up to 2,000 tokens" in capsys.readouterr().out


@pytest.mark.parametrize("flags", ["--interleave_dataset --interleave_len 30", "--dilate_dataset --dilate_len 40"])
def test_documents_are_mixed_and_dilated(flags: str, hub: Path, capsys: Any) -> None:
    short = TRAIN.replace("--training_step 2000 --eval_step 200", "--training_step 2 --eval_step 2")
    assert published(short, *flags.split(), "--test_step", 2, "--no-shuffle_train", "--shuffle") == 0
    assert "for 2 steps" in capsys.readouterr().out


def test_questions_of_pubmed_train_on_their_answers(hub: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    items = {
        str(number): {
            "QUESTION": f"Is {number} so?",
            "CONTEXTS": [f"Item {number} was seen.", "It was so."],
            "LONG_ANSWER": "It is so.",
            "final_decision": "yes",
        }
        for number in range(40)
    }
    (hub / "pubmed").mkdir()
    (hub / "pubmed" / "ori_pqal.json").write_text(json.dumps(items))
    monkeypatch.setenv("HMT_HUB_MAP", "facebook/opt-1.3b=opt,qiaojin/PubMedQA=pubmed")
    line = TRAIN.replace("wikitext --task_config wikitext-103-raw-v1", "pubmed_qa --fuse_size 3")
    line = line.replace("--training_step 2000 --eval_step 200", "--training_step 2 --eval_step 1")
    assert published(line, "--test_step", 3) == 0
    said = capsys.readouterr().out
    assert "test: loss" in said
    targets = int(re.search(r"over ([\d,]+) targets", said)[1])  # type: ignore[index]
    assert targets == 3 * len(" yes") + 3  # and the token that ends each


def test_every_published_flag_is_there_and_described() -> None:
    there = {field.name for field in fields(PublishedOptions)}
    table = (Path(__file__).parents[2] / "docs" / "reference" / "published.md").read_text()
    for name in FLAGS.split():
        assert name in there, name
        assert f"`{name}`" in table, name


def test_segments_begin_with_the_text_and_another_alignment_is_refused_in_one_line(hub: Path, capsys: Any) -> None:
    for alignment in ("right", "center", "up"):
        assert published(TRAIN, "--segment_alignment", alignment) == 2
        complaint = capsys.readouterr().err
        assert "segment_alignment" in complaint
        assert alignment in complaint
        assert complaint.count("\n") == 1
    PublishedOptions(segment_alignment="left").check()


def test_the_other_parts_run_together(hub: Path, capsys: Any) -> None:
    """Two speeds, the autoencoder, the histogram, times and generated text; then the map alone, from the checkpoint."""
    short = TRAIN.replace("--training_step 2000 --eval_step 200", "--training_step 2 --eval_step 2")
    parts = ("--dynamic", "--inject_autoencoder", "--plot_hist", "--timing", "--generate", "Then")
    figures = hub / "figures.json"
    line = f"{short} --test_step 1 --test_length 400"
    assert published(line, *parts, "--save_ckpt", "ckpt", "--json", figures) == 0
    said = capsys.readouterr().out
    found = json.loads(figures.read_text())
    counts = found["test"]["recall_distances"]
    assert 0 < sum(counts.values()) <= 400 // 94
    record = hub / "ckpt.run"
    assert (record / "recall_distances.png").read_bytes().startswith(b"\x89PNG")
    expected = ["distance,count", *[f"{distance},{count}" for distance, count in counts.items()]]
    assert (record / "recall_distances.csv").read_text().splitlines() == expected
    written = [json.loads(line) for line in (record / "generated.jsonl").read_text().splitlines()]
    assert [one["sample"] for one in written] == [0]
    assert all(one["prompt"] == "Then" and one["read_tokens"] == 400 for one in written)
    for part in ("summary", "recall", "read", "head", "backward"):
        assert found["timing"][f"{part}_seconds"] > 0, part
    assert "backward_seconds" not in found["test"]["timing"]
    assert found["test"]["timing"]["read_seconds"] > 0
    assert "time of a batch of test samples: summary" in said
    for one in (found, found["test"]):
        assert 0 < one["bottleneck_error"] < 1
    map_only = ("--train_memory_map", "--load_from_ckpt", "ckpt", "--save_ckpt", "mapped", "--json", figures)
    assert published(line, *map_only) == 0
    assert json.loads(figures.read_text())["trainable_parameters"] == 32 * 32
    assert published(line, "--load_from_ckpt", "mapped", "--inference_only", "--plot_hist") == 0
    assert (hub / "mapped.run" / "recall_distances.csv").is_file()


def test_generated_text_reads_no_answer(hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from hmt.text.batches import IGNORED, Sample
    from hmt.training.launch import make_accelerator
    from hmt.training.options import TrainOptions
    from hmt.training.testing import evaluate_test_split

    model = make_model()
    ids = random_ids(1, 40)[0]
    labels = ids.clone()
    labels[:30] = IGNORED
    read = []
    generate = model.generate
    monkeypatch.setattr(model, "generate", lambda given, **more: read.append(given) or generate(given, **more))
    options = TrainOptions(generate="", test_step=1, save_ckpt=hub / "ckpt")
    accelerator = make_accelerator(options, model.device)
    evaluate_test_split(accelerator, model, [Sample(ids, labels), Sample(ids, ids)], options, byte_tokenizer())
    assert torch.equal(read[0][0], ids[:30])
    assert torch.equal(read[1][0], ids)


def test_booleans_can_be_switched_off(hub: Path) -> None:
    chosen = parse("published", [*shlex.split(TRAIN), "--no-lr_decay", "--no-use_lora", "--no-shuffle_train"])
    assert (chosen.lr_decay, chosen.use_lora, chosen.shuffle_train) == (False, False, False)
    assert chosen.training().train_backbone
