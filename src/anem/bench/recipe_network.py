"""The paper's network at this package's budget: the fixture that :mod:`anem.bench.recipe` trains against the preset ``small``.

Written from the description of Zilberstein, Segarra, Simoncelli, Guth, Learning Normalized Energy Models for Linear Inverse Problems
(2026, arXiv 2605.15487). Of the code released with it the learning rates were taken, from its run script, and the wrapper of its model was
read; nothing was copied. What the description says, and is so here:

* the energy U(y, Σ) = ½ ⟨y, s(y, Σ)⟩ of an image-to-image network s, plus one constant that is fitted after training;
* s is the U-Net of Karras et al., Elucidating the Design Space of Diffusion-Based Generative Models (2022), at full resolution: residual
  blocks with group norm and SiLU, skips concatenated, halving by averages, self-attention at a coarse level, last layers starting at 0;
* Σ enters every block as a gain, x ← SiLU(x ⊙ (1 + e)), from two networks: one for Σ diagonal in pixels, whose e is a map over pixels at
  the block's resolution, and one for Σ diagonal in frequencies, whose e is a number a channel, read off the vector of all d variances;
* both terms of the loss, the second with weight 1/d, and standard layers differentiated twice by autograd.

What it leaves open was decided for the fixture's good:

* noise of ten decades does not get through an unscaled network in an hour, so Karras's preconditioning is kept, coordinate by coordinate:
  with m the mean square of a pixel and t = m + λ the network F sees y/√t, s = y/t + (1 + m/λ)^¼ F/√t, and F starts at 0: training starts
  from the best denoiser that scales y (½ for the ¼, which makes it Karras's own, was worse on both losses in a trial of 45 steps);
* y is not centred: most of a digit is black, and about 0 the energy of a black pixel is a plain quadratic;
* the spatial network is also told m/(m + λ), which an hour would be short to learn from log λ;
* widths 32, 48, 64 and one block a level: a number of parameters within 10 % of ``small``, most of them at the coarse levels, where they
  are cheap; no dropout, since an hour does not overfit; attention where it costs 49 pixels; channels last.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, interpolate, silu

from anem.bases import Basis, Fourier, Mixed, Pixel
from anem.covariance import Covariance
from anem.energy import EnergyModel
from anem.network import TrainingGradients
from anem.statistics import DataStatistics

__all__ = ["RecipeConfig", "RecipeNetwork", "RecipeUNet"]


@dataclass(frozen=True)
class RecipeConfig:
    """Shape of the network.

    Arguments:
        channels: a level, multiples of 4. blocks: residual blocks a level on the way down; one more on the way up.
        attention: levels with self-attention, the middle one aside, which always has it.
        embedding: channels of the embeddings of Σ. power: of 1 + m/λ in front of F.
    """

    channels: tuple[int, ...] = (32, 48, 64)
    blocks: int = 1
    attention: tuple[int, ...] = (2,)
    embedding: int = 32
    power: float = 0.25


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(min(32, channels // 4), channels)


def _convolution(inputs: int, outputs: int, side: int, scale: float = 1.0) -> nn.Conv2d:
    """Xavier's uniform weights times ``scale``, biases 0."""
    layer = nn.Conv2d(inputs, outputs, side, padding=side // 2)
    with torch.no_grad():
        nn.init.xavier_uniform_(layer.weight).mul_(scale)
        nn.init.zeros_(layer.bias)
    return layer


class _Block(nn.Module):
    """(x + conv(SiLU(norm(conv(SiLU(norm x))) ⊙ (1 + e))))/√2."""

    def __init__(self, inputs: int, outputs: int, embedding: int) -> None:
        super().__init__()
        self.before, self.first = _norm(inputs), _convolution(inputs, outputs, 3)
        self.gain = _convolution(embedding, outputs, 1)
        self.between, self.second = _norm(outputs), _convolution(outputs, outputs, 3, 1e-5)
        self.skip = nn.Identity() if inputs == outputs else _convolution(inputs, outputs, 1)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        h = self.first(silu(self.before(x)))
        h = self.second(silu(self.between(h) * (1 + self.gain(embedding))))
        return (self.skip(x) + h) * 0.5**0.5


class _Attention(nn.Module):
    """(x + attention(norm x))/√2 over pixels, one head; written out, since the fused kernels have no double backward."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm, self.qkv, self.out = _norm(channels), _convolution(channels, 3 * channels, 1), _convolution(channels, channels, 1, 1e-5)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm(x)).flatten(2).chunk(3, 1)
        weight = torch.softmax(q.mT @ k / q.shape[1] ** 0.5, -1)
        return (x + self.out((v @ weight.mT).reshape(x.shape))) * 0.5**0.5


class RecipeUNet(nn.Module):
    """Image and embedding of Σ in, an image out, at the image's resolution throughout.

    Arguments:
        colours, height, width: of the images; sides multiples of 2^(levels − 1).
    """

    def __init__(self, config: RecipeConfig, colours: int, height: int, width: int) -> None:
        super().__init__()
        e, channels = config.embedding, config.channels
        self.spatial = nn.Sequential(_convolution(2 * colours, e, 3), nn.SiLU(), _convolution(e, e, 3), nn.SiLU())
        self.spectral = nn.Sequential(nn.Linear(colours * height * width, e), nn.SiLU(), nn.Linear(e, e), nn.SiLU())
        self.enter = _convolution(colours, channels[0], 3)
        self.encoder, self.decoder = nn.ModuleList(), nn.ModuleList()
        skips, width_now = [channels[0]], channels[0]
        for level, c in enumerate(channels):
            skips += [width_now] if level else []
            self.encoder.append(nn.ModuleList(_Block(width_now if i == 0 else c, c, e) for i in range(config.blocks)))
            skips, width_now = skips + [c] * config.blocks, c
        self.attention = nn.ModuleDict({str(level): _Attention(channels[level]) for level in config.attention})
        self.middle = nn.ModuleList([_Block(width_now, width_now, e), _Block(width_now, width_now, e)])
        self.centre = _Attention(width_now)
        for c in reversed(channels):
            blocks = nn.ModuleList()
            for _ in range(config.blocks + 1):
                blocks.append(_Block(width_now + skips.pop(), c, e))
                width_now = c
            self.decoder.append(blocks)
        self.norm, self.leave = _norm(channels[0]), _convolution(channels[0], colours, 3, 1e-5)
        for parameter in self.parameters():
            if parameter.ndim == 4:
                parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)

    def embed(self, logvar: Tensor, share: Tensor, basis: Basis) -> Tensor:
        """Embedding of Σ from log λ and m/(m + λ), all (B, C, H, W), to (B, E, H, W); constant over pixels for a spectrum.

        Raises:
            ValueError: a basis for which the paper has no network.
        """
        if isinstance(basis, Mixed):
            shares = [part for _, part in basis.split(share)]
            return basis.merge([self.embed(part, s, b) for (b, part), s in zip(basis.split(logvar), shares, strict=True)])
        if isinstance(basis, Pixel):
            return self.spatial(torch.cat([logvar / 8, share], 1).contiguous(memory_format=torch.channels_last))
        if isinstance(basis, Fourier):
            return self.spectral(logvar.flatten(1) / 8)[:, :, None, None].expand(-1, -1, *logvar.shape[2:])
        raise ValueError(f"basis: the paper's recipe knows 'pixel' and 'fourier', got {basis.name!r}")

    def forward(self, image: Tensor, embedding: Tensor) -> Tensor:
        """(B, C, H, W) and (B, E, H, W) to (B, C, H, W)."""
        embeddings = [embedding.contiguous(memory_format=torch.channels_last)]
        for _ in self.encoder[1:]:
            embeddings.append(avg_pool2d(embeddings[-1], 2))
        x = self.enter(image.contiguous(memory_format=torch.channels_last))
        skips = [x]
        for level, blocks in enumerate(cast("list[nn.ModuleList]", self.encoder)):
            if level:
                x = avg_pool2d(x, 2)
                skips.append(x)
            for block in blocks:
                x = block(x, embeddings[level])
                x = self.attention[str(level)](x) if str(level) in self.attention else x
                skips.append(x)
        x = self.middle[1](self.centre(self.middle[0](x, embeddings[-1])), embeddings[-1])
        for level, blocks in zip(reversed(range(len(embeddings))), cast("list[nn.ModuleList]", self.decoder), strict=True):
            for block in blocks:
                x = block(torch.cat([x, skips.pop()], 1), embeddings[level])
            x = interpolate(x, scale_factor=2) if level else x
        return self.leave(silu(self.norm(x)))


class RecipeNetwork(EnergyModel):
    """U(y, Σ) = ½ ⟨y, s(y, Σ)⟩ + constant, as described in the module's docstring; ``offset`` is the constant, in nats.

    Arguments:
        config: shape of the network. statistics: of the data; the network wants images of their size.
    """

    offset: Tensor

    def __init__(self, config: RecipeConfig, statistics: DataStatistics) -> None:
        super().__init__()
        self.config, self.statistics = config, statistics
        self.unet = RecipeUNet(config, *statistics.spectrum.shape)
        self.register_buffer("offset", torch.zeros((), dtype=torch.float64))

    def energy(self, y: Tensor, cov: Covariance) -> Tensor:
        """U(y, Σ) in nats, (B,), differentiable in y, cov.values and the parameters."""
        return self._energy(cov.basis.forward(y), cov.values.log(), cov.basis)

    def differentiable_gradients(self, rho: Tensor, cov: Covariance, create_graph: bool = True) -> TrainingGradients:
        """Energy and both gradients at y = μ + Bᵀρ; with ``create_graph`` differentiable in the parameters, for training."""
        centre = cov.basis.forward(self.statistics.mean_image(rho).expand_as(rho))
        with torch.enable_grad():
            leaf = (centre + rho).detach().requires_grad_()
            logvar = cov.values.detach().log().requires_grad_()
            energy = self._energy(leaf, logvar, cov.basis)
            grad_leaf, grad_logvar = torch.autograd.grad(energy.sum(), (leaf, logvar), create_graph=create_graph)
        return TrainingGradients(energy, grad_leaf, cov.basis.symmetrise(grad_logvar))

    def _energy(self, z: Tensor, logvar: Tensor, basis: Basis) -> Tensor:
        """U from the coordinates z = B y and log λ, (B,)."""
        m = (self.statistics.variance + self.statistics.mean.square()).to(z)[:, None, None]
        variances = logvar.exp()
        white = z * (m + variances).rsqrt()
        inputs: list[Any] = [v.to(self.unet.enter.weight.dtype) for v in (basis.inverse(white), logvar, m / (m + variances))]
        field = self.unet(inputs[0], self.unet.embed(inputs[1], inputs[2], basis)).to(z)
        score = white + (1 + m / variances).pow(self.config.power) * basis.forward(field)
        return 0.5 * (white * score).flatten(1).sum(1) + self.offset.to(z)
