"""oneDNN's products against BLAS's: the same sums, and only where they are meant."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hmt.model.products import fast_products
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from hmt.model import products
from tests.conftest import make_model, random_ids

pytestmark = pytest.mark.skipif(not products.available, reason="this torch has no oneDNN")


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Shapes of what oneDNN multiplied."""
    seen: list[tuple[int, ...]] = []
    product = products._product

    def watched(values: Any, *others: Any) -> Any:
        seen.append(tuple(values.shape))
        return product(values, *others)

    monkeypatch.setattr(products, "_product", watched)
    return seen


@pytest.mark.parametrize("shape", [(8, 24), (2, 40, 24), (3, 1, 5, 24)])
@pytest.mark.parametrize("bias", [False, True])
def test_values_and_gradients_are_those_of_blas(shape: tuple[int, ...], bias: bool, calls: list[Any]) -> None:
    torch.manual_seed(0)
    layer = nn.Linear(24, 56, bias=bias).requires_grad_(False)
    values = torch.randn(shape, requires_grad=True)
    (layer(values) ** 2).sum().backward()
    expected, values.grad = values.grad, None
    with fast_products(values):
        result = layer(values)
    (result**2).sum().backward()
    assert len(calls) == 2  # there and back
    torch.testing.assert_close(result, layer(values))
    torch.testing.assert_close(values.grad, expected)
    with torch.no_grad(), fast_products(values):
        torch.testing.assert_close(layer(values.transpose(0, -2)), layer(values).transpose(0, -2))


def test_what_it_is_not_for_is_left_to_torch(calls: list[Any]) -> None:
    layer, values = nn.Linear(24, 56), torch.randn(40, 24)
    frozen = nn.Linear(24, 56).requires_grad_(False)
    with fast_products(values):
        layer(values)  # is trained
        frozen(values[:7])  # few rows
        frozen(values[:0])
        F.linear(values.double(), frozen.weight.double())
        with pytest.raises(RuntimeError):
            frozen(values[:, :20])
    with torch.autocast("cpu", torch.bfloat16), fast_products(values):
        assert frozen(values).dtype == torch.bfloat16
    with fast_products(values.bfloat16()):
        frozen(values)
    assert calls == []
    head = nn.Linear(24, products.WIDE).requires_grad_(False)
    with fast_products(values):
        head(values[:1])
    assert calls == [(1, 24)]
    with torch.no_grad(), fast_products(values):
        layer(values)  # is not trained here
    assert calls == [(1, 24), (40, 24)]


def test_a_model_reads_and_learns_as_without(calls: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    model, ids = make_model(), random_ids(2, 70)
    model.freeze_backbone()
    model.train()

    def run() -> tuple[Any, list[Any]]:
        model.zero_grad()
        output = model(ids, labels=ids, return_logits=True)
        output.loss.backward()
        return output.logits, [parameter.grad for parameter in model.memory.parameters()]

    logits, gradients = run()
    assert len(calls) > 20
    monkeypatch.setattr(products, "available", False)
    calls.clear()
    expected, slow = run()
    assert calls == []
    torch.testing.assert_close(logits, expected)
    torch.testing.assert_close(gradients, slow, atol=1e-5, rtol=1e-4)


def test_the_counter_of_operations_counts_them_there_and_back() -> None:
    layer = nn.Linear(24, 56).requires_grad_(False)
    counted = []
    for context in (nullcontext(), fast_products(torch.zeros(1))):
        values = torch.randn(40, 24, requires_grad=True)
        with FlopCounterMode(display=False) as counter, context:
            layer(values).sum().backward()
        counted.append(counter.get_total_flops())
    assert counted == [2 * 2 * 40 * 24 * 56] * 2


@pytest.mark.slow
def test_compiled_layers_are_multiplied_by_it_too(calls: list[Any]) -> None:
    torch.compiler.reset()
    layer = nn.Linear(24, 56).requires_grad_(False)
    values = torch.randn(40, 24, requires_grad=True)
    expected = layer(values)
    compiled = torch.compile(lambda given: layer(given).relu())
    with fast_products(values):
        result = compiled(values)
    torch.testing.assert_close(result, expected.relu())
    result.sum().backward()
    assert len(calls) == 2
    torch.testing.assert_close(values.grad, (expected > 0).float() @ layer.weight)
