"""The few layers of the energy network."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from anem.nn.functional import GradientScope, conv2d, group_norm, silu

__all__ = ["Attention", "Block", "Conv"]


class Conv(nn.Module):
    """k × k convolution that keeps the size. Weights start at ``gain``/√fan-in, biases at 0.

    Arguments:
        inputs, outputs: channels. kernel: odd side k. gain: 0 makes the layer start as zero. scope: shared by the network's layers.
    """

    def __init__(self, inputs: int, outputs: int, kernel: int, scope: GradientScope, gain: float = 1.0) -> None:
        super().__init__()
        weight = torch.randn(outputs, inputs, kernel, kernel) * gain / (inputs * kernel**2) ** 0.5
        self.weight = nn.Parameter(weight.contiguous(memory_format=torch.channels_last))
        self.bias = nn.Parameter(torch.zeros(outputs))
        self.scope = scope

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, H, W) to (B, outputs, H, W)."""
        return conv2d(x, self.weight, self.bias, self.scope)


class Block(nn.Module):
    """x + conv(SiLU(norm(conv(SiLU(norm x))) ⊙ (1 + e))), e a per-pixel gain from the embedding of the covariance.

    Arguments:
        channels: of x. embedding: channels of the embedding. norm: number of normalisation groups, 0 for none.
        dropout: probability of dropping an activation of the second convolution while training.
    """

    def __init__(self, channels: int, embedding: int, scope: GradientScope, norm: int = 0, dropout: float = 0.0) -> None:
        super().__init__()
        self.first = Conv(channels, channels, 3, scope)
        self.second = Conv(channels, channels, 3, scope, gain=0.3)
        self.gain = Conv(embedding, channels, 1, scope, gain=0.3)
        self.norm = norm
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """x (B, C, H, W) and the embedding (B, E, H, W) to (B, C, H, W)."""
        h = self.first(silu(group_norm(x, self.norm) if self.norm else x, self.first.scope))
        if self.norm:
            h = group_norm(h, self.norm)
        h = silu(torch.addcmul(h, h, self.gain(embedding)), self.first.scope)
        return x + self.second(self.dropout(h))


class Attention(nn.Module):
    """Multi-head self-attention over pixels, written out (the fused kernels have no double backward).

    Arguments:
        channels: of x, a multiple of ``head``. head: channels a head.
    """

    def __init__(self, channels: int, scope: GradientScope, norm: int = 0, head: int = 64) -> None:
        super().__init__()
        if channels % head:
            raise ValueError(f"attention: channels must be a multiple of {head}, got {channels}")
        self.head, self.norm = head, norm
        self.qkv = Conv(channels, 3 * channels, 1, scope)
        self.out = Conv(channels, channels, 1, scope, gain=0.3)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C, H, W)."""
        b, c, h, w = x.shape
        z = self.qkv(group_norm(x, self.norm) if self.norm else x)
        q, k, v = z.reshape(b, 3, c // self.head, self.head, h * w).unbind(1)
        weight = torch.softmax(torch.einsum("bndi,bndj->bnij", q, k) / self.head**0.5, -1)
        return x + self.out(torch.einsum("bnij,bndj->bndi", weight, v).reshape(b, c, h, w))
