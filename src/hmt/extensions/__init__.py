"""Extensions: what not every memory needs, one file each, behind the hooks of `Extension`.

A module of this package that registers an extension adds a feature; deleting the file deletes it. The core calls the
hooks and names none of them.

Shape legend: B rows, l new tokens of a step, R memory embeddings per segment, D embedding size, V vocabulary.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, TypeVar

from torch import Tensor, nn

from hmt.config import MemoryConfig

if TYPE_CHECKING:
    from hmt.memory.state import MemoryState


class Extension(nn.Module):
    """Hooks into the step; each does nothing by default.

    Args:
        config: Settings of the memory.
        width: Embedding size D.
        vocabulary: Logits V.
    """

    needs_logits = False
    """True if the extension must see the logits of every token that is read."""

    def __init__(self, config: MemoryConfig, width: int, vocabulary: int) -> None:
        super().__init__()
        self.config = config

    @staticmethod
    def enabled(config: MemoryConfig) -> bool:
        """True if the settings ask for this extension."""
        raise NotImplementedError

    def initialise(self, backbone: nn.Module) -> None:
        """Fit new parameters to the backbone."""

    def initial_state(self, batch_size: int) -> dict[str, Tensor]:
        """State before the first token, by name; each tensor has the rows first."""
        return {}

    def window_tokens(self, state: MemoryState, fresh: Tensor, sensory: Tensor) -> tuple[Tensor, Tensor]:
        """Fresh and sensory tokens of the segment at hand of each row, (B,) int64 each."""
        return fresh, sensory

    def map_recalled(self, state: MemoryState, recalled: Tensor) -> Tensor:
        """Recalled embeddings (B, R, D) as the segment at hand gets them."""
        return recalled

    def adjust_logits(
        self, logits: Tensor, ids: Tensor, mask: Tensor, state: MemoryState
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Logits (B, l, V) float32 after new tokens, and what changes in the extension's state.

        Args:
            logits: Of the backbone.
            ids: New tokens, (B, l), on the CPU.
            mask: (B, l) bool, real tokens.
            state: Before these tokens.
        """
        return logits, {}

    def after_segment(
        self, state: MemoryState, left_behind: Tensor, complete: Tensor, near: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Memory embeddings (B, R, D) as the bank keeps them, and what changes in the extension's state.

        Args:
            state: Before the segment ended.
            left_behind: Hidden states at the trailing prompt.
            complete: (B,) bool, rows whose segment ended.
            near: (B,) bool, rows that recalled one of the last segments most.
        """
        return left_behind, {}

    def around_body(self, backbone: nn.Module) -> AbstractContextManager[Any]:
        """Context in which the backbone's body runs."""
        return nullcontext()


EXTENSIONS: dict[str, type[Extension]] = {}
Registered = TypeVar("Registered", bound=type[Extension])


def register_extension(name: str) -> Callable[[Registered], Registered]:
    """Make an extension known under a name, as a decorator of its class.

    Raises:
        ValueError: If the name belongs to another class already.
    """

    def register(extension: Registered) -> Registered:
        if EXTENSIONS.setdefault(name, extension) is not extension:
            raise ValueError(f"extension {name!r} is {EXTENSIONS[name].__name__} already")
        return extension

    return register


def enabled_extensions(config: MemoryConfig, width: int, vocabulary: int) -> nn.ModuleDict:
    """The extensions that the settings ask for, by name, in order of registration."""
    for module in pkgutil.iter_modules(__path__):
        importlib.import_module(f"{__name__}.{module.name}")
    chosen = {name: kind for name, kind in EXTENSIONS.items() if kind.enabled(config)}
    return nn.ModuleDict({name: kind(config, width, vocabulary) for name, kind in chosen.items()})
