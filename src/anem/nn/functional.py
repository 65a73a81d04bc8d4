"""Convolution and activation whose derivatives of every order stay in one cheap kernel each.

A training step differentiates ∇_y U, so every operation is differentiated twice. The generic second derivatives cost hundreds of small
operations; these functions form closed families instead (the derivative of each is made of the same three or two functions).

The first of the two passes asks for derivatives with respect to images only. A Python function cannot see that, so a
:class:`GradientScope` tells it and the weight gradients of that pass, which nobody reads, are not computed.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

__all__ = ["GradientScope", "conv2d", "group_norm", "silu"]

_EPSILON = 1e-5


class GradientScope:
    """Which gradients a backward pass over one network is asked for. Shared by the layers of that network."""

    def __init__(self) -> None:
        self.weights = True

    @contextmanager
    def inputs_only(self) -> Iterator[None]:
        """Within, backward passes return no weight gradients."""
        before, self.weights = self.weights, False
        try:
            yield
        finally:
            self.weights = before


def _padding(weight: Tensor) -> list[int]:
    return [weight.shape[2] // 2, weight.shape[3] // 2]


def _backward(grad: Tensor, x: Tensor, weight: Tensor, mask: list[bool]) -> tuple[Any, Any, Any]:
    return torch.ops.aten.convolution_backward(grad, x, weight, None, [1, 1], _padding(weight), [1, 1], False, [0, 0], 1, mask)


class _Conv(torch.autograd.Function):
    """y = w ∗ x + b, stride 1, "same" zero padding, odd kernels."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor | None, scope: GradientScope) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.scope = scope
        return torch.conv2d(x, weight, bias, padding=_padding(weight))

    @staticmethod
    def backward(ctx, grad: Tensor):
        x, weight = ctx.saved_tensors
        need_x, need_weight, need_bias = (need and (i == 0 or ctx.scope.weights) for i, need in enumerate(ctx.needs_input_grad[:3]))
        return (
            _ConvInput.apply(grad, weight, ctx.scope) if need_x else None,
            _ConvWeight.apply(grad, x, weight, ctx.scope) if need_weight else None,
            grad.sum((0, 2, 3)) if need_bias else None,
            None,
        )


class _ConvInput(torch.autograd.Function):
    """The adjoint of :class:`_Conv` in its image: grad ↦ wᵀ ∗ grad."""

    @staticmethod
    def forward(ctx, grad: Tensor, weight: Tensor, scope: GradientScope) -> Tensor:
        ctx.save_for_backward(grad, weight)
        ctx.scope = scope
        x = grad.new_empty(1).expand(grad.shape[0], weight.shape[1], *grad.shape[2:])
        return _backward(grad, x, weight, [True, False, False])[0]

    @staticmethod
    def backward(ctx, v: Tensor):
        grad, weight = ctx.saved_tensors
        need_grad, need_weight = ctx.needs_input_grad[0], ctx.needs_input_grad[1] and ctx.scope.weights
        return (
            _Conv.apply(v, weight, None, ctx.scope) if need_grad else None,
            _ConvWeight.apply(grad, v, weight, ctx.scope) if need_weight else None,
            None,
        )


class _ConvWeight(torch.autograd.Function):
    """The adjoint of :class:`_Conv` in its weight: (grad, x) ↦ Σ over images of grad ⋆ x."""

    @staticmethod
    def forward(ctx, grad: Tensor, x: Tensor, weight: Tensor, scope: GradientScope) -> Tensor:
        ctx.save_for_backward(grad, x)
        ctx.scope = scope
        return _backward(grad, x, weight, [False, True, False])[1]

    @staticmethod
    def backward(ctx, v: Tensor):
        grad, x = ctx.saved_tensors
        return _Conv.apply(x, v, None, ctx.scope), _ConvInput.apply(grad, v, ctx.scope), None, None


