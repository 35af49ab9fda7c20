"""Arguments that libraries pass to any causal LM of transformers: neutral ones change nothing, others are named."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import DataCollatorForLanguageModeling, GenerationConfig, Trainer, TrainingArguments

from hmt import HMTForCausalLM
from tests.conftest import byte_tokenizer, make_model, make_rolling, random_ids

FORMS: list[Callable[..., HMTForCausalLM]] = [make_rolling, make_model]
"""Both forms of sensory memory."""

IDS = random_ids(2, 60)
NEUTRAL: list[dict[str, Any]] = [
    {"use_cache": True},
    {"use_cache": False},
    {"return_dict": True},
    {"output_hidden_states": False, "output_attentions": None},
    {"inputs_embeds": None, "past_key_values": None},
    {"position_ids": None, "cache_position": None},
    {"position_ids": torch.arange(60)[None]},
    {"logits_to_keep": 0, "token_type_ids": torch.zeros_like(IDS)},
]
REFUSED: list[dict[str, Any]] = [
    {"inputs_embeds": torch.zeros(2, 60, 32)},
    {"past_key_values": object()},
    {"output_attentions": True},
    {"output_hidden_states": True},
    {"position_ids": torch.arange(60)[None] + 1},
    {"head_mask": torch.ones(2)},
]


@pytest.mark.parametrize("make", FORMS)
@torch.no_grad()
def test_neutral_arguments_change_nothing(make: Callable[..., HMTForCausalLM]) -> None:
    model = make()
    expected = model(IDS, labels=IDS)
    for arguments in NEUTRAL:
        output = model(IDS, labels=IDS, **arguments)
        assert torch.equal(output.logits, expected.logits), arguments
        assert torch.equal(output.loss, expected.loss), arguments


@pytest.mark.parametrize("arguments", REFUSED, ids=lambda arguments: next(iter(arguments)))
def test_arguments_that_a_memory_cannot_serve_are_named(arguments: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(arguments))):
        make_rolling()(IDS, **arguments)


@torch.no_grad()
def test_a_tuple_begins_with_loss_and_logits(model: HMTForCausalLM) -> None:
    expected = model(IDS, labels=IDS)
    loss, logits, *_ = model(IDS, labels=IDS, return_dict=False)
    assert torch.equal(loss, expected.loss)
    assert torch.equal(logits, expected.logits)
    assert torch.equal(expected[0], expected.loss)
    assert torch.equal(model(IDS)[0], expected.logits)


@torch.no_grad()
def test_the_loss_is_a_sum_over_the_items_of_all_batches(model: HMTForCausalLM) -> None:
    nll = model(IDS, labels=IDS).nll
    for items in (200, torch.tensor(200)):
        loss = model(IDS, labels=IDS, num_items_in_batch=items, return_logits=False).loss
        torch.testing.assert_close(loss, nll.sum() / 200)


@pytest.mark.parametrize("make", FORMS)
def test_accumulated_batches_are_one_batch_for_the_trainer(make: Callable[..., HMTForCausalLM], tmp_path: Path) -> None:
    rows = [{"input_ids": row[:n].tolist()} for row, n in zip(random_ids(4, 50), (50, 10, 50, 10), strict=True)]
    collate = DataCollatorForLanguageModeling(byte_tokenizer(), mlm=False)
    seen = []
    for batch_size, accumulated in ((4, 1), (1, 4)):
        arguments = TrainingArguments(
            output_dir=str(tmp_path), max_steps=1, per_device_train_batch_size=batch_size, learning_rate=0.0,
            gradient_accumulation_steps=accumulated, report_to=[], use_cpu=True, save_strategy="no", disable_tqdm=True,
            logging_steps=1,
        )  # fmt: skip
        trainer = Trainer(model=make().train(), args=arguments, train_dataset=rows, data_collator=collate)
        trainer.train()
        log = next(entry for entry in trainer.state.log_history if "loss" in entry)
        seen.append((log["loss"], log["grad_norm"]))
    assert seen[0] == pytest.approx(seen[1], rel=1e-3)


def test_peft_wraps_the_model_as_any_other() -> None:
    peft = pytest.importorskip("peft")
    settings = peft.LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
    for make in FORMS:
        wrapped = peft.get_peft_model(make(), settings)
        torch.testing.assert_close(wrapped(input_ids=IDS, labels=IDS).logits, make()(IDS).logits)
        assert wrapped.generate(input_ids=IDS, max_new_tokens=2, eos_token_id=None).shape == (2, 62)


def frozen(model: HMTForCausalLM) -> None:
    """Train the memory alone."""
    model.freeze_backbone()


def adapted(model: HMTForCausalLM) -> None:
    """Train an adapter too, whose second half is not zero."""
    pytest.importorskip("peft")
    model.add_lora(rank=2, dropout=0.0)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("make", "prepare", "fields"),
    [
        (make_rolling, adapted, {}),
        (make_rolling, adapted, {"num_memory_tokens": 1, "num_sensory": 6}),
        (make_rolling, frozen, {"num_memory_tokens": 1, "num_sensory": 6}),
        (make_model, adapted, {}),
        (make_model, frozen, {"inject_autoencoder": True}),
        (make_model, frozen, {"mode": "rmt"}),
    ],
)
def test_gradient_checkpointing_changes_no_gradient_of_what_is_trained(
    make: Callable[..., HMTForCausalLM], prepare: Callable[[HMTForCausalLM], None], fields: dict[str, Any]
) -> None:
    gradients = []
    for recompute in (False, True):
        torch.manual_seed(0)
        model = make(**fields)
        prepare(model)
        model.train()
        if recompute:
            model.gradient_checkpointing_enable()
        assert model.is_gradient_checkpointing == recompute
        torch.manual_seed(1)
        model(IDS, labels=IDS, return_logits=False).loss.backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.requires_grad})
    assert gradients[0]
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, atol=1e-5, rtol=1e-4, msg=name)


@pytest.mark.parametrize("make", FORMS)
def test_generate_is_called_as_transformers_documents_it(make: Callable[..., HMTForCausalLM]) -> None:
    model, settings = make(), {"max_new_tokens": 4, "eos_token_id": None}
    expected = model.generate(IDS, **settings)
    assert torch.equal(model.generate(inputs=IDS, **settings), expected)
    assert torch.equal(model.generate(input_ids=IDS, use_cache=True, **settings), expected)
    assert torch.equal(model.generate(IDS, GenerationConfig(**settings)), expected)
    told = model.generate(IDS, max_new_tokens=2, prefix_allowed_tokens_fn=lambda row, ids: [5 + row])
    assert told[:, 60:].tolist() == [[5, 5], [6, 6]]


def test_a_mask_of_another_shape_is_refused_by_shape() -> None:
    mask = torch.tensor([[1] * 10, [0] * 10])
    with pytest.raises(ValueError, match=r"\(2, 60\).*\(2, 10\)"):
        make_rolling().generate(IDS, attention_mask=mask, max_new_tokens=2)
