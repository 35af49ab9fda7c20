"""Rebuild the full float32 weights of a DeepSpeed ZeRO checkpoint, without DeepSpeed.

    latest                                                  name of the tag directory
    TAG/[bf16_]zero_pp_rank_R_mp_rank_00_optim_states.pt    rank R's share of the float32 weights
    TAG/mp_rank_00_model_states.pt                          stages 1 and 2: module, shapes, shared names
    TAG/zero_pp_rank_R_mp_rank_00_model_states.pt           stage 3: the same for rank R, parameters left empty

Stages 1 and 2 lay the weights of a parameter group end to end and cut that line into one piece per rank.
Stage 3 cuts each weight into one piece per rank and lays the pieces of a rank end to end.

Source: deepspeed/utils/zero_to_fp32.py of DeepSpeed 0.19.8 (which unpickles without safeguards).
"""

from __future__ import annotations

import math
import pickle
import re
import struct
import warnings
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hmt.pretrained import first_line

OPTIM_SUFFIX = "_optim_states.pt"
MODEL_SUFFIX = "_model_states.pt"

MALFORMED = (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)
"""Errors of reading a file that holds something else than was expected."""

UNREADABLE = (*MALFORMED, EOFError, MemoryError, pickle.UnpicklingError, struct.error, zipfile.BadZipFile)


class _Ignored:
    """Stands in for the objects that DeepSpeed stores beside the weights, and keeps nothing of them."""

    def __new__(cls, *arguments: object) -> _Ignored:
        return super().__new__(cls)

    def __setstate__(self, state: object) -> None:
        pass


STAND_INS: list[Any] = [
    (_Ignored, "deepspeed.runtime.fp16.loss_scaler.DynamicLossScaler"),
    (_Ignored, "deepspeed.runtime.fp16.loss_scaler.LossScaler"),
    (_Ignored, "deepspeed.runtime.zero.config.ZeroStageEnum"),
    (_Ignored, "deepspeed.utils.tensor_fragment.fragment_address"),
]


def read_pickle(file: Path) -> dict[str, Any]:
    """Load a table that `torch.save` wrote; its tensors stay on the disk where the format allows it.

    Raises:
        OSError: If the file is damaged, is no table, or asks for anything but tensors and plain containers; names it.
    """
    try:
        with torch.serialization.safe_globals(STAND_INS), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about the protocol of a hostile pickle
            state = torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
    except UNREADABLE as error:
        asked = re.search(r"GLOBAL (\S+)", str(error))
        reason = f"asks for {asked[1]!r}, which is refused" if asked else "is damaged or no file of PyTorch"
        raise OSError(f"{file} {reason}; only tensors and plain containers are read") from error
    if not isinstance(state, dict):
        raise OSError(f"{file} holds no table, but {type(state).__name__}")
    return state


@dataclass(frozen=True)
class _Share:
    """One rank's flat pieces of the float32 weights; `gaps` follow each weight of each group (stages 1 and 2)."""

    is_stage3: bool
    num_ranks: int
    pieces: list[Tensor]
    gaps: list[list[int]] | None


def load_zero_checkpoint(path: Path) -> dict[str, Tensor]:
    """Load all weights of a ZeRO stage 1, 2 or 3 checkpoint: trained, frozen and shared ones, and buffers.

    Args:
        path: Tag directory, or the directory above it.

    Returns:
        Whole weights by name, on the CPU, float32 where they are floating point; shared names share one tensor.

    Raises:
        OSError: If a file is missing, left over from another run, unreadable, does not fit the others, or asks for
            anything but tensors and plain containers; names the file.
    """
    folder = _find_tag_folder(path)
    shares = _read_shares(folder)
    is_stage3 = shares[0].is_stage3
    template = ("zero_pp_rank_{}_" if is_stage3 else "") + "mp_rank_00" + MODEL_SUFFIX
    models = [
        read_pickle(file) for file in _rank_files(folder, template, MODEL_SUFFIX, len(shares) if is_stage3 else 1)
    ]
    try:
        weights = _join_stage3(shares, models) if is_stage3 else _join_stage12(shares, models[0])
        return weights | {alias: weights[name] for alias, name in models[0]["shared_params"].items() if name in weights}
    except MALFORMED as error:
        raise OSError(f"the files in {folder} do not form a ZeRO checkpoint: {first_line(error)}") from error


def _find_tag_folder(path: Path) -> Path:
    """The folder that `latest` names, else the only one with ZeRO files, at the path or in it."""
    latest = path / "latest"
    if latest.is_file():
        tag = latest.read_text(encoding="utf-8", errors="replace").strip()
        if not (path / tag).is_dir():
            raise FileNotFoundError(f"{latest} names {tag!r}, but {path} has no such directory")
        return path / tag
    below = sorted(folder for folder in path.iterdir() if folder.is_dir())
    folders = [f for f in (path, *below) if any(f.glob("*" + OPTIM_SUFFIX)) or any(f.glob("*" + MODEL_SUFFIX))]
    if path in folders:
        return path
    if len(folders) != 1:
        found = ", ".join(folder.name for folder in folders) or "none"
        raise OSError(f"expected one ZeRO checkpoint in {path}, got {found}; give the directory of one")
    return folders[0]


def _rank_files(folder: Path, template: str, suffix: str, num_files: int) -> list[Path]:
    """The files of all ranks in order; the folder may hold no others of their kind."""
    expected = {template.format(rank) for rank in range(num_files)}
    found = {file.name for file in folder.glob("*" + suffix)}
    if missing := expected - found:
        raise FileNotFoundError(f"{folder} lacks {min(missing)}, expected {num_files} such files")
    if surplus := found - expected:
        raise OSError(f"{folder} holds {min(surplus)}, which is not of this run with {num_files} such files")
    return [folder / template.format(rank) for rank in range(num_files)]


