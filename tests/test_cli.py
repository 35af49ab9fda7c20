"""The command line: help at once, flags over files over defaults, mistakes in one line."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hmt.cli.command import VERBS, parse
from hmt.options import parse_counts
from tests.conftest import byte_tokenizer, make_backbone, make_model


def test_help_needs_neither_torch_nor_transformers() -> None:
    code = (
        "import sys, hmt_cli\n"
        "from hmt.cli.command import VERBS, run\n"
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
    assert "--mem_recall_hidden_dim INT" in done.stdout
    assert "Width H of the two recall projections." in done.stdout


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
    "unknown verb": ("walk", "there is no verb 'walk'; the verbs are demo, train"),
    "unknown flag": ("evaluate --segment_lenght 3", "Unrecognized options: --segment_lenght"),
    "no number": ("evaluate --segment_length x", "invalid literal for int"),
    "unknown task": ("evaluate --task_name {root}/none", "no task directory at"),
    "unknown hub task": ("evaluate --task_name nobody/nothing", "nobody/nothing"),
    "unknown model": ("evaluate --model_name {root}/none --task_name {task}", "no model directory at"),
    "unknown hub model": ("evaluate --model_name nobody/nothing --task_name {task}", "no model 'nobody/nothing'"),
    "missing column": ("evaluate --task_name {root}/columns", "has no text column 'text'; it has body"),
    "not UTF-8": ("evaluate --task_name {root}/latin", "is not UTF-8 text: byte 3"),
    "window too small": ("evaluate --segment_length 5", "segment_length must be at least"),
    "published window too small": (
        "evaluate --config published --segment_length 20",
        "segment_length must exceed 2 * num_memory_tokens",
    ),
    "window too large": (
        "evaluate --model_name {backbone} --task_name {task} --segment_length 4000",
        "segment_length 4000 exceeds the 512 positions",
    ),
    "vocabulary": (
        "evaluate --model_name {root}/small --task_name {task} --lengths 512",
        "the vocabulary does not fit: the tokenizer gives token",
    ),
    "no tokenizer": ("evaluate --model_name {root}/untokenized --task_name {task}", "no tokenizer at"),
    "no checkpoint": ("evaluate --load_from_ckpt {root}/none --task_name {task}", "no checkpoint directory at"),
    "checkpoint of another kind": (
        "evaluate --load_from_ckpt {backbone} --task_name {task}",
        "holds a llama model without a memory",
    ),
    "damaged checkpoint": ("evaluate --load_from_ckpt {root}/damaged --task_name {task}", "cannot load"),
    "too long": ("evaluate --model_name {backbone} --task_name {task} --lengths 9k", "no document has 9216 tokens"),
    "unknown row": ("evaluate --modes hmt,hmm", "modes must be of full, recompute, sliding"),
    "no length": ("evaluate --lengths 1x", "'1x' is no number of tokens"),
    "no device": (
        "evaluate --model_name {backbone} --task_name {task} --device cuda:9",
        "device 'cuda:9' cannot be used",
    ),
    "no policy": (
        "evaluate --model_name {backbone} --task_name {task} --memory_policy x",
        "memory_policy must be one of fifo",
    ),
    "no prompt": ("generate", "one of --prompt and --prompt_file"),
    "no prompt file": ("generate --prompt_file {root}/none", "No such file"),
    "broken yaml": ("train --config {root}/broken.yaml", "is not YAML"),
    "unknown setting": ("train --config {root}/unknown.yaml", "sets block_size, which is no flag"),
    "no yaml": ("train --config {root}/none.yaml", "No such file"),
    "output taken": (
        "train --model_name {backbone} --task_name {task} --save_ckpt {backbone}",
        "holds other files than a checkpoint",
    ),
    "output here": ("train --model_name {backbone} --task_name {task} --save_ckpt .", "which would be lost"),
    "output in a file": (
        "train --model_name {backbone} --task_name {task} --save_ckpt {task}/train.txt/ckpt",
        "is a file, not a directory",
    ),
    "figures taken": ("evaluate --model_name {backbone} --task_name {task} --json {root}", "is a directory, not"),
    "memory taken": ("remember {root}/a --model_name {backbone} --out {root}", "is a directory, not a file"),
    "yaml of words": ("train --config {root}/words.yaml", "invalid literal for int"),
    "yaml of lists": ("evaluate --config {root}/lists.yaml", "modes must be a single value"),
    "yaml of no choice": ("evaluate --config {root}/choice.yaml", "foo"),
    "nothing to report": ("report", "name the directory of a run, or files written with --json"),
    "no run to report": ("report {root}/none", "no run directory or file at"),
    "nothing in the run": ("report {root}/latin", "there is nothing to show in"),
    "no figures": ("report {backbone}/config.json", "holds nothing to show"),
    "figures broken": ("report {root}/broken.yaml", "holds nothing to show"),
    "no row": ("evaluate --modes ,", "modes must name at least one of"),
    "no real device": (
        "evaluate --model_name {backbone} --task_name {task} --device meta",
        "device 'meta' cannot be used",
    ),
    "damaged backbone": ("evaluate --model_name {root}/broken --task_name {task}", "cannot load model"),
    "numbers for text": ("evaluate --task_name {root}/numbers --model_name {backbone}", "holds int, not text"),
    "half floats": ("train --dtype float16 --use_lora", "float16 weights cannot be trained"),
    "both stages": ("train --hmt_stage_1 --hmt_stage_2", "exclude each other"),
    "nothing to train": (
        "train --model_name {backbone} --task_name {task} --mode backbone --segment_length 64",
        "nothing to train",
    ),
}  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line_and_status_2(mistake: str, places: dict[str, Path], run_cli: Any) -> None:
    command, message = MISTAKES[mistake]
    before = sorted(places["root"].rglob("*"))
    status, said, complaint = run_cli(*command.format(**places).split())
    assert status == 2
    assert message in complaint
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
