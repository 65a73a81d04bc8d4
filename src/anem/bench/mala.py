"""MALA beside ULA: exactness on oracles, and what corrections are worth on digits.

Oracle. Chains start from exact draws of the law they should keep, p(x_t given the observed part of y) at one level, take a number of
Langevin steps of fixed ε, and are compared with fresh exact draws by permutation tests on three statistics (mean, second moments, energy
distance). p is three times the least of the three p-values, so that an exact sampler misses an aim "> 0.001" with probability at most 1e-3
in each of the six cases, 6e-3 in all. ε is 1.36 d^{−1/3}, near the optimum of MALA, and ULA must be rejected there. Acceptance is the mean
over chains after ε was adapted as often as a path has levels, at one level; along a path the adaptation lags behind.

Digits. Centre-box inpainting, the same measurements, levels, corrector steps and network calls for both; each with its default step size,
which MALA adapts. Random numbers start alike and part after the first step, where MALA draws one more. PSNR is that of one sample inside
the box, LPIPS (AlexNet) and KID (features of the digit classifier) of whole images; KID is to training digits. Differences are MALA − ULA
with 95 % bootstrap intervals over images, paired. The paper (faces, LPIPS, after 1, 5 and 8 steps): ULA 0.093, 0.093, 0.093; MALA 0.093,
0.091, 0.089. Needs ``make data``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

from anem.bench.digits import SIGMA
from anem.bench.harness import Context
from anem.bench.intervals import report_interval
from anem.bench.samplers import permutation_p_values
from anem.covariance import Covariance
from anem.data import load_dataset, mnist
from anem.energy import EnergyModel
from anem.gaussian import GaussianMixture, make_mixture, make_skewed
from anem.images import save_image
from anem.metrics import LPIPS, DigitClassifier, bootstrap, kernel_statistic, mean_statistic, psnr
from anem.operators import GaussianBlur, Inpainting, LinearOperator, Observation, SuperResolution
from anem.random import generators_for
from anem.sample import MALA, ULA, Corrector, Geometric, Noise, Sampler, Target, sample_posterior
from anem.sheet import Row, contact_sheet

__all__ = ["OracleCase", "Size", "corrected", "run"]

STEPS = (1, 5, 8)
"""Corrector steps at a level."""

OPERATORS = ("inpainting", "blur", "super-resolution")
"""Degradations of the oracles."""

BOX = 14
"""Side of the hidden box."""


@dataclass(frozen=True)
class Size:
    """How much is measured.

    Arguments:
        cases: operators by oracle. chains, steps, permutations: of an invariance test. levels: of the paths on oracles.
        sweep: step sizes of the picture.
        images, path: of the digits, and levels of their paths. reference: training digits of the KID. draws: of the bootstrap.
        shown: images in the picture.
    """

    cases: Mapping[str, tuple[str, ...]] = field(default_factory=lambda: dict.fromkeys(("mixture", "skewed"), OPERATORS))
    chains: int = 1500
    steps: int = 100
    permutations: int = 7999
    levels: int = 60
    sweep: tuple[float, ...] = (0.05, 0.1, 0.2, 0.4, 0.8)
    images: int = 128
    path: int = 50
    reference: int = 5000
    draws: int = 5000
    shown: int = 12

    @classmethod
    def quick(cls) -> Size:
        """Within a minute on two cores."""
        cases = {"mixture": ("inpainting",), "skewed": OPERATORS}
        oracle = {"chains": 700, "steps": 40, "permutations": 4999, "levels": 30, "sweep": (0.1, 0.8)}
        return cls(cases, **oracle, images=8, path=2, reference=200, draws=500, shown=8)


def run(context: Context) -> None:
    """Oracles first."""
    size = Size.quick() if context.quick else Size()
    if context.worker:
        return _digits(context, size)
    for prior_name, names in size.cases.items():
        prior = make_mixture(8) if prior_name == "mixture" else make_skewed(1, 4, 4)
        for name in names:
            _invariance(
                context, f"oracle/{prior_name}/{name}", OracleCase.draw(prior, _operator(prior, name), context.generator(name)), size
            )
    _step_sizes(context, size)
    _digits(context, size)


# --- oracles ---


def _operator(prior: GaussianMixture, name: str) -> LinearOperator:
    """One of :data:`OPERATORS`."""
    if name == "inpainting":
        return Inpainting.half(prior.means.shape[-2:])
    return GaussianBlur(4, 1.0) if name == "blur" else SuperResolution(2)


@dataclass(frozen=True, eq=False)
class OracleCase:
    """A measurement of an image of a known prior, and a level on the way down.

    Arguments:
        prior: p(x).
        observation: of one image, y and Σ_T.
        level: Σ_t: half of λ_T where observed, the prior's pixel variance elsewhere.
    """

    prior: GaussianMixture
    observation: Observation
    level: Covariance

    @classmethod
    def draw(cls, prior: GaussianMixture, operator: LinearOperator, generator: torch.Generator, sigma: float = 0.1) -> OracleCase:
        m = operator.measure(prior.sample(1, generator), sigma, generator)
        seen = operator.observe(m, sigma, prior.statistics, generator)
        c = float(prior.statistics.variance.mean())
        return cls(prior, seen, seen.cov.replace(torch.where(seen.observed, 0.5 * seen.cov.values, c)))

    def exact(self, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """n draws of x_t given the observed part of y, (n, C, H, W), and their law's mean (d,) and covariance (d, d).

        x is drawn given the observed part, then x_t given x and y: for observed coordinates N(x + (λ_t/λ_T)(y − x), λ_t(1 − λ_t/λ_T)).
        """
        seen, basis = self.observation, self.level.basis
        # An unobserved coordinate has no noise at all in common with y: λ_T = ∞, for the prior's variance 1e8 times it.
        start = torch.where(seen.observed, seen.cov.values, 1e8 * self.level.values)
        posterior = self.prior.posterior(seen.y, seen.cov.replace(start))
        z, ratio = basis.forward(posterior.sample(n, generator)[:, 0]), torch.where(seen.observed, self.level.values / start, 0.0)
        spread = self.level.values * (1 - ratio)
        x = basis.inverse(z + ratio * (basis.forward(seen.y) - z) + spread.sqrt() * Noise(generator).normal(z))
        identity = torch.eye(z[0].numel(), dtype=z.dtype).reshape(-1, *z.shape[1:])
        keep, extra = (basis.inverse(f * basis.forward(identity)).flatten(1) for f in (1 - ratio, spread))
        shift = basis.inverse(ratio * basis.forward(seen.y)).flatten()
        mean = keep @ posterior.mean[0].flatten() + shift
        return x, mean, keep @ posterior.covariance[0] @ keep.T + extra


def corrected(case: OracleCase, x: Tensor, corrector: Corrector, generator: torch.Generator) -> tuple[Tensor, float]:
    """Chains x (N, C, H, W) after the corrector's steps at the level, and the mean acceptance."""
    n = len(x)
    whole = case.observation[torch.zeros(n, dtype=torch.int64)]
    now = case.prior(x, case.level.expand(n))
    after = corrector.correct(case.prior, now, Target(whole), corrector.initial_step_size(x), Noise(generator))
    return after.evaluation.y, float(after.acceptance.mean())


