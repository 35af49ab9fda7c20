"""Code that comes with a model or tokenizer never runs unless the user says so, whatever standard input holds."""

from __future__ import annotations

import ast
import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from hmt import HMTForCausalLM
from tests.conftest import FAMILIES, byte_tokenizer, make_backbone, make_model

SOURCE = Path(__file__).parents[2] / "src"
LOADERS = ("from_pretrained", "from_config")

CODE = """
from pathlib import Path
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
Path({marker!r}).write_text("executed")
class OwnConfig(LlamaConfig):
    model_type = "own_llama"
class OwnModel(LlamaForCausalLM):
    config_class = OwnConfig
class OwnTokenizer(PreTrainedTokenizerFast):
    pass
"""
MODEL_MAP = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnModel"}
TOKENIZER_MAP = {"AutoTokenizer": ["own.OwnTokenizer", "own.OwnTokenizer"]}

VERBS = {
    "remember": ("remember", "-", "--out", "out.memory"),
    "generate": ("generate", "--prompt", "hello", "--max_new_tokens", 2),
    "chat": ("chat",),
    "evaluate": ("evaluate", "--task_name", "TASK"),
    "train": ("train", "--task_name", "TASK", "--save_ckpt", "out"),
    "serve": ("serve", "--no-require_key", "--port", 0),
    "harness": ("harness", "--tasks", "boxes", "--include_path", "TASKS"),
}


def edit(file: Path, **values: Any) -> None:
    file.write_text(json.dumps((json.loads(file.read_text()) if file.exists() else {}) | values))


@pytest.fixture
def hostile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Models, checkpoints and a tokenizer with code of their own, and `y` on standard input."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.syspath_prepend(str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n" * 20))
    code = CODE.format(marker=str(tmp_path / "executed"))

    model = tmp_path / "model"
    make_backbone().save_pretrained(model)
    byte_tokenizer().save_pretrained(model)
    tokenizer = tmp_path / "tokenizer"
    shutil.copytree(model, tokenizer)
    edit(model / "config.json", model_type="own_llama", auto_map=MODEL_MAP)
    edit(tokenizer / "tokenizer_config.json", auto_map=TOKENIZER_MAP, tokenizer_class="OwnTokenizer")
    for folder in (model, tokenizer):
        (folder / "own.py").write_text(code)

    whole = tmp_path / "whole"
    make_model().save_pretrained(whole)
    byte_tokenizer().save_pretrained(whole)
    (whole / "own.py").write_text(code)
    backbone = {"model_type": "vit", "auto_map": MODEL_MAP, "_name_or_path": str(whole)}
    edit(whole / "config.json", backbone_config=backbone, auto_map=MODEL_MAP)

    memory_only = tmp_path / "memory_only"
    source = tmp_path / "source"
    make_backbone().save_pretrained(source)
    HMTForCausalLM.from_backbone(source, segment_length=80).save_pretrained(memory_only, save_backbone=False)
    shutil.rmtree(source)
    edit(memory_only / "config.json", backbone_source=str(model))
    return tmp_path


@pytest.mark.parametrize("verb", VERBS)
def test_no_verb_runs_the_code_of_a_model(verb: str, hostile: Path, task_dir: Path, run_cli: Any) -> None:
    tasks = hostile / "tasks"
    tasks.mkdir()
    (tasks / "boxes.jsonl").write_text(json.dumps({"text": "a box"}) + "\n")
    (tasks / "boxes.yaml").write_text(
        "task: boxes\noutput_type: loglikelihood_rolling\ndoc_to_text: ''\ndoc_to_target: '{{text}}'\n"
        f"dataset_path: json\ndataset_kwargs: {{data_files: {{test: {tasks}/boxes.jsonl}}}}\ntest_split: test\n"
        "metric_list: [{metric: word_perplexity}]\n"
    )
    places = {"TASK": task_dir, "TASKS": tasks}
    arguments = [places.get(str(argument), argument) for argument in VERBS[verb]]
    for flag, name in (
        ("--model_name", "model"),
        ("--model_name", "tokenizer"),
        ("--load_from_ckpt", "whole"),
        ("--load_from_ckpt", "memory_only"),
    ):
        status, _, complaint = run_cli(*arguments, flag, hostile / name)
        assert not (hostile / "executed").exists(), name
        lines = [line for line in complaint.splitlines() if line.startswith(f"hmt {verb}: ")]  # beside progress bars
        assert (status, len(lines)) == (2, 1), (name, complaint)
        assert "trust_remote_code" in lines[0]
        assert "Traceback" not in complaint


def test_convert_does_not_run_the_code_of_a_backbone(hostile: Path, run_cli: Any) -> None:
    torch.save({"mem": torch.zeros(1, 32)}, "weights.pth")
    status, _, complaint = run_cli("convert", "--state", "weights.pth", "--backbone", "model", "--out", "out")
    assert not (hostile / "executed").exists()
    assert (status, complaint.count("\n")) == (2, 1)
    assert "trust_remote_code" in complaint


def test_a_process_with_y_on_its_standard_input_runs_no_code(hostile: Path) -> None:
    command = [sys.executable, "-m", "hmt", "remember", "-", "--model_name", "model", "--out", "out.memory"]
    run = subprocess.run(
        command, input="y\nthe text\n", capture_output=True, text=True, env=os.environ | {"HF_HOME": str(hostile)}
    )
    assert not (hostile / "executed").exists()
    assert (run.returncode, run.stderr.count("\n")) == (2, 1), run.stderr


def test_a_user_who_trusts_it_gets_model_and_tokenizer_with_a_checkpoint_too(hostile: Path, run_cli: Any) -> None:
    edit(hostile / "model" / "tokenizer_config.json", auto_map=TOKENIZER_MAP, tokenizer_class="OwnTokenizer")
    backbone = FAMILIES["llama"] | {"model_type": "own_llama", "auto_map": MODEL_MAP}
    edit(hostile / "memory_only" / "config.json", backbone_config=backbone)
    for flag, name in (("--model_name", "model"), ("--load_from_ckpt", "memory_only")):
        command = ("generate", "--prompt", "hello", "--max_new_tokens", 2, flag, hostile / name)
        status, _, complaint = run_cli(*command, "--trust_remote_code")
        assert status == 0, complaint
        assert (hostile / "executed").exists()
    model = HMTForCausalLM.from_pretrained(hostile / "memory_only", trust_remote_code=True)
    assert type(model.backbone).__name__ == "OwnModel"


def test_every_call_of_an_auto_class_says_whether_code_is_trusted() -> None:
    calls = [
        (path, node)
        for path in sorted(SOURCE.rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr in LOADERS
        and isinstance(node.func.value, ast.Name)
        and node.func.value.id.startswith("Auto")
    ]
    assert len(calls) > 5
    silent = [
        f"{path}:{call.lineno}" for path, call in calls if not any(k.arg == "trust_remote_code" for k in call.keywords)
    ]
    assert not silent
