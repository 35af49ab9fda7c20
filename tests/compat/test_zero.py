"""Weights of ZeRO checkpoints, written here in the format of DeepSpeed 0.19.8, come back exactly and safely."""

from __future__ import annotations

import enum
import os
import sys
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from hmt.compat.zero import load_zero_checkpoint

GROUPS = [{"embed.weight": (5, 3), "layer.weight": (3, 2)}, {"layer.bias": (3,), "scale": ()}]
FROZEN = {"frozen.weight": (5, 1), "frozen.bias": (4,)}
SHARED = {"head.weight": "embed.weight", "frozen.twin": "frozen.weight"}
BUFFERS = {"table": torch.arange(7).half() / 8, "positions": torch.arange(4)}
TAG = "global_step3"


class TouchFile:
    """Touches a file when a careless reader unpickles it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch '{self.path}'",)


@pytest.fixture(autouse=True)
def _without_deepspeed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Importing DeepSpeed fails, installed or not."""
    monkeypatch.setitem(sys.modules, "deepspeed", None)


@contextmanager
def deepspeed_classes(*names: str) -> Iterator[list[type]]:
    """Empty classes that exist under the given full names only inside the context, long enough to pickle them."""
    with pytest.MonkeyPatch.context() as patch:
        modules = {name.rpartition(".")[0] for name in names}
        for part in sorted({".".join(m.split(".")[:depth]) for m in modules for depth in range(1, m.count(".") + 2)}):
            patch.setitem(sys.modules, part, ModuleType(part))
        classes = []
        for module, _, name in (full_name.rpartition(".") for full_name in names):
            kind = enum.IntEnum(name, ["one", "two", "three"]) if name.endswith("Enum") else type(name, (), {})
            kind.__module__ = module
            setattr(sys.modules[module], name, kind)
            classes.append(kind)
        yield classes


def save_optimizer(optimizer: dict[str, Any], path: Path) -> None:
    """Save a rank's optimizer state with the objects that DeepSpeed stores next to the weights."""
    with deepspeed_classes(
        "deepspeed.runtime.zero.config.ZeroStageEnum",
        "deepspeed.runtime.fp16.loss_scaler.LossScaler",
        "deepspeed.runtime.fp16.loss_scaler.DynamicLossScaler",
        "deepspeed.utils.tensor_fragment.fragment_address",
    ) as (stage, *scalers_and_address):
        objects = [kind() for kind in scalers_and_address]
        for item in objects:
            item.cur_scale = 1.0
        state = optimizer | {"zero_stage": stage(3 if "fp32_flat_groups" in optimizer else 2)}
        state |= {"loss_scaler": objects[:2], "param_slice_mappings": objects[2:]}
        torch.save({"optimizer_state_dict": state, "ds_version": "0.19.8"}, path)


def known_weights() -> dict[str, Tensor]:
    """The whole weights; frozen ones are exact in bfloat16, the dtype they are stored in."""
    generator = torch.Generator().manual_seed(0)
    trained = {name: torch.randn(shape, generator=generator) for group in GROUPS for name, shape in group.items()}
    frozen = {name: torch.randn(shape, generator=generator).bfloat16().float() for name, shape in FROZEN.items()}
    weights = trained | frozen | {"table": BUFFERS["table"].float(), "positions": BUFFERS["positions"]}
    return weights | {alias: weights[name] for alias, name in SHARED.items()}


