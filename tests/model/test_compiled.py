"""Compiled layers train as plain ones do."""

from __future__ import annotations

import pytest
import torch

from hmt.model.backbone import compile_layers
from hmt.text.batches import TokenDocument
from hmt.training.loop import Training
from hmt.training.options import TrainOptions
from tests.conftest import make_model, random_ids


@pytest.mark.slow
@pytest.mark.parametrize("recompute", [False, True])
def test_compiled_layers_train_as_plain_ones_do(recompute: bool) -> None:
    torch.compiler.reset()
    losses = []
    for compiled in (False, True):
        options = TrainOptions(sensory="reread", segment_length=20, num_sensory=4, stage_1_step=1, training_step=2,
                               batch_size=2, use_lora=True, lora_dropout=0.0, gradient_checkpointing=recompute,
                               compile=compiled)  # fmt: skip
        training = Training(make_model(), options, keep=False)
        documents = [TokenDocument(str(seed), random_ids(1, 14 * 9 + 5, seed=seed)[0]) for seed in range(4)]
        losses.append([step["loss"] for step in training.run(documents)["history"]])
    torch.testing.assert_close(losses[1], losses[0], atol=1e-4, rtol=1e-4)


def test_layers_that_are_not_known_are_not_compiled() -> None:
    with pytest.raises(ValueError, match="leave out --compile"):
        compile_layers(torch.nn.Linear(2, 2))  # type: ignore[arg-type]
