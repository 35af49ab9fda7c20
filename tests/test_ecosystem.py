"""What users of transformers do with any model, done with this one."""

from __future__ import annotations

import copy
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import PreTrainedTokenizerFast, TextIteratorStreamer, Trainer, TrainingArguments, pipeline

from hmt import HMTForCausalLM
from tests.conftest import make_backbone, make_model, random_ids


def test_the_text_generation_pipeline_writes(tokenizer: PreTrainedTokenizerFast) -> None:
    model = make_model()
    prompt = "A prompt that is longer than a single segment of this model."
    ids = tokenizer(prompt, return_tensors="pt").input_ids
    expected = tokenizer.decode(model.generate(ids, max_new_tokens=20)[0], skip_special_tokens=True)
    writer = pipeline("text-generation", model=model, tokenizer=tokenizer)
    assert writer(prompt, max_new_tokens=20, do_sample=False)[0]["generated_text"] == expected
    both = writer([prompt, "short"], max_new_tokens=20, do_sample=False, batch_size=2)
    assert both[0][0]["generated_text"] == expected


def test_an_iterating_streamer_receives_the_text(tokenizer: PreTrainedTokenizerFast) -> None:
    model = make_model()
    ids = tokenizer("hello", return_tensors="pt").input_ids
    streamer = TextIteratorStreamer(tokenizer, skip_prompt=True)
    settings = {"max_new_tokens": 20, "eos_token_id": None, "streamer": streamer}
    thread = threading.Thread(target=model.generate, args=(ids,), kwargs=settings)
    thread.start()
    streamed = "".join(streamer)
    thread.join()
    assert streamed == tokenizer.decode(model.generate(ids, max_new_tokens=20, eos_token_id=None)[0, ids.shape[1] :])


def test_a_copy_reads_the_same_and_is_its_own(model: HMTForCausalLM) -> None:
    ids = random_ids(1, 40)
    twin = copy.deepcopy(model)
    assert torch.equal(twin(ids).logits, model(ids).logits)
    with torch.no_grad():
        twin.memory.injection.base.add_(1)
    assert not torch.equal(twin.memory.injection.base, model.memory.injection.base)


TRAINED = ("full", "frozen", "lora", "lora on a given model")


def trainable(kind: str, backbone_dir: Path) -> HMTForCausalLM:
    """A new model, the same each time, of which some parts learn."""
    torch.manual_seed(0)
    source = backbone_dir if kind in ("frozen", "lora") else make_backbone()
    model = HMTForCausalLM.from_backbone(
        source, sensory="reread", segment_length=20, num_sensory=4, mem_recall_hidden_dim=16
    )
    if kind == "frozen":
        model.freeze_backbone()
    elif kind != "full":
        model.add_lora(rank=2, dropout=0.0)
    return model.train()


def make_trainer(model: HMTForCausalLM, folder: Path, **more: Any) -> Trainer:
    """Four steps, saved after two and four."""
    rows = [{"input_ids": row, "labels": row} for row in random_ids(1, 30).repeat(8, 1)]
    arguments = TrainingArguments(
        output_dir=str(folder), max_steps=4, per_device_train_batch_size=2, learning_rate=1e-2, logging_steps=1,
        report_to=[], use_cpu=True, save_strategy="steps", save_steps=2, disable_tqdm=True, prediction_loss_only=True,
        **more,
    )  # fmt: skip
    return Trainer(model=model, args=arguments, train_dataset=rows, eval_dataset=rows)


def assert_same_weights(got: HMTForCausalLM, expected: HMTForCausalLM) -> None:
    """Equal in every bit."""
    weights = expected.state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in got.state_dict().items())


