"""Held-out losses and energies on fixed images and fixed noise, by noise family and noise level."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from anem.random import normal

__all__ = ["Cell", "HeldOut", "Report"]


@dataclass(frozen=True)
class Cell:
    """Means over ``count`` held-out images of one family and noise level.

    Arguments:
        family: name of the noise family, or ``all``.
        level: decade of the noise: floor of log10 of the geometric mean of the variances; None for all.
        a_dsm, a_csm: the two losses of :func:`anem.losses.dual_score_loss`, without weights.
        energy: U in nats per dimension.
    """

    family: str
    level: int | None
    count: int
    a_dsm: float
    a_csm: float
    energy: float


@dataclass(frozen=True)
class Report:
    """The held-out figures of one evaluation: per image, with means over any group."""

    families: tuple[str, ...]
    family: Tensor
    log10_variance: Tensor
    a_dsm: Tensor
    a_csm: Tensor
    energy: Tensor

    def cell(self, family: str | None = None, level: int | None = None) -> Cell:
        """Means over the images of a family and a level; None for all of them. NaN where there are none."""
        chosen = torch.ones(len(self.family), dtype=torch.bool)
        if family is not None:
            chosen &= self.family == self.families.index(family)
        if level is not None:
            chosen &= self.log10_variance.floor() == level
        means = [float(v[chosen].mean()) for v in (self.a_dsm, self.a_csm, self.energy)]
        return Cell(family or "all", level, int(chosen.sum()), *means)

    def cells(self) -> list[Cell]:
        """The overall mean, every family, every level, and every family at every level, where there are images."""
        levels = sorted({int(v) for v in self.log10_variance.floor().tolist()})
        groups = [(f, k) for f in (None, *self.families) for k in (None, *levels)]
        return [cell for f, k in groups if (cell := self.cell(f, k)).count]

    def to_dict(self) -> list[dict[str, Any]]:
        """The cells as plain values, for a history file."""
        return [vars(cell) for cell in self.cells()]


class HeldOut:
    """Fixed images, covariances and noise, drawn once from ``seed``: two evaluations differ by the model alone.

    Arguments:
        images: x, (N, C, H, W), in [0, 1].
        draw: (shape, statistics, generator) to a noise batch with ``cov``, ``family`` and ``twin``, which may be None.
        families: their names.
        batch_size: images evaluated at a time.
    """

    def __init__(self, images: Tensor, draw: Callable[..., Any], families: tuple[str, ...], batch_size: int, seed: int) -> None:
        self.images, self.draw, self.families, self.batch_size, self.seed = images, draw, families, batch_size, seed

    def evaluate(self, model: Any, loss: Callable[..., Any]) -> Report:
        """Losses and energies of ``model`` at every held-out image; the model should be in evaluation mode."""
        generator = torch.Generator().manual_seed(self.seed)
        device = next(iter(model.parameters())).device
        rows = []
        for x in self.images.split(self.batch_size):
            batch = self.draw(tuple(x.shape), model.statistics, generator)
            cov, noise, x = batch.cov.to(device), normal(x.shape, generator, x.cpu()).to(device), x.to(device)
            terms = loss(model, x, cov, noise, 1.0, **({} if batch.twin is None else {"twin": batch.twin.to(device)}))
            level = cov.values.log10().flatten(1).mean(1)
            rows.append([v.detach().cpu() for v in (batch.family, level, terms.a_dsm, terms.a_csm, terms.energy / x[0].numel())])
        return Report(self.families, *(torch.cat(column) for column in zip(*rows, strict=True)))