def pieces_of(flat: Tensor, num_ranks: int) -> list[Tensor]:
    """Cut into one piece per rank; the last is filled up with numbers that are no weights."""
    length = -(-flat.numel() // num_ranks)
    return list(torch.cat([flat, flat.new_full((length * num_ranks - flat.numel(),), 99.0)]).split(length))


def write_stage12(folder: Path, stage: int, num_ranks: int, align_to: int | None) -> None:
    weights = known_weights()
    ranks: list[list[Tensor]] = [[] for _ in range(num_ranks)]
    gaps = []
    for group in GROUPS:
        line = torch.empty(0)
        gaps.append([-weights[name].numel() % (align_to or 1) for name in group])
        gaps[-1][-1] = 0
        for name, gap in zip(group, gaps[-1], strict=True):
            line = torch.cat([line, weights[name].flatten(), torch.full((gap,), 99.0)])
        padding = -len(line) % (2 * num_ranks)
        pieces = list(torch.cat([line, torch.zeros(padding)]).split((len(line) + padding) // num_ranks))
        pieces[-1] = pieces[-1][: max(0, len(pieces[-1]) - padding)]
        for rank, piece in zip(ranks, pieces, strict=True):
            rank.append(piece.clone())
    for rank, groups in enumerate(ranks):
        optimizer = {"single_partition_of_fp32_groups": groups, "partition_count": [num_ranks] * len(GROUPS)}
        optimizer |= {} if align_to is None else {"param_alignment_paddings": gaps}
        save_optimizer(optimizer, folder / f"bf16_zero_pp_rank_{rank}_mp_rank_00_optim_states.pt")
    frozen = OrderedDict((name, weights[name].bfloat16()) for name in FROZEN)
    module = OrderedDict((name, BUFFERS[name] if name in BUFFERS else w.bfloat16()) for name, w in weights.items())
    save_model(folder / "mp_rank_00_model_states.pt", module, frozen if stage == 2 else None, SHARED)


def write_stage3(folder: Path, num_ranks: int) -> None:
    weights = known_weights()
    frozen = {name: pieces_of(weights[name].flatten().bfloat16(), num_ranks) for name in FROZEN}
    for rank in range(num_ranks):
        groups = [
            torch.cat([pieces_of(weights[name].flatten(), num_ranks)[rank] for name in group]) for group in GROUPS
        ]
        optimizer = {"fp32_flat_groups": [group.requires_grad_() for group in groups], "partition_count": num_ranks}
        save_optimizer(optimizer, folder / f"zero_pp_rank_{rank}_mp_rank_00_optim_states.pt")
        module = OrderedDict((name, BUFFERS.get(name, torch.empty(0))) for name in weights)
        fragments = OrderedDict((name, pieces[rank].clone()) for name, pieces in frozen.items())
        path = folder / f"zero_pp_rank_{rank}_mp_rank_00_model_states.pt"
        save_model(path, module, fragments, SHARED if rank == 0 else {})


def save_model(path: Path, module: dict[str, Tensor], frozen: dict[str, Tensor] | None, shared: dict[str, str]) -> None:
    """Save a model file; stage 1 stores no frozen parameters apart from the module."""
    state = {
        "module": module,
        "buffer_names": list(BUFFERS),
        "param_shapes": [OrderedDict((name, torch.Size(shape)) for name, shape in group.items()) for group in GROUPS],
        "frozen_param_shapes": frozen and OrderedDict((name, torch.Size(shape)) for name, shape in FROZEN.items()),
        "frozen_param_fragments": frozen,
        "shared_params": shared,
        "ds_config": {"train_micro_batch_size_per_gpu": 1},
    }
    torch.save(state, path)


def write_checkpoint(path: Path, stage: int, num_ranks: int = 2, align_to: int | None = None, tag: str = TAG) -> Path:
    """Write a checkpoint of the known weights with its `latest` file; gives the tag directory."""
    (path / tag).mkdir(parents=True)
    (path / "latest").write_text(tag)
    if stage == 3:
        write_stage3(path / tag, num_ranks)
    else:
        write_stage12(path / tag, stage, num_ranks, align_to)
    return path / tag


def assert_known(weights: dict[str, Tensor]) -> None:
    known = known_weights()
    assert set(weights) == set(known)
    for name, weight in weights.items():
        assert weight.dtype == known[name].dtype, name
        assert torch.equal(weight, known[name]), name
        assert not weight.requires_grad, name


@pytest.mark.parametrize("num_ranks", [1, 2, 3, 8])
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_all_weights_come_back_exactly(tmp_path: Path, stage: int, num_ranks: int) -> None:
    write_checkpoint(tmp_path, stage, num_ranks)
    weights = load_zero_checkpoint(tmp_path)
    assert_known(weights)
    assert weights["head.weight"] is weights["embed.weight"]


@pytest.mark.parametrize("align_to", [1, 4, 8])
def test_gaps_between_aligned_weights_are_skipped(tmp_path: Path, align_to: int) -> None:
    write_checkpoint(tmp_path, stage=2, align_to=align_to)
    assert_known(load_zero_checkpoint(tmp_path))


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_the_directory_the_tag_and_a_lone_tag_below_give_the_same(tmp_path: Path, stage: int) -> None:
    tag = write_checkpoint(tmp_path, stage, tag="pytorch_model")
    (tmp_path / "logs").mkdir()
    for path in (tmp_path, tag):
        assert_known(load_zero_checkpoint(path))
    (tmp_path / "latest").unlink()
    assert_known(load_zero_checkpoint(tmp_path))


def test_latest_chooses_among_tags_and_without_it_the_choice_is_refused(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, stage=2, tag="global_step1")
    for file in (tmp_path / "global_step1").iterdir():
        file.write_bytes(b"")
    write_checkpoint(tmp_path, stage=3, tag="global_step2")
    assert_known(load_zero_checkpoint(tmp_path))
    (tmp_path / "latest").unlink()
    with pytest.raises(OSError, match="global_step1, global_step2"):
        load_zero_checkpoint(tmp_path)


def test_latest_that_names_no_directory_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "latest").write_text("global_step9\n")
    with pytest.raises(OSError, match="global_step9"):
        load_zero_checkpoint(tmp_path)


def test_other_directories_are_no_zero_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"")
    (tmp_path / "below").mkdir()
    (tmp_path / "below" / "optimizer.pt").write_bytes(b"")
    with pytest.raises(OSError, match=str(tmp_path)):
        load_zero_checkpoint(tmp_path)


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_each_missing_file_is_named(tmp_path: Path, stage: int) -> None:
    tag = write_checkpoint(tmp_path, stage)
    files = sorted(tag.iterdir())
    assert len(files) == (4 if stage == 3 else 3)
    for file in files:
        content = file.read_bytes()
        file.unlink()
        with pytest.raises(OSError, match=file.name):
            load_zero_checkpoint(tmp_path)
        file.write_bytes(content)
    assert_known(load_zero_checkpoint(tmp_path))


@pytest.mark.parametrize(
    "surplus",
    [
        "zero_pp_rank_2_mp_rank_00_optim_states.pt",
        "zero_pp_rank_0_mp_rank_01_optim_states.pt",
        "zero_pp_rank_2_mp_rank_00_model_states.pt",
    ],
)
def test_files_of_a_larger_run_are_not_left_aside(tmp_path: Path, surplus: str) -> None:
    tag = write_checkpoint(tmp_path, stage=3)
    (tag / surplus).write_bytes((tag / surplus.replace("rank_2", "rank_0").replace("rank_01", "rank_00")).read_bytes())
    with pytest.raises(OSError, match=surplus):
        load_zero_checkpoint(tmp_path)


@pytest.mark.parametrize("other", [(2, 1), (2, 3), (3, 2)])
def test_a_rank_of_another_run_is_noticed(tmp_path: Path, other: tuple[int, int]) -> None:
    tag = write_checkpoint(tmp_path, stage=2)
    other_tag = write_checkpoint(tmp_path / "other", *other)
    max(tag.glob("*_optim_states.pt")).write_bytes(min(other_tag.glob("*_optim_states.pt")).read_bytes())
    with pytest.raises(OSError, match=r"rank_1_mp_rank_00_optim_states\.pt"):
        load_zero_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("stage", "rank", "lengths"),  # numbers of each group; should be 12, 2 and 9, 2 in stage 2, and 11, 3 in stage 3
    [
        (2, 0, [11, 2]),
        (2, 0, [13, 2]),
        (2, 0, [12]),
        (2, 1, [8, 2]),
        (2, 1, [9, 1]),
        (2, 1, [9, 3]),
        (2, 1, [13, 2]),
        (2, 1, [9, 2, 2]),
        (3, 0, [11, 2]),
        (3, 1, [12, 3]),
    ],
)
def test_a_rank_with_too_few_or_too_many_weights_is_noticed(
    tmp_path: Path, stage: int, rank: int, lengths: list[int]
) -> None:
    file = sorted(write_checkpoint(tmp_path, stage).glob("*_optim_states.pt"))[rank]
    key = "fp32_flat_groups" if stage == 3 else "single_partition_of_fp32_groups"
    save_optimizer({key: [torch.ones(length) for length in lengths], "partition_count": 2}, file)
    with pytest.raises(OSError, match=TAG):
        load_zero_checkpoint(tmp_path)


