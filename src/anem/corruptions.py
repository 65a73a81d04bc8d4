"""p(Σ): the covariances a model is trained on.

A family is data: a name, a basis and a function that draws log-variances for n images at once. Add one by passing a longer tuple of
families; nothing else changes. Most families draw two levels, of what is observed and of what is not; spectra go on along the paths that
sampling follows from there, because those leave the family (a blur's powers are no blur, nor is a blur cut off at a level).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import torch
from torch import Tensor

from anem.bases import BlockDCT, Mixed, as_basis
from anem.covariance import Covariance
from anem.operators import BoxMean, GaussianBlur, MotionBlur
from anem.statistics import VARIANCE_FLOOR, DataStatistics
from anem.variates import Variates

__all__ = ["NOISE_FAMILIES", "NoiseBatch", "NoiseConfig", "NoiseDraw", "NoiseFamily", "draw_covariances"]

_MOVES = 1000.0
"""Largest move of a twin's random numbers over the smallest, log-uniform between."""


@dataclass(frozen=True)
class NoiseDraw:
    """What a family is given: the size of its share of the batch, the range of log λ, and the source of randomness.

    ``low`` and ``high`` bound log λ; ``shape`` is (n, C, H, W). Numbers come from ``variates`` alone, the first axis being images.
    """

    shape: tuple[int, int, int, int]
    low: float
    high: float
    variates: Variates

    def rand(self, *shape: int) -> Tensor:
        """Uniform numbers in [0, 1)."""
        return self.variates.uniform(shape)

    def level(self) -> Tensor:
        """A log-variance for each image, (n, 1, 1, 1), stratified over the n images: uniform, but seldom below that of 8-bit rounding."""
        return self._uniform_between((VARIANCE_FLOOR,), (0.05, 0.95))

    def measured(self) -> Tensor:
        """The same for the noise of a measurement, which is seldom above 0.3 either: more of it leaves little to see."""
        return self._uniform_between((VARIANCE_FLOOR, 0.3), (0.05, 0.88, 0.07))

    def _uniform_between(self, variances: Sequence[float], shares: Sequence[float]) -> Tensor:
        """Log-variances uniform between low, those of the given variances inside the range, and high, each piece with its share."""
        edges = [self.low, *(min(max(math.log(v), self.low), self.high) for v in variances), self.high]
        pieces = [(b - a, share) for (a, b), share in zip(pairwise(edges), shares, strict=True) if b > a]
        left = self.variates.stratified((self.shape[0], 1, 1, 1)) * sum(share for _, share in pieces)
        level = torch.full_like(left, self.low)
        for width, share in pieces:
            level = level + width * (left / share).clamp(0, 1)
            left = left - share
        return level

    def grid(self) -> tuple[Tensor, Tensor]:
        """Pixel coordinates, (1, 1, H, 1) and (1, 1, 1, W)."""
        _, _, h, w = self.shape
        return torch.arange(h).view(1, 1, h, 1), torch.arange(w).view(1, 1, 1, w)

    def channels_apart(self, draw: Callable[[], Tensor]) -> Tensor:
        """``draw()``, and for a quarter of colour images an independent draw in every channel."""
        n, c, h, w = self.shape
        together = draw().expand(n, 1, h, w)
        if c == 1:
            return together
        apart = torch.cat([draw().expand(n, 1, h, w) for _ in range(c)], 1)
        return torch.where(self.rand(n, 1, 1, 1) < 0.25, apart, together)

    def two_levels(self, hidden: Tensor) -> Tensor:
        """Any level where ``hidden``, λ_max for a quarter of the images, and elsewhere one of a measurement."""
        inside = torch.where(self.rand(self.shape[0], 1, 1, 1) < 0.25, torch.tensor(self.high), self.level())
        return torch.where(hidden, inside, self.measured())

    def along_path(self, log_start: Tensor) -> Tensor:
        """In equal shares: λ_T; a point of the geometric path from it towards min(λ_0, λ_T); of the water-filling path, min(λ_T, θ)."""
        n = self.shape[0]
        start = log_start.clamp(self.low, self.high)
        least = max(self.low, math.log(VARIANCE_FLOOR))  # λ_0 of a sampler, unless it is told another
        end = torch.minimum(least + (math.log(1e-5) - least) * self.rand(n, 1, 1, 1), start)
        geometric = start + self.rand(n, 1, 1, 1) * (end - start)
        filled = torch.minimum(start, self.level())
        kind = self.rand(n, 1, 1, 1)
        return torch.where(kind < 1 / 3, start, torch.where(kind < 2 / 3, geometric, filled))

    def smooth_field(self, count: int = 1) -> Tensor:
        """Random fields of unit amplitude, periodic, with a random correlation length, (n, count, H, W)."""
        n, _, h, w = self.shape
        fy, fx = torch.fft.fftfreq(h).view(h, 1), torch.fft.rfftfreq(w).view(1, -1)
        length = 2.0 ** (1 + 3 * self.rand(n, 1, 1, 1))
        noise = self.variates.normal((n, count, h, w))
        low_pass = torch.exp(-0.5 * (2 * math.pi * length) ** 2 * (fy**2 + fx**2) / 4)
        smooth = torch.fft.irfft2(torch.fft.rfft2(noise) * low_pass, s=(h, w))
        return smooth / smooth.std((2, 3), keepdim=True).clamp_min(1e-6)


