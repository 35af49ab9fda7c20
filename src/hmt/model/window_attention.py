"""The window: keys and values that the backbone attends to, and the one function by which everything enters it.

A `Window` is a value. `extend` feeds new positions to the backbone's body: they attend to what the window holds and
join it. Each slot of a window has a position, a validity and a kind; which slots a query sees follows from these alone:

    sinks and recalled passages        always
    memory prompts                     until their segment ends
    all other tokens                   those at most K positions back

so no number depends on how a text is cut into parts. Positions are counted upwards and keys stay as they are, until
they reach a limit: then the window is moved back behind the sinks, in one turn of its keys. The limit is the length
that the backbone was trained on, or, so that sinks stay near, twice the window.

Shape legend: B rows, n slots of the window, m new positions, H heads, d their width, D embedding size.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, CacheLayerMixin

from hmt.memory.rows import packing_order
from hmt.memory.window import RECALLED, SINK, TOKEN, Buffer, StateWindow, Window
from hmt.model.rotary import rotations

Around = Callable[[], AbstractContextManager[Any]]
"""Makes the context in which the body runs."""

SLACK = 64
"""Free slots at least that a new buffer has for positions to come."""


@dataclass(frozen=True)
class Geometry:
    """Division of a window.

    Attributes:
        reach: Positions K before a token that it attends to; None for all.
        sinks: First positions S of a text that stay visible.
        recalled: Positions E kept free for recalled passages.
        limit: Positions that the backbone was trained on; None without a limit.
    """

    reach: int | None = None
    sinks: int = 0
    recalled: int = 0
    limit: int | None = None


class _Layer(CacheLayerMixin):
    """One layer of the cache of one forward pass: the slots to keep of a buffer, and the new ones behind them."""

    def __init__(self, keys: Tensor | None, values: Tensor | None, plan: _Plan) -> None:
        super().__init__()
        self._old = keys, values
        self._plan = plan
        self.is_initialized = True

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Nothing to do: buffers are made by `update`."""

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Put new keys and values (B, H, m, d) behind the old ones; returns all (B, H, n + m, d)."""
        (self.keys, keys), (self.values, values) = (
            self._plan.join(old, new) for old, new in zip(self._old, (key_states, value_states), strict=True)
        )
        return keys, values

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Keys of a forward pass, and the place of the first."""
        return self._plan.kept + query_length, 0

    def get_seq_length(self) -> int:
        """Slots before the new ones."""
        return self._plan.kept

    def get_max_length(self) -> int:
        """No maximum."""
        return -1


@dataclass(frozen=True)
class _Plan:
    """Sources of the old slots of a window and places of the new ones.

    Attributes:
        order: Slots to keep, (B, kept) int64 on the device or a slice; None where the buffer grows in place.
        kept: Slots before the new ones.
        capacity: Slots of a new buffer.
        functional: Join by concatenation, so that gradients flow.
    """

    order: Tensor | slice | None
    kept: int
    capacity: int
    functional: bool

    def join(self, old: Tensor | None, new: Tensor) -> tuple[Tensor, Tensor]:
        """The buffer that holds old and new slots, and the part of it in use."""
        end = self.kept + new.shape[2]
        if self.order is None and old is not None:
            old[:, :, self.kept : end] = new
            return old, old[:, :, :end]
        kept = new[:, :, :0] if old is None else self._select(old)
        if self.functional:
            joined = torch.cat([kept, new], dim=2)
            return joined, joined
        buffer = new.new_empty(*new.shape[:2], self.capacity, new.shape[3])
        buffer[:, :, : self.kept] = kept
        buffer[:, :, self.kept : end] = new
        return buffer, buffer[:, :, :end]

    def _select(self, old: Tensor) -> Tensor:
        if isinstance(self.order, slice):
            return old[:, :, self.order]
        assert self.order is not None
        return old.gather(2, self.order[:, None, :, None].expand(-1, old.shape[1], -1, old.shape[3]))


