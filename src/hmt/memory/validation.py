"""The one place where a memory file becomes a state: names, types, shapes and ranges of everything that is read.

`state_from` checks what a file says by itself, `check_fit` and `fitted_window` what it says to the model that reads it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor

from hmt.memory.bank import NO_TOKEN, Bank
from hmt.memory.state import MemoryState, ModelIdentity

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


def state_from(tensors: dict[str, Tensor], model: str) -> MemoryState:
    """A state from the tensors of a memory file and the identity (JSON) in its metadata.

    Raises:
        ValueError: If anything is missing, unknown, of a wrong type or shape, out of range or not finite; names it.
    """
    sizes: dict[str, int] = {}
    groups: dict[str, dict[str, Tensor]] = {"bank": {}, "window": {}, "extras": {}, "": {}}
    for name, tensor in tensors.items():
        group, dot, rest = name.partition(".")
        known = bool(dot) and group in groups
        groups[group if known else ""][rest if known else name] = tensor
    bank = _group(groups["bank"], BANK, sizes, "bank.")
    own = _group(groups[""], OWN, sizes, "")
    window = _window(groups["window"], sizes)
    extras: dict[str, Tensor] = {}
    for name, tensor in groups["extras"].items():
        _check(f"extras.{name}", tensor, (torch.bool, *FLOATS, *INTEGERS), None, sizes)
        if not tensor.dim() or len(tensor) != sizes["B"]:
            raise ValueError(f"extras.{name} must have {sizes['B']} row(s), got the shape {tuple(tensor.shape)}")
        extras[name] = tensor
    _check_counts(bank, own)
    bank["tokens"] = bank["tokens"].to(torch.int32)
    bank["merged"] = bank["merged"].to(torch.int32)
    bank["segments"] = bank["segments"].long()
    kept: Any = {name: value if value.dtype == torch.bool else value.long() for name, value in own.items()}
    return MemoryState(bank=Bank(**bank), model=_identity(model), window=window, extras=extras, **kept)


def _group(
    tensors: dict[str, Tensor],
    known: dict[str, tuple[tuple[torch.dtype, ...], str]],
    sizes: dict[str, int],
    prefix: str,
) -> dict[str, Tensor]:
    """The tensors of one group, checked."""
    if missing := set(known) - set(tensors) - OPTIONAL:
        raise ValueError(f"it lacks {', '.join(sorted(prefix + name for name in missing))}")
    if unknown := set(tensors) - set(known):
        raise ValueError(f"it has an unknown part {prefix}{min(unknown)!r}")
    for name, tensor in tensors.items():
        dtypes, axes = known[name]
        _check(prefix + name, tensor, dtypes, axes, sizes)
    return dict(tensors)


def _check(name: str, tensor: Tensor, dtypes: tuple[torch.dtype, ...], axes: str | None, sizes: dict[str, int]) -> None:
    if tensor.dtype not in dtypes:
        raise ValueError(f"{name} has the type {tensor.dtype}, expected {' or '.join(map(str, dtypes))}")
    if axes is not None:
        if tensor.dim() != len(axes):
            raise ValueError(f"{name} must have {len(axes)} dimension(s), got the shape {tuple(tensor.shape)}")
        for axis, size in zip(axes, tensor.shape, strict=True):
            if sizes.setdefault(axis, size) != size:
                raise ValueError(
                    f"{name} has the shape {tuple(tensor.shape)}, expected {sizes[axis]} where it has {size}"
                )
    if tensor.dtype.is_floating_point and not bool(torch.isfinite(tensor).all()):
        raise ValueError(f"{name} is not finite")


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
        if tensor.numel() and (int(tensor.long().min()) < least or int(tensor.long().max()) > most):
            raise ValueError(f"{name} must lie between {least} and {most}")
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
    """The tensors of a window, checked; the model that reads them builds it."""
    if not tensors:
        return None
    about = {name: tensor for name, tensor in tensors.items() if name in WINDOW}
    rest = {name: tensor for name, tensor in tensors.items() if name not in WINDOW}
    if set(about) == {"next_position"}:  # a state of constant size
        if unknown := [name for name in rest if not name.startswith("rows.") or not name.split(".")[1].isdecimal()]:
            raise ValueError(f"it has an unknown part window.{min(unknown)!r}")
        if any(int(name.split(".")[1]) >= sizes["B"] or name.count(".") < 4 for name in rest):
            raise ValueError("window.rows does not fit the number of rows")
        _check("window.next_position", about["next_position"], INTEGERS, "B", sizes)
    else:
        _group(about, WINDOW, sizes, "window.")
        for name, tensor in rest.items():
            part, _, layer = name.partition(".")
            if part not in ("keys", "values") or not layer.isdecimal() or len(layer) > 5:
                raise ValueError(f"it has an unknown part window.{name!r}")
            _check(f"window.{name}", tensor, FLOATS, None, sizes)
            if tensor.dim() != 4 or tensor.shape[0] != sizes["B"] or tensor.shape[2] != sizes["n"]:
                raise ValueError(f"window.{name} has the shape {tuple(tensor.shape)}")
        if len({name.partition(".")[2] for name in rest}) * 2 != len(rest):
            raise ValueError("window has keys without values")
        if sizes["n"] and not rest:
            raise ValueError("window has slots without keys and values")
        kinds = about["kinds"]
        if kinds.numel() and not 0 <= int(kinds.min()) <= int(kinds.max()) <= 3:
            raise ValueError("window.kinds must lie between 0 and 3")
        places, following = about["positions"].long(), about["next_position"].long()[:, None]
        if bool((((places < 0) | (places >= following)) & about["valid"]).any()):
            raise ValueError("window.positions must lie between 0 and window.next_position")
    for name in ("positions", "next_position"):
        found = about.get(name)
        if found is not None and bool(((found.long() < -LARGEST) | (found.long() > LARGEST)).any()):
            raise ValueError(f"window.{name} is out of range")
    for name, tensor in rest.items():
        if tensor.dtype.is_floating_point and not bool(torch.isfinite(tensor).all()):
            raise ValueError(f"window.{name} is not finite")
    return {name: t.long() if name in ("positions", "next_position") else t for name, t in tensors.items()}


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
        slots = about["positions"].shape[1]
        shapes = {name: torch.Size((rows, t.shape[1], slots, t.shape[3])) for name, t in own.items() if slots}
        layout = {name: (own[name].dtype, shape) for name, shape in shapes.items()}
    else:  # rows without a token have no state
        for row in {name.split(".")[1] for name in rest}:
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
