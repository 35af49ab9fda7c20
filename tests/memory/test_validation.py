"""Damage to a memory file is a ValueError, or harmless: never another error, a crash or a hang."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from hmt import HMTForCausalLM, MemoryState
from tests.conftest import make_model, make_rolling, random_ids

Tensors = dict[str, Tensor]
DTYPES = (torch.bool, torch.int8, torch.uint8, torch.uint16, torch.int32, torch.int64, torch.float32, torch.bfloat16)
FORMS: dict[str, Callable[[], HMTForCausalLM]] = {
    "reread": make_model,
    "dynamic": lambda: make_model(num_sensory=8, dynamic_reading=True),
    "cache": make_rolling,
    "embeddings": lambda: make_rolling(num_memory_tokens=1, num_sensory=5, mem_recall_context=4),
    "mamba": lambda: make_rolling("mamba"),
}
"""Models whose files differ in the tensors they have."""

MUTATIONS = 100
"""Damaged files of each form."""


IDENTITY = json.dumps({"name": "a", "width": 32, "settings": "b", "weights": ""})
"""What a file says of the model that wrote it."""


def flip(path: Path, chance: random.Random) -> None:
    """Change a few bytes, of the header or of the tensors, or cut the file."""
    content = bytearray(path.read_bytes())
    end = chance.choice((len(content), 4096))
    for _ in range(chance.choice((1, 3, 20))):
        content[chance.randrange(min(end, len(content)))] = chance.randrange(256)
    path.write_bytes(content[: chance.randrange(len(content))] if chance.random() < 0.2 else content)


def damage(tensors: Tensors, metadata: dict[str, str], chance: random.Random) -> None:
    """Make one thing of the content wrong, of what safetensors can store."""
    name = chance.choice(sorted(tensors))
    tensor = tensors[name]
    kind = chance.choice(("drop", "rename", "dtype", "shape", "values", "values", "values", "swap", "metadata"))
    if kind == "drop":
        del tensors[name]
    elif kind == "rename":
        new = ("window.rows.0", "window.keys.0", "window.rows.9.0.keys.", "bank", "extras.a", "window.keys.x", "asked")
        tensors[chance.choice(new)] = tensors.pop(name)
    elif kind == "dtype":
        tensors[name] = tensor.to(chance.choice(DTYPES))
    elif kind == "shape":
        other = (tensor[None], tensor[:0], tensor[..., :-1] if tensor.dim() else tensor, tensor.flatten())
        tensors[name] = torch.cat([tensor, tensor]) if chance.random() < 0.2 and tensor.dim() else chance.choice(other)
    elif kind == "values":
        value = chance.choice((-1, -(1 << 40), (1 << 62), 299, 300, 5, 0, float("nan"), float("inf"), -1e30))
        if tensor.dtype.is_floating_point:
            tensors[name] = torch.full_like(tensor, float(value))
        elif tensor.dtype != torch.bool and value == value and abs(value) <= torch.iinfo(tensor.dtype).max:
            tensors[name] = torch.full(tensor.shape, int(value)).to(tensor.dtype)
        else:
            tensors[name] = torch.rand(tensor.shape).gt(0.5).to(tensor.dtype)
    elif kind == "swap":
        other = chance.choice(sorted(tensors))
        tensors[name], tensors[other] = tensors[other], tensors[name]
    else:
        identity = json.loads(IDENTITY)
        identity[chance.choice(sorted(identity))] = chance.choice((None, 7, -1, "", [], {"a": 1}, True))
        texts = ("[" * 5000 + "]" * 5000, "[" * 200_000, "", "null", "{}", '{"name": "\\ud800"}', json.dumps(identity))
        metadata["model"] = chance.choice(texts)


@pytest.mark.parametrize("form", FORMS)
@torch.no_grad()
def test_a_damaged_file_is_refused_or_a_usable_state(form: str, tmp_path: Path) -> None:
    model, chance, refused = FORMS[form](), random.Random(form), 0
    whole, path = tmp_path / "whole.memory", tmp_path / "damaged.memory"
    model.remember(random_ids(2, 61)).save(whole, exact=True)
    with safe_open(whole, framework="pt") as file:
        content, metadata = {name: file.get_tensor(name) for name in file.keys()}, file.metadata()
    ids = random_ids(2, 9, seed=1)
    for number in range(MUTATIONS):
        if number % 4:
            tensors, words = dict(content), dict(metadata)
            for _ in range(chance.choice((1, 1, 2))):
                damage(tensors, words, chance)
            save_file({name: tensor.contiguous().clone() for name, tensor in tensors.items()}, path, metadata=words)
        else:
            path.write_bytes(whole.read_bytes())
            flip(path, chance)
        try:
            state = MemoryState.load(path)
            model.generate(ids, memory=state, max_new_tokens=2)
        except ValueError:
            refused += 1
        except FloatingPointError:  # generation says that the logits are not finite
            pass
    assert refused > MUTATIONS / 2


@pytest.mark.parametrize("exact", [True, False])
@torch.no_grad()
def test_a_file_of_another_geometry_is_refused_though_its_identity_fits(exact: bool, tmp_path: Path) -> None:
    model = make_rolling()
    identity = model.remember(random_ids(1, 61)).model
    others = [make_rolling(num_sensory=7), make_rolling(num_memory_tokens=1, num_sensory=7)]
    for other in others + [make_rolling("mamba"), make_rolling("gpt_neox")][: 2 * exact]:
        replace(other.remember(random_ids(1, 61)), model=identity).save(tmp_path / "forged", exact=exact)
        with pytest.raises(ValueError, match="memory"):
            model(random_ids(1, 5), memory=MemoryState.load(tmp_path / "forged"))
