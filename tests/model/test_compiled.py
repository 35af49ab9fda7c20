"""A compiled body reads as the plain one does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from hmt.model.compiled import SUMMARIES, CompiledBody, compile_layers
from hmt.text.batches import TokenDocument
from hmt.training.loop import Training
from hmt.training.options import TrainOptions
from tests.conftest import make_model, random_ids
from tests.model.test_equivalence import assert_same_state


@pytest.mark.slow
@torch.no_grad()
def test_compiled_reading_gives_what_plain_reading_gives() -> None:
    torch.compiler.reset()
    ids = random_ids(1, 14 * 7 + 5)
    plain = make_model()
    expected = plain(ids, labels=ids)
    model = make_model()
    model.compile_reading()
    got = model(ids, labels=ids)
    torch.testing.assert_close(got.nll, expected.nll, atol=1e-5, rtol=1e-5)
    assert_same_state(got.memory, expected.memory)
    assert_same_state(model.remember(ids), plain.remember(ids))


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


@pytest.fixture
def shapes(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """What the compiled body is called with, uncompiled."""
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    found: list[tuple[int, ...]] = []
    call = CompiledBody.__call__
    monkeypatch.setattr(
        CompiledBody, "__call__", lambda self, given: found.append(tuple(given.shape[:2])) or call(self, given)
    )
    return found


@torch.no_grad()
def test_only_shapes_that_come_again_are_compiled(shapes: list[tuple[int, ...]]) -> None:
    model = make_model()
    model.compile_reading()
    for length in (14 * 11 + 5, 14 * 3, 9, 14 * 6 + 1):
        model.remember(random_ids(1, length))
        model(random_ids(1, length))
    assert set(shapes) == {(1, 20), (SUMMARIES, 9)}
    assert shapes.count((1, 20)) >= 2 * (10 + 2 + 5)


def test_training_and_gradients_never_see_the_compiled_body(shapes: list[tuple[int, ...]]) -> None:
    model = make_model()
    model.compile_reading()
    ids = random_ids(1, 14 * 7)
    model(ids, labels=ids).loss.backward()
    assert model.memory.recall.wq.weight.grad is not None
    with torch.no_grad():
        model.train()(ids)
    assert shapes == []


def test_the_flag_compiles(backbone_dir: Path, tmp_path: Path, run_cli: Any, shapes: list[tuple[int, ...]]) -> None:
    (tmp_path / "book.txt").write_text("a line of the book\n" * 12)
    for flags, count in (((), 0), (("--compile",), 10)):
        status, _, complaint = run_cli(
            "remember", tmp_path / "book.txt", "--model_name", backbone_dir, "--sensory", "reread", "--segment_length",
            20, "--num_sensory", 4, "--out", tmp_path / "book.memory", *flags,
        )  # fmt: skip
        assert status == 0, complaint
        assert len(shapes) >= count
        assert bool(shapes) == bool(count)
