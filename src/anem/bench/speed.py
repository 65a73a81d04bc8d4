"""Speed: a training step against a plain one and the machine's floor, blind sweeps, growth, memory.

Times are ratios within one run, measured in alternation; absolute numbers are of this machine at its number of threads.

* train: a step is loss and gradients of A-DSM + A-CSM at batch 32. Against the same network in plain torch (:mod:`anem.bench.reference`),
  a step of A-DSM alone, and a step of an ordinary denoiser with the same U-Net in plain torch. The floor is the counted multiply-adds at
  the best rate of the network's own 3 × 3 convolutions plus the bytes of all other operations at the memory's rate; what fits the caches
  may beat the second part. "small" is the preset, "small with norm" has group norm in every block, whose plain second derivative is dear.
  Time over A-DSM alone, over a denoiser and the floor are also given for the fastest step, against such steps made as fast.
  "rounded" and "compiled" are the trainer's ``precision = "bfloat16"`` and ``compile`` (:mod:`anem.bench.speed_recorded`): the first pays
  where the processor multiplies bfloat16, the second takes minutes once, so a quick run leaves it out, and wants a C++ compiler.
* trainings: held-out losses of digits after the same images with and without rounding (full run only; wants ``make data``).
* blind: the evidence of every (side of a box, σ in it) for one digit, against the energies alone.
* growth: exponents of time and memory, fitted on three sizes.
* memory: bytes alive at once, counted.
* estimators: sliced A-CSM and A-CSM on a part of the batch (:mod:`anem.bench.speed_estimators`).

Samples against network calls are a bench of their own, :mod:`anem.bench.sampling`.
"""

from __future__ import annotations

import os
import platform
from dataclasses import replace
from pathlib import Path

import torch

from anem.bench.counts import Workload, make_workload
from anem.bench.harness import Context
from anem.bench.speed_estimators import estimators
from anem.bench.speed_plots import plot_growth, plot_step
from anem.bench.speed_recorded import STEPS, recorded_steps, rounded_trainings
from anem.bench.speed_step import Growth, blind_sweep, growth, memory, training_step
from anem.data import load_dataset, mnist
from anem.network import NetworkConfig

__all__ = ["run"]

GROUPS = 8
"""Of the group norm in the second shape of network."""

EXPONENTS = {"pixels": 1.1, "batch": 1.1, "channels": 2.1, "covariances": 1.1}
"""Most that time and memory may grow as a power of a size: multiply-adds are quadratic in channels and linear in the others."""


def run(context: Context) -> None:
    """All sections, each skipped where an interrupted run has made it."""
    _environment(context)
    small = NetworkConfig.preset("small")
    workload = make_workload(small, batch=32, seed=context.seed)
    rounds = 5 if context.quick else 11
    if not context.done("train/small/multiply-adds alone at the peak over time"):
        training_step(context, workload, "small", rounds)
    plot_step(context.report, "small", context.out / "step.png")
    normed = "small with norm"
    if not context.quick and not context.done(f"train/{normed}/multiply-adds alone at the peak over time"):
        training_step(context, make_workload(small.override(norm=GROUPS), batch=32, seed=context.seed), normed, rounds)
    recorded = STEPS[:1] if context.quick else STEPS
    last = f"train/small/{recorded[-1]}: " + ("images per second over the reference's" if context.quick else "floor over time")
    if not context.done(last):
        recorded_steps(context, workload, rounds, recorded)
    if not context.quick and not context.done("trainings/A-CSM with rounded convolutions over that"):
        rounded_trainings(context)
    few = _first(workload, 8)
    if not context.done("memory/network call over training step"):
        memory(context, few)
    if not context.done("blind/sweep over bare U-Net passes"):
        sides, sigmas = (7, 10) if context.quick else (28, 40)
        blind_sweep(context, workload.model, workload.x, sides, sigmas, 5)
    if not context.done(*(f"growth/{name}: power of {what}" for name in EXPONENTS for what in ("time", "memory", "multiply-adds"))):
        grown = growth(NetworkConfig.preset("tiny") if context.quick else small, context.quick, 5)
        _report_growth(context, grown)
        plot_growth(grown, context.out / "growth.png")
    if not context.done("estimators/every 4th image: time to the same variance over full"):
        _estimators(context, workload)


def _estimators(context: Context, workload: Workload) -> None:
    """Of the trained model on 16 batches of digits; in a quick run of a small batch of made-up images and the untrained network."""
    if context.quick:
        few = _first(workload, 8)
        return estimators(context, few, few.x.repeat(3, 1, 1, 1), 5)
    digits = load_dataset(mnist("validation", str(context.data / "mnist.npz")))
    images = digits.batch(torch.arange(16 * len(workload.x)), context.generator("dequantisation"))
    return estimators(context, replace(workload, model=context.load(context.model), x=images[: len(workload.x)]), images, 5)


def _environment(context: Context) -> None:
    """What times depend on."""
    allocator = " ".join(f"{k}={v}" for k, v in os.environ.items() if k.startswith("MALLOC_") or k == "LD_PRELOAD")
    found = {"threads": torch.get_num_threads(), "torch": torch.__version__, "allocator": allocator or "as it comes"}
    try:
        names = {line.partition(":")[2].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")}
        found["processor"] = ", ".join(sorted(names)) or platform.processor()
    except OSError:
        found["processor"] = platform.processor()
    for name, value in found.items():
        context.figure(f"environment/{name}", value)


def _first(workload: Workload, count: int) -> Workload:
    """Images spread over the batch, so that all bases are among them."""
    step = len(workload.x) // count
    rows = slice(0, None, step)
    return replace(workload, x=workload.x[rows], cov=workload.cov[rows], noise=workload.noise[rows])


def _report_growth(context: Context, grown: list[Growth]) -> None:
    for g in grown:
        for size, *values in zip(g.sizes, g.seconds, g.peak, g.multiply_adds, strict=True):
            for (unit, one), value in zip((("s", 1.0), ("MB at its peak", 1e6), ("10⁹ multiply-adds", 1e9)), values, strict=True):
                context.figure(f"growth/{g.name} {size:g}: {unit}", value / one)
        for name, p in g.exponents().items():
            context.figure(f"growth/{g.name}: power of {name}", p, aim=f"≤ {EXPONENTS[g.name]}", quick=name != "time")
