"""What a training step, a network call and a blind sweep cost, and how that grows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from anem.bench.counts import TIMED_LOSS, Counts, Workload, count, make_workload
from anem.bench.harness import Context
from anem.bench.reference import PlainNetwork, PlainUNet
from anem.bench.speed_timing import Machine, alternate, exponent, ratio, seconds
from anem.blind import Evidence, Parameter, box
from anem.covariance import Covariance
from anem.losses import dual_score_loss
from anem.network import EnergyNetwork, NetworkConfig
from anem.nn.embedding import SPECTRAL_FEATURES

__all__ = ["Growth", "blind_sweep", "denoiser_step", "denoising_step", "growth", "loss_difference", "memory", "sweep", "training_step"]


def denoising_step(workload: Workload) -> float:
    """A step on A-DSM alone: only ∇_y U is made, by the cheap layers, and differentiated."""
    model, cov = workload.model, workload.cov
    model.zero_grad(set_to_none=True)
    y = workload.y.requires_grad_()
    with model.unet.scope.inputs_only():
        (grad,) = torch.autograd.grad(model.energy(y, cov).sum(), y, create_graph=True)
    total = (cov.values.sqrt() * cov.basis.forward(grad) - workload.noise).square().mean()
    total.backward()
    return float(total.detach())


def denoiser_step(unet: PlainUNet, workload: Workload) -> Callable[[], float]:
    """A step of an ordinary denoiser of the same U-Net in plain torch: one output, its squared error, one backward pass."""
    colours = workload.x.shape[1]
    generator = torch.Generator().manual_seed(0)
    inputs = unet.enter.in_channels // unet.stem**2
    maps = unet.embedding.local.in_channels // unet.stem**2
    features, noise_map = (torch.randn(len(workload.x), n, *workload.x.shape[2:], generator=generator) for n in (inputs, maps))
    summary = torch.randn(len(workload.x), SPECTRAL_FEATURES, generator=generator)
    height, width = workload.x.shape[-2:]
    extra = (0, -width % unet.multiple, 0, -height % unet.multiple)
    features, noise_map = (torch.nn.functional.pad(t, extra) for t in (features, noise_map))

    def step() -> float:
        unet.zero_grad(set_to_none=True)
        denoised = unet(features, noise_map, summary)[:, :colours, :height, :width]
        total = (denoised - workload.x).square().mean()
        total.backward()
        return float(total.detach())

    return step


def loss_difference(workload: Workload, reference: PlainNetwork) -> float:
    """Relative difference of the losses of model and reference."""
    ours, theirs = (
        float(dual_score_loss(m, workload.x, workload.cov, workload.noise, config=TIMED_LOSS).total.detach())
        for m in (workload.model, reference)
    )
    return abs(ours / theirs - 1)


def training_step(context: Context, workload: Workload, name: str, rounds: int) -> None:
    """Figures of one shape of network against the reference, parts of the step and the floor."""
    reference = PlainNetwork(workload.model)
    runs = {
        "step": workload.train_step,
        "reference": partial(workload.train_step, reference),
        "A-DSM alone": partial(denoising_step, workload),
        "denoiser": denoiser_step(PlainUNet(workload.model.unet), workload),
        "energy": lambda: workload.model.log_prob(workload.y, workload.cov),
        "network call": lambda: workload.model(workload.y, workload.cov),
    }
    times = alternate(runs, rounds)
    key, default = f"train/{name}", name == "small"
    context.figure(f"{key}/images per second", len(workload.x) / seconds(times["step"]))
    context.figure(
        f"{key}/images per second over the reference's", ratio(times, "reference", "step"), aim="≥ 2" if default else None, quick=False
    )
    context.figure(f"{key}/loss, relative difference to the reference", loss_difference(workload, reference), aim="≤ 1e-4")
    aims = {"A-DSM alone": "≤ 1.3", "denoiser": "≤ 4"}
    for part in ("A-DSM alone", "denoiser", "network call", "energy"):
        context.figure(f"{key}/time over {part}", ratio(times, "step", part), aim=aims.get(part) if default else None, quick=False)
    machine, counts, plain = Machine.measure(len(workload.x)), count(workload.train_step), count(runs["reference"])
    context.figure(f"{key}/multiply-adds (10⁹)", counts.multiply_adds / 1e9)
    context.figure(f"{key}/multiply-adds over a forward pass", counts.multiply_adds / count(runs["energy"]).multiply_adds)
    context.figure(f"{key}/bytes moved by other operations (10⁹)", counts.bytes_moved / 1e9)
    context.figure(f"{key}/bytes moved over the reference's", counts.bytes_moved / plain.bytes_moved)
    context.figure(f"{key}/memory at its peak over the reference's", counts.peak_bytes / plain.peak_bytes)
    context.figure(f"{key}/convolution peak (10⁹ multiply-adds per second)", machine.convolution / 1e9)
    context.figure(f"{key}/memory rate (10⁹ bytes per second)", machine.memory / 1e9)
    share = machine.floor(counts) / seconds(times["step"])
    context.figure(f"{key}/floor over time", share, aim="0.5–1" if default else None, quick=False)
    context.figure(f"{key}/multiply-adds alone at the peak over time", counts.multiply_adds / machine.convolution / seconds(times["step"]))


def memory(context: Context, workload: Workload) -> None:
    """What inference holds: the graph of one gradient, and nothing of the second."""
    steps: dict[str, Callable[[], object]] = {
        "energy": lambda: workload.model.log_prob(workload.y, workload.cov),
        "network call": lambda: workload.model(workload.y, workload.cov),
        "training step": workload.train_step,
    }
    counts = {name: count(step) for name, step in steps.items()}
    for name, c in counts.items():
        context.figure(f"memory/{name}: peak (MB an image)", c.peak_bytes / len(workload.x) / 1e6)
    result = workload.model(workload.y, workload.cov)
    tensors = (result.energy, result.grad_y, result.grad_logvar, result.denoised, result.relative_variance)
    context.figure("memory/network call: results with a graph", sum(t.requires_grad for t in tensors), aim="≤ 0")
    # A first gradient keeps each activation once, the second one also every gradient on the way: half is the mark between the two.
    share = counts["network call"].peak_bytes / counts["training step"].peak_bytes
    context.figure("memory/network call over training step", share, aim="≤ 0.5")


# --- blind sweep ---


def sweep(model: EnergyNetwork, measurement: Tensor, sides: int, sigmas: int) -> tuple[Evidence, Tensor]:
    """The evidence of (side of the box, σ inside) for one image (1, C, H, W), and a grid of both, (sides · sigmas, 2)."""
    largest = min(measurement.shape[-2:])
    unknown = {"side": Parameter(1, largest, "integer"), "sigma_in": Parameter(0.05, 10.0, "log"), "sigma_out": 0.05}
    family = box(measurement.shape).change(unknown)
    side = torch.linspace(1, largest, sides, dtype=torch.float64).round()
    sigma = torch.linspace(*family.parameters["sigma_in"].bounds(), sigmas, dtype=torch.float64)
    return Evidence(model, measurement, family, draws=1), torch.cartesian_prod(side, sigma)


def blind_sweep(context: Context, model: EnergyNetwork, x: Tensor, sides: int, sigmas: int, rounds: int) -> None:
    """The time of a whole sweep over that of the network calls in it, prepared beforehand."""
    x = x[:1].double()
    noise = torch.randn(x.shape, dtype=x.dtype, generator=context.generator("blind"))
    middle = torch.zeros_like(x, dtype=torch.bool)
    middle[..., 7:21, 7:21] = True
    m = x + torch.where(middle, 0.5, 0.05) * noise
    evidence, grid = sweep(model, m, sides, sigmas)
    operator, sigma = evidence.family.degradation(evidence.family.values(grid))
    seen = operator.observe(m, sigma, model.statistics, torch.Generator().manual_seed(0))
    size = max(1, 2**17 // m.numel())
    pieces = [(seen.y[i : i + size], seen.cov[torch.arange(len(grid))[i : i + size]]) for i in range(0, len(grid), size)]
    inputs = [_network_inputs(model, y, cov) for y, cov in pieces]

    def energies() -> None:
        for y, cov in pieces:
            model.log_prob(y, cov)

    @torch.no_grad()
    def networks() -> None:
        for features, noise_map, summary in inputs:
            model.unet(features, noise_map, summary)

    times = alternate({"sweep": lambda: evidence.grid(grid), "energies": energies, "U-Net": networks}, rounds)
    context.figure("blind/energies in the sweep", len(grid))
    context.figure("blind/sweep (s)", seconds(times["sweep"]), aim="≤ 5")
    context.figure("blind/sweep over bare energies", ratio(times, "sweep", "energies"), aim="≤ 1.2")
    context.figure("blind/sweep over bare U-Net passes", ratio(times, "sweep", "U-Net"))


def _network_inputs(model: EnergyNetwork, y: Tensor, cov: Covariance) -> list[Tensor]:
    """What the U-Net is given for (y, Σ)."""
    caught: list[Tensor] = []
    hook = model.unet.register_forward_pre_hook(lambda module, args: caught.extend(args))
    try:
        model.log_prob(y, cov)
    finally:
        hook.remove()
    return caught


# --- growth ---


@dataclass(frozen=True)
class Growth:
    """Time and memory of a training step (or of the energies of a sweep) against one size.

    Arguments:
        name: of the size. sizes: its values. seconds: medians. peak: bytes alive at once. multiply_adds: counted.
    """

    name: str
    sizes: list[float]
    seconds: list[float]
    peak: list[float]
    multiply_adds: list[float]

    def exponents(self) -> dict[str, float]:
        """p of value ∝ sizeᵖ for time, memory and multiply-adds."""
        columns = {"time": self.seconds, "memory": self.peak, "multiply-adds": self.multiply_adds}
        return {name: exponent(self.sizes, values) for name, values in columns.items()}


def growth(config: NetworkConfig, quick: bool, rounds: int) -> list[Growth]:
    """Pixels, images in a batch, channels of the network, covariances of one image."""
    batch = 4 if quick else 8
    sides = (16, 32, 64) if quick else (28, 56, 112)
    widths = {k: tuple(k * c // 2 for c in config.channels) for k in (1, 2, 4)}
    return [
        _measure("pixels", {s * s: make_workload(config, batch, s).train_step for s in sides}, rounds),
        _measure("batch", {b: make_workload(config, b, sides[0]).train_step for b in (batch, 2 * batch, 4 * batch)}, rounds),
        _measure(
            "channels",
            {c[0]: make_workload(config.override(channels=c), batch, sides[0]).train_step for c in widths.values()},
            rounds,
        ),
        _measure("covariances", {n: _sweep_of(config, n) for n in ((16, 32, 64) if quick else (70, 140, 280))}, rounds),
    ]


def _sweep_of(config: NetworkConfig, covariances: int) -> Callable[[], object]:
    workload = make_workload(config, 1)
    evidence, grid = sweep(workload.model, workload.x, 2, covariances // 2)
    return lambda: evidence.grid(grid)


def _measure(name: str, runs: dict[int, Callable[[], object]], rounds: int) -> Growth:
    times = alternate({str(size): run for size, run in runs.items()}, rounds)
    counts: list[Counts] = [count(run) for run in runs.values()]
    peaks, work = [float(c.peak_bytes) for c in counts], [float(c.multiply_adds) for c in counts]
    return Growth(name, [float(s) for s in runs], [seconds(t) for t in times.values()], peaks, work)