@pytest.mark.parametrize("kind", TRAINED)
def test_the_trainer_of_transformers_goes_on_as_if_it_had_never_stopped(
    kind: str, backbone_dir: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    whole, again = trainable(kind, backbone_dir), trainable(kind, backbone_dir)
    trainer = make_trainer(whole, tmp_path)
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[-1] < losses[0]
    make_trainer(again, tmp_path).train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert_same_weights(again, whole)
    assert_same_weights(HMTForCausalLM.from_pretrained(tmp_path / "checkpoint-4"), whole)
    assert not [record for record in caplog.records if "keys" in record.getMessage()]


@pytest.mark.parametrize("kind", TRAINED)
def test_the_trainer_of_transformers_loads_the_best_model(kind: str, backbone_dir: Path, tmp_path: Path) -> None:
    model = trainable(kind, backbone_dir)
    trainer = make_trainer(
        model,
        tmp_path,
        eval_strategy="steps",
        eval_steps=2,
        load_best_model_at_end=True,
        metric_for_best_model="loss",
        greater_is_better=True,
    )  # fmt: skip  (the largest loss, so that the best model is not the last one)
    trainer.train()
    assert trainer.state.best_model_checkpoint == str(tmp_path / "checkpoint-2")
    assert_same_weights(model, HMTForCausalLM.from_pretrained(tmp_path / "checkpoint-2"))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_reads_as_float32_does_but_for_rounding(dtype: torch.dtype, model: HMTForCausalLM) -> None:
    ids = random_ids(1, 60)
    exact = model(ids, labels=ids, return_logits=False).loss
    with torch.autocast("cpu", dtype=dtype):
        rounded = model(ids, labels=ids, return_logits=False)
        rounded.loss.backward()
    assert rounded.loss.dtype == torch.float32
    torch.testing.assert_close(rounded.loss, exact, atol=0.05, rtol=0)
    assert all(p.grad.isfinite().all() for p in model.memory.parameters())


def test_gradient_checkpointing_changes_no_gradient() -> None:
    ids = random_ids(2, 50)
    gradients = []
    for checkpointing in (False, True):
        model = make_model().train()
        if checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model(ids, labels=ids, return_logits=False).loss.backward()
        gradients.append({name: p.grad for name, p in model.named_parameters()})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, msg=name)


@pytest.mark.parametrize("lora", [False, True])
def test_trl_trains_it(lora: bool, backbone_dir: Path, tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    trl = pytest.importorskip("trl")
    model = trainable("frozen", backbone_dir)
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    ids = random_ids(1, 50)[0].tolist()
    peft = LoraConfig(r=2, task_type="CAUSAL_LM", target_modules=["q_proj"]) if lora else None
    trainer = trl.SFTTrainer(
        model=model,
        args=trl.SFTConfig(
            str(tmp_path), max_steps=1, per_device_train_batch_size=1, learning_rate=0.1, report_to=[], use_cpu=True,
            bf16=False, save_strategy="no", logging_steps=1, gradient_checkpointing=False,
        ),
        train_dataset=Dataset.from_dict({"input_ids": [ids]}),
        processing_class=tokenizer,
        peft_config=peft,
    )  # fmt: skip
    expected = model.eval()(torch.tensor([ids]), labels=torch.tensor([ids])).loss.item()
    model.train()
    loss = next(entry["loss"] for entry in trainer.train() and trainer.state.log_history if "loss" in entry)
    assert loss == pytest.approx(expected, rel=1e-3)
    after = dict(trainer.model.named_parameters())
    changed = {name for name, weight in after.items() if name not in before or not torch.equal(before[name], weight)}
    assert any("lora_B" in name for name in changed) if lora else "memory.recall.wq.weight" in changed


def test_a_trainer_predicts_the_logits(tmp_path: Path) -> None:
    model, ids = make_model(), random_ids(2, 40)
    rows = [{"input_ids": row, "labels": row} for row in ids]
    arguments = TrainingArguments(str(tmp_path), per_device_eval_batch_size=2, report_to=[], use_cpu=True)
    found = Trainer(model=model, args=arguments).predict(rows)
    with torch.no_grad():
        expected = model.eval()(ids, labels=ids)
    torch.testing.assert_close(torch.tensor(found.predictions), expected.logits)
    assert found.metrics["test_loss"] == pytest.approx(float(expected.loss), rel=1e-5)
