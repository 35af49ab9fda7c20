"""Two processes give the losses of one at the same global batch."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint
from safetensors.torch import load_file
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from hmt import HMTForCausalLM
from hmt.text.batches import TokenDocument, cut, pad, scored_targets, shuffled
from hmt.training import progress
from hmt.training.curriculum import parameter_groups
from hmt.training.launch import gathered
from hmt.training.loop import Training
from hmt.training.options import TrainOptions
from hmt.training.step import Stepper
from tests.conftest import make_model, random_ids

FLAGS: dict[str, Any] = {
    "segment_length": 20, "num_sensory": 4, "mem_recall_hidden_dim": 16, "memory_learning_rate": 1e-2,
    "stage_1_step": 3, "training_step": 5, "eval_step": 2, "lr_schedule": "cosine",
}  # fmt: skip
ON_CPU = {"ACCELERATE_USE_CPU": "yes"}
TEXT = [TokenDocument(str(n), random_ids(1, n, seed=n)[0]) for n in (56, 30, 300, 41, 200, 56, 14, 15, 14)]
"""The last ones have one segment: nothing is recalled in them, and parts of the memory get no gradient."""

HANGS_SECONDS = 1800
"""Ends processes that wait for each other forever; a busy machine takes minutes."""


def launch(function: str, *arguments: Any, **environment: str) -> None:
    """Call a function of this file in two processes, as a launcher starts them."""
    script = f"from tests.training import test_processes as t; t.{function}(*{arguments!r})"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = os.environ | environment | {
        "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
    }  # fmt: skip
    running = [
        subprocess.Popen(
            [sys.executable, "-c", script],
            env=shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    said = [process.communicate(timeout=HANGS_SECONDS)[0] for process in running]
    assert not any(process.returncode for process in running), said[0][-3000:]


def train(folder: str, more: dict[str, Any]) -> None:
    """One process of a run; the first writes what came out."""
    options = TrainOptions(**FLAGS, **more, save_ckpt=Path(folder) / "ckpt")
    training = Training(make_model(), options)
    figures = training.run(TEXT, TEXT)
    training.save()
    if training.accelerator.is_main_process:
        (Path(folder) / "figures.json").write_text(json.dumps(figures))
    training.close()


@pytest.mark.parametrize("kind", [{}, {"use_lora": True, "lora_dropout": 0.0}, {"train_backbone": True}], ids=str)
def test_two_processes_are_one(kind: dict[str, Any], tmp_path: Path) -> None:
    figures = []
    for processes in (2, 1):
        folder = tmp_path / str(processes)
        folder.mkdir()
        flags = kind | {"batch_size": 4 // processes}
        if processes == 2:
            launch("train", str(folder), flags, **ON_CPU)
        else:
            train(str(folder), flags)
        figures.append(json.loads((folder / "figures.json").read_text()))
    assert [f["processes"] for f in figures] == [2, 1]
    for name in ("loss", "grad_norm", "validation_loss"):
        values = [[e[name] for e in f["history"] if name in e] for f in figures]
        assert values[0] == pytest.approx(values[1], rel=1e-4), name
    assert figures[0]["history"][-1]["learning_rates"] == figures[1]["history"][-1]["learning_rates"]


DEEPSPEED = {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "2",
             "ACCELERATE_MIXED_PRECISION": "bf16"}  # fmt: skip


def train_on_deepspeed(folder: str, resume: bool) -> None:
    """One process of a run on ZeRO-2, which is stopped after 4 steps and taken up again."""
    options = TrainOptions(**FLAGS | {"training_step": 8}, batch_size=2, hmt_stage_2=True, mixed_precision="bf16",
                           save_ckpt=Path(folder) / "ckpt", save_every=4)  # fmt: skip
    saved = progress.load(options.save_ckpt) if resume else None
    model = HMTForCausalLM.from_pretrained(options.save_ckpt) if resume else make_model(memory_gain=0.5)
    training = Training(model, options, saved=saved)
    if not resume:
        take, taken = Stepper.take, []

        def stop_after_four(self: Stepper, *arguments: Any) -> Any:
            taken.append(1)
            training._stop_requested = len(taken) == 4
            return take(self, *arguments)

        Stepper.take = stop_after_four
    figures = training.run(TEXT)
    if training.accelerator.is_main_process:
        (Path(folder) / f"figures-{resume}.json").write_text(json.dumps(figures))


@pytest.mark.slow
def test_deepspeed_takes_the_steps_of_one_process_and_goes_on_where_it_was_stopped(tmp_path: Path) -> None:
    figures = []
    for resume in (False, True):
        launch("train_on_deepspeed", str(tmp_path), resume, **DEEPSPEED)
        figures.append(json.loads((tmp_path / f"figures-{resume}.json").read_text()))
    first, rest = figures
    assert (first["processes"], first["steps"], first["interrupted"]) == (2, 4, True)
    options = TrainOptions(**FLAGS | {"training_step": 8}, batch_size=4, hmt_stage_2=True, mixed_precision="bf16")
    alone = Training(make_model(memory_gain=0.5), options, keep=False).run(TEXT)
    losses = [[entry["loss"] for entry in figures["history"]] for figures in (rest, alone)]
    assert len(losses[0]) == 8
    assert losses[0] == pytest.approx(losses[1], rel=5e-3)  # weights in bfloat16 there, in float32 here
    engine = tmp_path / "ckpt" / "training" / "engine"
    rebuilt = get_fp32_state_dict_from_zero_checkpoint(str(engine), tag="engine")
    saved = load_file(tmp_path / "ckpt" / "model.safetensors")
    for name, value in saved.items():
        if name.startswith("memory.") and name in rebuilt:
            torch.testing.assert_close(value.float(), rebuilt[name].float(), atol=1e-2, rtol=1e-2)
    assert sum(name.startswith("memory.") for name in rebuilt) >= 5


def train_sharded(folder: str) -> None:
    """One process whose parameters are cut up by torch's FSDP2: each layer, then the rest."""
    accelerator = Accelerator(cpu=True)
    mesh = init_device_mesh("cpu", (accelerator.num_processes,))
    torch.manual_seed(0)
    model = make_model()
    options = TrainOptions(**FLAGS | {"training_step": 6}, batch_size=2, hmt_stage_2=True, train_backbone=True)
    model.train()
    for layer in model.backbone.model.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    assert all(isinstance(parameter, DTensor) for parameter in model.parameters())
    optimizer = torch.optim.AdamW(parameter_groups(model, options), weight_decay=0.0)
    samples = shuffled(cut(TEXT, 4 * 14), seed=0)
    losses = []
    for _ in range(6):
        rows = list(islice(samples, 4))
        batch = pad(rows[accelerator.process_index :: 2])
        output = model(batch.input_ids, attention_mask=batch.attention_mask, labels=batch.labels, return_logits=False)
        share = output.nll.sum() / scored_targets(rows, None)
        (share * accelerator.num_processes).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), options.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(accelerator.reduce(share.detach(), reduction="sum")))
    weights = gathered(accelerator, model)
    if accelerator.is_main_process:
        model.save_pretrained(Path(folder) / "ckpt", state_dict=weights, save_backbone=True)
        (Path(folder) / "losses.json").write_text(json.dumps(losses))
    accelerator.end_training()


def test_fsdp2_takes_the_steps_of_one_process(tmp_path: Path) -> None:
    launch("train_sharded", str(tmp_path), **ON_CPU)
    options = TrainOptions(**FLAGS | {"training_step": 6, "lr_decay": False, "stage_1_step": 0}, batch_size=4,
                           hmt_stage_2=True, train_backbone=True)  # fmt: skip
    options.learning_rate = TrainOptions().learning_rate
    training = Training(make_model(), options, keep=False)
    alone = training.run(TEXT)
    saved = HMTForCausalLM.from_pretrained(tmp_path / "ckpt")
    for name, value in training.model.state_dict().items():
        torch.testing.assert_close(saved.state_dict()[name], value, atol=1e-4, rtol=1e-3, msg=name)
    assert json.loads((tmp_path / "losses.json").read_text()) == pytest.approx(
        [entry["loss"] for entry in alone["history"]], rel=1e-4
    )