def _read_shares(folder: Path) -> list[_Share]:
    files = sorted(folder.glob("*" + OPTIM_SUFFIX))
    if not files:
        raise FileNotFoundError(f"{folder} lacks its *{OPTIM_SUFFIX} files")
    first = _read_share(files[0])
    template = ("bf16_" if files[0].name.startswith("bf16_") else "") + "zero_pp_rank_{}_mp_rank_00" + OPTIM_SUFFIX
    shares = []
    for file in _rank_files(folder, template, OPTIM_SUFFIX, first.num_ranks):
        share = first if file == files[0] else _read_share(file)
        if (share.is_stage3, share.num_ranks) != (first.is_stage3, first.num_ranks):
            raise OSError(f"{file} and {files[0].name} are of runs with different ZeRO stages or numbers of ranks")
        shares.append(share)
    return shares


def _read_share(file: Path) -> _Share:
    state = read_pickle(file)
    try:
        optimizer = state["optimizer_state_dict"]
        is_stage3 = "fp32_flat_groups" in optimizer
        pieces = optimizer["fp32_flat_groups" if is_stage3 else "single_partition_of_fp32_groups"]
        counts = optimizer["partition_count"]
        num_ranks, *others = counts if isinstance(counts, list) else [counts]
        if type(num_ranks) is not int or num_ranks < 1 or any(other != num_ranks for other in others):
            raise ValueError(f"expected one number of ranks, got partition_count {counts}")
        flat = [piece.detach().view(-1) for piece in pieces]
        return _Share(is_stage3, num_ranks, flat, optimizer.get("param_alignment_paddings"))
    except MALFORMED as error:
        raise OSError(f"{file} holds no float32 weights of a ZeRO optimizer: {first_line(error)}") from error


def _join_stage12(shares: list[_Share], model: dict[str, Any]) -> dict[str, Tensor]:
    groups = model["param_shapes"]
    for rank, share in enumerate(shares):
        if len(share.pieces) != len(groups):
            raise ValueError(f"rank {rank} holds {len(share.pieces)} parameter groups, expected {len(groups)}")
    weights = {}
    multiple = 2 * len(shares)  # lines are padded to it
    for group, shapes in enumerate(groups):
        line = [share.pieces[group] for share in shares]
        gaps = shares[0].gaps[group] if shares[0].gaps else [0] * len(shapes)
        needed = sum(math.prod(shape) for shape in shapes.values()) + sum(gaps)
        held = [piece.numel() for piece in line]
        whole = held[0] * len(held)  # only the last rank leaves out the padding at the end of a line
        even = len(set(held[:-1])) <= 1 and needed <= sum(held) <= whole
        if not even or -(-needed // multiple) != -(-whole // multiple):
            raise ValueError(f"the ranks hold {held} numbers of parameter group {group}, expected {needed} evenly cut")
        start = 0
        for (name, shape), gap in zip(shapes.items(), gaps, strict=True):
            weights[name] = _cut(line, start, math.prod(shape)).view(shape)
            start += math.prod(shape) + gap
    return weights | _copy_from_module(model, set(model["module"]) - set(weights))  # buffers and frozen parameters


def _join_stage3(shares: list[_Share], models: list[dict[str, Any]]) -> dict[str, Tensor]:
    groups = models[0]["param_shapes"]
    shapes = {name: shape for group in groups for name, shape in group.items()}
    needed = sum(_piece_length(shape, len(shares)) for shape in shapes.values())
    for rank, (share, model) in enumerate(zip(shares, models, strict=True)):
        held = sum(piece.numel() for piece in share.pieces)
        if held != needed or model["param_shapes"] != groups:
            raise ValueError(f"rank {rank} holds {held} numbers of its own parameters, expected {needed} of rank 0's")
    weights = _copy_from_module(models[0], set(models[0]["buffer_names"]))
    for name, shape in (models[0].get("frozen_param_shapes") or {}).items():
        lines = [[model["frozen_param_fragments"][name].detach().view(-1)] for model in models]
        if any(line[0].numel() != _piece_length(shape, len(lines)) for line in lines):
            raise ValueError(f"the ranks' pieces of {name!r} do not make up its shape {tuple(shape)}")
        weights[name] = _cut_across(lines, 0, shape)
    start = 0
    for name, shape in shapes.items():
        weights[name] = _cut_across([share.pieces for share in shares], start, shape)
        start += _piece_length(shape, len(shares))
    return weights


def _piece_length(shape: torch.Size, num_ranks: int) -> int:
    return -(-math.prod(shape) // num_ranks)


def _cut_across(lines: list[list[Tensor]], start: int, shape: torch.Size) -> Tensor:
    """The weight whose pieces begin at `start` in the line of every rank; the last piece is padded."""
    pieces = [_cut(line, start, _piece_length(shape, len(lines))) for line in lines]
    return torch.cat(pieces)[: math.prod(shape)].view(shape)


def _cut(line: list[Tensor], start: int, length: int) -> Tensor:
    """A copy of a stretch of flat tensors laid end to end, float32."""
    found = [torch.empty(0)]
    for piece in line:
        found.append(piece[max(start, 0) : max(start + length, 0)])
        start -= piece.numel()
    return torch.cat(found).float()


def _copy_from_module(model: dict[str, Any], names: set[str]) -> dict[str, Tensor]:
    tensors = {name: w.detach() for name, w in model["module"].items() if name in names and isinstance(w, Tensor)}
    return {name: w.to(torch.float32 if w.is_floating_point() else w.dtype, copy=True) for name, w in tensors.items()}
