"""Training: it learns, in the stages asked for, and leaves a checkpoint that evaluation loads."""

from __future__ import annotations

import json
import logging
import math
import weakref
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file

from hmt import HMTForCausalLM
from hmt.text.batches import Batch, TokenDocument
from hmt.training import record
from hmt.training.curriculum import choose_trained_parts, curriculum, learning_rate_schedule, parameter_groups
from hmt.training.loop import Training
from hmt.training.options import TrainOptions
from hmt.training.step import Stepper
from tests.conftest import make_model, random_ids, scaled_accelerator

SMALL = {"segment_length": 20, "num_sensory": 4, "mem_recall_hidden_dim": 16, "memory_learning_rate": 1e-2}


def fit(
    model: HMTForCausalLM,
    text: list[TokenDocument],
    options: TrainOptions,
    accelerator: Accelerator | None = None,
    **more: Any,
) -> dict[str, Any]:
    """Train, and keep nothing but the model."""
    return Training(model, options, keep=False, accelerator=accelerator).run(text, **more)


def documents() -> list[TokenDocument]:
    """A text that says the same over and over."""
    return [TokenDocument("a", random_ids(1, 30).repeat(1, 20)[0])]


def test_the_memory_learns_and_the_frozen_backbone_stays() -> None:
    model = make_model()
    backbone = {name: value.clone() for name, value in model.backbone.state_dict().items()}
    memory = {name: value.clone() for name, value in model.memory.state_dict().items()}
    figures = fit(model, documents(), TrainOptions(**SMALL, stage_1_step=15, training_step=45, bptt_depth=4))
    assert figures["last_loss"] < figures["first_loss"] - 0.05
    assert all(torch.equal(value, backbone[name]) for name, value in model.backbone.state_dict().items())
    for name in ("recall.wq.weight", "recall.wk.weight", "summary_prompt", "injection.base", "injection.gain"):
        assert not torch.equal(model.memory.state_dict()[name], memory[name]), name
    assert {entry["stage"] for entry in figures["history"]} == {"1", "2"}


@pytest.mark.parametrize(
    "fields",
    [
        {"memory_policy": "attention", "mem_recall_context": 3},
        {"memory_policy": "merge", "mem_recall_context": 3, "num_recalled_tokens": 4},
    ],
    ids=str,
)
def test_policies_and_recalled_tokens_train_in_both_stages(fields: dict[str, Any]) -> None:
    model = make_model(**fields)
    policy = {name: value.clone() for name, value in model.memory.retention.state_dict().items()}
    options = TrainOptions(**SMALL, **fields, stage_1_step=10, training_step=25, bptt_depth=7)
    figures = fit(model, documents(), options)
    assert figures["last_loss"] < figures["first_loss"]
    for name, value in model.memory.retention.state_dict().items():
        assert not torch.equal(value, policy[name]), name


def test_the_map_between_reading_speeds_can_be_trained_alone() -> None:
    model = make_model(dynamic_reading=True)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    options = TrainOptions(**SMALL, dynamic_reading=True, train_memory_map=True, training_step=5, bptt_depth=5)
    figures = fit(model, documents(), options)
    assert figures["trainable_parameters"] == 32 * 32
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {"extensions.dynamic_reading.weight"}


def test_one_batch_can_be_learnt_by_heart() -> None:
    model = make_model()
    text = [TokenDocument("a", random_ids(1, 56)[0])]
    options = TrainOptions(**SMALL, train_backbone=True, learning_rate=3e-3, stage_1_step=0, training_step=150,
                           batch_size=1, lr_decay=False)  # fmt: skip
    assert fit(model, text, options)["last_loss"] < 0.3


def test_a_batch_that_names_its_support_is_trained_to_recall_it(monkeypatch: pytest.MonkeyPatch) -> None:
    ids = random_ids(2, 56)
    batch = Batch(ids, torch.ones_like(ids, dtype=torch.bool), ids, torch.tensor([[True, False], [False, True]]))
    found = {}
    for weight in (0.0, 5.0):
        monkeypatch.setattr("hmt.model.losses.RETRIEVAL_LOSS_WEIGHT", weight)
        model = make_model().train()
        options = TrainOptions(**SMALL, max_grad_norm=1e9)
        optimizer = torch.optim.SGD(model.memory.parameters(), lr=0.1)
        schedule = learning_rate_schedule(optimizer, options, 10)
        for group in optimizer.param_groups:
            group["name"] = "memory"
        stepper = Stepper(Accelerator(), model, optimizer, schedule, options)
        found[weight] = [stepper.take(batch, 110) for _ in range(6)]
    first = found[0.0][0]
    assert first.loss == pytest.approx(found[5.0][0].loss)  # it is reported beside the loss, not in it
    assert first.retrieval_loss == pytest.approx(found[5.0][0].retrieval_loss)
    assert first.grad_norm != pytest.approx(found[5.0][0].grad_norm)
    assert found[5.0][-1].retrieval_loss < found[0.0][-1].retrieval_loss
    assert stepper.take(Batch(*list(vars(batch).values())[:3]), 110).retrieval_loss is None


