"""Training steps compiled to machine code and with rounded convolutions, against the plain one, and what rounding does to a training."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from anem.bench.counts import TIMED_LOSS, Workload, count
from anem.bench.harness import Context
from anem.bench.reference import PlainNetwork, PlainUNet
from anem.bench.speed_step import denoiser_step
from anem.bench.speed_timing import Machine, alternate, ratio, seconds
from anem.corruptions import NoiseConfig
from anem.covariance import Covariance
from anem.data import load_dataset, mnist
from anem.losses import LossTerms, dual_score_loss
from anem.network import EnergyNetwork
from anem.train import TrainConfig, train
from anem.train.config import CheckpointConfig, EMAConfig, EvaluationConfig, LogConfig, ModelConfig, OptimiserConfig
from anem.train.evaluate import HeldOut
from anem.train.parts import build_parts
from anem.train.step import CompiledStep, LossModule

__all__ = ["STEPS", "recorded_steps", "rounded_trainings"]

STEPS = ("rounded", "compiled", "compiled and rounded")
"""Ways to run the step: ``precision = "bfloat16"``, ``compile = true``, and both."""


def recorded_steps(context: Context, workload: Workload, rounds: int, steps: tuple[str, ...] = STEPS) -> None:
    """Figures of every way to run the step. Compiling takes minutes each."""
    reference = PlainNetwork(workload.model)
    runs: dict[str, Any] = {"reference": partial(workload.train_step, reference), "step": workload.train_step}
    models = {}
    for name in steps:
        models[name] = model = copy.deepcopy(workload.model)
        if "rounded" in name:
            model.unet.scope.precision = torch.bfloat16
        if "compiled" in name:
            step = CompiledStep(LossModule(model, _loss, 1.0))
            runs[name] = partial(step, workload.x, workload.cov, workload.noise)
        else:
            runs[name] = partial(workload.train_step, model)
    if STEPS[-1] in steps:  # what the aims compare with, made as fast in the same ways
        model = copy.deepcopy(workload.model)
        model.unet.scope.precision = torch.bfloat16
        runs["A-DSM alone"] = partial(CompiledStep(LossModule(model, _a_dsm_loss, 1.0)), workload.x, workload.cov, workload.noise)
        runs["denoiser"] = plain = denoiser_step(PlainUNet(workload.model.unet), workload)
        runs["denoiser, rounded"] = partial(_rounded, plain)
        compiled: Any = torch.compile(PlainUNet(workload.model.unet))
        runs["denoiser, compiled and rounded"] = partial(_rounded, denoiser_step(compiled, workload))
    times = alternate(runs, rounds)
    for name, model in models.items():
        key = f"train/small/{name}"
        # A loss moves by less than its figures show; it is the gradient that tells what rounding does.
        off = (_gradient(model) - _gradient(workload.model)).norm() / _gradient(workload.model).norm()
        context.figure(f"{key}: gradient, relative difference to the step's", off, aim="≤ 0.1" if "rounded" in name else "≤ 1e-3")
        context.figure(f"{key}: images per second", len(workload.x) / seconds(times[name]))
        context.figure(f"{key}: images per second over the step's", ratio(times, "step", name))
        faster = ratio(times, "reference", name)
        context.figure(f"{key}: images per second over the reference's", faster, aim="≥ 2" if name == STEPS[-1] else None, quick=False)
    if STEPS[-1] in steps:
        _compared(context, f"train/small/{STEPS[-1]}", times, workload)


def _compared(context: Context, key: str, times: Mapping[str, Tensor], workload: Workload) -> None:
    """The fastest step over a step of A-DSM alone, over an ordinary denoiser's, and the floor over it."""
    fastest = STEPS[-1]
    context.figure(f"{key}: time over A-DSM alone, compiled and rounded too", ratio(times, fastest, "A-DSM alone"), aim="≤ 1.3")
    context.figure(f"{key}: time over the plain denoiser", ratio(times, fastest, "denoiser"), aim="≤ 4")
    context.figure(f"{key}: time over the plain denoiser, rounded too", ratio(times, fastest, "denoiser, rounded"))
    like = ratio(times, fastest, "denoiser, compiled and rounded")
    context.figure(f"{key}: time over the plain denoiser, compiled and rounded too", like, aim="≤ 4", quick=False)
    machine, counts = Machine.measure(len(workload.x), dtype=torch.bfloat16), count(workload.train_step)
    context.figure(f"{key}: convolution peak in bfloat16 (10⁹ multiply-adds per second)", machine.convolution / 1e9)
    context.figure(f"{key}: memory rate (10⁹ bytes per second)", machine.memory / 1e9)
    alone = counts.multiply_adds / machine.convolution / seconds(times[fastest])
    context.figure(f"{key}: multiply-adds alone at the peak over time", alone)
    # The bytes are those of the step before it is compiled: fused operations move fewer, so this floor may be above the least there is.
    context.figure(f"{key}: floor over time", machine.floor(counts) / seconds(times[fastest]), aim="≥ 0.5")


