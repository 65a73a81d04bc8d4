"""Samples against network calls, for every kernel and schedule: in closed form, on a mixture, on digits; and the memory of a chain.

Asked is what 32 network calls miss: every figure should be within 3 % of its value at 250 calls, on exact priors also of that at 1000.

* gaussian: the law of the draws without Monte Carlo error, averaged over images: PSNR of the mean, squared error over the posterior
  variance, Wasserstein distance to the posterior over its standard deviation. The limit of the last is 0, so judged is its difference in
  units of that standard deviation; the relative one is a figure beside it. The path by |∂U/∂ℓ| is left out, along which a chain is not
  affine. The kernel and schedule nearest to the posterior at 32 calls are the choice: it is this one that the other two parts judge, not
  whichever did best there.
* digits: 64 images with a hidden box of side 14, σ = 0.05: PSNR of the mean inside the box, LPIPS (AlexNet) and KID (features of the digit
  classifier, to 2000 training digits) of samples. All curves are of 2 samples an image; the choice and the default are judged by 16. KID of
  good samples is near 0 and may be below, so its changes are in units of that of the measurement with the box filled by the mean image.
  "null" is what the default changes by between two runs of 250 calls with other random numbers: what is chance alone. Needs ``make data``;
  without the weights of LPIPS it is left out, and named.
* mixture: 64 images, 4 × 4, middle quarter hidden, σ = 0.05; 128 samples each, 32 on paths that follow the chain, which end at 250 calls.
* changes from 32 to more calls have 95 % bootstrap intervals over images, paired; the aim is that of the estimates.
* memory: bytes alive at once, counted: a chain keeps no graph of the second derivative and nothing of the steps behind it.

Where a kernel diverges at few calls, that is its figure. A full run has 4 million network calls of one image on digits: nine hours of one
core with the bundled model and ``--compile``, minutes on a GPU (``--device cuda``). It continues, figure by figure, when the same command
is run again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from anem.bench.counts import Workload, count, make_workload
from anem.bench.harness import Context
from anem.bench.sampling_curves import CALLS, FEW, MANY, Curve, curves_of, measure, plot_curves, report_changes, write_curves
from anem.bench.sampling_oracle import SIGMA, gaussian, mixture
from anem.data import load_dataset, mnist
from anem.metrics import LPIPS, DigitClassifier, Statistic, kernel_statistic, mean_statistic, psnr
from anem.network import NetworkConfig
from anem.operators import Inpainting, Observation
from anem.random import generators_for
from anem.sample import SCHEDULES, Geometric, Noise, Schedule, as_kernel, run_chain, sample_posterior

__all__ = ["Size", "run"]

BOX = 14
"""Side of the hidden box of digits."""

DEFAULT = "ancestral, water-filling"
"""What a sampler does unless told otherwise."""

AGAIN = 10_000_000
"""Added to the seeds of the chains of the null."""


@dataclass(frozen=True)
class Size:
    """How much is measured on digits.

    Arguments:
        images, samples: B and S, for every curve. judged: S where the choice and the default are judged, at 32 and 250 calls.
        reference: training digits of the KID. calls: for every curve.
        schedules: those tried. kernels: those tried, all that draw from the posterior if empty.
    """

    images: int = 64
    samples: int = 2
    judged: int = 16
    reference: int = 2000
    calls: tuple[int, ...] = CALLS
    schedules: tuple[str, ...] = tuple(SCHEDULES)
    kernels: tuple[str, ...] = ()

    @classmethod
    def quick(cls) -> Size:
        """Within half a minute on two cores."""
        return cls(2, 2, 2, reference=200, calls=(5, 10), schedules=("water-filling",), kernels=("ancestral", "sde-2m"))


def run(context: Context) -> None:
    """The exact parts first."""
    memory(context)
    curves = gaussian(context)
    plot_curves(curves, "Gaussian prior, hidden box, exact", context.out / "gaussian.png")
    write_curves(context.out / "gaussian.csv", curves)
    choice = str(context.report.figures["gaussian/choice"].value)
    curves = digits(context, choice, Size.quick() if context.quick else Size())
    plot_curves(curves, "digits, hidden box", context.out / "digits.png")
    write_curves(context.out / "digits.csv", curves)
    curves = mixture(context, choice)
    plot_curves(curves, "mixture of Gaussians, hidden box", context.out / "mixture.png")
    write_curves(context.out / "mixture.csv", curves)


# --- memory ---


def chain(workload: Workload, steps: int) -> Tensor:
    """Ends of ancestral chains from the workload's observations, (B, C, H, W)."""
    y, cov = workload.y.double(), workload.cov.to(torch.float64)
    observation = Observation.of(y, cov)
    noise = Noise(torch.Generator().manual_seed(0))
    return run_chain(workload.model, observation, Geometric(steps), as_kernel("ancestral"), noise=noise).x


def memory(context: Context) -> None:
    """Peak bytes of chains of 3 and of 6 steps over those of one network call and of a training step, batch 4."""
    keys = [f"memory/chain of 6 steps over {what}" for what in ("one of 3 steps", "a network call", "a training step")]
    if context.done(*keys):
        return
    workload = make_workload(NetworkConfig.preset("small"), batch=4, seed=context.seed)
    peaks = [count(lambda steps=steps: chain(workload, steps)).peak_bytes for steps in (6, 3)]  # type: ignore[misc]
    call, step = count(lambda: workload.model(workload.y, workload.cov)).peak_bytes, count(workload.train_step).peak_bytes
    context.figure("memory/chain of 6 steps: peak (MB an image)", peaks[0] / len(workload.x) / 1e6)
    # A first gradient keeps each activation once, the second one also every gradient on the way: half is the mark between the two.
    for key, other, aim in zip(keys, (peaks[1], call, step), ("≤ 1.01", None, "≤ 0.5"), strict=True):
        context.figure(key, peaks[0] / other, aim=aim)