@pytest.mark.parametrize(
    ("targets", "adapted"),
    [
        (None, {"q_proj", "v_proj"}),
        ("o_proj, up_proj", {"o_proj", "up_proj"}),
        ("all-linear", {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}),
    ],
)
def test_lora_adapts_the_layers_that_are_named(targets: str | None, adapted: set[str]) -> None:
    model = make_model()
    choose_trained_parts(model, TrainOptions(**SMALL, use_lora=True, lora_targets=targets))
    assert {name.split(".")[-4] for name, _ in model.named_parameters() if "lora_A" in name} == adapted
    with pytest.raises(ValueError, match="nonsense"):
        choose_trained_parts(make_model(), TrainOptions(**SMALL, use_lora=True, lora_targets="nonsense"))


def test_lora_trains_the_adapter_and_the_memory_at_their_own_rates() -> None:
    model = make_model()
    options = TrainOptions(**SMALL, use_lora=True, learning_rate=1e-4, stage_1_step=0, training_step=5)
    figures = fit(model, documents(), options)
    assert figures["history"][0]["learning_rates"] == {"memory": 1e-2, "backbone": 1e-4}
    adapter = {name: p for name, p in model.backbone.named_parameters() if "lora_B" in name}
    assert adapter
    assert all(p.abs().max() > 0 for p in adapter.values())
    assert not any(p.requires_grad for name, p in model.backbone.named_parameters() if "lora_" not in name)


def test_learning_rates_decay_in_equal_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hmt.training.curriculum.DECAY_STEPS", 2)
    options = TrainOptions(**SMALL, stage_1_step=0, training_step=5, lr_decay_gamma=0.5)
    rates = [entry["learning_rates"]["memory"] for entry in fit(make_model(), documents(), options)["history"]]
    assert rates == pytest.approx([1e-2, 1e-2, 5e-3, 5e-3, 2.5e-3])


def test_the_stages_are_those_of_the_flags() -> None:
    def stages(**flags: Any) -> list[tuple[str, int, int]]:
        return [(s.mode, s.segments, s.steps) for s in curriculum(TrainOptions(**flags))]

    assert stages() == [("short_term", 2, 200), ("hmt", 4, 500)]
    assert stages(hmt_stage_1=True, training_step=30) == [("short_term", 2, 30)]
    assert stages(hmt_stage_2=True, bptt_depth=9) == [("hmt", 9, 500)]
    assert stages(mode="rmt") == [("rmt", 4, 500)]
    assert stages(sensory="cache", use_lora=True) == [("hmt", 4, 500)]  # without memory embeddings
    assert stages(sensory="cache", num_memory_tokens=1) == [("short_term", 2, 200), ("hmt", 4, 500)]


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ({"lr_schedule": "cosine"}, [1, 0.75, 0.25]),
        ({"lr_decay": False, "warmup_step": 2}, [1 / 3, 2 / 3, 1]),
        ({"lr_decay": False}, [1, 1, 1]),
    ],
    ids=str,
)
def test_learning_rates_rise_and_fall_as_asked(flags: dict[str, Any], expected: list[float]) -> None:
    options = TrainOptions(**SMALL, stage_1_step=0, training_step=3, **flags)
    rates = [entry["learning_rates"]["memory"] / 1e-2 for entry in fit(make_model(), documents(), options)["history"]]
    assert rates == pytest.approx(expected)


def test_a_loss_that_is_not_finite_stops_before_the_step_and_keeps_the_batch(tmp_path: Path) -> None:
    model = make_model()
    with torch.no_grad():
        model.memory.injection.base.fill_(float("nan"))
    before = model.memory.injection.trailing.clone()
    options = TrainOptions(**SMALL, stage_1_step=0, training_step=3, save_ckpt=tmp_path / "ckpt")
    with pytest.raises(FloatingPointError, match=r"bad_batch-0\.safetensors"):
        fit(model, documents(), options)
    assert torch.equal(model.memory.injection.trailing, before)
    batch = load_file(tmp_path / "ckpt.run" / "bad_batch-0.safetensors")
    assert batch["input_ids"].shape == (2, 4 * 14)


