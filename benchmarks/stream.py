"""Reading a stream: peak memory after 8,192 and after 1,000,000 tokens, and tokens per second.

    python benchmarks/stream.py
    python benchmarks/stream.py --model_name smollm2-135m --lengths 8k,100k

Each length is a process of its own, `hmt remember -` with the text on its standard input. By default the model is small
and has random weights (4 layers, width 256, the vocabulary of SmolLM2), since what is measured is memory, not quality.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import tyro
from environment import write
from transformers import AutoModelForCausalLM, LlamaConfig

from hmt.options import parse_counts
from hmt.pretrained import load_tokenizer
from hmt.terminal import format_table
from hmt.text.tasks import load_documents

COLUMNS = {
    "tokens": "tokens",
    "seconds": "seconds",
    "tokens_per_second": "tokens/s",
    "peak_mb": "peak MB",
    "against_first": "peak / first",
    "file_bytes": "file bytes",
}


@dataclass
class Options:
    """What to measure."""

    model_name: str | None = None
    """Backbone; a small random one by default."""
    lengths: str = "8192,1000000"
    """Tokens of each stream."""
    name: str = "stream"
    """Of the file under results/."""


def main(options: Options) -> None:
    """Measure and write."""
    lengths = parse_counts(options.lengths)
    with tempfile.TemporaryDirectory() as folder:
        model_name = options.model_name or small_model(Path(folder) / "small")
        text = texts(lengths)
        rows = [read(model_name, length, text[length], Path(folder)) for length in lengths]
    for row in rows:
        row["against_first"] = row["peak_bytes"] / rows[0]["peak_bytes"]
    path = write(options.name, {"options": vars(options), "rows": rows})
    sys.stdout.write(f"{format_table(rows, COLUMNS)}\nwritten to {path}\n")


def small_model(folder: Path) -> str:
    """A directory with a small random model and a real tokenizer."""
    torch.manual_seed(0)
    tokenizer = load_tokenizer("smollm2-135m")
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=256, intermediate_size=768, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=2, tie_word_embeddings=True, bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def texts(lengths: list[int]) -> dict[int, str]:
    """Text of about so many tokens each: the standard library of the running Python, repeated if need be."""
    tokenizer = load_tokenizer("smollm2-135m")
    documents = [document.text for document in load_documents("stdlib", "train")]
    found, parts, tokens = {}, [], 0
    waiting = list(lengths)
    while waiting:
        for text in documents:
            ids = tokenizer(text, add_special_tokens=False)["input_ids"]
            while waiting and tokens + len(ids) >= waiting[0]:
                found[waiting[0]] = "".join(parts) + tokenizer.decode(ids[: waiting[0] - tokens])
                waiting.pop(0)
            parts.append(text)
            tokens += len(ids)
            if not waiting:
                break
    return found


def read(model_name: str, length: int, text: str, folder: Path) -> dict[str, Any]:
    """Figures of one stream."""
    figures = folder / f"{length}.json"
    command = [sys.executable, "-m", "hmt", "remember", "-", "--model_name", model_name, "--dtype", "float32"]
    command += ["--out", str(folder / f"{length}.memory"), "--json", str(figures)]
    subprocess.run(command, input=text, text=True, check=True)
    row = json.loads(figures.read_text())
    return row | {"peak_mb": row["peak_bytes"] / 1e6}


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