@dataclass(frozen=True)
class NoiseFamily:
    """A kind of covariance. ``log_variance(draw)`` returns log λ, broadcastable to (n, C, H, W)."""

    name: str
    basis: str
    weight: float
    log_variance: Callable[[NoiseDraw], Tensor]


def white(draw: NoiseDraw) -> Tensor:
    """σ² I."""
    return draw.level()


def box(draw: NoiseDraw) -> Tensor:
    """A rectangle: centred squares, horizontal bands, halves, and any box, in equal shares."""
    n, _, h, w = draw.shape
    side = 1 + (draw.rand(n, 1, 1, 1) * min(h, w)).floor()
    tall, wide = 1 + (draw.rand(n, 1, 1, 1) * h).floor(), 1 + (draw.rand(n, 1, 1, 1) * w).floor()
    kind = (draw.rand(n, 1, 1, 1) * 4).floor()
    height = torch.where(kind == 0, side, torch.where(kind == 3, torch.full_like(side, h // 2), tall))
    width = torch.where(kind == 0, side, torch.where(kind == 2, wide, torch.full_like(side, w)))
    top = torch.where(kind == 2, (draw.rand(n, 1, 1, 1) * (h - height + 1)).floor(), (h - height) // 2)
    top = torch.where(kind == 3, (draw.rand(n, 1, 1, 1) < 0.5) * (h - height), top)
    left = torch.where(kind == 2, (draw.rand(n, 1, 1, 1) * (w - width + 1)).floor(), (w - width) // 2)
    y, x = draw.grid()
    turned = (draw.rand(n, 1, 1, 1) < 0.5) & (kind == 3) & (h == w)
    y, x = torch.where(turned, x.view(1, 1, 1, w), y), torch.where(turned, y.view(1, 1, h, 1), x)
    return draw.two_levels((y >= top) & (y < top + height) & (x >= left) & (x < left + width))


def random_pixels(draw: NoiseDraw) -> Tensor:
    """Every pixel hidden with a probability of its image's own."""
    n, _, h, w = draw.shape
    return draw.channels_apart(lambda: draw.two_levels(draw.rand(n, 1, h, w) < draw.rand(n, 1, 1, 1)))


def smooth_map(draw: NoiseDraw) -> Tensor:
    """log λ a smooth random field."""
    amplitude = draw.rand(draw.shape[0], 1, 1, 1) * (draw.high - draw.low) / 4
    return draw.channels_apart(lambda: draw.level() + amplitude * draw.smooth_field())


def level_map(draw: NoiseDraw) -> Tensor:
    """Every pixel takes one of four levels, at random or by a smooth field's ranks: what guided paths pass through."""
    n, _, h, w = draw.shape
    levels = torch.cat([draw.level() for _ in range(4)], 1).expand(n, 4, h, w)
    scattered = draw.rand(n, 1, h, w)
    patched = 0.5 * (1 + torch.erf(draw.smooth_field() / 2**0.5))
    position = torch.where(draw.rand(n, 1, 1, 1) < 0.5, scattered, patched)
    return levels.gather(1, (position * 4).long().clamp(0, 3))


def _blurred(draw: NoiseDraw, response: Tensor) -> Tensor:
    """log σ²/|h|² of a convolution with the frequency response h, then along the path."""
    return draw.along_path(draw.measured() - 2 * response.abs().clamp_min(1e-12).log())


def gaussian_blur(draw: NoiseDraw) -> Tensor:
    """Blurs by Gaussians of std 0.3 to 3, by kernels of 8 × 8 taps or of an odd side as wide as the image, in equal shares."""
    n, _, h, w = draw.shape
    std = 0.3 * 10 ** draw.rand(n, 1, 1, 1).flatten()
    narrow = draw.rand(n, 1, 1, 1) < 0.5
    wide = (h - 1 + h % 2, w - 1 + w % 2)
    response = torch.empty(n, 1, h, w, dtype=torch.complex64)
    for sides, here in ((min(8, h, w), narrow.flatten()), (wide, ~narrow.flatten())):
        if bool(here.any()):
            response[here] = GaussianBlur(sides, std[here]).response(draw.shape)
    return _blurred(draw, response)


def motion_blur(draw: NoiseDraw) -> Tensor:
    """Blurs by motions of 2 to 12 pixels (less where the image is smaller), in any direction."""
    n, _, h, w = draw.shape
    longest = max(0, min(12, h - 2, w - 2))
    shortest = min(2, longest)
    length = shortest + (longest - shortest) * draw.rand(n, 1, 1, 1).flatten()
    return _blurred(draw, MotionBlur(length, 180 * draw.rand(n, 1, 1, 1).flatten()).response(draw.shape))


def box_filter(draw: NoiseDraw) -> Tensor:
    """The full-size box filter of ×2 or ×4 super-resolution (the paper's Fourier form), in equal shares."""
    n, _, h, w = draw.shape
    twofold, fourfold = (BoxMean(min(factor, h, w)).response(draw.shape).to(torch.complex64) for factor in (2, 4))
    return _blurred(draw, torch.where(draw.rand(n, 1, 1, 1) < 0.5, twofold, fourfold))


def smooth_spectrum(draw: NoiseDraw) -> Tensor:
    """log λ a line in log frequency plus a smooth even field."""
    n, _, h, w = draw.shape
    fy, fx = torch.fft.fftfreq(h).view(1, 1, h, 1), torch.fft.fftfreq(w).view(1, 1, 1, w)
    radius = torch.log(64 * (fy**2 + fx**2).sqrt().clamp_min(1 / 64)) / math.log(64 * 0.7)
    slope = (draw.rand(n, 1, 1, 1) - 0.25) * (draw.high - draw.low)
    amplitude = draw.rand(n, 1, 1, 1) * (draw.high - draw.low) / 8
    bumps = draw.smooth_field()
    bumps = bumps + bumps.flip(-2, -1).roll((1, 1), (-2, -1))
    return draw.level() + slope * (radius - draw.rand(n, 1, 1, 1)) + amplitude * bumps


def _block_levels(draw: NoiseDraw, size: int, coarse_only: bool) -> Tensor:
    n, _, h, w = draw.shape
    if coarse_only:
        first = torch.zeros(1, 1, size, size, dtype=torch.bool)
        first[..., 0, 0] = True
        block = draw.two_levels(~first)
    else:
        spread = draw.rand(n, 1, 1, 1) * (draw.high - draw.low)
        block = draw.level() + spread * (draw.rand(n, 1, size, size) - 0.5)
    return block.expand(n, 1, size, size).repeat(1, 1, h // size, w // size)


def block_means(size: int) -> Callable[[NoiseDraw], Tensor]:
    """One level for the block means and one for the rest: ×size super-resolution and its paths."""
    return lambda draw: _block_levels(draw, size, True)


def block_levels(size: int) -> Callable[[NoiseDraw], Tensor]:
    """A level for every coefficient of the block."""
    return lambda draw: _block_levels(draw, size, False)


NOISE_FAMILIES: tuple[NoiseFamily, ...] = (
    NoiseFamily("white", "pixel", 0.08, white),
    NoiseFamily("box", "pixel", 0.18, box),
    NoiseFamily("random-pixels", "pixel", 0.10, random_pixels),
    NoiseFamily("smooth-map", "pixel", 0.07, smooth_map),
    NoiseFamily("level-map", "pixel", 0.07, level_map),
    NoiseFamily("white-fourier", "fourier", 0.07, white),
    NoiseFamily("gaussian-blur", "fourier", 0.10, gaussian_blur),
    NoiseFamily("motion-blur", "fourier", 0.05, motion_blur),
    NoiseFamily("box-filter", "fourier", 0.05, box_filter),
    NoiseFamily("smooth-spectrum", "fourier", 0.06, smooth_spectrum),
    NoiseFamily("white-dct2", "dct2", 0.02, white),
    NoiseFamily("block-means-2", "dct2", 0.04, block_means(2)),
    NoiseFamily("block-levels-2", "dct2", 0.02, block_levels(2)),
    NoiseFamily("white-dct4", "dct4", 0.02, white),
    NoiseFamily("block-means-4", "dct4", 0.05, block_means(4)),
    NoiseFamily("block-levels-4", "dct4", 0.02, block_levels(4)),
)


@dataclass(frozen=True)
class NoiseConfig:
    """The distribution p(Σ).

    Arguments:
        lambda_min: smallest variance. lambda_max: largest, None for the data's own "not observed" (30 × the largest eigenvalue).
        weights: probability weights by family name that replace the defaults; 0 leaves a family out.
        only: if given, just these families, with their weights.
        stratified: every batch has the same number of images in each basis, as near as whole numbers come to the weights.
    """

    lambda_min: float = 1e-8
    lambda_max: float | None = None
    weights: dict[str, float] = field(default_factory=dict)
    only: tuple[str, ...] = ()
    stratified: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.lambda_min < (self.lambda_max or math.inf):
            raise ValueError(f"noise: wanted 0 < lambda_min < lambda_max, got {self.lambda_min} and {self.lambda_max}")
        unknown = (set(self.weights) | set(self.only)) - set(self.family_names)
        if unknown:
            raise ValueError(f"noise: unknown families {sorted(unknown)}: wanted some of {', '.join(self.family_names)}")
        if not all(0 <= weight < math.inf for weight in self.weights.values()):
            raise ValueError(f"noise.weights: wanted finite numbers >= 0, got {self.weights}")
        if not float(self.family_weights().sum()) > 0:
            raise ValueError("noise: wanted a family of some weight, got none")

    @property
    def family_names(self) -> tuple[str, ...]:
        """Names of all families, in the order of the indices of :class:`NoiseBatch`."""
        return tuple(f.name for f in NOISE_FAMILIES)

    def family_weights(self, families: tuple[NoiseFamily, ...] = NOISE_FAMILIES) -> Tensor:
        """Probability weights, (families,)."""
        weights = [self.weights.get(f.name, f.weight) * (not self.only or f.name in self.only) for f in families]
        return torch.tensor(weights)


@dataclass(frozen=True, eq=False)
class NoiseBatch:
    """Covariances of a batch, the family each came from, (B,) int64, and if asked for the twin of each, see :func:`draw_covariances`."""

    cov: Covariance
    family: Tensor
    twin: Covariance | None = None


def _largest_remainder(shares: Tensor) -> list[int]:
    """Whole numbers next to ``shares`` with the same sum."""
    whole = shares.floor()
    left = round(float((shares - whole).sum()))
    whole[(shares - whole).argsort(descending=True)[:left]] += 1
    return [int(n) for n in whole]


def draw_covariances(
    shape: tuple[int, int, int, int],
    statistics: DataStatistics,
    config: NoiseConfig,
    generator: torch.Generator,
    families: tuple[NoiseFamily, ...] = NOISE_FAMILIES,
    twins: bool = False,
) -> NoiseBatch:
    """Draw Σ for a batch of images.

    A twin is another Σ of the same family, of the same random numbers, all of one image moved by up to the same share of their range, from
    a thousandth to all of it. The moves are reversible, so Σ and its twin are exchangeable: nobody can tell from the pair which came first.

    Arguments:
        shape: (B, C, H, W). statistics: for the default λ_max. generator: a CPU generator; the draw depends on nothing else.
        twins: whether to draw them too; they do not change what else is drawn.
        families: the kinds of covariance; block DCT families that do not fit the image size are left out.

    Raises:
        ValueError: none is left.
    """
    batch, channels, height, width = shape
    bases = [as_basis(f.basis) for f in families]
    fits = torch.tensor([not isinstance(b, BlockDCT) or (height % b.size == 0 and width % b.size == 0) for b in bases])
    weights = config.family_weights(families) * fits
    if not float(weights.sum()) > 0:
        raise ValueError(f"noise: wanted a family that fits images of {height} x {width}, got none of some weight")
    low, high = math.log(config.lambda_min), math.log(config.lambda_max or statistics.lambda_max)
    names = list(dict.fromkeys(f.basis for f in families))
    basis_of = torch.tensor([names.index(f.basis) for f in families])
    if config.stratified:
        shares = torch.zeros(len(names), dtype=torch.float64).index_add_(0, basis_of, weights.double())
        counts = _largest_remainder(shares / shares.sum() * batch)
        draws = [torch.multinomial(weights * (basis_of == i), n, True, generator=generator) for i, n in enumerate(counts) if n]
        family = torch.cat(draws).sort().values
    else:
        family = torch.multinomial(weights, batch, replacement=True, generator=generator).sort().values
    basis = Mixed([as_basis(n) for n in names], basis_of[family])
    share = {index: int((family == index).sum()) for index in family.unique().tolist()}

    def covariance(variates: Sequence[Variates]) -> Covariance:
        parts = []
        for (index, count), source in zip(share.items(), variates, strict=True):
            shape = count, channels, height, width
            parts.append(families[index].log_variance(NoiseDraw(shape, low, high, source)).clamp(low, high).expand(shape))
        return Covariance(torch.cat(parts).exp(), basis, check=False)

    sources = [Variates(generator, keep=twins) for _ in share]
    cov = covariance(sources)
    if not twins:
        return NoiseBatch(cov, family)
    aside = torch.Generator()  # what else is drawn from ``generator`` is the same with twins and without
    aside.set_state(generator.get_state())
    aside.manual_seed(int(torch.randint(2**62, (), generator=aside)))
    moves = [_MOVES ** -torch.rand(count, generator=aside) for count in share.values()]
    return NoiseBatch(cov, family, covariance([s.moved(step, aside) for s, step in zip(sources, moves, strict=True)]))
