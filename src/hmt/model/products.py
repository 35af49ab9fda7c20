"""Matrix products on a CPU: oneDNN's instead of BLAS's, for the same float32 weights, whoever's module they are in.

The sums are those of float32 in another order; docs/profiling.md says how much sooner they are there.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import register_flop_formula

LEAST_ROWS = 8
"""With fewer rows BLAS is as fast or faster, but for a head."""

WIDE = 16_384
"""Outputs of a layer, a head, from which on oneDNN is faster with any number of rows."""


def _works() -> bool:
    """Whether this torch has the product: it is the one that torch's own compiler uses, and not promised to stay."""
    ones = torch.ones(8, 8, dtype=torch.float32, device="cpu")
    try:
        return torch.equal(torch.ops.mkldnn._linear_pointwise(ones, ones, None, "none", [], ""), 8 * ones)
    except (AttributeError, RuntimeError):
        return False


available = torch.backends.mkldnn.is_available() and _works()


def _product(values: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(values, weight, bias, "none", [], "")


@torch.library.custom_op("hmt::linear", mutates_args=())
def _opaque(values: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """The product as a compiler knows it: something to be called, not looked into."""
    return _product(values, weight, bias)


@_opaque.register_fake
def _shaped(values: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return values.new_empty(*values.shape[:-1], len(weight))


def _multiply(values: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return _opaque(values, weight, bias) if torch.compiler.is_compiling() else _product(values, weight, bias)


if available:  # so that torch's counter of operations goes on counting them

    @register_flop_formula([torch.ops.mkldnn._linear_pointwise, torch.ops.hmt.linear])
    def _linear_flops(values_shape: Any, weight_shape: Any, *_: Any, out_shape: Any = None, **__: Any) -> int:
        return 2 * math.prod(values_shape) * int(weight_shape[0])


def fast_products(example: Tensor) -> AbstractContextManager[Any]:
    """Within it linear layers whose weights need no gradient are computed by oneDNN, where that is at hand.

    Args:
        example: Has the device and format of what will be multiplied.
    """
    if not available or example.device.type != "cpu" or example.dtype != torch.float32:
        return nullcontext()
    if torch.compiler.is_compiling() or torch.is_autocast_enabled("cpu"):  # who compiles a body is within it already
        return nullcontext()
    return _Products()


class _Products(TorchFunctionMode):
    def __torch_function__(
        self, func: Callable[..., Any], types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func is F.linear and not kwargs and _serves(*args):
            return _linear(*args)
        return func(*args, **(kwargs or {}))


def _serves(values: Tensor, weight: Tensor, bias: Tensor | None = None) -> bool:
    return (
        type(weight) in (Tensor, torch.nn.Parameter)
        and type(values) is Tensor
        and weight.dtype == values.dtype == torch.float32
        and values.device.type == weight.device.type == "cpu"
        and values.shape[-1] == weight.shape[-1]
        and (bias is None or bias.dtype == torch.float32)
        and not (torch.is_grad_enabled() and (weight.requires_grad or (bias is not None and bias.requires_grad)))
        and values.numel() > 0
        and (values.numel() >= LEAST_ROWS * values.shape[-1] or len(weight) >= WIDE)
    )


def _linear(values: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    if torch.is_grad_enabled() and values.requires_grad:
        return _FrozenLinear.apply(values, weight, bias)
    return _multiply(values, weight, bias)


class _FrozenLinear(torch.autograd.Function):
    """A linear layer whose weight has no gradient."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(weight)
        return _multiply(values, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (weight,) = ctx.saved_tensors
        return _multiply(gradient, weight.T), None, None
