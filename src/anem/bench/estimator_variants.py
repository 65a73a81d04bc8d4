"""What the estimators bench compares: ways to estimate the covariance term of the loss, and the Fokker–Planck residual in its place."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from anem.bench.speed_estimators import PART
from anem.bench.turns import Contender
from anem.covariance import Covariance
from anem.losses import CovarianceTerm, LossTerms
from anem.network import EnergyNetwork
from anem.train import Parts, TrainConfig
from anem.train.parts import loss_function

__all__ = ["VARIANTS", "Variant", "some_images", "some_steps"]

Loss = Callable[..., Any]


def some_steps(loss: Loss, part: int, model: EnergyNetwork, x: Tensor, cov: Covariance, noise: Tensor, weight: float) -> Any:
    """``loss`` of weight ``part`` · w with probability 1/``part``, otherwise of weight 0: as a mean over both, ``loss``.

    The coin is torch's default generator's, which the trainer seeds afresh in every step: a resumed training decides alike.
    """
    chosen = int(torch.randint(part, ())) == 0
    return loss(model, x, cov, noise, part * weight if chosen else 0.0)


def some_images(loss: Loss, part: int, model: EnergyNetwork, x: Tensor, cov: Covariance, noise: Tensor, weight: float) -> LossTerms:
    """``loss`` with the covariance term of one in ``part`` images, picked as :func:`some_steps` does, as heavy as that of all.

    Raises:
        ValueError: the batch does not divide by ``part``.
    """
    if len(x) % part:
        raise ValueError(f"x: wanted a batch that divides by {part}, got {len(x)}")
    order = torch.randperm(len(x))
    groups = order[: len(x) // part], order[len(x) // part :]
    terms = [loss(model, x[k], cov[k], noise[k], w) for k, w in zip(groups, (part * weight, 0.0), strict=True) if len(k)]
    total = sum(len(t.energy) * t.total for t in terms) / len(x)
    back = order.argsort().to(x.device)
    return LossTerms(total, *(torch.cat([getattr(t, name) for t in terms])[back] for name in ("a_dsm", "a_csm", "energy")))


@dataclass(frozen=True)
class Variant:
    """A way to estimate the covariance term.

    Arguments:
        name: also of its folder.
        term, weight: of the loss, see :func:`anem.losses.dual_score_loss`.
        wrap: what becomes of the loss, or None.
    """

    name: str
    term: CovarianceTerm = "matching"
    weight: float = 1.0
    wrap: Callable[..., Any] | None = None

    def contender(self, base: TrainConfig, parts: Parts) -> Contender:
        """``base`` for this variant, in a folder of its own in ``base.output``."""
        output = Path(base.output, self.name.replace(" ", "-"))
        config = replace(base, output=str(output), loss=replace(base.loss, covariance_term=self.term), weight=self.weight)
        loss = loss_function(config)
        return Contender(self.name, config, replace(parts, loss=partial(self.wrap, loss, PART) if self.wrap else loss))


VARIANTS = (
    Variant("matching"),
    Variant("sliced", term="sliced"),
    Variant("a quarter of the steps", wrap=some_steps),
    Variant("a quarter of the batch", wrap=some_images),
    Variant("fokker-planck", term="fokker_planck"),
    Variant("weight 0", weight=0.0),
)
"""The default first: its time is the others' budget."""
