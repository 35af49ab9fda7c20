"""The command line: help at once, flags over files over defaults, mistakes in one line."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hmt.cli.parser import parse
from hmt.cli.verbs import VERBS
from hmt.options import parse_counts
from hmt.training.options import TrainOptions
from tests.conftest import byte_tokenizer, make_backbone, make_model


def test_help_needs_neither_torch_nor_transformers() -> None:
    code = (
        "import sys, hmt_cli\n"
        "from hmt.cli.command import run\nfrom hmt.cli.verbs import VERBS\n"
        "for verb in [[], *([verb] for verb in VERBS)]:\n"
        "    try: run([*verb, '--help'])\n"
        "    except SystemExit: pass\n"
        "heavy = {'torch', 'transformers', 'datasets', 'peft', 'accelerate'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for verb in VERBS:
        assert verb in done.stdout


def test_the_library_imports_nothing_that_transformers_does_not() -> None:
    code = (
        "import sys\n"
        "from transformers import AutoConfig, AutoModelForCausalLM, GenerationMixin, PreTrainedModel\n"
        "before = {name.split('.')[0] for name in sys.modules}\n"
        "import hmt\n"
        "more = {name.split('.')[0] for name in sys.modules} - before - {'hmt'}\n"
        "assert not more, more\n"
        "late = {'peft', 'datasets', 'altair', 'tyro', 'deepspeed', 'wandb', 'hmt.cli.command'} & set(sys.modules)\n"
        "assert not late, late\n"
        "assert hmt.HMTForCausalLM and hmt.MemoryState\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_help_shows_the_most_used_flags_first_and_all_under_headings(run_cli: Any) -> None:
    status, short, _ = run_cli("train", "--help")
    assert status == 0
    assert sum(f"--{name}" in short for name in TrainOptions.MOST_USED) == len(TrainOptions.MOST_USED) == 10
    assert "--mem_recall_hidden_dim" not in short
    every = run_cli("train", "--help", "all")[1]
    headings = ("model options", "memory options", "data options", "optimization options", "output options")
    assert sorted(headings, key=every.index) == list(headings)
    assert all(f"--{field.name}" in every for field in fields(TrainOptions))
    for verb in VERBS:
        assert "--json" in run_cli(verb, "--help", "all")[1] or verb == "convert"


def test_a_shell_completes_verbs_and_flags(tmp_path: Path, run_cli: Any) -> None:
    assert run_cli("--tyro-write-completion", "bash", tmp_path / "hmt")[0] == 0
    script = (tmp_path / "hmt").read_text()
    assert "remember" in script
    assert "--mem_recall_hidden_dim" in script


@pytest.mark.parametrize("spelling", ["--num_sensory", "--num-sensory"])
def test_dashes_and_underscores_are_the_same(spelling: str) -> None:
    assert parse("evaluate", [spelling, "7"]).num_sensory == 7
    assert parse("evaluate", [f"{spelling}=7"]).num_sensory == 7


def test_every_boolean_can_be_switched_off() -> None:
    assert parse("train", ["--no-lr_decay"]).lr_decay is False
    assert parse("train", ["--lr_decay", "--use_lora"]).use_lora is True


def test_flags_go_over_the_file_and_the_file_over_the_checkpoint(tmp_path: Path) -> None:
    make_model().save_pretrained(tmp_path / "ckpt")
    (tmp_path / "run.yaml").write_text("num_sensory: 3\nsave-ckpt: somewhere\ntraining_step: 7\n")
    flags = ["--load_from_ckpt", str(tmp_path / "ckpt"), "--config", str(tmp_path / "run.yaml"), "--training_step", "9"]
    options = parse("train", flags)
    assert (options.segment_length, options.num_sensory, options.training_step) == (20, 3, 9)
    assert options.save_ckpt == Path("somewhere")
    assert options.load_from_ckpt == str(tmp_path / "ckpt")


def test_a_file_says_no_and_one_thousandth_as_people_write_them(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text(
        "lr_decay: no\nmemory_learning_rate: 1e-3\nuse_lora: true\nmax_documents: null\n"
    )
    options = parse("train", ["--config", str(tmp_path / "run.yaml"), "--no-use_lora"])
    assert (options.lr_decay, options.memory_learning_rate, options.use_lora) == (False, 1e-3, False)


def test_a_checkpoint_is_found_under_the_home_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_model().save_pretrained(tmp_path / "ckpt")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert parse("evaluate", ["--load_from_ckpt=~/ckpt"]).segment_length == 20


def test_token_counts_are_written_short() -> None:
    assert parse_counts("8k, 512,1m,1k") == [512, 1024, 8192, 1024 * 1024]


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory, backbone_dir: Path, task_dir: Path) -> dict[str, Path]:
    """Directories that the mistakes below need."""
    root = tmp_path_factory.mktemp("places")
    (root / "latin").mkdir()
    (root / "latin/test.txt").write_bytes(b"caf\xe9" * 1000)
    (root / "columns").mkdir()
    (root / "columns/test.jsonl").write_text('{"body": "x"}\n')
    (root / "broken.yaml").write_text("a: [1\n")
    (root / "words.yaml").write_text("segment_length: abc\n")
    (root / "lists.yaml").write_text("modes: [hmt, rmt]\n")
    (root / "choice.yaml").write_text("dtype: foo\n")
    make_backbone().save_pretrained(root / "broken")
    byte_tokenizer().save_pretrained(root / "broken")
    (root / "broken/model.safetensors").write_bytes(b"nonsense")
    (root / "numbers").mkdir()
    pq.write_table(pa.table({"text": [1, 2]}), root / "numbers/test.parquet")
    (root / "unknown.yaml").write_text("block_size: 3\n")
    small = make_backbone()
    small.resize_token_embeddings(100)
    small.save_pretrained(root / "small")
    byte_tokenizer().save_pretrained(root / "small")
    (root / "untokenized").mkdir()
    make_backbone().save_pretrained(root / "untokenized")
    (root / "damaged").mkdir()
    make_model().save_pretrained(root / "damaged")
    (root / "damaged/model.safetensors").write_bytes(b"nonsense")
    return {"root": root, "backbone": backbone_dir, "task": task_dir}


MISTAKES = {
    "walk": "walk",
    "evaluate --segment_lenght 3": "--segment_lenght",
    "evaluate --segment_length x": "'x'",
    "evaluate --task_name {root}/none": "{root}/none",
    "evaluate --task_name nobody/nothing": "nobody/nothing",
    "evaluate --model_name {root}/none --task_name {task}": "{root}/none",
    "evaluate --model_name nobody/nothing --task_name {task}": "nobody/nothing",
    "evaluate --task_name {root}/columns": "'text'",
    "evaluate --task_name {root}/latin": "{root}/latin",
    "evaluate --task_name {root}/numbers --model_name {backbone}": "{root}/numbers",
    "evaluate --segment_length 5": "--segment_length",
    "evaluate --config published --segment_length 20": "--segment_length",
    "evaluate --model_name {backbone} --task_name {task} --segment_length 4000": "segment_length 4000",
    "evaluate --model_name {root}/small --task_name {task} --lengths 512": "vocabulary",
    "evaluate --model_name {root}/untokenized --task_name {task}": "{root}/untokenized",
    "evaluate --load_from_ckpt {root}/none --task_name {task}": "{root}/none",
    "evaluate --load_from_ckpt {backbone} --task_name {task}": "{backbone}",
    "evaluate --load_from_ckpt {root}/damaged --task_name {task}": "{root}/damaged",
    "evaluate --model_name {root}/broken --task_name {task}": "{root}/broken",
    "evaluate --model_name {backbone} --task_name {task} --lengths 9k": "9216",
    "evaluate --modes hmt,hmm": "hmm",
    "evaluate --modes ,": "modes",
    "evaluate --lengths 1x": "'1x'",
    "evaluate --model_name {backbone} --task_name {task} --device cuda:9": "cuda:9",
    "evaluate --model_name {backbone} --task_name {task} --device meta": "meta",
    "evaluate --model_name {backbone} --task_name {task} --memory_policy x": "memory_policy",
    "evaluate --model_name {backbone} --task_name {task} --json {root}": "{root}",
    "evaluate --config {root}/lists.yaml": "modes",
    "evaluate --config {root}/choice.yaml": "foo",
    "generate": "--prompt_file",
    "generate --prompt_file {root}/none": "{root}/none",
    "remember {root}/a --model_name {backbone} --out {root}": "{root}",
    "report": "directory",
    "report {root}/none": "{root}/none",
    "report {root}/latin": "{root}/latin",
    "report {backbone}/config.json": "{backbone}/config.json",
    "report {root}/broken.yaml": "{root}/broken.yaml",
    "train --config {root}/broken.yaml": "{root}/broken.yaml",
    "train --config {root}/unknown.yaml": "block_size",
    "train --config {root}/none.yaml": "{root}/none.yaml",
    "train --config {root}/words.yaml": "abc",
    "train --config": "--config",
    "train --model_name {backbone} --task_name {task} --save_ckpt {backbone}": "{backbone}",
    "train --model_name {backbone} --task_name {task} --save_ckpt .": ".",
    "train --model_name {backbone} --task_name {task} --save_ckpt {task}/train.txt/ckpt": "{task}/train.txt",
    "train --dtype float16 --use_lora": "--dtype",
    "train --hmt_stage_1 --hmt_stage_2": "hmt_stage_2",
    "train --hmt_stage_1 --sensory cache": "--num_memory_tokens",
    "train --train_memory_map": "--dynamic_reading",
    "train --train_memory_map --dynamic_reading --use_lora": "use_lora",
    "train --report_to carrier": "carrier",
    "train --generate x": "--test_step",
    "train --model_name {backbone} --task_name {task} --mode backbone --segment_length 64": "--use_lora",
    "train --match_budget {root}/damaged --mode hmt": "--match_budget",
    "train --match_budget {root}/damaged --mode rmt": "{root}/damaged",
}  # fmt: skip
"""Command -> the flag, value or place that its complaint names."""


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line_and_status_2(mistake: str, places: dict[str, Path], run_cli: Any) -> None:
    command, named = mistake.format(**places), MISTAKES[mistake].format(**places)
    before = sorted(places["root"].rglob("*"))
    status, said, complaint = run_cli(*command.split())
    assert status == 2
    assert named in complaint
    assert complaint.count("\n") == 1
    assert complaint.startswith(f"hmt {command.split()[0]}: ")
    assert said == ""
    assert sorted(places["root"].rglob("*")) == before


def test_generate_streams_and_writes_json(backbone_dir: Path, tmp_path: Path, run_cli: Any) -> None:
    status, said, _ = run_cli(
        "generate", "--model_name", backbone_dir, "--segment_length", 20, "--num_sensory", 4,
        "--prompt", "hello there, this is longer than a segment", "--max_new_tokens", 8, "--json", tmp_path / "g.json",
    )  # fmt: skip
    assert status == 0
    figures = json.loads((tmp_path / "g.json").read_text())
    assert figures["prompt_tokens"] == 42
    assert figures["new_tokens"] == 8
    assert figures["text"].strip() in said


def test_a_preset_goes_by_name_and_fits_every_verb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for verb in ("evaluate", "train", "generate", "remember", "chat", "serve", "profile"):
        needed = {"generate": ["--prompt", "a"], "remember": ["book.txt", "--out", "m"]}.get(verb, [])
        published = parse(verb, [*needed, "--config", "published", "--num_sensory", "16"])
        assert (published.sensory, published.memory_injection, published.num_sensory) == ("reread", "published", 16)
        assert (published.recalled_tokens, published.prompt_tokens, published.sinks) == (0, 1, 0)
    assert parse("evaluate", []).rolling
    monkeypatch.chdir(tmp_path)
    Path("published").write_text("segment_length: 100\n")  # a file of one's own of that name comes first
    assert parse("evaluate", ["--config", "published"]).segment_length == 100
