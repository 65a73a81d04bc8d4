"""A function of two tensors whose derivatives are computed by other code, as a differentiable function here.

What computes a value elsewhere, or by recorded code, leaves no graph behind. Here its gradient and the products of its Hessian with vectors
are given as functions, and are what autograd finds on the way back.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = ["attached"]

Function = Callable[..., Sequence[Tensor]]


def attached(a: Tensor, b: Tensor, first: Function, second: Function) -> Tensor:
    """f(a, b), (B,), twice differentiable in a and b, (B, …).

    Arguments:
        first: (a, b) to f and its gradients in a and b, detached.
        second: (a, b, v, w) to the product of the Hessian of Σ f with (v, w): its parts for a and for b.
    """
    return _Value.apply(a, b, first, second)


class _Value(torch.autograd.Function):
    @staticmethod
    def forward(ctx, a: Tensor, b: Tensor, first: Function, second: Function) -> Tensor:
        value, in_a, in_b = first(a.detach(), b.detach())
        ctx.save_for_backward(a, b, in_a, in_b)
        ctx.second = second
        return value

    @staticmethod
    def backward(ctx, grad: Tensor) -> Any:
        a, b, in_a, in_b = ctx.saved_tensors
        in_a, in_b = _Gradient.apply(a, b, in_a, in_b, ctx.second)
        grad = grad.reshape(-1, *[1] * (a.ndim - 1))
        return grad * in_a, grad * in_b, None, None


class _Gradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, a: Tensor, b: Tensor, in_a: Tensor, in_b: Tensor, second: Function) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(a, b)
        ctx.second = second
        return in_a.clone(), in_b.clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, v: Tensor, w: Tensor) -> Any:
        a, b = ctx.saved_tensors
        return (*ctx.second(a, b, v, w), None, None, None)
