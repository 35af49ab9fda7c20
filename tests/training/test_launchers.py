"""The launcher files start runs, as they are but for the number of processes."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from accelerate.commands.config.config_args import load_config_from_file

from hmt import HMTForCausalLM
from tests.conftest import byte_tokenizer, make_backbone

CONFIGS = Path(__file__).parents[2] / "configs" / "accelerate"


@pytest.fixture
def flags(tmp_path: Path) -> list[str]:
    """What `hmt train` needs for a run of seconds."""
    make_backbone("llama").save_pretrained(tmp_path / "backbone")
    byte_tokenizer().save_pretrained(tmp_path / "backbone")
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "train.txt").write_text("In the beginning there was a long text. " * 20)
    values: dict[str, Any] = {
        "model_name": tmp_path / "backbone", "task_name": tmp_path / "text", "save_ckpt": tmp_path / "ckpt",
        "segment_length": 20, "num_sensory": 4, "mem_recall_hidden_dim": 16, "training_step": 3, "batch_size": 2,
        "json": tmp_path / "figures.json",
    }  # fmt: skip
    return ["--hmt_stage_2", *(f"--{name}={value}" for name, value in values.items())]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ddp", "zero2_bf16"])
def test_a_launcher_file_starts_two_processes_that_train_together(name: str, flags: list[str], tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    launcher = [
        "--config_file",
        str(CONFIGS / f"{name}.yaml"),
        "--num_processes",
        "2",
        "--main_process_port",
        str(port),
    ]
    # On a CPU that variable is what starts several processes, and what keeps Accelerate from using DeepSpeed.
    on_cpu = {} if name.startswith("zero") else {"ACCELERATE_USE_CPU": "true"}
    done = subprocess.run(
        [sys.executable, "-m", "accelerate.commands.launch", *launcher, "-m", "hmt", "train", *flags],
        env=os.environ | on_cpu | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=1800,
    )
    said = done.stdout + done.stderr
    assert (tmp_path / "figures.json").exists(), said[-3000:]
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert (figures["processes"], figures["steps"]) == (2, 3)
    assert done.stdout.count("checkpoint in") == 1
    assert (tmp_path / "ckpt" / "training" / "engine").exists() == name.startswith("zero")
    HMTForCausalLM.from_pretrained(tmp_path / "ckpt")


@pytest.mark.parametrize("file", sorted(CONFIGS.glob("*.yaml")), ids=lambda file: file.stem)
def test_the_launcher_knows_every_setting_of_a_file(file: Path) -> None:
    config = load_config_from_file(str(file))  # refuses what it does not know
    assert config.num_processes == 4
    assert config.mixed_precision == "bf16"
