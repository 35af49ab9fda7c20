"""The model that a memory belongs to."""

from __future__ import annotations

from dataclasses import dataclass

WIDE = {"float32", "bfloat16", "float64"}
"""Number formats whose weights can be compared after rounding to bfloat16."""


def comparable(one: str, other: str) -> bool:
    """Return True if two digests can tell equal weights from others: the same number formats, or wide ones."""
    formats = [digest.partition(":")[0] for digest in (one, other)]
    return formats[0] == formats[1] or all(WIDE.issuperset(names.split("+")) for names in formats)


def same_weights(one: str, other: str) -> bool:
    """Compare two digests: exactly if the number formats are the same, else after rounding to bfloat16."""
    if one.partition(":")[0] == other.partition(":")[0]:
        return one == other
    return comparable(one, other) and one.rpartition(":")[2] == other.rpartition(":")[2]


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
        known = bool(self.weights) and bool(other.weights)
        alike = self.width == other.width and self.settings == other.settings
        return alike and (not known or same_weights(self.weights, other.weights))
