"""What users of transformers do with any model, done with this one."""

from __future__ import annotations

import copy
import threading
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedTokenizerFast, TextIteratorStreamer, Trainer, TrainingArguments, pipeline

from hmt import HMTForCausalLM
from tests.conftest import make_model, random_ids


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


def test_the_trainer_of_transformers_trains_and_saves(tmp_path: Path) -> None:
    model = make_model().train()
    ids = random_ids(1, 30).repeat(8, 1)
    rows = [{"input_ids": row, "labels": row} for row in ids]
    arguments = TrainingArguments(
        output_dir=str(tmp_path), max_steps=4, per_device_train_batch_size=2, learning_rate=1e-2, logging_steps=1,
        report_to=[], use_cpu=True, save_strategy="steps", save_steps=4, disable_tqdm=True,
        prediction_loss_only=True, remove_unused_columns=False,
    )  # fmt: skip
    trainer = Trainer(model=model, args=arguments, train_dataset=rows)
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[-1] < losses[0]
    loaded = HMTForCausalLM.from_pretrained(tmp_path / "checkpoint-4")
    torch.testing.assert_close(loaded(ids[:1]).logits, model.eval()(ids[:1]).logits)


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