def _invariance(context: Context, key: str, case: OracleCase, size: Size) -> None:
    last = f"{key}/acceptance after adaptation"
    if context.done(last):
        return
    generator = context.generator(key)
    start, mean, covariance = case.exact(size.chains, generator)
    fresh = case.exact(size.chains, generator)[0].flatten(1)
    epsilon = 1.36 * start[0].numel() ** (-1 / 3)
    for name, corrector in (("MALA", MALA(size.steps, epsilon, adaptation=0.0)), ("ULA", ULA(size.steps, epsilon))):
        x, acceptance = corrected(case, start, corrector, generator)
        values = permutation_p_values(x.flatten(1), fresh, mean, covariance, size.permutations, generator)
        aim = "> 0.001" if name == "MALA" else "< 0.001"
        context.figure(f"{key}/{name}, p of invariance", min(1.0, 3 * min(values.values())), aim=aim)
        if name == "MALA":
            context.figure(f"{key}/MALA, acceptance in that test", acceptance)
    context.figure(f"{key}/acceptance along a path", _path_acceptance(case, size.levels, context.seed))
    context.figure(last, _adapted_acceptance(case, size.levels, context.generator(key, "adaptation")), aim="0.5–0.65")


def _adapted_acceptance(case: OracleCase, levels: int, generator: torch.Generator) -> float:
    """Of MALA with its defaults, ε being adapted ``levels`` times at the one level: mean over 64 chains and the second half of them."""
    x, corrector = case.exact(64, generator)[0], MALA()
    now, target = case.prior(x, case.level.expand(len(x))), Target(case.observation[torch.zeros(len(x), dtype=torch.int64)])
    step_size, seen, noise = corrector.initial_step_size(x), [], Noise(generator)
    for _ in range(levels):
        after = corrector.correct(case.prior, now, target, step_size, noise)
        now, step_size = after.evaluation, after.step_size
        seen.append(float(after.acceptance.mean()))
    return sum(seen[levels // 2 :]) / len(seen[levels // 2 :])


def _path_acceptance(case: OracleCase, levels: int, seed: int) -> float:
    """The same along a whole path, the second half of its levels; it lags behind where the best ε grows as the noise falls."""
    sampler, shape = Sampler(corrector=MALA(), schedule=Geometric(levels)), tuple(case.observation.y.shape)
    restored = sampler.sample(case.prior, lambda generators: case.observation, shape, 64, seed)
    assert restored.acceptance is not None
    return float(restored.acceptance[levels // 2 :].mean())


def _step_sizes(context: Context, size: Size) -> None:
    """Bias against step size, drawn: ‖second moments − exact‖ relative to that of as many exact draws."""
    prior = make_mixture(8)
    case = OracleCase.draw(prior, _operator(prior, "inpainting"), context.generator("inpainting"))
    keys = {epsilon: f"oracle/mixture/inpainting/bias of ULA over that of exact draws, ε = {epsilon:g}" for epsilon in size.sweep}
    if context.done(*keys.values()):
        return
    generator = context.generator("step sizes")
    start, mean, covariance = case.exact(size.chains, generator)
    factor = torch.linalg.cholesky(covariance)

    def error(x: Tensor) -> float:
        w = torch.linalg.solve_triangular(factor, (x.flatten(1) - mean).T, upper=False)
        return float((w @ w.T / w.shape[1] - torch.eye(len(w))).norm())

    exact = error(case.exact(size.chains, generator)[0])
    curves: dict[str, list[float]] = {"ULA": [], "MALA": [], "acceptance": []}
    for epsilon in size.sweep:
        for name, corrector in (("ULA", ULA(size.steps, epsilon)), ("MALA", MALA(size.steps, epsilon, adaptation=0.0))):
            x, acceptance = corrected(case, start, corrector, generator)
            curves[name].append(error(x) / exact)
        curves["acceptance"].append(acceptance)
    figure = Figure(figsize=(5, 3.4), layout="constrained")
    ax = figure.subplots()
    for name in ("ULA", "MALA"):
        ax.plot(size.sweep, curves[name], "o-", label=f"{name}, error of the second moments over that of exact draws")
    ax.plot(size.sweep, curves["acceptance"], "k:", label="acceptance of MALA")
    ax.set(xscale="log", yscale="log", xlabel="step size ε", title="mixture, half of the pixels hidden")
    ax.set_xticks(size.sweep, [f"{e:g}" for e in size.sweep])
    ax.minorticks_off()
    ax.legend(fontsize=7)
    figure.savefig(context.out / "step-sizes.png", dpi=110)
    for key, ratio in zip(keys.values(), curves["ULA"], strict=True):
        context.figure(key, ratio)


# --- digits ---


def _digits(context: Context, size: Size) -> None:
    if context.done(f"digits/{STEPS[-1]} steps/PSNR (dB), MALA − ULA"):
        return
    model, path = context.load(context.model), str(context.data / "mnist.npz")
    x = load_dataset(mnist(context.split, path)).batch(torch.arange(size.images))
    operator = Inpainting.centre_box(x.shape, BOX)
    measurement = operator.measure(x, SIGMA, generators_for(range(context.seed, context.seed + size.images)))
    cases = [(steps, name) for steps in STEPS[::-1] for name in ("ULA", "MALA")]
    made = context.pieces(
        "digits",
        cases,
        lambda case: _restore(context.seed, model, measurement, operator, (ULA if case[1] == "ULA" else MALA)(case[0]), size),
    )
    if made is None:
        return
    restored = dict(zip(cases, made, strict=True))
    classifier, lpips = DigitClassifier.load(), LPIPS(context.data)
    training = load_dataset(mnist("train", path)).batch(torch.arange(size.reference))
    reference = torch.cat([classifier.features(part) for part in training.split(1000)])
    hidden, rows = operator.mask == 0, [Row("truth", x[: size.shown]), Row("measurement", operator.visualise(measurement)[: size.shown])]
    for steps in STEPS:
        key, samples = f"digits/{steps} step{'s' if steps > 1 else ''}", {}
        for name, adjusted in (("ULA", False), ("MALA", True)):
            found = restored[steps, name]
            samples[name] = found["samples"]
            context.figure(f"{key}/{name}, network calls", found["calls"])
            context.figure(f"{key}/{name}, acceptance{'' if adjusted else ' MALA would have'}", found["acceptance"])
            rows.append(Row(f"{name}, {steps} at every level", samples[name][: size.shown]))
        scores = {
            "LPIPS": {n: mean_statistic(lpips(s, x)) for n, s in samples.items()},
            "KID": {n: kernel_statistic(classifier.features(s), reference) for n, s in samples.items()},
            "PSNR (dB)": {n: mean_statistic(psnr(s, x, hidden)) for n, s in samples.items()},
        }
        for metric, of in scores.items():
            for name, statistic in of.items():
                context.figure(f"{key}/{metric}, {name}", float(statistic(torch.ones(1, size.images, dtype=torch.float64))))
            generator = context.generator("bootstrap", steps)
            difference = bootstrap(of["MALA"], size.images, of["ULA"], generator=generator, draws=size.draws)
            report_interval(context, f"{key}/{metric}, MALA − ULA", difference)
    save_image(contact_sheet(rows), context.out / "digits.png")


def _restore(
    seed: int, model: EnergyModel, measurement: Tensor, operator: LinearOperator, corrector: Corrector, size: Size
) -> dict[str, Any]:
    """One sample of every image, (B, C, H, W), the network calls, and the mean acceptance of the second half of the levels."""
    restored = sample_posterior(model, measurement, operator, SIGMA, steps=size.path, corrector=corrector, seed=seed, samples=1)
    assert restored.acceptance is not None
    return {
        "samples": restored.samples[0].contiguous(),
        "calls": restored.calls,
        "acceptance": float(restored.acceptance[size.path // 2 :].mean()),
    }