def conv2d(x: Tensor, weight: Tensor, bias: Tensor | None, scope: GradientScope) -> Tensor:
    """2-D convolution, stride 1, zero padding that keeps the size, odd kernels; differentiable to any order.

    Arguments:
        x: (B, C, H, W). weight: (O, C, k, k). bias: (O,) or None.
        scope: which gradients the backward passes compute.
    """
    return _Conv.apply(x, weight, bias, scope)


class _Silu(torch.autograd.Function):
    """f(z) = z s(z) with s the logistic function."""

    @staticmethod
    def forward(ctx, z: Tensor) -> Tensor:
        ctx.save_for_backward(z)
        return torch.nn.functional.silu(z)

    @staticmethod
    def backward(ctx, grad: Tensor):
        return _SiluGrad.apply(grad, *ctx.saved_tensors)


class _SiluGrad(torch.autograd.Function):
    """(g, z) ↦ g f′(z)."""

    @staticmethod
    def forward(ctx, grad: Tensor, z: Tensor) -> Tensor:
        ctx.save_for_backward(grad, z)
        return torch.ops.aten.silu_backward(grad, z)

    @staticmethod
    def backward(ctx, v: Tensor):
        grad, z = ctx.saved_tensors
        s = torch.sigmoid(z)
        slope = s * (1 - s)
        second = slope * (2 + z * (1 - 2 * s))
        return _SiluGrad.apply(v, z), v * grad * second


def silu(z: Tensor) -> Tensor:
    """z/(1 + e^{−z}), differentiable to any order."""
    return _Silu.apply(z)


class _GroupNorm(torch.autograd.Function):
    """z = (x − mean)/√(variance + ε) over each group of channels of an image."""

    @staticmethod
    def forward(ctx, x: Tensor, groups: int) -> Tensor:
        rows = x.unflatten(1, (groups, -1))
        var, mean = torch.var_mean(rows, (2, 3, 4), correction=0, keepdim=True)
        rstd = torch.rsqrt(var + _EPSILON)
        z = (rows - mean) * rstd
        ctx.save_for_backward(x, z, rstd)
        return z.flatten(1, 2)

    @staticmethod
    def backward(ctx, grad: Tensor):
        x, z, rstd = ctx.saved_tensors
        return _GroupNormGrad.apply(grad, x, z, rstd), None


def _normalised(v: Tensor, z: Tensor, rstd: Tensor) -> tuple[Tensor, Tensor]:
    """The symmetric Jacobian of the normalisation applied to v, and mean(v z)."""
    along = (v * z).mean((2, 3, 4), keepdim=True)
    return (v - v.mean((2, 3, 4), keepdim=True) - z * along) * rstd, along


class _GroupNormGrad(torch.autograd.Function):
    """(g, x) ↦ J(x) g with J the symmetric Jacobian of :class:`_GroupNorm`; z and 1/std come from its forward pass."""

    @staticmethod
    def forward(ctx, grad: Tensor, x: Tensor, z: Tensor, rstd: Tensor) -> Tensor:
        g = grad.reshape(z.shape)
        out, along = _normalised(g, z, rstd)
        ctx.save_for_backward(g, out, along, z, rstd)
        return out.flatten(1, 2)

    @staticmethod
    @once_differentiable
    def backward(ctx, v: Tensor):
        g, jg, along_g, z, rstd = ctx.saved_tensors
        v = v.reshape(z.shape)
        jv, along_v = _normalised(v, z, rstd)
        inner = (v * jg).mean((2, 3, 4), keepdim=True)
        grad_x = -rstd * (z * inner + along_v * jg + along_g * jv)
        return jv.flatten(1, 2), grad_x.flatten(1, 2), None, None


def group_norm(x: Tensor, groups: int) -> Tensor:
    """Normalise each group of channels of each image to mean 0 and variance 1; twice differentiable. (B, C, H, W) to the same."""
    return _GroupNorm.apply(x, groups)