def extend(
    backbone: PreTrainedModel,
    window: Window,
    embeddings: Tensor,
    geometry: Geometry,
    *,
    mask: Tensor | None = None,
    kinds: Tensor | None = None,
    recompute: bool = False,
    around: Around = nullcontext,
) -> tuple[Tensor, Window]:
    """Feed new positions to the body: they attend to the window and join it.

    Args:
        backbone: Gives the body.
        window: What was read before; it stays as it is.
        embeddings: (B, m, D).
        geometry: Division of the window.
        mask: (B, m) bool on the CPU, real positions; all where None.
        kinds: (m,) int8, kinds of the new slots; TOKEN where None.
        recompute: Keep only inputs for the backward pass and run the body again there.
        around: Makes the context in which the body runs, both times.

    Returns:
        Last hidden states (B, m, D), meaningless where `mask` is False, and the window with the new slots.

    Raises:
        ValueError: Positions of the window contradict each other, as those of a damaged file.
    """
    real = torch.ones(embeddings.shape[:2], dtype=torch.bool) if mask is None else mask
    kinds = torch.zeros(real.shape[1], dtype=torch.int8) if kinds is None else kinds
    outputs, start = [], 0
    while start < real.shape[1]:
        left = real[:, start:]
        positions = window.next_position[:, None] + left.cumsum(dim=1) - 1
        over = torch.zeros_like(left) if geometry.limit is None else (positions >= geometry.limit) & left
        if bool(over[:, 0].any()):
            moved = move_back(backbone, window, geometry, over[:, 0])
            if bool((moved.next_position >= window.next_position)[over[:, 0]].any()):
                raise ValueError("the window of the memory is damaged: its oldest token cannot be moved back")
            window = moved
            continue
        count = int(over.any(dim=0).nonzero()[0]) if over.any() else left.shape[1]
        part, positions = slice(start, start + count), positions[:, :count]
        new = torch.where((kinds[part] == TOKEN) & (positions < geometry.sinks), SINK, kinds[part]).to(torch.int8)
        hidden, window = _attend(
            backbone, window, embeddings[:, part], geometry, positions, real[:, part], new, recompute, around
        )
        window = replace(window, next_position=window.next_position + real[:, part].sum(dim=1))
        outputs.append(hidden)
        start += count
    return (outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=1)), window


def insert_passages(
    backbone: PreTrainedModel,
    window: Window,
    embeddings: Tensor,
    geometry: Geometry,
    mask: Tensor,
    around: Around = nullcontext,
) -> Window:
    """Encode passages directly before the oldest token of the window, in place of those that were there.

    The passages attend to the sinks and to each other; every later token attends to them.

    Args:
        backbone: Gives the body.
        window: What was read before.
        embeddings: Passages one behind the other, (B, E, D), each row padded on the right.
        geometry: Division of the window.
        mask: (B, E) bool on the CPU.
        around: Makes the context in which the body runs.
    """
    window = window.without(RECALLED)
    start = window.oldest(geometry.reach) - mask.sum(dim=1)
    positions = (start[:, None] + mask.cumsum(dim=1) - 1).clamp(min=0)
    kinds = torch.full(mask.shape, RECALLED, dtype=torch.int8)
    _, window = _attend(backbone, window, embeddings, geometry, positions, mask, kinds, around=around)
    return window


