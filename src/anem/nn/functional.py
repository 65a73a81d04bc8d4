"""Convolution and activation whose derivatives of every order stay in one cheap kernel each.

A training step differentiates ∇_y U, so every operation is differentiated twice. The generic second derivatives cost hundreds of small
operations; these functions form closed families instead (the derivative of each is made of the same three or two functions).

The first of the two passes asks for derivatives with respect to images only. A Python function cannot see that, so a
:class:`GradientScope` tells it and the weight gradients of that pass, which nobody reads, are not computed.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor

__all__ = ["GradientScope", "conv2d", "group_norm", "silu"]

_EPSILON = 1e-5


class GradientScope:
    """Which gradients a backward pass over one network is asked for, and the precision of its convolutions (None: that of their input).

    Shared by the layers of that network.
    """

    def __init__(self) -> None:
        self.weights = self.again = True
        self.precision: torch.dtype | None = None

    def round(self, *tensors: Tensor | None) -> list[Any]:
        """The tensors in the precision of convolutions."""
        return [x if x is None or self.precision is None else x.to(self.precision) for x in tensors]

    @contextmanager
    def inputs_only(self, again: bool = True) -> Iterator[None]:
        """Within, backward passes return no weight gradients; unless ``again``, nothing is kept for differentiating their results."""
        before = self.weights, self.again
        self.weights, self.again = False, again
        try:
            yield
        finally:
            self.weights, self.again = before


def _padding(weight: Tensor) -> list[int]:
    return [weight.shape[2] // 2, weight.shape[3] // 2]


def _last(x: Tensor) -> Tensor:
    """Channels last, the one layout that all convolutions here read and write: operations on mixed layouts are several times slower."""
    return x.contiguous(memory_format=torch.channels_last)


@contextmanager
def _without_tf32() -> Iterator[None]:
    before, torch.backends.cudnn.allow_tf32 = torch.backends.cudnn.allow_tf32, False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before


def _exact(x: Tensor) -> AbstractContextManager[None]:
    """Convolutions of float32 in float32: TF32, their default on a GPU, rounds by more than the noise at small variances."""
    return _without_tf32() if x.is_cuda else nullcontext()


def _backward(grad: Tensor, x: Tensor, weight: Tensor, mask: list[bool]) -> tuple[Any, Any, Any]:
    with _exact(x):
        return torch.ops.aten.convolution_backward(grad, x, weight, None, [1, 1], _padding(weight), [1, 1], False, [0, 0], 1, mask)


class _Conv(torch.autograd.Function):
    """y = w ∗ x + b, stride 1, "same" zero padding, odd kernels."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor | None, scope: GradientScope) -> Tensor:
        ctx.save_for_backward(x if scope.again else None, weight)
        ctx.scope = scope
        rounded, kernel, shift = scope.round(x, weight, bias)
        with _exact(x):
            return torch.conv2d(rounded, kernel, shift, padding=_padding(weight)).to(x.dtype)

    @staticmethod
    def backward(ctx, grad: Tensor):
        x, weight = ctx.saved_tensors
        grad = _last(grad)
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
        # Never read: its layout alone decides that of the result.
        shape = (grad.shape[0], weight.shape[1], *grad.shape[2:])
        x = torch.empty(shape, dtype=grad.dtype, device=grad.device, memory_format=torch.channels_last)
        return _backward(*scope.round(grad, x, weight), [True, False, False])[0].to(grad.dtype)

    @staticmethod
    def backward(ctx, v: Tensor):
        grad, weight = ctx.saved_tensors
        v = _last(v)
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
        return _backward(*scope.round(grad, x, weight), [False, True, False])[1].to(grad.dtype)

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
    return _Conv.apply(_last(x), weight, bias, scope)


