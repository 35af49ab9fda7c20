"""One run on a GPU: the published numbers and the equivalences on CUDA, then speed and memory against full attention.

    python benchmarks/gpu.py --minutes 8 --json FILE            # on a GPU
    python benchmarks/gpu.py --device cpu --tiny                # every line of it, with tiny shapes

Speed is measured on random weights of the shapes of known models, in bfloat16: reading a text, writing on after it, and
several texts side by side. Each row says what it read, tokens per second, time to the first token behind the text,
milliseconds per token, peak memory, and how many times the host waited for the device while reading.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.cache_utils import Cache, DynamicLayer

from hmt import HMTForCausalLM
from hmt.compat.legacy import convert_checkpoint
from hmt.config import MemoryConfig
from hmt.metrics.machine import commit, environment
from hmt.options import parse_counts

GOLDEN = Path(__file__).parents[1] / "tests" / "parity" / "golden"

SHAPES: dict[str, dict[str, Any]] = {
    "smollm2-135m": dict(
        model_type="llama", vocab_size=49152, hidden_size=576, intermediate_size=1536, num_hidden_layers=30,
        num_attention_heads=9, num_key_value_heads=3, max_position_embeddings=8192, tie_word_embeddings=True,
    ),
    "qwen3-4b": dict(
        model_type="qwen3", vocab_size=151936, hidden_size=2560, intermediate_size=9728, num_hidden_layers=36,
        num_attention_heads=32, num_key_value_heads=8, head_dim=128, max_position_embeddings=40960,
        tie_word_embeddings=True,
    ),
    "llama-3.1-8b": dict(
        model_type="llama", vocab_size=128256, hidden_size=4096, intermediate_size=14336, num_hidden_layers=32,
        num_attention_heads=32, num_key_value_heads=8, max_position_embeddings=131072,
    ),
}  # fmt: skip

TINY = {
    "vocab_size": 300, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 4096, "head_dim": 16,
}  # fmt: skip


def golden(device: torch.device) -> Iterator[dict[str, Any]]:
    """Logits and loss of the published program."""
    for folder in sorted(GOLDEN.iterdir()):
        expected, io = json.loads((folder / "expected.json").read_text()), load_file(folder / "io.safetensors")
        mode = {"stage1": "short_term"}.get(expected["mode"], expected["mode"])
        config = MemoryConfig(
            mode=mode, sensory="reread", num_recalled_tokens=0, num_sensory=expected["num_sensory"],
            segment_length=expected["block_length"] + (0 if mode == "backbone" else 2) + expected["num_sensory"],
            mem_recall_hidden_dim=expected["recall_hidden_dim"], mem_recall_context=expected["memory_capacity"],
            sum_fraction=expected["summary_fraction"],
        )  # fmt: skip
        with tempfile.TemporaryDirectory() as out:
            model, _ = convert_checkpoint(
                folder / "reference_state.safetensors", folder / "backbone", Path(out) / "model", config
            )
            model.to(device)  # type: ignore[arg-type]
            given = {name: io[name].to(device) for name in ("input_ids", "attention_mask", "labels")}
            output = model(**given, loss_tokens=expected["loss_tokens"], output_recall=True)
        yield {
            "part": "golden", "case": folder.name,
            "logits": float((output.logits.cpu() - io["logits"]).abs().max()),
            "loss": abs(float(output.loss) - expected["loss"]),
            "distances": output.recall.distances == expected["recall_distance"],
        }  # fmt: skip


@torch.no_grad()
def equivalences(device: torch.device) -> Iterator[dict[str, Any]]:
    """Parts of any size, token by token, rows of a batch, and written against read."""
    families: dict[str, dict[str, Any]] = {
        "llama": {}, "qwen3": {}, "mistral": {"sliding_window": 16}, "gpt_neox": {},
        "gemma3_text": {"sliding_window": 16}, "cohere": {},
    }  # fmt: skip
    for family, more in families.items():
        torch.manual_seed(0)
        backbone = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **TINY | more)).to(device).eval()
        model = HMTForCausalLM.from_backbone(
            backbone, sensory="cache", segment_length=48, num_sinks=3, num_recalled_tokens=8
        ).eval()
        ids = torch.randint(3, 300, (2, 200), device=device)
        whole = model(ids).logits
        parts, memory = [], None
        for part in ids.split([100] + [1] * 100, dim=1):
            output = model(part, memory=memory)
            memory = output.memory
            parts.append(output.logits)
        alone = model(ids[1:]).logits
        written = model.generate(ids, max_new_tokens=20, do_sample=False, eos_token_id=None, pad_token_id=0)
        read = model(written).logits[:, 199:-1].argmax(dim=-1)
        yield {
            "part": "equivalence", "case": family, "parts": float((torch.cat(parts, dim=1) - whole).abs().max()),
            "row": float((alone[0] - whole[1]).abs().max()), "written": bool((read == written[:, 200:]).all()),
        }  # fmt: skip


class Clock:
    """Seconds on a device, and its peak memory."""

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"

    def __enter__(self) -> Clock:
        if self._cuda:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
        self._started = time.perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        if self._cuda:
            torch.cuda.synchronize()
        self.seconds = time.perf_counter() - self._started
        self.gigabytes = torch.cuda.max_memory_allocated() / 1e9 if self._cuda else 0.0


def waits(work: Any, device: torch.device) -> int:
    """How many times the host waits for the device while something is done."""
    if device.type != "cuda":
        work()
        return 0
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            work()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return sum("synchroniz" in str(one.message) for one in seen)


@torch.no_grad()
def speed(name: str, options: argparse.Namespace, device: torch.device, deadline: float) -> Iterator[dict[str, Any]]:
    """Reading and writing of one shape, with a memory and with full attention."""
    settings = SHAPES[name] | (TINY if options.tiny else {})
    config = AutoConfig.for_model(**settings)
    with torch.device(device):
        torch.manual_seed(0)
        backbone = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval()
    model = HMTForCausalLM.from_backbone(
        backbone, sensory="cache", segment_length=options.window, read_chunk_tokens=options.read_chunk
    ).eval()
    ids = torch.randint(3, settings["vocab_size"], (1, max(parse_counts(options.lengths))), device=device)
    warm = model.remember(ids[:, : 2 * options.read_chunk])
    model.generate(ids[:, :8], memory=warm, max_new_tokens=4, do_sample=False, eos_token_id=None, pad_token_id=0)
    base = {"part": "speed", "shape": name, "window": options.window, "chunk": options.read_chunk}
    for length in parse_counts(options.lengths):
        for batch in (1, 8) if length == parse_counts(options.lengths)[0] else (1,):
            if time.monotonic() > deadline:
                yield base | {"length": length, "row": "hmt", "skipped": "no time left"}
                return
            text = ids[:, :length].expand(batch, -1)
            with Clock(device) as reading:
                state = model.remember(text)
            stops = waits(
                lambda text=text, state=state: model.remember(text[:, : 2 * options.read_chunk], state), device
            )
            question = ids[:, :16].expand(batch, -1)
            with Clock(device) as first:
                model.generate(
                    question, memory=state, max_new_tokens=1, do_sample=False, eos_token_id=None, pad_token_id=0
                )
            with Clock(device) as writing:
                model.generate(
                    question, memory=state, max_new_tokens=65, do_sample=False, eos_token_id=None, pad_token_id=0
                )
            yield base | {
                "row": "hmt", "length": length, "batch": batch,
                "tokens_per_second": round(batch * length / reading.seconds), "peak_gb": round(reading.gigabytes, 2),
                "ms_to_first_token": round(1e3 * first.seconds, 1),
                "ms_per_token": round(1e3 * (writing.seconds - first.seconds) / 64, 2),
                "waits_per_part": round(stops / 2, 1), "window_mb": round(state.window.nbytes / 1e6, 1),
            }  # fmt: skip
            del state
        if time.monotonic() > deadline or length > options.full_up_to:
            continue
        try:
            cache = Cache(layer_class_to_replicate=DynamicLayer)
            with Clock(device) as reading:
                for part in ids[:, :length].split(8192, dim=1):
                    backbone.base_model(input_ids=part, past_key_values=cache, use_cache=True)
            steps = []
            for step in range(33):
                with Clock(device) as one:
                    backbone(input_ids=ids[:, step : step + 1], past_key_values=cache, use_cache=True)
                steps.append(one.seconds)
            yield base | {
                "row": "full", "length": length, "batch": 1, "tokens_per_second": round(length / reading.seconds),
                "peak_gb": round(reading.gigabytes, 2), "ms_per_token": round(1e3 * sum(steps[1:]) / 32, 2),
            }  # fmt: skip
        except torch.OutOfMemoryError:
            yield base | {"row": "full", "length": length, "skipped": "out of memory"}
        del cache
        if device.type == "cuda":
            torch.cuda.empty_cache()


def main() -> None:
    """Run everything that fits the time, a line of JSON each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="tiny shapes, to try every line on a CPU")
    parser.add_argument("--shapes", default="smollm2-135m,qwen3-4b,llama-3.1-8b")
    parser.add_argument("--lengths", default="8k,32k,128k")
    parser.add_argument("--full-up-to", type=int, default=131072)
    parser.add_argument("--window", type=int, default=1024)
    parser.add_argument("--read-chunk", type=int, default=2048)
    parser.add_argument("--minutes", type=float, default=8.0)
    parser.add_argument("--json", type=Path, default=None)
    options = parser.parse_args()
    device, deadline = torch.device(options.device), time.monotonic() + 60 * options.minutes
    found: list[dict[str, Any]] = []

    def note(entry: dict[str, Any]) -> None:
        found.append(entry)
        sys.stdout.write(f"{json.dumps(entry)}\n")
        sys.stdout.flush()

    for part in (golden, equivalences):
        for entry in part(device):
            note(entry)
    for name in options.shapes.split(","):
        for entry in speed(name, options, device, deadline):
            note(entry)
    if options.json is not None:
        about = {"command": sys.argv, "commit": commit(), "environment": environment()}
        options.json.write_text(json.dumps(about | {"rows": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