def _attend(
    backbone: PreTrainedModel,
    window: Window,
    embeddings: Tensor,
    geometry: Geometry,
    positions: Tensor,
    real: Tensor,
    kinds: Tensor,
    recompute: bool = False,
    around: Around = nullcontext,
) -> tuple[Tensor, Window]:
    """One forward pass of the body: hidden states, and the window with the new slots."""
    device, count = embeddings.device, embeddings.shape[1]
    plan, kept = _plan(window, geometry, count, device)
    about = [
        torch.cat([old, new], dim=1)
        for old, new in zip((kept.positions, kept.valid, kept.kinds), (positions, real, kinds), strict=True)
    ]
    masks = _masks(backbone, about[0], about[1], about[2], positions, geometry.reach, device)
    count_layers = backbone.config.get_text_config(decoder=True).num_hidden_layers
    old = window.buffer or Buffer([None] * count_layers, [None] * count_layers, 0)
    tensors = [t for t in (*old.keys, *old.values) if t is not None]

    def run(embeddings: Tensor, *_: Tensor) -> tuple[Tensor, ...]:
        cache = Cache(layers=[_Layer(k, v, plan) for k, v in zip(old.keys, old.values, strict=True)])
        with around():
            hidden = backbone.base_model(
                inputs_embeds=embeddings, attention_mask=masks, position_ids=positions.to(device),
                past_key_values=cache, use_cache=True,
            ).last_hidden_state  # fmt: skip
        layers: list[Any] = cache.layers
        return hidden, *(layer.keys for layer in layers), *(layer.values for layer in layers)

    if recompute and torch.is_grad_enabled():
        hidden, *states = checkpoint(run, embeddings, *tensors, use_reentrant=False)
    else:
        hidden, *states = run(embeddings)
    keys, values = list(states[:count_layers]), list(states[count_layers:])
    end = plan.kept + count
    if plan.order is None and window.buffer is not None:
        buffer = window.buffer
        buffer.filled = end
    else:
        buffer = Buffer(keys, values, end)
    return hidden, Window(buffer, about[0], about[1], about[2], window.next_position)


