"""All audits of a model, at the covariances that a user meets."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from anem.bases import as_basis
from anem.corruptions import NOISE_FAMILIES, NoiseConfig, NoiseFamily, draw_covariances
from anem.covariance import Covariance
from anem.energy import EnergyModel
from anem.likelihood.audits import (
    ONE_CALL,
    Check,
    audit_flow,
    audit_gradient,
    audit_partition,
    audit_paths,
    audit_strangers,
    audit_variance,
)
from anem.likelihood.audits_ranks import audit_ranks
from anem.operators import LinearOperator, make_operator
from anem.random import generator_of, normal, uniform
from anem.sample import Diverged, Sampler, WaterFilling
from anem.statistics import DataStatistics

__all__ = ["Audit", "AuditSize", "audits", "family_covariances", "strange_images", "trusted_level"]

SIGMA = 0.05
"""Standard deviation of the noise in measurements."""

LEVELS = (1e-4, 1e-2, 1.0)
"""Variances of white noise at which likelihoods are compared."""

VARIANCES = (1e-4, 1e-3, 1e-2, 3e-2, 9e-2, 1.0)
"""Those at which variances are."""

KNOWN = 0.25
"""Share of coordinates whose noise is below the data's variance, in the covariances that stand for families, where a family has such."""


@dataclass(frozen=True)
class AuditSize:
    """How much is measured. Images are used from the first on, and there must be at least ``most`` of them for the figures to be decided.

    Arguments:
        flow, flow_steps: images and steps of the probability flow.
        chains, population, steps: of log Z.
        gradient: images. strangers: images of each kind. paths, nodes: images, and nodes a piece of the path.
        truths, samples: of the ranks. variance, draws: images, and samples of each. sampling: steps of every sample.
    """

    flow: int = 256
    flow_steps: int = 100
    chains: int = 128
    population: int = 16
    steps: int = 250
    gradient: int = 1000
    strangers: int = 16
    paths: int = 64
    nodes: int = 24
    truths: int = 400
    samples: int = 19
    variance: int = 128
    draws: int = 16
    sampling: int = 50

    @classmethod
    def quick(cls) -> AuditSize:
        """Within a minute on two cores for 28 × 28 pixels."""
        chains = {"chains": 8, "population": 1, "steps": 20}
        return cls(
            flow=4,
            flow_steps=10,
            gradient=32,
            strangers=2,
            paths=4,
            nodes=8,
            truths=12,
            samples=5,
            variance=6,
            draws=4,
            sampling=8,
            **chains,
        )

    @property
    def most(self) -> int:
        """Images that some audit uses."""
        return max(self.flow, self.gradient, self.strangers, self.paths, self.truths, self.variance)


@dataclass(frozen=True, eq=False)
class Audit:
    """One audit, not yet run.

    Arguments:
        name: such as ``"flow/white 1e-2"``.
        run: makes its figures.
    """

    name: str
    run: Callable[[], list[Check]] = field(repr=False)


def family_covariances(
    shape: tuple[int, int, int, int],
    statistics: DataStatistics,
    lambda_min: float,
    seed: int,
    families: tuple[NoiseFamily, ...] = NOISE_FAMILIES,
) -> dict[str, Covariance]:
    """A draw from every family of p(Σ) that the image size has a basis for, (1, C, H, W), float64.

    Of 64 draws the first with λ ≤ c in a quarter of the coordinates, or the one with the most such: where all noise is above the data's
    variance an energy is right by construction.
    """
    found = {}
    for family in families:
        try:
            as_basis(family.basis).check_size(*shape[-2:])
        except ValueError:
            continue
        noise, generator = NoiseConfig(lambda_min=lambda_min, only=(family.name,)), generator_of(seed, "family", family.name)
        best, most = None, -1.0
        for _ in range(64):
            drawn = draw_covariances(shape, statistics, noise, generator, families).cov[:1]
            cov = Covariance(drawn.basis.symmetrise(drawn.values.double()), drawn.basis)
            known = float((cov.values <= statistics.variance_of(cov)).double().mean())
            if known > most:
                best, most = cov, known
            if known >= KNOWN:
                break
        assert best is not None
        found[family.name] = best
    return found


