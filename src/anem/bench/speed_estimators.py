"""Cheaper estimators of the covariance term, by the noise they add to its gradient and the time they save.

With r the covariance residual of an image, A-CSM is ‖r‖²/d. Both estimators have its mean:

* sliced: (v · r)²/d, v of independent random signs. v · ∂U/∂ℓ = dU/dε at log λ + εv is one derivative in forward mode, so no ∂U/∂ℓ is made;
* on a part of the batch: the mean over every fourth image.

Time is that of a whole step, A-DSM included, in plain torch (forward mode needs functions that have it), over the step with all of A-CSM.
Noise is the variance of the gradient of A-CSM, summed over parameters, over that of the full term at the same batch size: the full term's
over batches, to which an estimator adds its mean squared distance from the full gradient of the same batch, since that is its conditional
mean. So a few batches with heavy gradients, in which an untrained network's variance lies, cannot favour one of them; in a full run the
gradients are those of the trained model on held-out digits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from anem.bench.counts import Workload
from anem.bench.harness import Context
from anem.bench.reference import PlainNetwork, plain_basis
from anem.bench.speed_timing import alternate, ratio, seconds
from anem.corruptions import NoiseConfig, draw_covariances

__all__ = ["PART", "PARTIAL", "directional_derivative", "estimators", "full", "part", "residual", "sliced", "variances"]

PART = 4
"""A-CSM on a part takes every so manieth image."""

PARTIAL = f"every {PART}th image"
"""Its name in the figures."""

Estimator = Callable[[PlainNetwork, Workload, torch.Generator], Tensor]


def residual(model: PlainNetwork, w: Workload) -> Tensor:
    """r = ∂U/∂ℓ − ½(1 − ε²) of every coordinate, (B, C, H, W), differentiable in the parameters."""
    rho = model.statistics.residual(w.x, w.cov.basis) + w.cov.values.sqrt() * w.noise
    return model.differentiable_gradients(rho, w.cov).grad_logvar - _target(w)


def _target(w: Workload) -> Tensor:
    return 0.5 * (1 - w.cov.basis.symmetrise(w.noise.square()))


def directional_derivative(model: PlainNetwork, w: Workload, v: Tensor) -> Tensor:
    """Σ_k v_k ∂U/∂ℓ_k by forward mode, (B,), differentiable in the parameters; v (B, C, H, W), even in Fourier."""
    cov = w.cov
    basis, y = plain_basis(cov.basis), w.y

    def energy(logvar: Tensor) -> Tensor:
        return model.energy(y, type(cov)(logvar.exp(), basis, check=False))

    return torch.func.jvp(energy, (cov.values.log(),), (v,))[1]


def _signs(w: Workload, generator: torch.Generator) -> Tensor:
    """Random signs z made even where variances are shared: r is even too, so that v · r = z · r."""
    return w.cov.basis.symmetrise(torch.randint(0, 2, w.x.shape, generator=generator).to(w.x) * 2 - 1)


def full(model: PlainNetwork, w: Workload, generator: torch.Generator) -> Tensor:
    """A-CSM, a scalar."""
    return residual(model, w).square().mean()


def sliced(model: PlainNetwork, w: Workload, generator: torch.Generator) -> Tensor:
    """(v · r)²/d with one v an image, averaged over the batch."""
    v = _signs(w, generator)
    along = directional_derivative(model, w, v) - (v * _target(w)).flatten(1).sum(1)
    return along.square().mean() / w.x[0].numel()


def part(model: PlainNetwork, w: Workload, generator: torch.Generator) -> Tensor:
    """A-CSM of every fourth image of the batch."""
    rows = torch.arange(0, len(w.x), PART)
    return full(model, replace(w, x=w.x[rows], cov=w.cov[rows], noise=w.noise[rows]), generator)


def _denoising(model: PlainNetwork, w: Workload) -> Tensor:
    """A-DSM from ∇_y U alone, a scalar."""
    y = w.y.requires_grad_()
    basis = plain_basis(w.cov.basis)
    (grad,) = torch.autograd.grad(model.energy(y, type(w.cov)(w.cov.values, basis, check=False)).sum(), y, create_graph=True)
    return (w.cov.values.sqrt() * basis.forward(grad) - w.noise).square().mean()


def _gradient(model: PlainNetwork, value: Tensor) -> Tensor:
    grads = torch.autograd.grad(value, list(model.parameters()), allow_unused=True)
    return torch.cat([g.flatten() for g in grads if g is not None])


def variances(model: PlainNetwork, batches: Sequence[Workload], generator: torch.Generator) -> dict[str, float]:
    """Variances of the gradient by estimator, by the law of total variance; the parts of a batch are all looked at."""
    gradients, added = list[Tensor](), {"sliced": 0.0, PARTIAL: 0.0}
    for w in batches:
        exact = _gradient(model, full(model, w, generator)).double()
        orders = [torch.arange(len(w.x)).roll(-k) for k in range(PART)]
        parts = [part(model, replace(w, x=w.x[o], cov=w.cov[o], noise=w.noise[o]), generator) for o in orders]
        for name, values in {"sliced": [sliced(model, w, generator)], PARTIAL: parts}.items():
            off = [float((_gradient(model, value).double() - exact).square().sum()) for value in values]
            added[name] += sum(off) / len(off) / len(batches)
        gradients.append(exact)
    variance = float(torch.stack(gradients).var(0).sum())
    return {"full": variance} | {name: variance + extra for name, extra in added.items()}


def estimators(context: Context, workload: Workload, images: Tensor, rounds: int) -> None:
    """Noise and time of both estimators, on batches of ``images`` with fresh covariances and noise."""
    model, generator = PlainNetwork(workload.model), context.generator("estimators")
    batches = []
    for x in images.split(len(workload.x)):
        cov = draw_covariances(tuple(x.shape), model.statistics, NoiseConfig(stratified=True), generator).cov
        batches.append(replace(workload, x=x, cov=cov, noise=torch.randn(x.shape, generator=generator)))
    noise = variances(model, batches, generator)

    def step(estimate: Estimator) -> Callable[[], object]:
        def run() -> None:
            model.zero_grad(set_to_none=True)
            (_denoising(model, workload) + estimate(model, workload, generator)).backward()

        return run

    runs = {"sliced": step(sliced), PARTIAL: step(part)}
    times = alternate({"full": lambda: workload.train_step(model), **runs}, rounds)
    context.figure("estimators/full: step (s)", seconds(times["full"]))
    for name in runs:
        slower, noisier = ratio(times, name, "full"), noise[name] / noise["full"]
        context.figure(f"estimators/{name}: time of a step over full", slower)
        context.figure(f"estimators/{name}: variance of the gradient over full", noisier)
        context.figure(f"estimators/{name}: time to the same variance over full", slower * noisier)