def _plan(window: Window, geometry: Geometry, count: int, device: torch.device) -> tuple[_Plan, Window]:
    """Choose the slots to keep and the places of new ones; returns the window of the kept slots too."""
    functional, buffer, used = torch.is_grad_enabled(), window.buffer, window.slots
    grows = buffer is not None and not functional and buffer.filled == used and buffer.capacity >= used + count
    if grows:
        return _Plan(None, used, 0, functional), window
    seen = window.visible(geometry.reach)
    order: Tensor | slice = slice(0, used)
    if not seen.all():
        width = int(seen.sum(dim=1).max())
        slots = packing_order(seen)[:, :width]
        seen = seen.gather(1, slots)
        about = (window.positions.gather(1, slots), seen, window.kinds.gather(1, slots))
        first = slots[0]
        alike = bool((slots == first).all()) and bool((first.diff() == 1).all())
        order = slice(int(first[0]), int(first[-1]) + 1) if alike and width else slots.to(device)
        window = replace(window, positions=about[0], valid=about[1], kinds=about[2])
    kept = window.slots
    slack = max(SLACK, kept // 8)
    return _Plan(order, kept, kept + count + slack, functional), window


def _masks(
    backbone: PreTrainedModel,
    positions: Tensor,
    valid: Tensor,
    kinds: Tensor,
    queries: Tensor,
    reach: int | None,
    device: torch.device,
) -> Any:
    """The attention mask of a forward pass, as the body takes it: one for all layers, or one for each kind of layer.

    Args:
        backbone: Says which layers it has.
        positions: Of all slots, the new ones last, (B, n + m).
        valid: Likewise, bool.
        kinds: Likewise, int8.
        queries: Positions of the new ones, (B, m).
        reach: Positions K before a query that it sees.
        device: Of the masks.
    """
    full, sliding = _layer_windows(backbone)
    count = queries.shape[1]
    distance_max = int((queries.amax(dim=1) - positions.amin(dim=1)).max())
    plain = bool(valid.all()) and positions.shape[1] == count and (reach is None or distance_max <= reach)
    if plain and (sliding is None or distance_max < sliding) and bool((positions.diff() == 1).all()):
        return None
    positions, valid, kinds, queries = (t.to(device, non_blocking=True) for t in (positions, valid, kinds, queries))
    distance = queries[:, :, None] - positions[:, None]
    seen = (distance >= 0) & valid[:, None]
    if reach is not None:
        seen &= (distance <= reach) | (kinds != TOKEN)[:, None]
    itself = torch.eye(count, dtype=torch.bool, device=device)
    masks = {}
    if full:
        masks["full_attention"] = seen.clone() if sliding is not None else seen
    if sliding is not None:
        masks["sliding_attention"] = seen & (distance < sliding)
    for mask in masks.values():
        mask[:, :, -count:] |= itself  # a padded query sees itself, so that no row of the softmax is empty
    ready = {name: _as_taken(backbone, mask[:, None]) for name, mask in masks.items()}
    return ready if full and sliding is not None else next(iter(ready.values()))


def _as_taken(backbone: PreTrainedModel, mask: Tensor) -> Tensor:
    """A bool mask as the backbone's attention takes it: added to the scores where attention is written out."""
    if _attention(backbone) != "eager":
        return mask
    zeros = torch.zeros(mask.shape, dtype=backbone.dtype, device=mask.device)
    return zeros.masked_fill_(~mask, torch.finfo(backbone.dtype).min)


def _attention(backbone: PreTrainedModel) -> str:
    """Name of the attention implementation of a backbone's body."""
    body: Any = backbone.base_model
    return str(body.config._attn_implementation)


def _layer_windows(backbone: PreTrainedModel) -> tuple[bool, int | None]:
    """Layers of a backbone: true if some attend to everything, and the window of those that slide, or None."""
    config = backbone.config.get_text_config(decoder=True)
    kinds = set(getattr(config, "layer_types", None) or [])
    window = getattr(config, "sliding_window", None) if getattr(config, "use_sliding_window", True) else None
    if not kinds:
        return window is None, window
    return "full_attention" in kinds, window if "sliding_attention" in kinds else None


def move_back(backbone: PreTrainedModel, window: Window, geometry: Geometry, rows: Tensor) -> Window:
    """Move the tokens of some rows (B,) bool back to the first positions behind sinks and recalled passages."""
    # One position more than they need, so that a window of W positions has room for W more below a limit of 2 W, and
    # texts that are read in parts of W are cut nowhere else.
    first = geometry.sinks + geometry.recalled + 1
    back = torch.where(rows, window.oldest(geometry.reach) - first, 0).clamp(min=0)
    recalled = window.valid & (window.kinds == RECALLED)
    last = torch.where(recalled, window.positions, first - 1).amax(dim=1)
    recalled_back = torch.where(rows, last + 1 - first, 0)
    steps = torch.where(window.kinds == RECALLED, recalled_back[:, None], back[:, None])
    steps = torch.where(window.kinds == SINK, 0, steps)
    buffer = window.buffer
    if buffer is not None:
        turns = rotations(backbone)
        keys = [
            None if key is None else turn.back(key[:, :, : window.slots], steps) if turn is not None else key
            for key, turn in zip(buffer.keys, turns, strict=True)
        ]
        values = [None if value is None else value[:, :, : window.slots] for value in buffer.values]
        keys = [None if key is None else key[:, :, : window.slots] for key in keys]
        buffer = Buffer(keys, values, window.slots)
    return replace(window, buffer=buffer, positions=window.positions - steps, next_position=window.next_position - back)


@torch.no_grad()
def unsupported(backbone: PreTrainedModel) -> str:
    """The reason for which a backbone cannot read through a `Window`; "" if it can.

    Tries it: reading in parts must equal reading at once, and a masked slot must not be seen.
    """
    parameters = inspect.signature(type(backbone.base_model).forward).parameters
    if not {"past_key_values", "position_ids", "attention_mask"} <= set(parameters):
        return "its body takes no cache, positions and mask from outside"
    config = backbone.config.get_text_config(decoder=True)
    other = set(getattr(config, "layer_types", None) or []) - {"full_attention", "sliding_attention"}
    if other:
        return f"it has layers of the kind {', '.join(sorted(other))}"
    if "flash" in _attention(backbone):
        return "flash attention takes no mask; load it with attn_implementation='sdpa'"
    if next(backbone.parameters()).is_meta:
        return ""
    ids = torch.tensor([[1, 2, 0, 1, 2]], device=backbone.device) % config.vocab_size
    embeddings = backbone.get_input_embeddings()(ids)
    training = backbone.training
    backbone.eval()
    try:
        whole = backbone.base_model(inputs_embeds=embeddings, use_cache=False).last_hidden_state
        parts, window = [], Window.empty(1)
        for part in embeddings.split((3, 2), dim=1):
            hidden, window = extend(backbone, window, part, Geometry())
            parts.append(hidden)
        if _differ(torch.cat(parts, dim=1), whole):
            return "reading in parts on its cache gives other numbers than reading at once"
        alone, _ = extend(backbone, Window.empty(1), embeddings, Geometry(reach=0))
        if _differ(alone[:, 3:4], whole[:, :1]) and not _differ(alone[:, 3:4], whole[:, 3:4]):
            return "it does not heed an attention mask from outside"
    except (TypeError, AttributeError, NotImplementedError, ValueError, IndexError, RuntimeError) as error:
        return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    finally:
        backbone.train(training)
    return ""


def _differ(got: Tensor, expected: Tensor) -> bool:
    difference = (got.float() - expected.float()).abs().max()
    return not bool(difference <= 0.02 * expected.float().abs().max())


def carry(
    backbone: PreTrainedModel, window: StateWindow, embeddings: Tensor, mask: Tensor | None
) -> tuple[Tensor, StateWindow]:
    """Feed new positions (B, m, D) to a body that carries a state, row by row; mask (B, m) bool on the CPU.

    Returns:
        Last hidden states (B, m, D), 0 where `mask` is False, and the window behind them.
    """
    real = torch.ones(embeddings.shape[:2], dtype=torch.bool) if mask is None else mask
    hidden = torch.zeros_like(embeddings)
    caches = []
    for row, cache in enumerate(window.caches):
        places = real[row].nonzero()[:, 0].to(embeddings.device)
        states, cache = _carry(backbone, cache, embeddings[row : row + 1, places])
        hidden = hidden.index_put((torch.tensor(row, device=places.device), places), states[0])
        caches.append(cache)
    return hidden, StateWindow(tuple(caches), window.next_position + real.sum(dim=1))


def _carry(backbone: PreTrainedModel, cache: Any, embeddings: Tensor) -> tuple[Tensor, Any]:
    """Read one row (1, m, D) on from a state, which stays as it is: hidden states and the new state."""
    if not embeddings.shape[1]:
        return embeddings, cache
    name = "cache_params" if "cache_params" in inspect.signature(type(backbone.base_model).forward).parameters else (
        "past_key_values"
    )  # fmt: skip
    # Only the first pass may have several positions: a recurrent body goes on from its state one at a time.
    parts = [embeddings] if cache is None else embeddings.split(1, dim=1)
    cache = _restored(backbone, name, cache) if isinstance(cache, dict) else copy.deepcopy(cache)
    found = []
    for part in parts:
        output = backbone.base_model(inputs_embeds=part, use_cache=True, **{name: cache})
        cache = getattr(output, name)
        found.append(output.last_hidden_state)
    return torch.cat(found, dim=1), cache


def _restored(backbone: PreTrainedModel, name: str, tensors: dict[str, Tensor]) -> Any:
    """A cache of the backbone's own kind with these tensors in its layers."""
    embeddings = backbone.get_input_embeddings()(torch.zeros(1, 1, dtype=torch.long, device=backbone.device))
    cache = getattr(backbone.base_model(inputs_embeds=embeddings, use_cache=True), name)
    for path, tensor in tensors.items():
        layer, attribute, key = path.split(".", 2)
        place: Any = vars(cache.layers[int(layer)])
        if key:
            place[attribute][int(key)] = tensor.to(backbone.device).clone()
        else:
            place[attribute] = tensor.to(backbone.device).clone()
    return cache


def carries_state(backbone: PreTrainedModel) -> bool:
    """True for a backbone whose cache is a state of constant size, such as Mamba."""
    config = backbone.config.get_text_config(decoder=True)
    return "mamba" in str(config.model_type) or "rwkv" in str(config.model_type)