# --- digits ---


class _Judge:
    """Figures of samples of digits; LPIPS is left out where its weights are missing.

    Arguments:
        x: true images (B, 1, 28, 28). hidden: where PSNR is measured. reference: digits that KID compares with. data: folder of weights.
        filled: restorations without any sampling (B, 1, 28, 28), whose KID is the unit of changes.
    """

    def __init__(self, x: Tensor, hidden: Tensor, reference: Tensor, data: Path, filled: Tensor) -> None:
        self.x, self.hidden, self.missing = x, hidden, ""
        self.classifier = DigitClassifier.load()
        self.reference = torch.cat([self.classifier.features(part) for part in reference.split(500)])
        unit = kernel_statistic(self.classifier.features(filled.clamp(0, 1)), self.reference)
        self.scales = {"KID": float(unit(torch.ones(1, len(x), dtype=torch.float64)))}
        self.distance: LPIPS | None = None
        try:
            self.distance = LPIPS(data)
        except ValueError as error:
            self.missing = f"LPIPS: {error}"

    @property
    def images(self) -> int:
        """B."""
        return len(self.x)

    @property
    def needs(self) -> tuple[str, ...]:
        """Names of the scores."""
        return ("psnr", "features", *(["lpips"] if self.distance is not None else []))

    @torch.no_grad()
    def scores(self, samples: Tensor) -> dict[str, Tensor]:
        """What the figures are made of, for samples (S, B, 1, 28, 28): PSNR (B,), features (S, B, 64), LPIPS (B,) where it is known."""
        shown = samples.clamp(0, 1)
        scores = {"psnr": psnr(samples.mean(0), self.x, self.hidden)}
        scores["features"] = torch.stack([self.classifier.features(s) for s in shown])
        if self.distance is not None:
            scores["lpips"] = torch.stack([self.distance(s, self.x) for s in shown]).mean(0)
        return scores

    def statistics(self, scores: Mapping[str, Tensor]) -> dict[str, Statistic]:
        """Figures as functions of image weights; KID is averaged over samples, each a set of one sample an image."""
        kernels = [kernel_statistic(f, self.reference) for f in scores["features"]]
        found = {"PSNR of the mean (dB)": mean_statistic(scores["psnr"])}
        found |= {"LPIPS": mean_statistic(scores["lpips"])} if "lpips" in scores else {}
        return found | {"KID": lambda weights: torch.stack([k(weights) for k in kernels]).mean(0)}


def digits(context: Context, choice: str, size: Size) -> list[Curve]:
    """Curves of the model on digits with a hidden box; ``choice`` is the curve that is judged."""
    model, path = context.load(context.model), str(context.data / "mnist.npz")
    data, training = (load_dataset(mnist(split, path)) for split in (context.split, "train"))
    x = data.batch(torch.arange(size.images) % len(data))
    operator = Inpainting.centre_box(x.shape, BOX)
    seeds = [context.seed + i for i in range(size.images)]
    measurement = operator.measure(x, SIGMA, generators_for(seeds))
    filled = torch.where(operator.mask == 0, model.statistics.mean_image(x), measurement)
    reference = training.batch(torch.arange(size.reference) % len(training))
    judge = _Judge(x, operator.mask == 0, reference, context.data, filled)
    context.figure("digits/KID of the box filled by the mean", judge.scales["KID"])
    if judge.missing:
        context.figure("digits/left out", judge.missing)

    def draw(kernel: str, samples: int, again: int, schedule: Schedule) -> Tensor:
        options = {"samples": samples, "kernel": kernel, "schedule": schedule, "seed": [s + again for s in seeds]}
        return sample_posterior(model, measurement, operator, SIGMA, **options).samples

    curves = [c for c in curves_of(schedules=size.schedules) if c.stochastic and (not size.kernels or c.kernel in size.kernels)]

    def judge_curve(name: str, kernel: str, schedule: str) -> None:
        """Both ends of a curve by many samples, and for the default the larger end once more."""
        own = Curve(kernel, schedule)
        for calls in (FEW, MANY):
            if calls in size.calls:
                measure(context, "digits judged", own, calls, judge, partial(draw, kernel, size.judged, 0))
        report_changes(context, "digits judged", own, MANY, size.images, judge.scales, judged=True)
        if name == DEFAULT and MANY in own.figures:
            null = Curve(kernel, schedule)
            measure(context, "digits null", null, MANY, judge, partial(draw, kernel, size.judged, AGAIN))
            null.statistics[FEW], null.figures[FEW] = own.statistics[MANY], own.figures[MANY]
            label = f"between two runs of {MANY} calls"
            report_changes(context, "digits null", null, MANY, size.images, judge.scales, judged=False, between=label)

    for curve in sorted(curves, key=lambda c: c.name not in (choice, DEFAULT)):
        if curve.name in (choice, DEFAULT):
            judge_curve(curve.name, curve.kernel, curve.schedule)
        for calls in size.calls:
            measure(context, "digits", curve, calls, judge, partial(draw, curve.kernel, size.samples, 0))
        report_changes(context, "digits", curve, MANY, size.images, judge.scales, judged=False)
    return curves
