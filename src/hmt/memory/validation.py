"""The one place where a memory file becomes a state: names, types, shapes and ranges of everything that is read."""

from __future__ import annotations

import json
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor

from hmt.memory.bank import NO_TOKEN, Bank
from hmt.memory.identity import ModelIdentity

MAX_IDENTITY_CHARACTERS = 100_000
"""Length of a plausible identity."""

FLOATS = (torch.float32, torch.bfloat16, torch.float16)

INTEGERS = (torch.uint16, torch.int32, torch.int64)

LARGEST = 1 << 40
"""Counts and positions above this are damage."""

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


def state_fields(tensors: dict[str, Tensor], model: str) -> dict[str, Any]:
    """The fields of a state, from the tensors of a memory file and the identity (JSON) in its metadata.

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
    kept = {name: value if value.dtype == torch.bool else value.long() for name, value in own.items()}
    return {"bank": Bank(**bank), "model": _identity(model), "window": window, "extras": extras, **kept}


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
        "bank.tokens": (bank["tokens"], NO_TOKEN, (1 << 31) - 1),
        "bank.segments": (bank["segments"], 0, LARGEST),
        "bank.merged": (bank["merged"], 0, LARGEST),
        "tail_ids": (own["tail_ids"], 0, (1 << 31) - 1),
        "pending_ids": (own["pending_ids"], 0, (1 << 31) - 1),
        "segments_read": (own["segments_read"], 0, LARGEST),
        "tokens_read": (own["tokens_read"], 0, LARGEST),
    }
    for name, (tensor, least, most) in ranges.items():
        if tensor.numel() and (int(tensor.long().min()) < least or int(tensor.long().max()) > most):
            raise ValueError(f"{name} must lie between {least} and {most}")
    valid = bank["valid"]
    if bool((valid[:, 1:] & ~valid[:, :-1]).any()):
        raise ValueError("bank.valid has a filled slot behind an empty one")
    if bool((bank["segments"].long() >= own["segments_read"].long()[:, None]).logical_and(valid).any()):
        raise ValueError("bank.segments has a segment that was not read yet")
    if bool((own["pending_valid"].sum(dim=1) > own["tokens_read"].long()).any()):
        raise ValueError("tokens_read is below the tokens of the unfinished segment")
    if bool((bank["usage"] < 0).any()):
        raise ValueError("bank.usage is negative")


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
    for name in ("positions", "next_position"):
        places = about.get(name)
        if places is not None and places.numel() and int(places.long().abs().max()) >= LARGEST:
            raise ValueError(f"window.{name} is out of range")
    for name, tensor in rest.items():
        if tensor.dtype.is_floating_point and not bool(torch.isfinite(tensor).all()):
            raise ValueError(f"window.{name} is not finite")
    return {name: t.long() if name in ("positions", "next_position") else t for name, t in tensors.items()}


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
