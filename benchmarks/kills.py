"""Is anything lost when training is killed? The run is killed (SIGKILL) at random moments and started again each time.

    python benchmarks/kills.py --kills 30

Then it is left to finish, and compared with a run that was never killed: every loss and every weight must be equal.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import tyro
from environment import write
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, LlamaConfig

from hmt.atomic import recover_directory
from hmt.pretrained import load_tokenizer
from hmt.training import progress


@dataclass
class Options:
    """What to measure."""

    kills: int = 30
    """Times the run is killed."""
    steps: int = 3000
    """Optimizer steps of the run."""
    seed: int = 0
    """Of the moments."""
    name: str = "kills"
    """Of the file under results/."""


def main(options: Options) -> None:
    """Kill, resume, compare."""
    draw = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        command = training_command(root, options.steps)
        killed = root / "killed"
        steps = [kill_once(command, killed, draw) for _ in range(options.kills)]
        subprocess.run([*command, "--save_ckpt", str(killed), "--resume"], check=True)
        whole = root / "whole"
        subprocess.run([*command, "--save_ckpt", str(whole)], check=True)
        figures = compare(killed, whole) | {"killed_at_steps": steps, "options": vars(options)}
    path = write(options.name, figures)
    sys.stdout.write(f"{json.dumps(figures)}\nwritten to {path}\n")


def training_command(root: Path, steps: int) -> list[str]:
    """A run of a tiny model, saving every 5 steps."""
    torch.manual_seed(0)
    tokenizer = load_tokenizer("smollm2-135m")
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        bos_token_id=1, eos_token_id=2, tie_word_embeddings=True,
    )  # fmt: skip
    AutoModelForCausalLM.from_config(config).save_pretrained(root / "tiny")
    tokenizer.save_pretrained(root / "tiny")
    (root / "text").mkdir()
    (root / "text" / "train.txt").write_text("".join(f"item {n % 17} is in box {n % 5}.\n" for n in range(2000)))
    flags = {
        "model_name": root / "tiny", "task_name": root / "text", "segment_length": 24, "num_sensory": 4,
        "mem_recall_hidden_dim": 16, "stage_1_step": steps // 2, "training_step": steps // 2, "save_every": 5,
        "lora_dropout": 0.2, "device": "cpu",
    }  # fmt: skip
    pairs = [part for name, value in flags.items() for part in (f"--{name}", str(value))]
    return [sys.executable, "-m", "hmt", "train", *pairs, "--use_lora"]


def kill_once(command: list[str], checkpoint: Path, draw: random.Random) -> int:
    """Start the run, kill it while it trains, and return the step that its checkpoint is of."""
    lines = checkpoint.with_name(f"{checkpoint.name}.run") / "metrics.jsonl"
    before = lines.stat().st_mtime_ns if lines.exists() else 0
    process = subprocess.Popen(
        [*command, "--save_ckpt", str(checkpoint), "--resume"], stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL
    )
    while process.poll() is None and (not lines.exists() or lines.stat().st_mtime_ns == before):
        time.sleep(0.05)
    time.sleep(draw.uniform(0, 1.5))
    process.kill()
    process.wait()
    recover_directory(checkpoint)
    return progress.load(checkpoint).progress.steps if progress.can_resume(checkpoint) else 0


def compare(one: Path, other: Path) -> dict[str, Any]:
    """Whether two finished runs are equal in every loss and weight."""
    losses = []
    for checkpoint in (one, other):
        lines = (checkpoint.with_name(f"{checkpoint.name}.run") / "metrics.jsonl").read_text().splitlines()
        losses.append([json.loads(line)["loss"] for line in lines])
    weights = [
        load_file(checkpoint / "model.safetensors") | load_file(checkpoint / "adapter" / "adapter_model.safetensors")
        for checkpoint in (one, other)
    ]
    equal = all(torch.equal(weights[0][name], weights[1][name]) for name in weights[1])
    return {"steps": len(losses[1]), "losses_equal": losses[0] == losses[1], "weights_equal": equal}


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main(tyro.cli(Options, description=__doc__))
