"""The frozen reference of the speed bench: the network of :mod:`anem.network` with nothing made cheap.

Standard torch layers in place of those of :mod:`anem.nn.functional`, the complex FFT in place of the real transform, the scalar mixture
differentiated through its components, and one ``autograd.grad(create_graph=True)`` over the whole energy. It takes the weights of a model
and has the same energy, gradients and losses; only what they cost differs.
"""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from anem.bases import Basis, Fourier, Mixed
from anem.covariance import Covariance
from anem.marginal import ScalarMixture
from anem.network import EnergyNetwork, TrainingGradients
from anem.nn.embedding import CovarianceEmbedding
from anem.nn.layers import Attention, Block, Conv
from anem.nn.unet import UNet

__all__ = ["ComplexFourier", "PlainMixture", "PlainNetwork", "PlainUNet", "plain_basis"]


class ComplexFourier(Fourier):
    """The same coordinates by a complex transform that autograd differentiates."""

    def forward(self, x: Tensor) -> Tensor:
        f = torch.fft.fft2(x, norm="ortho")
        return f.real - f.imag

    def inverse(self, z: Tensor) -> Tensor:
        return self.forward(z)


def plain_basis(basis: Basis) -> Basis:
    """The basis with complex transforms."""
    if isinstance(basis, Mixed):
        return Mixed([plain_basis(b) for b in basis.bases], basis.index)
    return ComplexFourier() if isinstance(basis, Fourier) else basis


class PlainMixture(ScalarMixture):
    """The same scalar mixture, written as a log-sum-exp over its components."""

    def forward(self, m: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
        p, mean, s = (b.to(m)[:, :, None, None] for b in (self.weights, self.means, self.variances))
        t = s + variance[:, :, None]
        gap = m[:, :, None] - mean
        log = p.clamp_min(1e-30).log() - 0.5 * (torch.log(2 * math.pi * t) + gap.square() / t)
        share = torch.softmax(log, 2)
        return torch.logsumexp(log, 2), (share * (mean + s / t * gap)).sum(2)


def _convolution(conv: Conv) -> nn.Conv2d:
    out, into, side, _ = conv.weight.shape
    layer = nn.Conv2d(into, out, side, padding=side // 2)
    layer.load_state_dict(conv.state_dict())
    return layer.to(conv.weight.dtype)


class _Embedding(nn.Module):
    def __init__(self, source: CovarianceEmbedding) -> None:
        super().__init__()
        self.local, self.summary, self.mix, self.out = map(_convolution, (source.local, source.summary, source.mix, source.out))

    def forward(self, noise_map: Tensor, summary: Tensor) -> Tensor:
        channel = self.mix(functional.silu(self.summary(summary[:, :, None, None])))
        return functional.silu(self.out(functional.silu(self.local(noise_map) + channel)))


class _Block(nn.Module):
    def __init__(self, source: Block) -> None:
        super().__init__()
        self.first, self.second, self.gain = map(_convolution, (source.first, source.second, source.gain))
        self.norm, self.dropout = source.norm, source.dropout

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        h = self.first(functional.silu(functional.group_norm(x, self.norm) if self.norm else x))
        h = functional.group_norm(h, self.norm) if self.norm else h
        h = functional.silu(h * (1 + self.gain(embedding)))
        return x + self.second(self.dropout(h))


class _Attention(nn.Module):
    def __init__(self, source: Attention) -> None:
        super().__init__()
        self.qkv, self.out = _convolution(source.qkv), _convolution(source.out)
        self.head, self.norm = source.head, source.norm

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        z = self.qkv(functional.group_norm(x, self.norm) if self.norm else x)
        q, k, v = z.reshape(b, 3, c // self.head, self.head, h * w).unbind(1)
        weight = torch.softmax(q.mT @ k / self.head**0.5, -1)
        return x + self.out((v @ weight.mT).reshape(b, c, h, w))


class _Stage(nn.Module):
    def __init__(self, source: nn.Module) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(_Block(b) for b in source.blocks)
        self.attention = nn.ModuleList(_Attention(a) for a in source.attention)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x, embedding)
        for layer in self.attention:
            x = layer(x)
        return x


class PlainUNet(nn.Module):
    """A :class:`~anem.nn.unet.UNet` of standard layers with the same weights, channels last."""

    def __init__(self, source: UNet) -> None:
        super().__init__()
        self.stem, self.multiple = source.stem, source.multiple
        self.embedding = _Embedding(source.embedding)
        self.enter, self.leave, self.gain = map(_convolution, (source.enter, source.leave, source.gain))
        self.encoder = nn.ModuleList(_Stage(s) for s in source.encoder)
        self.down = nn.ModuleList(_convolution(c) for c in source.down)
        self.middle = _Stage(source.middle)
        self.up = nn.ModuleList(_convolution(c) for c in source.up)
        self.decoder = nn.ModuleList(_Stage(s) for s in source.decoder)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, features: Tensor, noise_map: Tensor, summary: Tensor) -> Tensor:
        """As :meth:`anem.nn.unet.UNet.forward`."""
        embeddings = [self.embedding(functional.pixel_unshuffle(noise_map, self.stem), summary)]
        for _ in self.down:
            embeddings.append(functional.avg_pool2d(embeddings[-1], 2))
        x = self.enter(functional.pixel_unshuffle(features, self.stem).contiguous(memory_format=torch.channels_last))
        skips = []
        for stage, down, embedding in zip(self.encoder, self.down, embeddings, strict=False):
            x = stage(x, embedding)
            skips.append(x)
            x = down(functional.pixel_unshuffle(x, 2))
        x = self.middle(x, embeddings[-1])
        for level in reversed(range(len(skips))):
            x = self.decoder[level](skips[level] + functional.pixel_shuffle(self.up[level](x), 2), embeddings[level])
        x = self.leave(x) * torch.exp(self.gain(embeddings[0]))
        return functional.pixel_shuffle(x, self.stem)


class PlainNetwork(EnergyNetwork):
    """An :class:`~anem.network.EnergyNetwork` with the weights of ``source`` and no shortcut.

    Arguments:
        source: the model. mixture: whether the scalar mixture of pixel values is plain too.
    """

    def __init__(self, source: EnergyNetwork, mixture: bool = True) -> None:
        super().__init__(source.config, copy.deepcopy(source.statistics))
        self.to(source.unet.enter.weight.dtype)
        self.load_state_dict(source.state_dict())
        self.unet = PlainUNet(source.unet)  # type: ignore[assignment]
        if mixture:
            colours, components = self.statistics.marginal.weights.shape
            plain = PlainMixture(colours, components).to(source.statistics.marginal.weights.dtype)
            plain.load_state_dict(source.statistics.marginal.state_dict())
            self.statistics.marginal = plain
        self.train(source.training)

    def differentiable_gradients(self, rho: Tensor, cov: Covariance, create_graph: bool = True) -> TrainingGradients:
        """Energy and both gradients at y = μ + Bᵀρ, differentiable in the parameters."""
        basis = plain_basis(cov.basis)
        c = self._setting(cov, rho)
        with torch.enable_grad():
            leaf = rho.detach().requires_grad_()
            logvar = cov.values.detach().log().requires_grad_()
            energy = self._base(leaf, logvar.exp(), c)[0] + self._correction(leaf, logvar, basis, c)
            grad_rho, grad_logvar = torch.autograd.grad(energy.sum(), (leaf, logvar), create_graph=create_graph)
        return TrainingGradients(energy, grad_rho, basis.symmetrise(grad_logvar))
