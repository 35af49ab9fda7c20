"""The model that a memory belongs to."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ModelIdentity:
    """Which model a memory belongs to: memories of another one mean nothing to it.

    Attributes:
        name: What the user called the backbone, for messages.
        width: Embedding size D.
        settings: The memory settings that shape the state, as sorted "name=value" pairs.
        weights: Digest of the weights, or "" where it was not computed (states made while training).
    """

    name: str
    width: int
    settings: str
    weights: str = ""

    def __str__(self) -> str:
        weights = f", weights {self.weights}" if self.weights else ""
        return f"{self.name or 'unnamed model'} (width {self.width}, {self.settings}{weights})"

    def accepts(self, other: ModelIdentity) -> bool:
        """True where a memory written by `other` can be read by this model."""
        same_weights = not self.weights or not other.weights or self.weights == other.weights
        return self.width == other.width and self.settings == other.settings and same_weights