def test_ranks_with_pieces_of_different_lengths_are_noticed(tmp_path: Path) -> None:
    file = sorted(write_checkpoint(tmp_path, stage=2, num_ranks=3).glob("*_optim_states.pt"))[1]
    groups = [torch.ones(9), torch.ones(2)]  # one number of the first group too many, which would shift the rest
    save_optimizer({"single_partition_of_fp32_groups": groups, "partition_count": 3}, file)
    with pytest.raises(OSError, match=r"\[8, 9, 5\].*21"):
        load_zero_checkpoint(tmp_path)


@pytest.mark.parametrize(("stage", "number"), [(2, 0), (3, 0), (3, 1)])
@pytest.mark.parametrize("shape", [(7, 3), (2, 3)])
def test_a_model_file_with_other_shapes_is_noticed(
    tmp_path: Path, stage: int, number: int, shape: tuple[int, ...]
) -> None:
    file = sorted(write_checkpoint(tmp_path, stage).glob("*_model_states.pt"))[number]
    state = torch.load(file, weights_only=True)
    state["param_shapes"][0]["embed.weight"] = torch.Size(shape)
    torch.save(state, file)
    with pytest.raises(OSError, match=TAG):
        load_zero_checkpoint(tmp_path)


def test_a_rank_that_lacks_a_piece_of_a_frozen_parameter_is_noticed(tmp_path: Path) -> None:
    file = max(write_checkpoint(tmp_path, stage=3).glob("*_model_states.pt"))
    state = torch.load(file, weights_only=True)
    for fragments in ({}, {"frozen.weight": torch.ones(2), "frozen.bias": torch.ones(2)}):
        torch.save(state | {"frozen_param_fragments": fragments}, file)
        with pytest.raises(OSError, match=f"{TAG}.*frozen.weight"):
            load_zero_checkpoint(tmp_path)


