"""The memory file: what it keeps, and what it refuses."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from hmt import HMTForCausalLM, MemoryState
from hmt.config import MemoryConfig
from hmt.memory.bank import Bank
from hmt.memory.state import ModelIdentity
from tests.conftest import make_model, random_ids


def test_a_file_holds_every_tensor_and_the_identity(model: HMTForCausalLM, tmp_path: Path) -> None:
    state = model.remember(random_ids(2, 75))
    state.save(tmp_path / "book.memory")
    restored = MemoryState.load(tmp_path / "book.memory")
    assert restored.model == state.model
    for name, tensor in state._tensors().items():
        assert torch.equal(restored._tensors()[name], tensor), name
    assert [file.name for file in tmp_path.iterdir()] == ["book.memory"]


def test_a_clone_shares_nothing(model: HMTForCausalLM) -> None:
    state = model.remember(random_ids(1, 40))
    clone = state.clone()
    clone.bank.embeddings.zero_()
    assert state.bank.embeddings.abs().max() > 0


def test_size_does_not_grow_once_the_bank_is_full(model: HMTForCausalLM) -> None:
    sizes = {model.remember(random_ids(1, 14 * n)).nbytes for n in (5, 50)}
    assert len(sizes) == 1


@pytest.mark.parametrize("fields", [{"sensory": "reread"}, {"segment_length": 256}], ids=str)
def test_a_full_bank_of_a_common_model_takes_less_than_a_megabyte(fields: dict, tmp_path: Path) -> None:
    config = MemoryConfig(**fields)
    width = 576 if config.prompt_tokens else 0
    bank = Bank.empty(1, width, config.fresh_tokens, torch.device("cpu"), torch.float32)
    for number in range(300):
        tokens = torch.randint(49152, (1, config.fresh_tokens))
        bank = bank.append(torch.randn(1, 1, width), torch.tensor([True]), torch.tensor([number]), tokens)
    state = MemoryState.initial(
        1, bank_width=width, longest_segment=config.longest_segment, tail_tokens=config.tail_tokens,
        model=ModelIdentity("m", 576, ""), device=torch.device("cpu"), dtype=torch.float32,
    )  # fmt: skip
    replace(state, bank=bank).save(tmp_path / "memory")
    assert (tmp_path / "memory").stat().st_size < 1_000_000


def test_the_text_form_says_what_was_read(model: HMTForCausalLM) -> None:
    text = repr(model.remember(random_ids(1, 40)))
    assert "40" in text
    assert "LlamaForCausalLM" in text


@pytest.mark.parametrize(
    "other",
    [{"seed": 1}, {"mode": "rmt"}, {"segment_length": 30}, {"family": "opt_projected"}],
    ids=str,
)
def test_a_memory_of_another_model_is_refused_with_both_named(model: HMTForCausalLM, other: dict) -> None:
    state = model.remember(random_ids(1, 40))
    reader = make_model(**other)
    with pytest.raises(ValueError, match=r"LlamaForCausalLM \(width 32.*ForCausalLM"):
        reader(random_ids(1, 5), memory=state)


def test_the_same_model_with_a_larger_bank_may_go_on(model: HMTForCausalLM) -> None:
    state = model.remember(random_ids(1, 140))
    larger = model.variant(mem_recall_context=9)
    assert larger.remember(random_ids(1, 140), state).bank.valid.sum() == 9


def test_a_memory_of_another_batch_is_refused(model: HMTForCausalLM) -> None:
    state = model.remember(random_ids(2, 20))
    with pytest.raises(ValueError, match=r"2 .*3"):
        model(random_ids(3, 5), memory=state)


def test_files_that_are_no_memory_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="none"):
        MemoryState.load(tmp_path / "none")
    (tmp_path / "text").write_text("hello")
    with pytest.raises(ValueError, match="text"):
        MemoryState.load(tmp_path / "text")
    save_file({"a": torch.zeros(1)}, tmp_path / "weights.safetensors")
    with pytest.raises(ValueError, match=r"weights.*hmt\.memory"):
        MemoryState.load(tmp_path / "weights.safetensors")
    save_file({"a": torch.zeros(1)}, tmp_path / "newer", metadata={"format": "hmt.memory", "version": "99"})
    with pytest.raises(ValueError, match="99"):
        MemoryState.load(tmp_path / "newer")


def test_a_failed_save_leaves_the_file_that_was_there(model: HMTForCausalLM, tmp_path: Path) -> None:
    path = tmp_path / "book.memory"
    model.remember(random_ids(1, 30)).save(path)
    before = path.read_bytes()
    (tmp_path / "full").mkdir()
    with pytest.raises(OSError, match=r"book\.memory|full"):
        model.remember(random_ids(1, 60)).save(tmp_path / "full")
    assert path.read_bytes() == before
    assert sorted(file.name for file in tmp_path.iterdir()) == ["book.memory", "full"]
