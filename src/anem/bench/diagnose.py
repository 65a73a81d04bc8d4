"""The energy as a diagnostic: prior log-probabilities of sets of restorations, against those of the truths.

``--split tuning`` (test images 1000–1999) or ``report`` (0–999) of MNIST; needs ``make data``. Figures in nats/dim, relative to the truths
of the same measurements, with the flag of every set. Over-smoothed means too probable, off-distribution too improbable.

* oracle: an exact Gaussian on 8 × 8 with half the image hidden, where the posterior mean must be over-smoothed and samples unflagged.
* digits: our sample, the means of our samples and of one call, the pseudo-inverse; DPS, RED-Diff, DAPS, the composition and the paper's
  sampler on the same energy, as their authors set them; and the truth with pixel noise. Pictures and histograms of every task are beside
  the report. A blurred digit is too improbable, since digits have edges: on digits smooth sets are expected off-distribution, not
  over-smoothed.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import MappingProxyType

import torch
from torch import Tensor

from anem.baselines import DAPS, DPS, Composition, PaperSampler, REDDiff
from anem.bench.harness import Context
from anem.bench.histograms import plot_histograms
from anem.data import load_dataset, mnist
from anem.energy import EnergyModel, NotFinite
from anem.gaussian import make_power_law_gaussian
from anem.images import save_image
from anem.likelihood import compare, score
from anem.operators import LinearOperator, make_operator
from anem.random import generators_for, normal
from anem.restorer import Restorer
from anem.sample import Diverged, sample_posterior
from anem.sheet import Row, contact_sheet

__all__ = ["oracle_sets", "run"]

SIGMA = 0.05
"""Standard deviation of the noise in measurements."""

PRIOR_SIGMA = 0.03
"""That of the noise under which restorations are judged."""

TASKS = ("inpaint-box", "deblur", "sr4")

ORACLE: Mapping[str, str] = MappingProxyType({"posterior mean": "over-smoothed", "posterior sample": "", "pixel noise": "off-distribution"})
"""The flag that every set of the exact Gaussian must get."""

DIGITS: Mapping[str, str | None] = MappingProxyType(
    {
        "sample": "",
        "mean of samples": None,
        "mean of one call": None,
        "pseudo-inverse": "off-distribution",
        "DPS": None,
        "RED-Diff": None,
        "DAPS": None,
        "composition": None,
        "paper's sampler": None,
        "pixel noise": "off-distribution",
    }
)
"""The same on digits, where it can be said beforehand."""


def run(context: Context) -> None:
    """The oracle, then every task on digits."""
    if not context.worker:
        _oracle(context)
    model = context.load(context.model)
    data = load_dataset(mnist(context.split, str(context.data / "mnist.npz")))
    count, steps, samples = (6, 8, 2) if context.quick else (100, 50, 8)
    x = data.batch(torch.arange(count) % len(data), context.generator("images"))
    for task in TASKS:
        if context.done(*(f"digits/{task}/{name}/flag" for name in DIGITS)):
            continue
        operator = make_operator(task, x.shape)
        seeds = range(context.seed, context.seed + count)
        measurement = operator.measure(x, SIGMA, generators_for(seeds))
        makers = {
            "ours": partial(_ours, model, measurement, operator, seeds, samples, steps),
            **_others(model, measurement, operator, seeds, 2 * steps),
        }
        made = context.pieces(f"digits/{task}", list(makers.values()), lambda make: make())
        if made is None:
            continue
        sets = {name: s for piece in made for name, s in piece.items()}
        sets |= {
            "pseudo-inverse": operator.pseudo_inverse(measurement),
            "pixel noise": x + 0.1 * normal(x.shape, context.generator("noise"), x),
        }
        sets = {name: sets[name] for name in DIGITS if name in sets}
        sets = {name: s.clamp(0, 1).to(x) for name, s in sets.items() if bool(torch.isfinite(s).all())}
        _compare(context, f"digits/{task}", model, x, measurement, operator, sets, DIGITS)
        for name in (n for n in DIGITS if n not in sets):
            context.figure(f"digits/{task}/{name}/flag", "diverged")
        rows = [Row("truth", x[:8]), Row("measurement", operator.visualise(measurement)[:8])]
        save_image(contact_sheet(rows + [Row(name, s[:8]) for name, s in sets.items()]), context.out / f"{task}.png")


def _ours(
    model: EnergyModel, measurement: Tensor, operator: LinearOperator, seeds: Sequence[int], samples: int, steps: int
) -> dict[str, Tensor]:
    """A sample, the mean of several, and that of one call, (B, C, H, W) each."""
    restored = sample_posterior(model, measurement, operator, SIGMA, samples=samples, steps=steps, seed=seeds)
    return {"sample": restored.samples[0].clone(), "mean of samples": restored.mean, "mean of one call": restored.denoised}


def _others(
    model: EnergyModel, measurement: Tensor, operator: LinearOperator, seeds: Sequence[int], calls: int
) -> dict[str, Callable[[], dict[str, Tensor]]]:
    """What makes one sample an image by other methods at so many network calls, (B, C, H, W) each; nothing where a method breaks down."""
    methods: dict[str, Restorer] = {
        "DPS": DPS(model, steps=calls),
        "RED-Diff": REDDiff(model, steps=calls),
        "DAPS": DAPS(model, levels=max(1, calls // 5), ode=5),
        "composition": Composition(model, levels=max(2, calls // 5)),
        "paper's sampler": PaperSampler(model, levels=max(1, (calls - 1) // 2), corrections=1),
    }

    def restored(name: str, restorer: Restorer) -> dict[str, Tensor]:
        with contextlib.suppress(Diverged, NotFinite):
            return {name: restorer(measurement, operator, SIGMA, generators_for(seeds))[0].clone()}
        return {}

    return {name: partial(restored, name, restorer) for name, restorer in methods.items()}


def oracle_sets(count: int, generator: torch.Generator) -> tuple[EnergyModel, Tensor, Tensor, LinearOperator, dict[str, Tensor]]:
    """An exact Gaussian, truths, measurements, the operator, and the sets of :data:`ORACLE`, exact too."""
    model = make_power_law_gaussian(1, 8, 8)
    x = model.sample(count, generator)
    operator = make_operator("inpaint-half", x.shape)
    m = operator.measure(x, SIGMA, generator)
    seen = operator.observe(m, SIGMA, model.statistics, generator)
    posterior = model.posterior(seen.y, seen.cov)
    sample, noise = posterior.sample(1, generator)[0], 0.1 * normal(x.shape, generator, x)
    return model, x, m, operator, {"posterior mean": posterior.mean, "posterior sample": sample, "pixel noise": x + noise}


def _oracle(context: Context) -> None:
    if context.done(*(f"oracle/{name}/flag" for name in ORACLE)):
        return
    model, x, m, operator, sets = oracle_sets(40 if context.quick else 200, context.generator("oracle"))
    _compare(context, "oracle", model, x, m, operator, sets, ORACLE)


def _compare(
    context: Context,
    name: str,
    model: EnergyModel,
    x: Tensor,
    measurement: Tensor,
    operator: LinearOperator,
    sets: Mapping[str, Tensor],
    wanted: Mapping[str, str | None],
) -> None:
    """Figures of every set, its flag last."""
    truth = score(model, x, measurement, operator, SIGMA, prior_sigma=PRIOR_SIGMA, seed=context.seed)
    shown = [{"name": "truth", "flag": "", "prior": truth.prior.numpy(), "posterior": truth.posterior.numpy()}]
    for key, images in sets.items():
        own = score(model, images, measurement, operator, SIGMA, prior_sigma=PRIOR_SIGMA, seed=context.seed)
        found = compare(own.prior, truth.prior[None], own.dimensions)
        shown.append({"name": key, "flag": found.flag, "prior": own.prior.numpy(), "posterior": own.posterior.numpy()})
        head, flag = f"{name}/{key}", wanted[key]
        context.figure(f"{head}/prior − truth (nats/dim)", found.difference)
        context.figure(f"{head}/prior − truth, standard error", found.standard_error)
        context.figure(f"{head}/posterior − truth (nats/dim)", float((own.posterior - truth.posterior).mean()) / own.dimensions)
        context.figure(f"{head}/misfit", own.misfit.mean())
        aim = None if flag is None else flag or "none"
        holds = None if flag is None else found.flag == flag
        context.figure(f"{head}/flag", found.flag or "none", aim=aim, holds=holds, quick=key != "sample")  # a few steps sample badly
    plot_histograms(shown, PRIOR_SIGMA, context.out / f"{name.replace('/', '-')}-histograms.png")
