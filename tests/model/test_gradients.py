"""What learns: gradients reach every parameter of the memory, through all segments, unless they are cut."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.conftest import make_model, make_rolling, random_ids


@pytest.mark.parametrize("injection", ["published", "gated"])
@pytest.mark.parametrize("query", ["prefix", "previous"])
def test_every_parameter_of_the_memory_gets_a_gradient(injection: str, query: str) -> None:
    model = make_model(memory_injection=injection, recall_query=query).train()
    ids = random_ids(2, 70)
    model(ids, labels=ids, return_logits=False).loss.backward()
    for name, parameter in model.memory.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


def test_every_parameter_of_a_memory_on_the_cache_gets_a_gradient() -> None:
    model = make_rolling(num_memory_tokens=2, segment_length=30, num_sensory=8).train()
    ids = random_ids(2, 70)
    model(ids, labels=ids, return_logits=False).loss.backward()
    assert list(model.memory.parameters())
    for name, parameter in model.memory.named_parameters():
        assert parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize("mode", ["short_term", "rmt"])
def test_no_mode_has_a_parameter_that_nothing_uses(mode: str) -> None:
    model = make_model(mode=mode).train()
    ids = random_ids(1, 40)
    model(ids, labels=ids, return_logits=False).loss.backward()
    unused = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    assert unused == []


@pytest.mark.parametrize("fields", [{}, {"mode": "rmt"}], ids=str)
def test_the_last_segment_teaches_what_the_first_one_remembers(fields: dict[str, Any]) -> None:
    model = make_model(**fields).train()
    length = model.config.fresh_tokens
    ids = random_ids(1, 3 * length)
    first = model(ids[:, :length]).memory
    first.bank.embeddings.retain_grad()
    labels = ids[:, length:].clone()
    labels[:, :-3] = -100
    model(ids[:, length:], labels=labels, memory=first).loss.backward()
    assert first.bank.embeddings.grad.abs().max() > 0


def test_a_detached_memory_lets_no_gradient_through() -> None:
    model = make_model().train()
    ids = random_ids(1, 42)
    first = model(ids[:, :14]).memory
    first.bank.embeddings.retain_grad()
    model(ids[:, 14:], labels=ids[:, 14:], memory=first.detach()).loss.backward()
    assert first.bank.embeddings.grad is None


@pytest.mark.parametrize("frozen", [True, False])
def test_a_head_that_keeps_no_logits_gives_the_gradients_of_whole_logits(frozen: bool) -> None:
    model = make_model().train()
    if frozen:
        model.freeze_backbone()
        model.add_lora(rank=2, dropout=0.0)
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.1)
    ids = random_ids(2, 50)
    gradients = []
    for return_logits in (True, False):
        model.zero_grad()
        nll = model(ids, labels=ids, return_logits=return_logits).nll
        (nll * torch.linspace(0.1, 2, nll.numel()).view(nll.shape)).sum().backward()  # targets that count differently
        gradients.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
    assert any("lora_" in name for name in gradients[0]) == frozen
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name], atol=1e-4, rtol=1e-4)


def test_truncation_really_cuts() -> None:
    """The trailing prompt acts on a later segment only through the memory."""
    ids = random_ids(1, 42)
    gradients = {}
    for every in (None, 2, 1):
        model = make_model(mode="short_term").train()
        model(ids, labels=ids, loss_tokens=13, return_logits=False, truncate_every=every).loss.backward()
        gradients[every] = model.memory.injection.trailing.grad
    assert gradients[None].abs().max() > 0
    assert gradients[2].abs().max() == 0  # all scored tokens are predicted in the third segment; the cut is before it
    assert gradients[1].abs().max() == 0
    model = make_model(mode="short_term").train()
    model(ids, labels=ids, loss_tokens=28, return_logits=False, truncate_every=2).loss.backward()
    assert model.memory.injection.trailing.grad.abs().max() > 0  # the second segment still sees the first


def test_recomputed_segments_have_the_same_gradients_and_keep_less() -> None:
    ids = random_ids(2, 75)
    gradients, kept = [], []
    for recompute in (False, True):
        model = make_model().train()
        model.freeze_backbone()
        model.checkpoint_segments = recompute
        size = 0

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            nonlocal size
            size += tensor.nbytes
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            loss = model(ids, labels=ids, return_logits=False).loss
        loss.backward()
        gradients.append({name: p.grad for name, p in model.memory.named_parameters()})
        kept.append(size)
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, msg=name)
    assert kept[1] < kept[0] / 2