def _a_dsm_loss(model: EnergyNetwork, x: Tensor, cov: Covariance, noise: Tensor, weight: float) -> LossTerms:
    """A-DSM alone: only ∇_y U is made and differentiated."""
    rho = (model.statistics.residual(x, cov.basis) + cov.values.sqrt() * noise).detach().requires_grad_()
    c = model.statistics.variance_in(cov.basis, *x.shape[-2:], rho)
    with model.unet.scope.inputs_only():  # without the checks of ``energy``, which a recording cannot follow
        energy = model._base(rho, cov.values, c)[0] + model._correction(rho, cov.values.log(), cov.basis, c)
        (grad,) = torch.autograd.grad(energy.sum(), rho, create_graph=True)
    error = (cov.values.sqrt() * grad - noise).square().flatten(1).mean(1)
    return LossTerms(error.mean(), error, torch.zeros_like(error), torch.zeros_like(error))


def _rounded(step: Callable[[], float]) -> float:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return step()


def _loss(model: EnergyNetwork, x: Any, cov: Any, noise: Any, weight: float) -> LossTerms:
    """That of :meth:`Workload.train_step`."""
    return dual_score_loss(model, x, cov, noise, weight, TIMED_LOSS)


def _gradient(model: EnergyNetwork) -> torch.Tensor:
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def rounded_trainings(context: Context, images: int = 9_600, judged: int = 512, compiled: bool = True) -> None:
    """Held-out losses of two trainings on digits, as it stands and as the fastest step does it. Needs ``make data``.

    Arguments:
        images: of each training. judged: held-out images. compiled: whether the second one is compiled, beside its rounded convolutions.
    """
    started = "trainings/trained from commit"
    if not context.done(started):  # what lies there is of another commit, or was asked to be made afresh
        shutil.rmtree(context.out / "models", ignore_errors=True)
        context.figure(started, context.report.commit)
    held_out, reports = None, {}
    for precision in ("float32", "bfloat16"):
        base = _training(context, images)
        config = replace(base, output=str(Path(base.output) / precision), precision=precision, compile=compiled and precision == "bfloat16")
        parts = build_parts(config)
        if held_out is None:
            data = load_dataset(mnist("validation", base.data.path))
            x = data.batch(torch.arange(judged), context.generator("held out"))
            held_out = HeldOut(x, parts.draw, parts.families, 64, context.seed)
        reports[precision] = held_out.evaluate(train(config, parts=parts), parts.loss)
    for name in ("a_dsm", "a_csm"):
        exact, rounded = (float(getattr(reports[p], name).double().mean()) for p in ("float32", "bfloat16"))
        label = name.upper().replace("_", "-")
        context.figure(f"trainings/{label} after {images} images", exact)
        context.figure(
            f"trainings/{label} with rounded convolutions{', compiled,' if compiled else ''} over that", rounded / exact, aim="0.98–1.02"
        )


def _training(context: Context, images: int) -> TrainConfig:
    return TrainConfig(
        output=str(context.out / "models"),
        seed=context.seed,
        images=images,
        batch_size=32,
        statistics_images=5000,
        device="cpu",
        model=ModelConfig("small"),
        data=mnist("train", str(context.data / "mnist.npz")),
        noise=NoiseConfig(stratified=True),
        optimiser=OptimiserConfig(learning_rate=2e-3, warmup_images=1_000, decay="cosine", decay_start=0, decay_images=images),
        ema=EMAConfig(half_life=images // 20),
        evaluation=EvaluationConfig(steps=0),
        checkpoint=CheckpointConfig(minutes=2, keep=1),
        log=LogConfig(steps=50, tensorboard=False),
    )