def test_the_command_ends_with_status_3(
    backbone_dir: Path, task_dir: Path, tmp_path: Path, run_cli: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward = HMTForCausalLM.forward

    def poisoned(self: HMTForCausalLM, *arguments: Any, **more: Any) -> Any:
        output = forward(self, *arguments, **more)
        output.nll = output.nll * float("inf")
        return output

    monkeypatch.setattr(HMTForCausalLM, "forward", poisoned)
    status, _, complaint = run_cli(
        "train", "--model_name", backbone_dir, "--task_name", task_dir, "--segment_length", 32, "--num_sensory", 4,
        "--mem_recall_hidden_dim", 16, "--training_step", 3, "--save_ckpt", tmp_path / "ckpt",
    )  # fmt: skip
    assert status == 3
    assert "bad_batch-0.safetensors" in complaint
    assert (tmp_path / "ckpt.run" / "bad_batch-0.safetensors").exists()
    assert not (tmp_path / "ckpt").exists()


@pytest.mark.parametrize("flags", [{"gradient_accumulation_steps": 4, "batch_size": 1}, {"batch_size": 4}], ids=str)
def test_a_step_is_the_same_however_its_rows_are_split(flags: dict[str, int]) -> None:
    """Rows of different length, so that a mean of means would differ."""
    text = [TokenDocument(str(n), random_ids(1, n, seed=n)[0]) for n in (56, 30, 56, 41, 56, 56)]
    whole = TrainOptions(**SMALL, stage_1_step=0, training_step=4, batch_size=2, gradient_accumulation_steps=2)
    other = TrainOptions(**SMALL, stage_1_step=0, training_step=4, **flags)
    figures = [fit(make_model(), text, options)["history"] for options in (whole, other)]
    for name in ("loss", "grad_norm"):
        values = [[entry[name] for entry in history] for history in figures]
        assert values[0] == pytest.approx(values[1], rel=1e-4)


def test_out_of_memory_names_the_flags_to_lower(monkeypatch: pytest.MonkeyPatch) -> None:
    def small_device(self: HMTForCausalLM, input_ids: torch.Tensor, **more: Any) -> Any:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes")

    monkeypatch.setattr(HMTForCausalLM, "forward", small_device)
    with pytest.raises(ValueError, match="--batch_size"):
        fit(make_model(), documents(), TrainOptions(**SMALL, stage_1_step=0, training_step=1))


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_mixed_precision_leaves_the_weights_in_float32(precision: str) -> None:
    model = make_model()
    options = TrainOptions(**SMALL, stage_1_step=2, training_step=10, mixed_precision=precision)
    figures = fit(model, documents(), options)
    assert figures["last_loss"] < figures["first_loss"]
    assert {p.dtype for p in model.parameters()} == {torch.float32}


def test_a_scaled_loss_takes_the_same_steps() -> None:
    options = TrainOptions(**SMALL, stage_1_step=2, training_step=4)
    plain = fit(make_model(), documents(), options)["history"]
    got = fit(make_model(), documents(), options, accelerator=scaled_accelerator(options, 2.0**10))["history"]
    for name in ("loss", "grad_norm"):
        assert [e[name] for e in got] == pytest.approx([e[name] for e in plain], rel=1e-2), name


def test_steps_whose_scaled_gradient_overflows_are_skipped_until_the_scale_fits(tmp_path: Path) -> None:
    options = TrainOptions(**SMALL, stage_1_step=0, training_step=30, lr_schedule="cosine", save_ckpt=tmp_path / "ckpt")
    accelerator = scaled_accelerator(options, 2.0**26)
    history = fit(make_model(), documents(), options, accelerator=accelerator)["history"]
    skipped = [not math.isfinite(entry["grad_norm"]) for entry in history]
    count = sum(skipped)
    assert 0 < count < 20
    assert skipped == [True] * count + [False] * (30 - count)
    assert accelerator.scaler.get_scale() == 2.0 ** (26 - count)
    rates = [entry["learning_rates"]["memory"] for entry in history]
    assert rates[: count + 1] == [rates[0]] * (count + 1)  # a step that was not taken is none of the schedule's
    assert rates[count + 1] < rates[count]
    assert all(math.isfinite(entry["loss"]) for entry in history)
    with pytest.raises(FloatingPointError, match="nan"):  # no scale helps a gradient like this
        fit(make_model(), documents(), options, accelerator=scaled_accelerator(options, 2.0**100))


def test_two_runs_with_one_seed_are_equal() -> None:
    options = TrainOptions(**SMALL, stage_1_step=2, training_step=4)
    losses = [[e["loss"] for e in fit(make_model(), documents(), options)["history"]] for _ in range(2)]
    assert losses[0] == losses[1]


def test_what_is_trained_is_what_was_asked_for() -> None:
    model = make_model()
    for flags, parts in (({}, {"memory"}), ({"train_backbone": True}, {"memory", "backbone"})):
        options = TrainOptions(**SMALL, **flags)
        choose_trained_parts(model, options)
        assert {group["name"] for group in parameter_groups(model, options)} == parts


@pytest.mark.parametrize("more", [(), ("--use_lora",), ("--train_backbone",)], ids=str)
def test_a_trained_checkpoint_is_evaluated_by_the_next_command(
    more: tuple[str, ...], backbone_dir: Path, task_dir: Path, tmp_path: Path, run_cli: Any, caplog: Any
) -> None:
    caplog.set_level(logging.INFO)
    checkpoint = tmp_path / "ckpt"
    flags = ("--segment_length", 32, "--num_sensory", 4, "--mem_recall_hidden_dim", 16)
    status, said, complaint = run_cli(
        "train", "--model_name", backbone_dir, "--task_name", task_dir, *flags, "--stage_1_step", 2,
        "--training_step", 3, "--save_ckpt", checkpoint, "--eval_step", 2, "--test_step", 3, *more,
    )  # fmt: skip
    assert status == 0, complaint
    assert f"checkpoint in {checkpoint}" in said
    assert "test: loss " in said
    assert "validation loss" in caplog.text
    lines = (tmp_path / "ckpt.run" / "metrics.jsonl").read_text().splitlines()
    assert list(dict.fromkeys(json.loads(line)["step"] for line in lines)) == [1, 2, 3, 4, 5]
    assert "validation loss" in (tmp_path / "ckpt.run" / "train.log").read_text()
    assert json.loads((tmp_path / "ckpt.run" / "run.json").read_text())["options"]["segment_length"] == 32
    assert HMTForCausalLM.from_pretrained(checkpoint).config.segment_length == 32
    status, said, complaint = run_cli(
        "evaluate", "--load_from_ckpt", checkpoint, "--task_name", task_dir, "--lengths", "128,256",
        "--modes", "backbone,hmt", "--json", tmp_path / "figures.json",
    )  # fmt: skip
    assert status == 0, complaint
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert [(row["row"], row["context_tokens"], row["tokens"]) for row in figures["rows"]] == [
        ("backbone", 128, 64), ("backbone", 256, 64), ("hmt", 128, 64), ("hmt", 256, 64),
    ]  # fmt: skip
    assert {row["segment_length"] for row in figures["rows"]} == {32}
    status, _, complaint = run_cli(
        "train", "--load_from_ckpt", checkpoint, "--task_name", task_dir, "--hmt_stage_2", "--training_step", 2,
        "--save_ckpt", tmp_path / "second",
    )  # fmt: skip
    assert status == 0, complaint
    assert (tmp_path / "second/config.json").is_file()


def test_a_tracker_gets_the_figures_of_every_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    logged: list[tuple[int, dict[str, float]]] = []
    log = Accelerator.log
    monkeypatch.setattr(
        Accelerator, "log", lambda self, values, step, **_: logged.append((step, values)) or log(self, values, step)
    )
    options = TrainOptions(**SMALL, stage_1_step=2, training_step=2, eval_step=2, save_ckpt=tmp_path / "ckpt",
                           report_to="wandb", wandb_project="tiny", wandb_run="first")  # fmt: skip
    training = Training(make_model(), options)
    training.run(documents(), documents())
    training.close()
    assert [step for step, _ in logged] == [1, 2, 2, 3, 4, 4]
    assert {"loss", "grad_norm", "learning_rates/memory"} <= logged[0][1].keys()
    assert "validation_loss" in logged[2][1]
    assert logged[2][1]["validation_ppl"] == pytest.approx(math.exp(logged[2][1]["validation_loss"]))
    (run,) = (tmp_path / "ckpt.run" / "wandb").glob("offline-run-*")
    assert list(run.iterdir())


def test_a_tracker_that_is_not_installed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(record.PACKAGES, "trackio", ("no_such_package",))
    options = TrainOptions(**SMALL, report_to="trackio", save_ckpt=tmp_path / "ckpt")
    with pytest.raises(ImportError, match="no_such_package"):
        Training(make_model(), options)


def test_what_was_prepared_is_let_go_of_before_the_group_of_processes_is(monkeypatch: pytest.MonkeyPatch) -> None:
    training = Training(
        make_model(), TrainOptions(segment_length=20, num_sensory=4, stage_1_step=1, training_step=1), keep=False
    )
    wrapped = torch.nn.Sequential(training.model)
    training._stepper = cast(Stepper, wrapped)
    training.accelerator._models.append(wrapped)
    alive = weakref.ref(wrapped)
    del wrapped
    ended: list[bool] = []
    monkeypatch.setattr(training.accelerator, "end_training", lambda: ended.append(alive() is None))
    training.close()
    assert ended == [True]
