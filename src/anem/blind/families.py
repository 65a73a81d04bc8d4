"""Families of degradations: which settings are unknown, where they are looked for, and the operator and noise they stand for."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from anem.operators import GaussianBlur, Identity, KernelBlur, LinearOperator, MotionBlur, inside_box

__all__ = [
    "FAMILIES",
    "Family",
    "Parameter",
    "as_family",
    "band",
    "box",
    "box_anywhere",
    "gaussian_blur",
    "motion_blur",
    "super_resolution",
    "white_noise",
]

Settings = dict[str, Tensor]
Degradation = tuple[LinearOperator, Tensor]


@dataclass(frozen=True)
class Parameter:
    """An unknown setting θ, with a flat prior over its range in the coordinate u = θ, or u = log θ.

    Arguments:
        low, high: the range, ends included.
        scale: "integer", "linear" (u = θ) or "log" (u = log θ, low > 0).
        cells: into how many pieces the range is cut at first; for integers, at most how many.
        unit: for people.
        periodic: whether ``high`` is ``low`` again.
    """

    low: float
    high: float
    scale: Literal["integer", "linear", "log"] = "linear"
    cells: int = 12
    unit: str = ""
    periodic: bool = False

    def __post_init__(self) -> None:
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low < self.high + (self.scale == "integer")):
            raise ValueError(f"parameter: wanted finite low < high, got {self.low} and {self.high}")
        if self.scale == "log" and not self.low > 0:
            raise ValueError(f"parameter: wanted low > 0 on a logarithmic scale, got {self.low}")
        if self.cells < 1:
            raise ValueError(f"parameter: wanted cells >= 1, got {self.cells}")

    @property
    def continuous(self) -> bool:
        return self.scale != "integer"

    def coordinate(self, theta: Tensor) -> Tensor:
        """u of θ."""
        return theta.log() if self.scale == "log" else theta

    def value(self, u: Tensor) -> Tensor:
        """θ of u."""
        return u.exp() if self.scale == "log" else u

    def bounds(self) -> tuple[float, float]:
        """The range in u; an integer k fills k − ½ to k + ½."""
        if self.scale == "integer":
            return self.low - 0.5, self.high + 0.5
        return (math.log(self.low), math.log(self.high)) if self.scale == "log" else (self.low, self.high)

    def offset(self, u: Tensor, origin: Tensor) -> Tensor:
        """u − origin, the shorter way round if periodic."""
        difference = u - origin
        period = self.high - self.low
        return difference - period * (difference / period).round() if self.periodic else difference

    def partition(self) -> tuple[Tensor, Tensor]:
        """Centres and widths in u of the first cells, (N,) float64; integers in blocks of 3ᵏ and what is left over in smaller ones."""
        low, high = self.bounds()
        if self.continuous:
            width = (high - low) / self.cells
            return low + width * (torch.arange(self.cells, dtype=torch.float64) + 0.5), torch.full((self.cells,), width).double()
        step, sides, left = 1, [], round(high - low)
        while left / step > self.cells:
            step *= 3
        while left:
            sides += [step] * (left // step)
            left, step = left % step, step // 3
        widths = torch.tensor(sides, dtype=torch.float64)
        return low + widths.cumsum(0) - widths / 2, widths


@dataclass(frozen=True)
class Family:
    """Degradations that differ in a few settings.

    Every member leaves the same entries of a measurement measured; only then are their evidences densities of one and the same vector.

    Arguments:
        name: for people.
        settings: every setting by name: a :class:`Parameter` where it is unknown, a number where it is known.
        build: a batch of settings, each (P,), to the operator and the standard deviation of the noise, (P,) or a map (P, 1, H, W).
        valid: which settings are possible, (P,) bool; all of them if None.
    """

    name: str
    settings: Mapping[str, Parameter | float]
    build: Callable[[Settings], Degradation]
    valid: Callable[[Settings], Tensor] | None = None

    @property
    def parameters(self) -> dict[str, Parameter]:
        """What is unknown, in the order of the columns of θ."""
        return {name: p for name, p in self.settings.items() if isinstance(p, Parameter)}

    def change(self, settings: Mapping[str, Parameter | float]) -> Family:
        """The family with some settings known, or looked for elsewhere.

        Raises:
            ValueError: a setting it has not, a number that a setting cannot be, or none left unknown.
        """
        unknown = set(settings) - set(self.settings)
        if unknown:
            raise ValueError(f"{self.name}: wanted settings among {', '.join(self.settings)}, got {', '.join(sorted(unknown))}")
        self.check({name: value for name, value in settings.items() if not isinstance(value, Parameter)})
        changed = replace(self, settings={**self.settings, **settings})
        if not changed.parameters:
            raise ValueError(f"{self.name}: wanted at least one unknown setting, got numbers for all of {', '.join(self.settings)}")
        return changed

    def check(self, numbers: Mapping[str, float]) -> None:
        """Raise ValueError for numbers that settings cannot be: not whole, or negative where the range looked at is not."""
        for name, value in numbers.items():
            parameter = self.settings[name]
            if isinstance(parameter, Parameter) and not parameter.continuous and not float(value).is_integer():
                raise ValueError(f"{name}: wanted a whole number, got {value:g}")
            if isinstance(parameter, Parameter) and parameter.low >= 0 and not 0 <= value < math.inf:
                raise ValueError(f"{name}: wanted a finite number >= 0, got {value:g}")

    def values(self, u: Tensor) -> Tensor:
        """θ of coordinates u, (P, D)."""
        return torch.stack([p.value(column) for p, column in zip(self.parameters.values(), u.unbind(1), strict=True)], 1)

    def coordinates(self, theta: Tensor) -> Tensor:
        """u of θ, (P, D)."""
        return torch.stack([p.coordinate(column) for p, column in zip(self.parameters.values(), theta.unbind(1), strict=True)], 1)

    def offsets(self, u: Tensor, origin: Tensor) -> Tensor:
        """u − origin for coordinates (…, D), the shorter way round where a parameter is periodic."""
        return torch.stack([p.offset(u[..., a], origin[..., a]) for a, p in enumerate(self.parameters.values())], -1)

    def possible(self, theta: Tensor) -> Tensor:
        """Which θ are possible, bool (P,)."""
        return torch.ones(len(theta), dtype=torch.bool) if self.valid is None else self.valid(self._settings(theta))

    def degradation(self, theta: Tensor) -> Degradation:
        """Operator and noise of a batch of θ, (P, D); differentiable in the parameters that are continuous.

        Raises:
            ValueError: θ of another number of columns.
        """
        return self.build(self._settings(theta))

    def _settings(self, theta: Tensor) -> Settings:
        names = list(self.parameters)
        if theta.ndim != 2 or theta.shape[1] != len(names):
            raise ValueError(f"theta: wanted (P, {len(names)}) with columns {', '.join(names)}, got shape {tuple(theta.shape)}")
        known = {name: theta.new_full((len(theta),), p) for name, p in self.settings.items() if not isinstance(p, Parameter)}
        return known | dict(zip(names, theta.unbind(1), strict=True))


def _noise(low: float = 0.003, high: float = 3.0, cells: int = 5) -> Parameter:
    return Parameter(low, high, "log", cells)


def _boxed(size: Sequence[int], top: Tensor, left: Tensor, height: Tensor, width: Tensor, settings: Settings) -> Degradation:
    """White noise of one σ inside a rectangle and another outside; every pixel is measured."""
    inside = inside_box(size, *(v.detach().round().long() for v in (top, left, height, width))).to(top.device)
    within, outside = (settings[name][:, None, None, None] for name in ("sigma_in", "sigma_out"))
    return Identity(), torch.where(inside, within, outside)


def _sides(size: Sequence[int], name: str, least: int = 2) -> tuple[int, int]:
    """H and W, checked to leave room for the family ``name``."""
    height, width = size[-2:]
    if min(height, width) < least:
        raise ValueError(f"{name}: wanted images of at least {least} x {least} pixels, got {height} x {width}")
    return height, width


def white_noise(size: Sequence[int]) -> Family:
    """White noise of unknown ``sigma``."""
    return Family("white", {"sigma": _noise()}, lambda s: (Identity(), s["sigma"]))


def box(size: Sequence[int]) -> Family:
    """Noise of ``sigma_in`` inside a square of ``side`` pixels in the middle of images of ``size`` (…, H, W), ``sigma_out`` outside."""
    h, w = _sides(size, "box")

    def build(s: Settings) -> Degradation:
        side = s["side"]
        return _boxed(size, (h - side).div(2, rounding_mode="floor"), (w - side).div(2, rounding_mode="floor"), side, side, s)

    side = Parameter(1, min(h, w) - 1, "integer", 12, "pixels")
    return Family("box", {"side": side, "sigma_in": _noise(0.01, 30.0), "sigma_out": _noise()}, build)


def box_anywhere(size: Sequence[int]) -> Family:
    """As :func:`box`, with the square's upper left corner at the pixel (``top``, ``left``)."""
    h, w = _sides(size, "box-anywhere", least=3)
    small = min(h, w)

    def valid(s: Settings) -> Tensor:
        return (s["top"] + s["side"] <= h) & (s["left"] + s["side"] <= w)

    settings: dict[str, Parameter | float] = {
        "side": Parameter(max(2, small // 5), small - max(1, small // 5), "integer", 8, "pixels"),
        "top": Parameter(0, h - max(2, small // 5), "integer", 10, "pixels"),
        "left": Parameter(0, w - max(2, small // 5), "integer", 10, "pixels"),
        "sigma_in": _noise(0.01, 30.0, 3),
        "sigma_out": _noise(cells=3),
    }
    return Family("box-anywhere", settings, lambda s: _boxed(size, s["top"], s["left"], s["side"], s["side"], s), valid)


def band(size: Sequence[int]) -> Family:
    """Noise of ``sigma_in`` inside a horizontal band of ``height`` pixels in the middle, ``sigma_out`` outside."""
    h, w = _sides(size, "band")

    def build(s: Settings) -> Degradation:
        height = s["height"]
        return _boxed(size, (h - height).div(2, rounding_mode="floor"), torch.zeros_like(height), height, torch.full_like(height, w), s)

    height = Parameter(1, h - 1, "integer", 12, "pixels")
    return Family("band", {"height": height, "sigma_in": _noise(0.01, 30.0), "sigma_out": _noise()}, build)


def gaussian_blur(size: Sequence[int], kernel: int = 8) -> Family:
    """Gaussian blur of unknown ``std`` in pixels, cut off at a square of side ``kernel``, and white noise of ``sigma``."""
    side = min(kernel, *size[-2:])
    std = Parameter(0.3, 3.0, "linear", 12, "pixels")
    return Family("blur", {"std": std, "sigma": _noise()}, lambda s: (GaussianBlur(side, s["std"]), s["sigma"]))


def motion_blur(size: Sequence[int]) -> Family:
    """Motion blur of unknown ``length`` in pixels and ``angle`` in degrees from the horizontal, and white noise of ``sigma``."""
    length = Parameter(1.0, min(_sides(size, "motion", least=3)) / 2, "linear", 6, "pixels")
    angle = Parameter(0.0, 180.0, "linear", 9, "degrees", periodic=True)
    settings: dict[str, Parameter | float] = {"length": length, "angle": angle, "sigma": _noise()}
    return Family("motion", settings, lambda s: (MotionBlur(s["length"], s["angle"]), s["sigma"]))


def super_resolution(size: Sequence[int]) -> Family:
    """The box filter of super-resolution by ``factor``, at full size (1: no filter), and white noise of ``sigma``."""
    largest = min(8, *size[-2:])

    def build(s: Settings) -> Degradation:
        factor = s["factor"].detach().round()[:, None]
        if not bool(((factor >= 1) & (factor <= largest)).all()):
            raise ValueError(f"factor: wanted 1 to {largest}, got {float(factor[(factor < 1) | (factor > largest)][0]):g}")
        at = torch.arange(largest).to(factor) - largest // 2 + (factor / 2).floor()
        row = ((at >= 0) & (at < factor)).to(factor) / factor
        return KernelBlur((row[:, :, None] * row[:, None, :])[:, None]), s["sigma"]

    return Family("super-resolution", {"factor": Parameter(1, largest, "integer"), "sigma": _noise()}, build)


FAMILIES: dict[str, Callable[[Sequence[int]], Family]] = {
    "white": white_noise,
    "box": box,
    "box-anywhere": box_anywhere,
    "band": band,
    "blur": gaussian_blur,
    "motion": motion_blur,
    "super-resolution": super_resolution,
}
"""Families by name, each made for images of a size (…, H, W)."""


def as_family(family: Family | str, size: Sequence[int]) -> Family:
    """A family, or the one of a name in :data:`FAMILIES` for images of ``size`` (…, H, W).

    Raises:
        ValueError: an unknown name.
    """
    if isinstance(family, Family):
        return family
    if family not in FAMILIES:
        raise ValueError(f"family: wanted one of {', '.join(FAMILIES)}, got {family!r}")
    return FAMILIES[family](size)
