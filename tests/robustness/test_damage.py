"""Damaged or hostile files of a checkpoint, a model or a run end in one line that names them, with status 2."""

from __future__ import annotations

import io
import json
import pickle
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import byte_tokenizer, make_model

DEEP = "[" * 20_000
GENERATE = ("generate", "--prompt", "hello", "--max_new_tokens", 1, "--load_from_ckpt")

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
    "a million layers": {"backbone_config": {"num_hidden_layers": 10**6}},
    "vast heads": {"backbone_config": {"num_key_value_heads": 10**6}},
    "vast recall": {"mem_recall_hidden_dim": 10**9},
    "late": {"backbone_config": {"output_hidden_states": "x"}},
}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole checkpoint with a tokenizer."""
    folder = tmp_path_factory.mktemp("whole") / "ckpt"
    model = make_model()
    model.add_lora(rank=2)
    model.save_pretrained(folder)
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
    status, _, complaint = run_cli(*GENERATE, folder)
    assert (status, complaint.count("\n")) == (2, 1), complaint


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "generation_config.json"])
@pytest.mark.parametrize("content", ["[]", "null", DEEP])
def test_a_damaged_file_beside_it(name: str, content: str, checkpoint: Path, tmp_path: Path, run_cli: Any) -> None:
    folder = tmp_path / "ckpt"
    shutil.copytree(checkpoint, folder)
    (folder / name).write_text(content)
    status, _, complaint = run_cli(*GENERATE, folder)
    assert (status, complaint.count("\n")) == (2, 1), complaint


@pytest.mark.parametrize(
    ("name", "path", "value"),
    [
        ("tokenizer.json", ("model", "type"), {}),
        ("tokenizer.json", ("post_processor",), 0),
        ("tokenizer_config.json", ("tokenizer_class",), ["x"]),
        ("generation_config.json", ("eos_token_id",), "x"),
        ("generation_config.json", ("temperature",), "hot"),
        ("adapter/adapter_config.json", ("target_modules",), [1]),
        ("adapter/adapter_config.json", ("r",), "x"),
    ],
)
def test_a_value_of_a_wrong_type_beside_it(
    name: str, path: tuple[str, ...], value: Any, checkpoint: Path, tmp_path: Path, run_cli: Any
) -> None:
    folder = tmp_path / "ckpt"
    shutil.copytree(checkpoint, folder)
    values = inner = json.loads((folder / name).read_text())
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    (folder / name).write_text(json.dumps(values))
    status, _, complaint = run_cli(*GENERATE, folder)
    assert (status, complaint.count("\n")) == (2, 1), complaint


def mutated(values: Any, chance: random.Random) -> Any:
    """Settings with one value, anywhere in them, replaced by another or left out."""
    if isinstance(values, dict | list) and values and chance.random() < 0.8:
        copy = dict(values) if isinstance(values, dict) else list(values)
        key = chance.choice(list(copy)) if isinstance(copy, dict) else chance.randrange(len(copy))
        if chance.random() < 0.1:
            del copy[key]
        else:
            copy[key] = mutated(copy[key], chance)
        return copy
    return chance.choice([None, [], {}, "x", "", 0, -1, 10**30, 10**6, -0.5, True, [1], [[]], {"a": 1}, float("nan")])


def test_settings_with_any_one_value_changed(checkpoint: Path, tmp_path: Path, run_cli: Any) -> None:
    chance, folder = random.Random(0), tmp_path / "ckpt"
    beside = ("generation_config.json", "tokenizer.json", "tokenizer_config.json", "manifest.json")
    shutil.copytree(checkpoint, folder)
    for _ in range(40):
        name = chance.choice(("config.json",) * 4 + (*beside, "adapter/adapter_config.json"))
        change = mutated(json.loads((checkpoint / name).read_text()), chance)
        (folder / name).write_text(json.dumps(change))
        status, _, complaint = run_cli(
            "generate", "--prompt", "hello", "--max_new_tokens", 1, "--load_from_ckpt", folder
        )
        assert status in (0, 2, 3), (name, change, complaint)  # 3: values that are not finite
        assert status == 0 or complaint.count("\n") == 1, (name, change, complaint)
        shutil.copy(checkpoint / name, folder / name)


def test_weights_of_the_published_program_that_are_damaged(backbone_dir: Path, tmp_path: Path, run_cli: Any) -> None:
    """Tables of something else, parts of a file, and a pickle of a class."""
    state, out, buffer = tmp_path / "weights.pth", tmp_path / "out", io.BytesIO()
    torch.save({"mem": torch.zeros(1, 32)}, buffer)
    whole = buffer.getvalue()
    flipped = bytearray(whole)
    flipped[len(whole) // 3 :: 7] = bytes(len(flipped[len(whole) // 3 :: 7]))
    pickles = [pickle.dumps(value) for value in ([1], {"mem": 1}, Path("x"), {"state_dict": {"mem": [torch.zeros]}})]
    for content in (b"", b"\x80", DEEP.encode(), whole[:-30], whole[: len(whole) // 2], bytes(flipped), *pickles):
        state.write_bytes(content)
        status, _, complaint = run_cli(
            "convert", "--state", state, "--backbone", backbone_dir, "--out", tmp_path / "out"
        )
        assert (status, complaint.count("\n")) == (2, 1), (content[:40], complaint)
        assert str(state) in complaint
        assert not out.exists()


def test_a_backbone_that_asks_for_more_than_its_weights(backbone_dir: Path, tmp_path: Path, run_cli: Any) -> None:
    folder = tmp_path / "base"
    shutil.copytree(backbone_dir, folder)
    torch.save({"memory_cell.model.model.norm.weight": torch.zeros(32)}, tmp_path / "weights.pth")
    for change in ({"num_hidden_layers": 10**6}, {"num_key_value_heads": 10**6}, {"vocab_size": 10**12}):
        (folder / "config.json").write_text(damaged(backbone_dir / "config.json", change))
        for command in (
            ("generate", "--prompt", "x", "--model_name", folder),
            ("convert", "--state", tmp_path / "weights.pth", "--backbone", folder, "--out", tmp_path / "out"),
        ):
            status, _, complaint = run_cli(*command)
            assert (status, complaint.count("\n")) == (2, 1), (change, complaint)


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
