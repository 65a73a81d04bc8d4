"""A U-Net whose cost is decided by three numbers a level: channels, blocks, attention."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, pad, pixel_shuffle, pixel_unshuffle

from anem.nn.embedding import CovarianceEmbedding
from anem.nn.functional import GradientScope
from anem.nn.layers import Attention, Block, Conv

__all__ = ["UNet", "noise_map", "padded"]


class _Stage(nn.Module):
    """Blocks at one resolution, then attention if asked for."""

    def __init__(
        self, channels: int, blocks: int, attention: bool, embedding: int, scope: GradientScope, norm: int, dropout: float
    ) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(channels, embedding, scope, norm, dropout) for _ in range(blocks))
        self.attention = nn.ModuleList([Attention(channels, scope, norm)] if attention else [])

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x, embedding)
        for layer in self.attention:
            x = layer(x)
        return x


class UNet(nn.Module):
    """Image features and a covariance embedding in, maps at the image's resolution out.

    Arguments:
        inputs, maps, outputs: channels of the image features, of the noise map and of the result.
        channels, blocks: per level; the deepest level is run once, the others before and after it.
        attention: levels with self-attention. stem: side of the space-to-depth at the entrance. embedding: channels of e(Σ).
        norm: normalisation groups, 0 for none. dropout: while training.
    """

    def __init__(
        self,
        inputs: int,
        maps: int,
        outputs: int,
        channels: Sequence[int],
        blocks: Sequence[int],
        attention: Sequence[int] = (),
        stem: int = 2,
        embedding: int = 32,
        norm: int = 0,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.scope = scope = GradientScope()
        self.stem = stem
        self.multiple = stem * 2 ** (len(channels) - 1)
        self.embedding = CovarianceEmbedding(maps * stem**2, embedding, scope)
        self.enter = Conv(inputs * stem**2, channels[0], 3, scope)

        def stage(level: int) -> _Stage:
            return _Stage(channels[level], blocks[level], level in attention, embedding, scope, norm, dropout)

        last = len(channels) - 1
        self.encoder = nn.ModuleList(stage(i) for i in range(last))
        self.down = nn.ModuleList(Conv(4 * channels[i], channels[i + 1], 1, scope) for i in range(last))
        self.middle = stage(last)
        self.up = nn.ModuleList(Conv(channels[i + 1], 4 * channels[i], 1, scope) for i in range(last))
        self.decoder = nn.ModuleList(stage(i) for i in range(last))
        self.leave = Conv(channels[0], outputs * stem**2, 3, scope, gain=0.0)
        self.gain = Conv(embedding, outputs * stem**2, 1, scope, gain=0.0)

    def forward(self, features: Tensor, noise_map: Tensor, summary: Tensor) -> Tensor:
        """(B, inputs, H, W), (B, maps, H, W) and (B, 51) to (B, outputs, H, W); sides must be multiples of ``self.multiple``."""
        embeddings = [self.embedding(pixel_unshuffle(noise_map, self.stem), summary)]
        for _ in self.down:
            embeddings.append(avg_pool2d(embeddings[-1], 2))
        x = self.enter(pixel_unshuffle(features, self.stem).contiguous(memory_format=torch.channels_last))
        skips = []
        for level, (stage, down) in enumerate(zip(self.encoder, self.down, strict=True)):
            x = stage(x, embeddings[level])
            skips.append(x)
            x = down(pixel_unshuffle(x, 2))
        x = self.middle(x, embeddings[-1])
        for level in reversed(range(len(skips))):
            x = skips[level] + pixel_shuffle(self.up[level](x), 2)
            x = self.decoder[level](x, embeddings[level])
        x = self.leave(x) * torch.exp(self.gain(embeddings[0]))
        return pixel_shuffle(x, self.stem)


def noise_map(log_ratio: Tensor) -> Tensor:
    """What the U-Net is told of noise, (B, 2C, H, W), from its log ratio to the data, log λ/c, (B, C, H, W)."""
    return torch.cat([log_ratio / 8, torch.sigmoid(-log_ratio)], 1)


def padded(unet: UNet, features: Tensor, noise: Tensor, summary: Tensor) -> Tensor:
    """The U-Net on images of any size: with zeros on the right and below up to sides that it can halve, and these cut off again."""
    height, width = features.shape[-2:]
    extra = (0, -width % unet.multiple, 0, -height % unet.multiple)
    if any(extra):
        features, noise = pad(features, extra), pad(noise, extra)
    return unet(features, noise, summary)[..., :height, :width]
