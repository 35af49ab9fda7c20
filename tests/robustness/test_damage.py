"""Damaged or hostile files of a checkpoint, a model or a run end in one line that names them, with status 2."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import byte_tokenizer, make_model

DEEP = "[" * 20_000

CONFIGS: dict[str, Any] = {
    "list": [],
    "null": None,
    "deep": DEEP,
    "none": {"mode": None},
    "text": {"segment_length": "many"},
    "true": {"num_sensory": True},
    "negative": {"num_memory_tokens": -1},
    "backbone text": {"backbone_config": "x"},
    "backbone list": {"backbone_config": []},
    "backbone empty": {"backbone_config": {}},
    "unknown backbone": {"backbone_config": {"model_type": "no such model"}},
    "source": {"backbone_source": ["x"]},
    "no heads": {"backbone_config": {"num_attention_heads": 0}},
    "text heads": {"backbone_config": {"num_attention_heads": "four"}},
    "dtype": {"backbone_config": {"dtype": "os"}},
    "negative layers": {"backbone_config": {"num_hidden_layers": -1}},
}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole checkpoint with a tokenizer."""
    folder = tmp_path_factory.mktemp("whole") / "ckpt"
    make_model().save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


def damaged(file: Path, change: Any) -> str:
    """Text of a JSON file with a change: another text, another value, or some values replaced."""
    if isinstance(change, str):
        return change
    if not isinstance(change, dict):
        return json.dumps(change)
    values = json.loads(file.read_text())
    for name, value in change.items():
        inner = isinstance(value, dict) and value and isinstance(values.get(name), dict)
        values[name] = values[name] | value if inner else value
    return json.dumps(values)


@pytest.mark.parametrize("kind", CONFIGS)
def test_a_damaged_config(kind: str, checkpoint: Path, tmp_path: Path, run_cli: Any) -> None:
    folder = tmp_path / "ckpt"
    shutil.copytree(checkpoint, folder)
    (folder / "config.json").write_text(damaged(folder / "config.json", CONFIGS[kind]))
    status, _, complaint = run_cli("generate", "--prompt", "hello", "--max_new_tokens", 1, "--load_from_ckpt", folder)
    assert (status, complaint.count("\n")) == (2, 1), complaint


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "generation_config.json"])
@pytest.mark.parametrize("content", ["[]", "null", "{", DEEP, '{"model": 1}'])
def test_a_damaged_file_beside_it(name: str, content: str, checkpoint: Path, tmp_path: Path, run_cli: Any) -> None:
    folder = tmp_path / "ckpt"
    shutil.copytree(checkpoint, folder)
    (folder / name).write_text(content)
    status, _, complaint = run_cli("generate", "--prompt", "hello", "--max_new_tokens", 1, "--load_from_ckpt", folder)
    assert status in ((0, 2) if content == '{"model": 1}' else (2,))  # what is unknown may be left aside
    assert status == 0 or complaint.count("\n") == 1, complaint


@pytest.mark.parametrize(
    "content",
    [
        DEEP,
        "a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]\n",
        "seed: [1]",
        "seed: {a: 1}",
        "- 1",
        "x" * 300_000,
        "\0",
        "seed: 1e",
    ],
)
def test_hostile_settings(content: str, tmp_path: Path, backbone_dir: Path, run_cli: Any) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text(content)
    status, _, complaint = run_cli("generate", "--config", file, "--prompt", "x", "--model_name", backbone_dir)
    assert (status, complaint.count("\n")) == (2, 1), complaint
    assert len(complaint) < 2000
