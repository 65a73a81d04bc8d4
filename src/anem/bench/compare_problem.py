"""What every method of a comparison is given: a task, images with their measurements and seeds, and a count of its network calls."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from anem.baselines import counted
from anem.baselines.conditional import Model
from anem.bench.compare_methods import Method
from anem.energy import NotFinite
from anem.operators import LinearOperator, make_operator
from anem.random import generators_for
from anem.sample.chain import Diverged
from anem.statistics import VARIANCE_FLOOR

__all__ = ["TASKS", "Problem", "Restored", "Task", "restore"]


@dataclass(frozen=True)
class Task:
    """A degradation: arguments of :func:`make_operator`, and the standard deviation of the noise."""

    name: str
    settings: Mapping[str, Any]
    sigma: float = VARIANCE_FLOOR**0.5


TASKS: Mapping[str, Task] = MappingProxyType(
    {
        "box": Task("inpaint-box", {"box": 20}),
        "random": Task("inpaint-random", {"missing": 0.8}),
        "blur": Task("deblur", {"kernel_size": 8, "std": 0.8}, 0.01),
        "strong-blur": Task("deblur", {"kernel_size": 16, "std": 2.0}, 0.01),
        "x4": Task("sr4", {}),
    }
)
"""Tasks by the names of ``--tasks``: centre box 20 of 28, 80 % of pixels missing, Gaussian blurs of std 0.8 and 2, ×4 super-resolution."""


@dataclass(frozen=True, eq=False)
class Problem:
    """Images of a task with their measurements and one seed each."""

    task: Task
    x: Tensor
    measurement: Tensor
    operator: LinearOperator
    seeds: list[int]

    @classmethod
    def of(cls, task: Task, x: Tensor, seed: int) -> Problem:
        seeds = [seed + i for i in range(len(x))]
        mask = {"seed": seeds} if task.name == "inpaint-random" else {}
        # Boxes are given for 28 pixels.
        box = {"box": round(task.settings["box"] * min(x.shape[-2:]) / 28)} if "box" in task.settings else {}
        operator = make_operator(task.name, x.shape, **{**task.settings, **box}, **mask)
        return cls(task, x, operator.measure(x, task.sigma, generators_for(seeds)), operator, seeds)


@dataclass(frozen=True, eq=False)
class Restored:
    """Restorations (B, C, H, W), and their cost for one image."""

    x: Tensor
    calls: float
    seconds: float


def restore(method: Method, setting: str, model: Model, problem: Problem, calls: int) -> Restored | None:
    """One sample an image, or None where the method breaks down."""
    counting = counted(model)
    restorer, start = method.settings[setting](counting, calls), time.perf_counter()
    try:
        x = restorer(problem.measurement, problem.operator, problem.task.sigma, generators_for(problem.seeds))[0]
    except (Diverged, NotFinite):
        return None
    spent = time.perf_counter() - start
    return Restored(x, counting.rows / len(x), spent / len(x)) if bool(torch.isfinite(x).all()) else None
