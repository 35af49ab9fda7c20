"""A run that is stopped, however, goes on as if it had not been."""

from __future__ import annotations

import json
import logging
import resource
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from hmt import HMTForCausalLM
from hmt.text.batches import TokenDocument
from hmt.training import progress
from hmt.training.loop import Training
from hmt.training.options import TrainOptions
from hmt.training.step import Stepper
from tests.conftest import byte_tokenizer, make_backbone, random_ids, scaled_accelerator

FLAGS: dict[str, Any] = {
    "segment_length": 20, "num_sensory": 4, "mem_recall_hidden_dim": 16, "memory_learning_rate": 1e-2,
    "stage_1_step": 4, "training_step": 6, "warmup_step": 1,
}  # fmt: skip
KINDS: dict[str, dict[str, Any]] = {
    "memory": {},
    "lora": {"use_lora": True, "lora_dropout": 0.3},
    "full": {"train_backbone": True},
    "cache": {"use_lora": True, "sensory": "cache", "num_sensory": 8, "training_step": 10},
}
TEXT = [TokenDocument("a", random_ids(1, 600)[0])]


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A backbone in a directory."""
    make_backbone().save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def wrap(base: Path, options: TrainOptions | None = None) -> HMTForCausalLM:
    """A model with a new memory."""
    torch.manual_seed(0)
    return HMTForCausalLM.from_backbone(base, options or TrainOptions(**FLAGS))


def weights(model: HMTForCausalLM) -> dict[str, torch.Tensor]:
    return {name.replace(".default", ""): value for name, value in model.state_dict().items()}


@pytest.mark.parametrize(
    ("kind", "stop_after"), [("memory", 1), ("memory", 4), ("memory", 9), ("lora", 3), ("full", 5), ("cache", 3)]
)
def test_a_run_that_was_terminated_goes_on_bit_by_bit(
    kind: str, stop_after: int, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = FLAGS | KINDS[kind]
    whole = Training(wrap(base, TrainOptions(**settings)), TrainOptions(**settings, save_ckpt=tmp_path / "whole"))
    expected = whole.run(TEXT)
    options = TrainOptions(**settings, save_ckpt=tmp_path / "ckpt")
    first = Training(wrap(base, options), options, byte_tokenizer())
    take, taken = Stepper.take, []

    def take_and_stop(self: Stepper, *arguments: Any) -> Any:
        taken.append(1)
        if len(taken) == stop_after:
            signal.raise_signal(signal.SIGTERM)
        return take(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Stepper, "take", take_and_stop)
        figures = first.run(TEXT)
    assert figures["interrupted"]
    assert figures["steps"] == stop_after
    saved = progress.load(options.save_ckpt)
    second = Training(HMTForCausalLM.from_pretrained(options.save_ckpt), options, byte_tokenizer(), saved)
    got = second.run(TEXT)
    for name in ("step", "stage", "loss", "grad_norm", "learning_rates"):
        assert [e[name] for e in got["history"]] == [e[name] for e in expected["history"]], name
    ours, theirs = weights(second.model), weights(whole.model)
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        assert torch.equal(ours[name], value), name


def test_the_command_resumes_and_says_so(
    backbone_dir: Path, task_dir: Path, tmp_path: Path, run_cli: Any, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    caplog.set_level(logging.INFO)
    flags = [part for name, value in FLAGS.items() for part in (f"--{name}", value)]
    command = ("train", "--model_name", backbone_dir, "--task_name", task_dir, *flags, "--resume",
               "--save_ckpt", tmp_path / "ckpt", "--json", tmp_path / "figures.json")  # fmt: skip
    take, taken = Stepper.take, []

    def take_and_stop(self: Stepper, *arguments: Any) -> Any:
        taken.append(1)
        if len(taken) == 7:
            signal.raise_signal(signal.SIGINT)
        return take(self, *arguments)

    monkeypatch.setattr(Stepper, "take", take_and_stop)
    status, said, complaint = run_cli(*command)
    assert status == 0, complaint
    assert "--resume" in said
    status, said, complaint = run_cli(*command)
    assert status == 0, complaint
    assert any(record.args and record.args[0] == 7 for record in caplog.records)
    assert len(taken) == 10
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert [entry["step"] for entry in figures["history"]] == list(range(1, 11))
    status, said, complaint = run_cli(*command)  # finished: nothing is left to do
    assert status == 0, complaint
    assert len(taken) == 10


def test_a_disk_that_is_full_does_not_stop_the_run(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    options = TrainOptions(**FLAGS, save_ckpt=tmp_path / "ckpt", save_every=3)
    training = Training(wrap(base), options, byte_tokenizer())
    take, taken = Stepper.take, []
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def take_until_full(self: Stepper, *arguments: Any) -> Any:
        taken.append(1)
        if len(taken) > 3:  # larger files cannot be written any more, as far as the writers can tell
            resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
        return take(self, *arguments)

    monkeypatch.setattr(Stepper, "take", take_until_full)
    try:
        with pytest.raises(OSError, match=r"File too large"):  # of the end; nothing more can be done
            training.run(TEXT)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert len(taken) == 10
    assert [f"step {n} could not be saved" in caplog.text for n in (3, 6, 9)] == [False, True, True]
    assert progress.load(options.save_ckpt).progress.steps == 3
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_a_run_with_a_scaled_loss_goes_on_with_its_scale(base: Path, tmp_path: Path) -> None:
    options = TrainOptions(**FLAGS | {"stage_1_step": 0}, save_ckpt=tmp_path / "whole")
    expected = Training(wrap(base), options, accelerator=scaled_accelerator(options, 2.0**24)).run(TEXT)
    options.save_ckpt = tmp_path / "ckpt"
    first = Training(wrap(base), options, byte_tokenizer(), accelerator=scaled_accelerator(options, 2.0**24))
    first._stop_requested = True  # stops after the first step, whose gradient overflows
    assert first.run(TEXT)["steps"] == 1
    saved, model = progress.load(options.save_ckpt), HMTForCausalLM.from_pretrained(options.save_ckpt)
    accelerator = scaled_accelerator(options, 2.0**3)
    got = Training(model, options, saved=saved, accelerator=accelerator).run(TEXT)
    assert [e["loss"] for e in got["history"]] == [e["loss"] for e in expected["history"]]
    assert accelerator.scaler.get_scale() > 2.0**3


def test_a_damaged_checkpoint_is_not_resumed(base: Path, tmp_path: Path) -> None:
    options = TrainOptions(**FLAGS, save_ckpt=tmp_path / "ckpt", save_every=3)
    Training(wrap(base), options).run(TEXT)
    file = options.save_ckpt / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    with pytest.raises(ValueError, match=r"model\.safetensors changed since the checkpoint was written"):
        progress.load(options.save_ckpt)


def test_a_signal_after_the_last_step_loses_nothing(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = TrainOptions(**FLAGS, save_ckpt=tmp_path / "ckpt")
    save = Training.save
    monkeypatch.setattr(Training, "save", lambda self: signal.raise_signal(signal.SIGTERM) or save(self))
    figures = Training(wrap(base), options).run(TEXT)
    assert (figures["steps"], figures["interrupted"]) == (10, False)
    assert progress.load(options.save_ckpt).progress.steps == 10


@pytest.mark.parametrize("moment", ["_log_step", "_save_midway"])
def test_a_signal_at_another_moment_is_heard_at_the_next_step(
    moment: str, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = TrainOptions(**FLAGS, save_ckpt=tmp_path / "ckpt", save_every=3)
    do, done = getattr(Training, moment), []

    def signalled(self: Training, *arguments: Any) -> None:
        done.append(1)
        if len(done) == 1:
            signal.raise_signal(signal.SIGTERM)
        do(self, *arguments)

    monkeypatch.setattr(Training, moment, signalled)
    figures = Training(wrap(base), options).run(TEXT)
    assert figures["interrupted"]
    assert (
        progress.load(options.save_ckpt).progress.steps
        == figures["steps"]
        == {"_log_step": 1, "_save_midway": 4}[moment]
    )


def test_a_run_with_other_settings_is_not_taken_up(base: Path, tmp_path: Path) -> None:
    Training(wrap(base), TrainOptions(**FLAGS, save_ckpt=tmp_path / "ckpt", save_every=3)).run(TEXT)
    progress.check_same_run(TrainOptions(**FLAGS, save_ckpt=tmp_path / "ckpt"))
    with pytest.raises(ValueError, match=r"seed is 0 in .* and cannot be resumed with 3"):
        progress.check_same_run(TrainOptions(**FLAGS, save_ckpt=tmp_path / "ckpt", seed=3))


@pytest.mark.parametrize("kind", KINDS)
def test_a_finished_run_that_gets_more_steps_is_one_that_was_planned_so(kind: str, base: Path, tmp_path: Path) -> None:
    settings = FLAGS | KINDS[kind] | {"training_step": 6}
    planned = Training(wrap(base), TrainOptions(**settings, save_ckpt=tmp_path / "whole"))
    expected = planned.run(TEXT)
    for steps in (1, 1, 6):
        options = TrainOptions(**settings | {"training_step": steps}, save_ckpt=tmp_path / "ckpt")
        saved, model = None, wrap(base)
        if options.save_ckpt.exists():
            progress.check_same_run(options)
            saved, model = progress.load(options.save_ckpt), HMTForCausalLM.from_pretrained(options.save_ckpt)
        training = Training(model, options, saved=saved)
        got = training.run(TEXT)
        assert got["steps"] == expected["steps"] - 6 + steps
    for name in ("step", "stage", "loss", "grad_norm", "learning_rates"):
        assert [e[name] for e in got["history"]] == [e[name] for e in expected["history"]], name
    for name, value in weights(planned.model).items():
        assert torch.equal(value, weights(training.model)[name]), name


def test_a_setting_that_a_run_is_made_of_is_refused_by_name(base: Path, tmp_path: Path) -> None:
    options = TrainOptions(**FLAGS, save_ckpt=tmp_path / "ckpt")
    Training(wrap(base), options).run(TEXT)
    progress.check_same_run(replace(options, training_step=9, save_every=2, eval_step=3, gradient_checkpointing=True))
    for name, value in {"learning_rate": 1e-4, "dtype": "bfloat16", "shuffle_train": False, "num_sensory": 9,
                        "loss_tokens": 5, "lr_schedule": "cosine", "text_column": "body"}.items():  # fmt: skip
        with pytest.raises(ValueError, match=name):
            progress.check_same_run(replace(options, **{name: value}))
