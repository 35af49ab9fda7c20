"""hmt: a hierarchical memory for any HuggingFace causal language model."""

from __future__ import annotations

import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hmt.memory.retention import RetentionPolicy, register_policy
    from hmt.memory.state import MemoryState
    from hmt.model.configuration_hmt import HMTConfig
    from hmt.model.modeling_hmt import HMTForCausalLM

__all__ = ["HMTConfig", "HMTForCausalLM", "MemoryState", "RetentionPolicy", "register_policy"]
__version__ = "0.1.0"

_HOMES = {
    "HMTConfig": "hmt.model.configuration_hmt",
    "HMTForCausalLM": "hmt.model.modeling_hmt",
    "MemoryState": "hmt.memory.state",
    "RetentionPolicy": "hmt.memory.retention",
    "register_policy": "hmt.memory.retention",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


# Importing the library registers it with transformers' Auto classes. The command line, which answers --help without
# torch, imports the model when a verb needs it.
if "hmt_cli" not in sys.modules and sys.argv[:1] != ["-m"]:  # as it is while `python -m hmt` looks for the package
    import_module("hmt.model.modeling_hmt")