class _Silu(torch.autograd.Function):
    """f(z) = z s(z) with s the logistic function. Both derivatives are polynomials in z and s: one exponential in all."""

    @staticmethod
    def forward(ctx, z: Tensor, scope: GradientScope) -> Tensor:
        s = torch.sigmoid(z)
        f = z * s
        ctx.again = scope.again
        if ctx.needs_input_grad[0]:
            slope = torch.addcmul(s + f, f, s, value=-1)
            ctx.save_for_backward(*((z, s, slope) if scope.again else (slope,)))
        return f

    @staticmethod
    def backward(ctx, grad: Tensor):
        saved = ctx.saved_tensors
        return (_SiluGrad.apply(grad, *saved) if ctx.again else grad * saved[0]), None


class _SiluGrad(torch.autograd.Function):
    """(g, z) ↦ g f′(z); s and f′ = s + f(1 − s) come from the forward pass."""

    @staticmethod
    def forward(ctx, grad: Tensor, z: Tensor, s: Tensor, slope: Tensor) -> Tensor:
        ctx.save_for_backward(grad, z, s, slope)
        return grad * slope

    @staticmethod
    def backward(ctx, v: Tensor):
        grad, z, s, slope = ctx.saved_tensors
        if torch.is_grad_enabled():  # to be differentiated again: by ordinary operations on z
            s = torch.sigmoid(z)
            slope = s * (1 + z * (1 - s))
            return v * slope, v * grad * s * (1 - s) * (2 + z * (1 - 2 * s)), None, None
        f = z * s
        half = torch.addcmul(f, f, s, value=-2).add_(s, alpha=2)  # f″ = (1 − s)(2s + f(1 − 2s))
        second = torch.addcmul(half, half, s, value=-1)
        return v * slope, second.mul_(grad).mul_(v), None, None


def silu(z: Tensor, scope: GradientScope) -> Tensor:
    """z/(1 + e^{−z}), differentiable to any order that ``scope`` leaves room for."""
    return _Silu.apply(z, scope)


def _normalise(x: Tensor, groups: int) -> tuple[Tensor, Tensor]:
    """z, (B, groups, C/groups, H, W), and 1/std, (B, groups, 1, 1, 1), of every group."""
    rows = x.unflatten(1, (groups, -1))
    var, mean = torch.var_mean(rows, (2, 3, 4), correction=0, keepdim=True)
    rstd = torch.rsqrt(var + _EPSILON)
    return (rows - mean) * rstd, rstd


class _GroupNorm(torch.autograd.Function):
    """z = (x − mean)/√(variance + ε) over each group of channels of an image."""

    @staticmethod
    def forward(ctx, x: Tensor, groups: int) -> Tensor:
        z, rstd = _normalise(x, groups)
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
    """(g, x) ↦ J(x) g with J the symmetric Jacobian of :class:`_GroupNorm`; z and 1/std come from its forward pass.

    Its derivative is one formula. Where that is to be differentiated again, what it is made of is made again, by ordinary operations.
    """

    @staticmethod
    def forward(ctx, grad: Tensor, x: Tensor, z: Tensor, rstd: Tensor) -> Tensor:
        out, along = _normalised(grad.reshape(z.shape), z, rstd)
        ctx.save_for_backward(grad, x, out, along, z, rstd)
        return out.flatten(1, 2)

    @staticmethod
    def backward(ctx, v: Tensor):
        grad, x, jg, along_g, z, rstd = ctx.saved_tensors
        if torch.is_grad_enabled():
            z, rstd = _normalise(x, z.shape[1])
            jg, along_g = _normalised(grad.reshape(z.shape), z, rstd)
        v = v.reshape(z.shape)
        jv, along_v = _normalised(v, z, rstd)
        inner = (v * jg).mean((2, 3, 4), keepdim=True)
        grad_x = -rstd * (z * inner + along_v * jg + along_g * jv)
        return jv.flatten(1, 2), grad_x.flatten(1, 2), None, None


def group_norm(x: Tensor, groups: int) -> Tensor:
    """Normalise each group of channels of each image to mean 0 and variance 1, differentiable to any order. (B, C, H, W) to the same."""
    return _GroupNorm.apply(x, groups)
