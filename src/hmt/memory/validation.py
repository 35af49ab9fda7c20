"""The one place where a memory file becomes a state: names, types, shapes and ranges of everything that is read.

`state_fields` checks the file by itself, `check_fit` and `fitted_window` that it fits the model that reads it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from hmt.memory.bank import NO_TOKEN, Bank
from hmt.memory.identity import ModelIdentity

if TYPE_CHECKING:
    from hmt.memory.state import MemoryState

MAX_IDENTITY_CHARACTERS = 100_000
"""Length of a plausible identity."""

FLOATS = (torch.float32, torch.bfloat16, torch.float16)

INTEGERS = (torch.uint16, torch.int32, torch.int64)

LARGEST = 1 << 40
"""Counts and positions above this are damage."""

LARGEST_INT32 = (1 << 31) - 1

BANK = {
    "embeddings": (FLOATS, "BND"),
    "valid": ((torch.bool,), "BN"),
    "segments": (INTEGERS, "BN"),
    "usage": ((torch.float32,), "BN"),
    "tokens": (INTEGERS, "BNL"),
    "merged": (INTEGERS, "BN"),
}
"""Tensors of the bank: dtypes, and the axes that they share."""

OWN = {
    "tail_ids": (INTEGERS, "BS"),
    "tail_valid": ((torch.bool,), "BS"),
    "pending_ids": (INTEGERS, "BP"),
    "pending_valid": ((torch.bool,), "BP"),
    "segments_read": (INTEGERS, "B"),
    "tokens_read": (INTEGERS, "B"),
    "asked": (INTEGERS, "B"),
}
"""Likewise, of the state itself."""

WINDOW = {
    "positions": (INTEGERS, "Bn"),
    "valid": ((torch.bool,), "Bn"),
    "kinds": ((torch.int8,), "Bn"),
    "next_position": (INTEGERS, "B"),
}
"""Likewise, of the window."""

OPTIONAL = {"asked"}
"""Tensors that a file may lack."""


def state_fields(tensors: dict[str, Tensor], model: str) -> dict[str, Any]:
    """The fields of a state, from the tensors of a memory file and the identity (JSON) in its metadata.

    Raises:
        ValueError: If anything is missing, unknown, of a wrong type or shape, out of range or not finite; names it.
    """
    sizes: dict[str, int] = {}
    groups: dict[str, dict[str, Tensor]] = {"bank": {}, "window": {}, "extras": {}, "": {}}
    for name, tensor in tensors.items():
        if tensor.dtype.is_floating_point and not bool(torch.isfinite(tensor).all()):
            raise ValueError(f"{name} is not finite")
        group, dot, rest = name.partition(".")
        known = bool(dot) and group in groups
        groups[group if known else ""][rest if known else name] = tensor
    bank = _group(groups["bank"], BANK, sizes, "bank.")
    own = _group(groups[""], OWN, sizes, "")
    window = _window(groups["window"], sizes)
    for name, tensor in groups["extras"].items():
        if not tensor.dim() or len(tensor) != sizes["B"]:
            raise ValueError(f"extras.{name} must have {sizes['B']} row(s), got the shape {tuple(tensor.shape)}")
    _check_counts(bank, own)
    bank["tokens"] = bank["tokens"].to(torch.int32)
    bank["merged"] = bank["merged"].to(torch.int32)
    bank["segments"] = bank["segments"].long()
    kept = {name: value if value.dtype == torch.bool else value.long() for name, value in own.items()}
    return {"bank": Bank(**bank), "model": _identity(model), "window": window, "extras": groups["extras"], **kept}


def _group(
    tensors: dict[str, Tensor],
    known: Mapping[str, tuple[tuple[torch.dtype, ...], str]],
    sizes: dict[str, int],
    prefix: str,
) -> dict[str, Tensor]:
    """The tensors of one group, checked; `sizes` collects the size of each axis."""
    if missing := set(known) - set(tensors) - OPTIONAL:
        raise ValueError(f"it lacks {', '.join(sorted(prefix + name for name in missing))}")
    if unknown := set(tensors) - set(known):
        raise ValueError(f"it has an unknown part {prefix}{min(unknown)!r}")
    for name, tensor in tensors.items():
        dtypes, axes = known[name]
        if tensor.dtype not in dtypes:
            raise ValueError(f"{prefix}{name} is {tensor.dtype}, expected {' or '.join(map(str, dtypes))}")
        shape = tuple(tensor.shape)
        if len(shape) != len(axes) or any(sizes.setdefault(axis, n) != n for axis, n in zip(axes, shape, strict=True)):
            expected = ", ".join(str(sizes.get(axis, axis)) for axis in axes)
            raise ValueError(f"{prefix}{name} has the shape {shape}, expected ({expected})")
    return dict(tensors)


def _check_range(name: str, tensor: Tensor, least: int, most: int) -> None:
    if tensor.numel() and (int(tensor.long().min()) < least or int(tensor.long().max()) > most):
        raise ValueError(f"{name} must lie between {least} and {most}")


def _check_counts(bank: dict[str, Tensor], own: dict[str, Tensor]) -> None:
    """Refuse ids and counts out of range."""
    if not own["tokens_read"].numel():
        raise ValueError("it has no row")
    ranges = {
        "bank.tokens": (bank["tokens"], NO_TOKEN, LARGEST_INT32),
        "bank.segments": (bank["segments"], 0, LARGEST),
        "bank.merged": (bank["merged"], 1, LARGEST_INT32),
        "tail_ids": (own["tail_ids"], 0, LARGEST_INT32),
        "pending_ids": (own["pending_ids"], 0, LARGEST_INT32),
        "segments_read": (own["segments_read"], 0, LARGEST),
        "tokens_read": (own["tokens_read"], 0, LARGEST),
    }
    for name, (tensor, least, most) in ranges.items():
        _check_range(name, tensor, least, most)
    valid = bank["valid"]
    if _rises(valid):
        raise ValueError("bank.valid has a filled slot behind an empty one")
    if _rises(own["pending_valid"]):
        raise ValueError("pending_valid has a token behind an empty place")
    if _rises(own["tail_valid"].flip(1)):
        raise ValueError("tail_valid has an empty place behind a token")
    if bool((bank["segments"].long() >= own["segments_read"].long()[:, None]).logical_and(valid).any()):
        raise ValueError("bank.segments has a segment that was not read yet")
    if bool((own["pending_valid"].sum(dim=1) > own["tokens_read"].long()).any()):
        raise ValueError("tokens_read is below the tokens of the unfinished segment")
    if bool((bank["usage"] < 0).any()):
        raise ValueError("bank.usage is negative")


def _rises(mask: Tensor) -> bool:
    """True if a row (B, n) bool has a True behind a False."""
    return bool((mask[:, 1:] & ~mask[:, :-1]).any())


def _window(tensors: dict[str, Tensor], sizes: dict[str, int]) -> dict[str, Tensor] | None:
    """The tensors of a window; `fitted_window` checks keys, values and states against the model."""
    if not tensors:
        return None
    known = WINDOW if "positions" in tensors else {"next_position": WINDOW["next_position"]}  # a state has no slots
    about = _group({name: tensor for name, tensor in tensors.items() if name in WINDOW}, known, sizes, "window.")
    about |= {name: tensor.long() for name, tensor in about.items() if name in ("positions", "next_position")}
    _check_range("window.next_position", about["next_position"], -LARGEST, LARGEST)
    if "positions" in about:
        _check_range("window.positions", about["positions"], -LARGEST, LARGEST)
        _check_range("window.kinds", about["kinds"], 0, 3)
        out_of_order = (about["positions"] < 0) | (about["positions"] >= about["next_position"][:, None])
        if bool((out_of_order & about["valid"]).any()):
            raise ValueError("window.positions must lie between 0 and window.next_position")
    return tensors | about


def check_fit(
    state: MemoryState,
    *,
    width: int,
    longest_segment: int,
    tail_tokens: int,
    vocabulary: int,
    extras: dict[str, Tensor],
) -> None:
    """Check that the tensors of a state are those of the model that reads it.

    Args:
        state: With the model's number of rows.
        width: Size of a memory embedding, 0 without.
        longest_segment: Tokens per bank slot.
        tail_tokens: Tokens kept before a segment.
        vocabulary: Logits V.
        extras: State of the model's extensions before the first token.

    Raises:
        ValueError: If one does not fit; names it and both sizes.
    """
    sizes = {
        "the width of bank.embeddings": (state.bank.embeddings.shape[2], width),
        "the length of bank.tokens": (state.bank.tokens.shape[2], longest_segment),
        "the length of tail_ids": (state.tail_ids.shape[1], tail_tokens),
    }
    for name, (got, expected) in sizes.items():
        if got != expected:
            raise ValueError(f"the memory does not fit the model: {name} is {got}, expected {expected}")
    for name, ids in {"bank.tokens": state.bank.tokens, "tail": state.tail_ids, "pending": state.pending_ids}.items():
        if ids.numel() and int(ids.max()) >= vocabulary:
            raise ValueError(f"the memory has token {int(ids.max())} in {name}, the model has {vocabulary}")
    _check_layout(state.extras, {name: (tensor.dtype, tensor.shape) for name, tensor in extras.items()}, "extras")


def fitted_window(
    tensors: dict[str, Tensor], model: dict[str, Tensor], rows: int, limit: int | None
) -> dict[str, Tensor]:
    """The tensors of a window that was read from a file, in the model's dtype.

    Args:
        tensors: As the file has them.
        model: Those of one row in which the model has read one token.
        rows: Number of rows B.
        limit: Positions that the backbone was trained on; None without a limit.

    Raises:
        ValueError: If names or shapes are not the model's.
    """
    if limit is not None and int(tensors["next_position"].max()) > limit:
        raise ValueError(f"the window of the memory is at a position above the {limit} of the model")
    about = {name: tensor for name, tensor in tensors.items() if name in WINDOW}
    rest = {name: tensor for name, tensor in tensors.items() if name not in WINDOW}
    own = {name: tensor for name, tensor in model.items() if name not in WINDOW}
    if set(about) != set(model) & set(WINDOW):
        raise ValueError("the window of the memory is that of another kind of backbone")
    layout: dict[str, tuple[torch.dtype, torch.Size]] = {}
    if "positions" in about:
        if slots := about["positions"].shape[1]:
            layout = {name: (t.dtype, torch.Size((rows, t.shape[1], slots, t.shape[3]))) for name, t in own.items()}
    else:
        for row in range(rows):
            if any(name.startswith(f"rows.{row}.") for name in rest):  # a row without a token has no state
                layout |= {name.replace(".0.", f".{row}.", 1): (t.dtype, t.shape) for name, t in own.items()}
    _check_layout(rest, layout, "window")
    return about | {name: rest[name].to(dtype) for name, (dtype, _) in layout.items()}


def _check_layout(
    tensors: Mapping[str, Tensor], expected: Mapping[str, tuple[torch.dtype, torch.Size]], group: str
) -> None:
    """Check names, shapes, and dtypes; one floating-point dtype may stand for another."""
    if other := set(tensors) ^ set(expected):
        raise ValueError(f"the memory does not fit the model: only one of them has {group}.{min(other)}")
    for name, (dtype, shape) in expected.items():
        got = tensors[name]
        if got.shape != shape or (got.dtype != dtype and not (got.is_floating_point() and dtype.is_floating_point)):
            raise ValueError(
                f"the memory does not fit the model: {group}.{name} is {got.dtype} {tuple(got.shape)}, "
                f"expected {dtype} {tuple(shape)}"
            )


def _identity(text: str) -> ModelIdentity:
    if len(text) > MAX_IDENTITY_CHARACTERS:
        raise ValueError("the identity of its model is too long")
    try:
        values = json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"the identity of its model cannot be read: {error}") from error
    known = {field.name: field.type for field in fields(ModelIdentity)}
    if not isinstance(values, dict) or set(values) != set(known):
        raise ValueError(f"the identity of its model must have {', '.join(known)}")
    for name, value in values.items():
        wanted = int if name == "width" else str
        if not isinstance(value, wanted) or isinstance(value, bool):
            raise ValueError(f"{name} of its model must be {wanted.__name__}, got {value!r}")
    return ModelIdentity(**values)
