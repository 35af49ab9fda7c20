"""Two processes give the losses of one at the same global batch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from accelerate import debug_launcher

from hmt.options import TrainOptions
from hmt.text.batches import TokenDocument
from hmt.training.loop import Training
from tests.conftest import make_model, random_ids

FLAGS: dict[str, Any] = {
    "segment_length": 20, "num_sensory": 4, "mem_recall_hidden_dim": 16, "memory_learning_rate": 1e-2,
    "stage_1_step": 3, "training_step": 5, "eval_step": 2, "lr_decay_step": 2,
}  # fmt: skip
TEXT = [TokenDocument(str(n), random_ids(1, n, seed=n)[0]) for n in (56, 30, 300, 41, 200, 56)]


def train(folder: str, more: dict[str, Any]) -> None:
    """One process of a run; the first writes what came out."""
    options = TrainOptions(**FLAGS, **more, save_ckpt=Path(folder) / "ckpt")
    training = Training(make_model(), options)
    figures = training.run(TEXT, TEXT)
    training.save()
    if training.accelerator.is_main_process:
        (Path(folder) / "figures.json").write_text(json.dumps(figures))
    training.accelerator.end_training()


@pytest.mark.parametrize("kind", [{}, {"use_lora": True, "lora_dropout": 0.0}, {"train_backbone": True}], ids=str)
def test_two_processes_are_one(kind: dict[str, Any], tmp_path: Path) -> None:
    figures = []
    for processes in (2, 1):
        folder = tmp_path / str(processes)
        folder.mkdir()
        flags = kind | {"batch_size": 4 // processes}
        if processes == 2:
            debug_launcher(train, (str(folder), flags), num_processes=2)
        else:
            train(str(folder), flags)
        figures.append(json.loads((folder / "figures.json").read_text()))
    assert [f["processes"] for f in figures] == [2, 1]
    for name in ("loss", "grad_norm", "validation_loss"):
        values = [[e[name] for e in f["history"] if name in e] for f in figures]
        assert values[0] == pytest.approx(values[1], rel=1e-4), name
    assert figures[0]["history"][-1]["learning_rates"] == figures[1]["history"][-1]["learning_rates"]
