"""Runs that read and write text."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from tyro.conf import Positional

from hmt.config import MemoryConfig, Sensory
from hmt.options.base import ModelOptions, OutputOptions, ReadingOptions, check_positive

API_KEY = "HMT_API_KEY"
"""Environment variable with the key that clients of a server must send."""


@dataclass(kw_only=True)
class SamplingOptions:
    """How the next token is chosen."""

    max_new_tokens: int = 100
    """Tokens to generate at most."""
    do_sample: bool = False
    """Sample instead of taking the likeliest token."""
    temperature: float = 1.0
    """Of sampling."""
    top_k: int = 0
    """Sample from the k likeliest tokens; 0 from all."""
    top_p: float = 1.0
    """Sample from the likeliest tokens that hold this much probability."""
    repetition_penalty: float = 1.0
    """Above 1, tokens that were there before become less likely."""

    @property
    def sampling(self) -> dict[str, Any]:
        """The same settings as arguments of `generate`."""
        settings = {field.name: getattr(self, field.name) for field in fields(SamplingOptions)}
        if not self.do_sample:
            settings = {
                name: value for name, value in settings.items() if name not in ("temperature", "top_k", "top_p")
            }
        return settings

    def check(self) -> None:
        """Check ranges, then those of the other options.

        Raises:
            ValueError: Naming the flag.
        """
        check_positive(self, "max_new_tokens", "temperature", "repetition_penalty", "top_p")
        if self.top_p > 1:
            raise ValueError(f"top_p must be at most 1, got {self.top_p}")
        if self.top_k < 0:
            raise ValueError(f"top_k must be at least 0, got {self.top_k}")
        super().check()  # type: ignore[misc]


@dataclass(kw_only=True)
class GenerateOptions(SamplingOptions, OutputOptions, ModelOptions):
    """Continue a text of any length."""

    prompt: str | None = None
    """The text to continue."""
    prompt_file: Path | None = None
    """A UTF-8 file with the text to continue."""
    memory: Path | None = None
    """Memory file of what was read before the prompt (see hmt remember)."""
    chat: bool = False
    """The prompt is a message to be answered: put it into the tokenizer's chat template."""
    explain: bool = False
    """Show the passages that were recalled for the prompt."""

    def check(self) -> None:
        """Check ranges and combinations.

        Raises:
            ValueError: Naming the flag.
        """
        super().check()
        if (self.prompt is None) == (self.prompt_file is None):
            raise ValueError("give the text to continue with one of --prompt and --prompt_file")


@dataclass(kw_only=True)
class ChatOptions(SamplingOptions, OutputOptions, ModelOptions):
    """Talk to the model in the terminal; what was said is kept in a memory that never outgrows the window."""

    memory: Path | None = None
    """Memory file to begin with (see hmt remember)."""
    system: str | None = None
    """System message; that of the chat template by default."""


@dataclass(kw_only=True)
class ServeOptions(SamplingOptions, OutputOptions, ModelOptions):
    """Answer clients of the OpenAI protocol; the flags of sampling hold where a request says nothing."""

    memory: Path | None = None
    """Memory file that every request goes on from (see hmt remember)."""
    host: str = "127.0.0.1"
    """Address to listen on; other machines reach it only if you give another one."""
    port: int = 8000
    """Port to listen on; 0 takes a free one."""
    api_key_file: Path | None = None
    """File with the key that clients must send; by default it is taken from HMT_API_KEY."""
    require_key: bool = True
    """Require a key. Without one, only requests to a loopback address are answered."""
    served_name: str | None = None
    """What clients call the model; by default the last part of its name."""
    max_new_tokens: int = 512
    """Tokens to generate at most, where a request does not say."""

    def check(self) -> None:
        """Check ranges.

        Raises:
            ValueError: Naming the flag.
        """
        super().check()
        if not 0 <= self.port < 1 << 16:
            raise ValueError(f"port must lie between 0 and 65535, got {self.port}")


@dataclass(kw_only=True)
class RememberOptions(OutputOptions, ReadingOptions):
    """Read a text of any length once, and keep the memory of it in a file."""

    text: Positional[str]
    """A UTF-8 text file, or - for standard input."""
    out: Path
    """The memory file."""
    append: bool = False
    """Go on from the memory that is in the file."""
    explain: bool = False
    """Show which segments are kept at the end, how much each was recalled, what it is worth, and their text."""


@dataclass(kw_only=True)
class ConvertOptions(MemoryConfig):
    """Turn weights of the published HMT program into a checkpoint of this library."""

    sensory: Sensory | None = "reread"
    """Sensory memory of the published method: the last tokens are re-encoded."""
    num_recalled_tokens: int | None = 0
    """Budget of text recall, which the published method has not."""
    state: Path
    """The weights: .safetensors, .pth or .bin (tensors only, nothing is executed), or a DeepSpeed directory."""
    backbone: Path
    """Directory with the backbone's config.json; its tokenizer is copied if it is there."""
    out: Path
    """Directory of the new checkpoint."""
    lora_alpha: int = 32
    """Alpha of the run's LoRA, which its weights do not tell."""
    trust_remote_code: bool = False
    """Run code that comes with the backbone."""
