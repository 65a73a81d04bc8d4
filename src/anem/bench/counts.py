"""What a computation costs, counted and not timed: operations, multiply-adds, bytes moved, saved and alive at once.

Counts are the same on every machine and in every run, so they guard against a slower step where timings cannot. ``python -m
anem.bench.counts FILE`` writes the counts of :data:`STEPS` for the preset ``small`` at batch 4; the tests compare with that file.
"""

from __future__ import annotations

import json
import sys
import weakref
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from anem.corruptions import NoiseConfig, draw_covariances
from anem.covariance import Covariance
from anem.energy import EnergyModel
from anem.losses import LossConfig, dual_score_loss
from anem.network import EnergyNetwork, NetworkConfig
from anem.operators import Observation
from anem.sample import Geometric, Noise, as_kernel, run_chain
from anem.statistics import DataStatistics
from anem.train.config import TrainConfig
from anem.train.parts import loss_function

__all__ = ["STEPS", "Counts", "Workload", "count", "differences", "make_workload"]

_HEAVY = ("convolution", "mm", "bmm", "addmm", "baddbmm")


TIMED_LOSS = LossConfig.plain(balance=0.5)
"""The terms of a step that is counted or timed: the two of the paper, coordinates weighed."""


@dataclass(frozen=True)
class Counts:
    """Cost of one computation.

    Arguments:
        operations: torch operations that made or changed a tensor; views are free.
        multiply_adds: of convolutions and matrix products.
        bytes_moved: read and written by all other operations.
        saved_bytes: distinct tensors kept for backward passes, parameters left out.
        peak_bytes: most memory alive at once, what was there before left out.
        allocations: tensors of their own that were made.
    """

    operations: int
    multiply_adds: int
    bytes_moved: int
    saved_bytes: int
    peak_bytes: int
    allocations: int


class _Ledger(TorchDispatchMode):
    """Adds up what every operation reads, writes and allocates."""

    def __init__(self) -> None:
        super().__init__()
        self.operations = self.bytes_moved = self.allocations = 0
        self.alive = self.peak = 0
        self._known: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        inputs = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        outputs = [t for t in tree_leaves(out) if isinstance(t, Tensor)]
        mutates = func._schema.is_mutable
        before = {t.untyped_storage().data_ptr() for t in inputs}
        made = [t for t in outputs if t.untyped_storage().data_ptr() not in before]
        if made or mutates:
            self.operations += 1
            if not any(part in func._schema.name for part in _HEAVY):
                self.bytes_moved += sum(t.numel() * t.element_size() for t in (*inputs, *(outputs if mutates else made)))
        for t in made:
            self._allocated(t.untyped_storage())
        return out

    def _allocated(self, storage: torch.UntypedStorage) -> None:
        if storage in self._known:
            return
        size = storage.nbytes()
        self._known[storage] = size
        self.allocations += 1
        self.alive += size
        self.peak = max(self.peak, self.alive)
        weakref.finalize(storage, self._freed, size)

    def _freed(self, size: int) -> None:
        self.alive -= size


def count(run: Callable[[], object]) -> Counts:
    """Counts of one call; ``run`` is called twice."""
    saved: dict[int, tuple[Tensor, int]] = {}

    def keep(t: Tensor) -> Tensor:
        if not isinstance(t, torch.nn.Parameter):
            storage = t.untyped_storage()
            saved[storage.data_ptr()] = (t, storage.nbytes())
        return t

    # The first call also fills caches. Tensors stay in ``saved``, so that no address is used twice; the second call gives the peak.
    # FlopCounterMode keeps tensors of its own and is left out of that one.
    flops = FlopCounterMode(display=False)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t), flops:
        run()
    ledger = _Ledger()
    with ledger:
        run()
    return Counts(
        operations=ledger.operations,
        multiply_adds=flops.get_total_flops() // 2,
        bytes_moved=ledger.bytes_moved,
        saved_bytes=sum(size for _, size in saved.values()),
        peak_bytes=ledger.peak,
        allocations=ledger.allocations,
    )