def strange_images(images: Tensor, generator: torch.Generator | None = None) -> dict[str, Tensor]:
    """Images in [0, 1] that are nothing like (N, C, H, W) of a data set, N of a kind.

    An energy of these data may find none of them more probable than all else together. Networks are fooled by some that fill the whole
    frame, and by others in a square in the middle of black.
    """
    x = images.double()
    h, w = x.shape[-2:]
    y, z = torch.arange(h, device=x.device)[:, None], torch.arange(w, device=x.device)[None, :]
    noise = uniform(x.shape, generator, x)
    frequency = torch.fft.fftfreq(h, device=x.device)[:, None].square() + torch.fft.rfftfreq(w, device=x.device)[None].square()
    unblurred = torch.fft.irfft2(torch.fft.rfft2(x + 0.05 * (noise - 0.5)) * (20 * frequency).exp().clamp_max(1e3), s=(h, w))
    order = torch.argsort(uniform((1, h * w), generator, x)[0])
    kinds = {
        "black": torch.zeros_like(x),
        "white": torch.ones_like(x),
        "grey": torch.full_like(x, 0.5),
        "checks": ((y + z) % 2).to(x).expand_as(x),
        "stripes": (z % 2).to(x).expand_as(x),
        "noise": noise,
        "dots": (noise < x.mean()).to(x),
        "shuffled pixels": x.flatten(2)[..., order].reshape(x.shape),
        "inverted": 1 - x,
        "halves of two": torch.cat([x[..., : w // 2], x.roll(1, 0)[..., w // 2 :]], 3),
        "unblurred noise": unblurred.clamp(0, 1),
        "noise of high frequencies": (x + 2 * normal(x.shape, generator, x).diff(dim=3, append=x[..., :1] * 0)).clamp(0, 1),
    }
    middle = ((y - (h - 1) / 2).abs() < 0.29 * h) & ((z - (w - 1) / 2).abs() < 0.29 * w)
    return kinds | {f"square of {name}": kinds[name] * middle for name in ("checks", "unblurred noise", "noise")}


def audits(
    model: EnergyModel,
    images: Tensor,
    size: AuditSize | None = None,
    *,
    seed: int = 0,
    lambda_min: float = 1e-8,
) -> Iterator[Audit]:
    """All audits of a model, the cheap ones first; each runs by itself and depends on the seed and its name only.

    Arguments:
        model: the energy.
        images: held-out images, (N, C, H, W), dequantised, on the model's device.
        size: how much is measured.
        seed: of all random numbers.
        lambda_min: smallest variance the model is meant for.

    Raises:
        ValueError: fewer than two images.
    """
    if images.ndim != 4 or len(images) < 2:
        raise ValueError(f"images: wanted at least two, (N, C, H, W), got {tuple(images.shape)}")
    size = size or AuditSize()
    shape = (1, *images.shape[1:])

    def white(variance: float, basis: str = "pixel") -> Covariance:
        return Covariance.white(variance, shape, basis, images.double())

    def source(name: str) -> torch.Generator:
        return generator_of(seed, name, device=images.device)

    families = {n: c.to(images.device) for n, c in family_covariances(shape, model.statistics, lambda_min, seed).items()}
    run: Callable[..., Check | list[Check]]
    for where, cov in ({f"white {v:g}": white(v) for v in VARIANCES} | families).items():
        yield _one(partial(audit_gradient, model, images[: size.gradient], cov, where=where), f"gradient/{where}", source)
    strangers = strange_images(images[: size.strangers], source("strangers"))
    for where, cov in ({f"white {v:g}": white(v) for v in (lambda_min, *VARIANCES)} | families).items():
        yield _one(partial(audit_strangers, model, strangers, cov, where=where), f"strangers/{where}", source)
    for where, way in _paths(white, shape).items():
        straight = [white(LEVELS[0]), white(LEVELS[-1])]
        run = partial(audit_paths, model, images[: size.paths], straight, way, where=where, nodes=size.nodes)
        yield _one(run, f"paths/{where}", source)
    sampler = Sampler("sde-2m", final="noisy", schedule=WaterFilling(size.sampling))
    for v in VARIANCES:
        run = partial(audit_variance, model, cov=white(v), where=f"white {v:g}", samples=size.draws, sampler=sampler)
        yield _one(partial(_where_chains_settle, run, images[: size.variance]), f"variance/white {v:g}", source)
    for v in LEVELS:
        run = partial(audit_flow, model, images[: size.flow], white(v), where=f"white {v:g}", steps=size.flow_steps)
        yield _one(run, f"flow/white {v:g}", source)
    ends = {f"white {v:.3g}": white(v) for v in (model.statistics.lambda_max, *LEVELS[::-1], lambda_min)}
    for where, targets in ({"white levels": ends} | {name: {name: cov} for name, cov in families.items()}).items():
        run = partial(audit_partition, model, targets, steps=size.steps, chains=size.chains, population=size.population)
        yield _one(run, f"log Z/{where}", source)
    for where, operator in _tasks(shape).items():
        ranks = partial(audit_ranks, model, operator=operator, sigma=SIGMA, where=where, samples=size.samples, sampler=sampler, seed=seed)
        yield Audit(f"ranks/{where}", partial(_where_chains_settle, ranks, images[: size.truths]))


def _one(run: Callable[..., Check | list[Check]], name: str, source: Callable[[str], torch.Generator]) -> Audit:
    def made() -> list[Check]:
        found = run(generator=source(name))
        return found if isinstance(found, list) else [found]

    return Audit(name, made)


def _where_chains_settle(run: Callable[..., list[Check]], images: Tensor, generator: torch.Generator | None = None) -> list[Check]:
    """``run(images=…)`` without the images whose chains diverge, whose number is then a figure of its own; at most a twentieth of them.

    Raises:
        Diverged: more than that.
    """
    kept, state = images, None if generator is None else generator.get_state()
    while True:
        try:
            checks = run(images=kept) if generator is None else run(images=kept, generator=generator)
        except Diverged as error:
            bad = {chain % error.images for chain in error.chains}
            kept = kept[[i for i in range(len(kept)) if i not in bad]]
            if len(kept) < 0.95 * len(images):
                raise
            if generator is not None and state is not None:
                generator.set_state(state)
            continue
        left_out = len(images) - len(kept)
        first = checks[0]
        note = Check(first.audit, first.where, "images left out, whose chains diverged", float(left_out), 0.0)
        return [*checks, note] if left_out else checks


def _tasks(shape: tuple[int, ...]) -> dict[str, LinearOperator]:
    """Degradations whose posteriors are calibrated: the centre box, and few random pixels left."""
    return {"inpaint-box": make_operator("inpaint-box", shape), "inpaint-random": make_operator("inpaint-random", shape)}


def _paths(white: Callable[..., Covariance], shape: tuple[int, ...]) -> dict[str, list[Covariance]]:
    """Detours from the least to the largest level: one half of the image first, high frequencies first, details of blocks first."""
    low, high = LEVELS[0], LEVELS[-1]
    height, width = shape[-2:]
    detours = {}
    for name, basis in {"pixels": "pixel", "frequencies": "fourier", "blocks": "dct2"}.items():
        try:
            first, last = white(low, basis), white(high, basis)
        except ValueError:
            continue
        grid = first.basis.frequencies(height, width)
        if grid is None:
            early = torch.arange(width) < width // 2
        else:
            radius = grid.square().sum(0)
            early = radius > radius.median() if basis == "fourier" else radius > 0
        middle = torch.where(early.to(first.values.device), last.values, first.values)
        detours[f"{name}, detour"] = [first, first.replace(middle), last]
    return detours


def trusted_level(figures: Iterable[tuple[str, str, str, bool | None]]) -> float | None:
    """The variance of white noise up to which the one-call variance is within 10 % of the squared error, of those asked about.

    Arguments:
        figures: of audits, each its audit, where, what, and whether it holds (None if undecided or not asked).

    Returns None if not even at the least; what is undecided is not trusted.
    """
    levels = {
        float(where.removeprefix("white ")): holds is True
        for audit, where, what, holds in figures
        if audit == "variance" and where.startswith("white ") and what == ONE_CALL
    }
    good = None
    for level in sorted(levels):
        if not levels[level]:
            break
        good = level
    return good