@pytest.mark.parametrize("kind", ["model", "optim"])
def test_a_pickle_that_runs_a_command_is_refused_unrun(tmp_path: Path, kind: str) -> None:
    tag = write_checkpoint(tmp_path, stage=2)
    file = min(tag.glob(f"*_{kind}_states.pt"))
    marker = tmp_path / "touched"
    torch.save({"module": {}, "optimizer_state_dict": TouchFile(marker)}, file)
    with pytest.raises(OSError, match=r"\w+\.system") as caught:
        load_zero_checkpoint(tmp_path)
    assert not marker.exists()
    assert str(file) in str(caught.value)
    assert "\n" not in str(caught.value)
    torch.load(file, weights_only=False)
    assert marker.exists(), "the pickle was harmless, so this test shows nothing"


def test_other_classes_of_deepspeed_are_refused(tmp_path: Path) -> None:
    tag = write_checkpoint(tmp_path, stage=2)
    file = tag / "mp_rank_00_model_states.pt"
    with deepspeed_classes("deepspeed.runtime.engine.DeepSpeedEngine") as (engine,):
        torch.save({"module": engine()}, file)
    with pytest.raises(OSError, match=r"model_states\.pt.*DeepSpeedEngine"):
        load_zero_checkpoint(tmp_path)


@pytest.mark.parametrize("content", [b"", b"no pickle", b"\x80\x02].", "half", "no table"])
def test_damaged_files_are_named(tmp_path: Path, content: bytes | str) -> None:
    tag = write_checkpoint(tmp_path, stage=3)
    for file in sorted(tag.iterdir()):
        intact = file.read_bytes()
        file.write_bytes(intact[: len(intact) // 2] if isinstance(content, str) else content)
        if content == "no table":
            torch.save([torch.ones(2)], file)
        with pytest.raises(OSError, match=file.name) as caught:
            load_zero_checkpoint(tmp_path)
        assert "\n" not in str(caught.value)
        file.write_bytes(intact)


@pytest.mark.parametrize("key", ["module", "param_shapes", "shared_params"])
@pytest.mark.parametrize("value", [None, 1, ["embed.weight"]])
def test_a_model_file_of_another_form_is_an_error(tmp_path: Path, key: str, value: object) -> None:
    file = write_checkpoint(tmp_path, stage=2) / "mp_rank_00_model_states.pt"
    torch.save(torch.load(file, weights_only=True) | {key: value}, file)
    with pytest.raises(OSError, match=TAG):
        load_zero_checkpoint(tmp_path)