@dataclass(frozen=True, eq=False)
class Workload:
    """A model and one batch: clean images x, covariances of p(Σ), their twins, and white noise ε in their coordinates, (B, C, H, W)."""

    model: EnergyNetwork
    x: Tensor
    cov: Covariance
    twin: Covariance
    noise: Tensor

    @property
    def y(self) -> Tensor:
        """x + n, (B, C, H, W)."""
        return self.x + self.cov.color(self.noise)

    def train_step(self, model: EnergyNetwork | None = None, weight: float = 1.0) -> float:
        """Loss and gradients of all parameters, without the optimiser; of another model with the same inputs if given."""
        model = model or self.model
        model.zero_grad(set_to_none=True)
        total = dual_score_loss(model, self.x, self.cov, self.noise, weight, TIMED_LOSS).total
        total.backward()
        return float(total.detach())

    def configured_step(self, config: TrainConfig) -> None:
        """Loss and gradients of a training with this configuration."""
        self.model.zero_grad(set_to_none=True)
        twin = {"twin": self.twin} if config.loss.contrast else {}
        loss_function(config)(self.model, self.x, self.cov, self.noise, config.weight, **twin).total.backward()

    def sampling_step(self, model: EnergyModel | None = None) -> Tensor:
        """A step of the ancestral kernel from Σ, the first network call included; float64 states as in sampling."""
        y, cov = self.y.double(), self.cov.to(torch.float64)
        observation = Observation.of(y, cov)
        noise = Noise(torch.Generator(y.device).manual_seed(0))
        return run_chain(model or self.model, observation, Geometric(1), as_kernel("ancestral"), noise=noise, final="noisy").x


def make_workload(config: NetworkConfig, batch: int = 32, side: int = 28, colours: int = 1, seed: int = 0) -> Workload:
    """Made-up images, bright discs on black, p(Σ) stratified over bases, and a network whose weights are not at their start.

    Arguments:
        config: of the network. batch, side, colours: B, H = W and C.
    """
    generator = torch.Generator().manual_seed(seed)
    grid = torch.arange(side) / side - 0.5
    centre = 0.3 * (torch.rand(32, 2, 1, 1, 1, generator=generator) - 0.5)
    radius = 0.1 + 0.2 * torch.rand(32, 1, 1, 1, generator=generator)
    distance = ((grid[:, None] - centre[:, 0]).square() + (grid - centre[:, 1]).square()).sqrt()
    level = torch.rand(32, colours, 1, 1, generator=generator)
    images = (level * torch.sigmoid(60 * (radius - distance))).expand(-1, colours, -1, -1)
    images = (images * 255 + torch.rand(images.shape, generator=generator)) / 256
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = EnergyNetwork(config, DataStatistics.fit(images))
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.002 * torch.randn(p.shape, generator=generator))
    x = images[torch.arange(batch) % len(images)].contiguous()
    drawn = draw_covariances(tuple(x.shape), model.statistics, NoiseConfig(stratified=True), generator, twins=True)
    assert drawn.twin is not None
    return Workload(model.train(), x, drawn.cov, drawn.twin, torch.randn(x.shape, generator=generator))


STEPS: dict[str, Callable[[Workload], object]] = {
    "training": Workload.train_step,
    "training, all of the default loss": lambda w: w.configured_step(TrainConfig()),
    "training, contrast too": lambda w: w.configured_step(TrainConfig(loss=LossConfig(contrast=0.1))),
    "sampling": Workload.sampling_step,
    "network call": lambda w: w.model(w.y, w.cov),
    "energy": lambda w: w.model.log_prob(w.y, w.cov),
}
"""What is guarded, by name."""


def count_steps() -> dict[str, Counts]:
    """Counts of all :data:`STEPS`."""
    workload = make_workload(NetworkConfig.preset("small"), batch=4)
    return {name: count(partial(step, workload)) for name, step in STEPS.items()}


def differences(now: dict[str, Counts], committed: dict[str, dict[str, int]], tolerance: float = 0.02) -> list[str]:
    """Counts that differ from the committed ones by more than ``tolerance`` (multiply-adds: at all), each in words."""
    found = []
    for name, counts in now.items():
        for what, value in asdict(counts).items():
            before = committed.get(name, {}).get(what, 0)
            if abs(value - before) > (0 if what == "multiply_adds" else tolerance) * before:
                change = f"{value / before - 1:+.1%}" if before else "new"
                found.append(f"{name}: {what} {before:,} → {value:,} ({change})")
    return found


def main(file: str) -> None:
    """Write the counts of this version into a JSON file."""
    numbers = {name: asdict(counts) for name, counts in count_steps().items()}
    Path(file).write_text(json.dumps(numbers, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1])
