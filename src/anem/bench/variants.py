"""What an ablation compares: forms of the energy and weights of the loss, each trained to the end."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from anem.calibrate import calibrate
from anem.losses import PLAIN
from anem.network import EnergyNetwork
from anem.train import Callback, Parts, TrainConfig, TrainState, train
from anem.train.callbacks import default_callbacks
from anem.train.parts import build_parts

__all__ = ["VARIANTS", "Variant", "train_variant"]


@dataclass(frozen=True)
class Variant:
    """One row of an ablation.

    Arguments:
        name: also of its folder.
        form: of the energy, see :class:`~anem.network.NetworkConfig`. An "inner" energy gets its constant after training.
        weight: w of the covariance score matching term; ``per_dimension`` divides it by d.
        plain: the loss without the terms that are ours.
    """

    name: str
    form: str = "anchored"
    weight: float = 1.0
    per_dimension: bool = False
    plain: bool = False

    def config(self, base: TrainConfig, dimension: int) -> TrainConfig:
        """``base`` for this variant, with a folder of its own in ``base.output``."""
        return replace(
            base,
            output=str(Path(base.output) / self.name),
            weight=self.weight / dimension if self.per_dimension else self.weight,
            loss=PLAIN if self.plain else base.loss,
            model=replace(base.model, overrides=base.model.overrides | {"form": self.form}),
        )


VARIANTS = (
    Variant("default"),
    Variant("weight-1-over-d", per_dimension=True),
    Variant("weight-0", weight=0.0),
    Variant("paper", form="inner", per_dimension=True, plain=True),
)
"""The default; the same with the covariance terms weighted as in the paper, or not at all; and the paper's ½⟨y, s(y, Σ)⟩ and loss."""


class _Seen(Callback):
    """Images seen when a run ends."""

    images = 0

    def on_end(self, state: TrainState) -> None:
        self.images = state.images


def train_variant(config: TrainConfig, parts: Parts | None = None) -> EnergyNetwork:
    """Train to the last image, or continue where an earlier call stopped; an "inner" energy is then calibrated at λ_max.

    Returns the averaged model, which is also in ``config.output``/model.

    Raises:
        KeyboardInterrupt: the training was stopped; the same call continues it.
    """
    parts = build_parts(config) if parts is None else parts
    seen = _Seen()
    model = train(config, parts=parts, callbacks=[*default_callbacks(config), seen])
    if seen.images < config.images:
        raise KeyboardInterrupt
    assert isinstance(model, EnergyNetwork)
    if model.config.form == "inner":
        generator = torch.Generator().manual_seed(config.seed)
        images = parts.data.batch(torch.arange(min(len(parts.data), 1024)), generator)
        calibrate(model, images, config.noise.lambda_max or model.statistics.lambda_max, generator)
        folder = Path(config.output) / "model"
        model.save_pretrained(folder, json.loads((folder / "card.json").read_text(encoding="utf-8")))
    return model
