"""What Palette and InDI share: a network from (measurement, x_t, level) to an image, trained for one task by the trainer of the energies.

The network is the U-Net of the energy with the same configuration; the level of x_t enters where the energy's noise map does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from anem.baselines.isotropic import each_sample
from anem.corruptions import NoiseBatch
from anem.covariance import Covariance
from anem.data import load_dataset
from anem.energy import EnergyModel
from anem.files import read_model, write_model
from anem.losses import LossTerms
from anem.network import NetworkConfig
from anem.nn.embedding import SPECTRAL_FEATURES
from anem.nn.unet import noise_map, padded
from anem.operators import SETTINGS, TASKS, LinearOperator, make_operator
from anem.random import Generators
from anem.statistics import DataStatistics
from anem.train import Parts, TrainConfig
from anem.train.config import from_dict, read_toml, stricter, to_dict
from anem.train.parts import network_config

__all__ = ["ConditionalConfig", "ConditionalNetwork", "Model", "conditional_parts", "load_conditional", "measurement_image", "restore_each"]

_FORMAT = "anem-conditional-1"


@dataclass(frozen=True)
class ConditionalConfig:
    """What a conditional network is for.

    Arguments:
        method: "palette" or "indi".
        task, settings: arguments of :func:`~anem.operators.make_operator`, ``seed`` where pixels are hidden at random.
        sigma: standard deviation of the noise in measurements.
    """

    method: Literal["palette", "indi"] = "palette"
    task: str = "inpaint-box"
    settings: dict[str, int | float] = field(default_factory=dict)
    sigma: float = 0.01

    def __post_init__(self) -> None:
        if self.task not in TASKS:
            raise ValueError(f"conditional.task: wanted one of {', '.join(TASKS)}, got {self.task!r}")
        own = [*SETTINGS.get(self.task, ()), *(["seed"] if self.task == "inpaint-random" else [])]
        for name in self.settings.keys() - {*own}:
            raise ValueError(f"conditional.settings: wanted {', '.join(own) or 'none'} for {self.task}, got {name}")


def measurement_image(measurement: Tensor, operator: LinearOperator) -> Tensor:
    """A measurement as an image of the size of x, (B, C, H, W): the regularised pseudo-inverse."""
    return operator.pseudo_inverse(measurement, 1e-3)


class ConditionalNetwork(nn.Module):
    """f(measurement image, x_t, log level), (B, C, H, W).

    Arguments:
        config: shape of the U-Net.
        problem: the task it is for.
        statistics: of the data; only the size is used.
    """

    def __init__(self, config: NetworkConfig, problem: ConditionalConfig, statistics: DataStatistics) -> None:
        super().__init__()
        self.config, self.problem, self.statistics = config, problem, statistics
        channels, height, width = statistics.spectrum.shape
        self.unet = config.unet(2 * channels, 2 * channels, channels)
        self.operator = make_operator(problem.task, (1, channels, height, width), **problem.settings)  # type: ignore[arg-type]

    def forward(self, seen: Tensor, x: Tensor, level: Tensor) -> Tensor:
        """Arguments: measurement image and x_t, (B, C, H, W), of about unit size; log level (B,)."""
        summary = x.new_zeros(len(x), SPECTRAL_FEATURES)
        return padded(self.unet, torch.cat([seen, x], 1), noise_map(level.reshape(-1, 1, 1, 1).expand_as(x)), summary)

    def check(self, operator: LinearOperator, image_shape: tuple[int, ...]) -> None:
        """Raise ValueError unless ``operator`` is the one of the training."""
        own = self.operator.response(image_shape)
        other = operator.response(image_shape)
        same = type(operator) is type(self.operator) and own.shape == other.shape
        if not same or not torch.allclose(own.to(other), other, atol=1e-5):
            raise ValueError(f"operator: wanted that of the training, {self.problem.task} {self.problem.settings}, got another")

    def save_pretrained(self, folder: str | Path, card: Mapping[str, object] | None = None) -> None:
        """Write ``model.safetensors`` and ``card.json`` into ``folder``, both under temporary names before either takes its place."""
        network, problem = asdict(self.config), asdict(self.problem)
        full = {**(card or {}), "format": _FORMAT, "network": network, "problem": problem, "statistics": self.statistics.shape()}
        write_model(Path(folder), self, full)

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> ConditionalNetwork:
        """The network saved in ``folder``, ready for use.

        Raises:
            FileNotFoundError: no such files.
            ValueError: another kind of model.
        """

        def build(card: dict[str, Any]) -> ConditionalNetwork:
            return cls(NetworkConfig(**card["network"]), ConditionalConfig(**card["problem"]), DataStatistics(**card["statistics"]))

        return read_model(folder, _FORMAT, build)


Model = EnergyModel | ConditionalNetwork
"""What a method restores by."""

Draw = Callable[[Tensor, Generators], Tensor]
"""(measurement image in [−1, 1], random numbers) to one sample an image in [0, 1], (B, C, H, W)."""


def restore_each(
    network: ConditionalNetwork, draw: Draw, samples: int, measurement: Tensor, operator: LinearOperator, generators: Generators
) -> Tensor:
    """Restorations (S, B, C, H, W) by ``draw``, from a measurement through the operator that the network was trained for.

    Raises:
        ValueError: another operator, samples < 1.
    """
    network.check(operator, operator.image_shape(measurement.shape))
    seen = 2 * measurement_image(measurement, operator) - 1
    return each_sample(partial(draw, seen), samples, generators, measurement, operator)


Loss = Callable[[ConditionalNetwork, Tensor, Tensor, Tensor, Tensor], Tensor]
"""(model, clean images, measurement images, level (B, 1, 1, 1), white noise) to squared errors a pixel, (B, C, H, W)."""


def conditional_parts(
    config: TrainConfig, problem: ConditionalConfig, levels: Callable[[int, torch.Generator], Tensor], loss: Loss
) -> Parts:
    """What the trainer trains: see :class:`~anem.train.Parts`.

    Arguments:
        levels: (batch, generator) to levels > 0, (B,); they travel as the variances of the noise batch.
        loss: of one batch; the measurement is drawn here.
    """

    def draw(shape: tuple[int, int, int, int], statistics: DataStatistics, generator: torch.Generator) -> NoiseBatch:
        cov = Covariance.white(levels(shape[0], generator), shape, like=torch.zeros(()))
        return NoiseBatch(cov, torch.zeros(shape[0], dtype=torch.long))

    def terms(model: ConditionalNetwork, x: Tensor, cov: Covariance, noise: Tensor, weight: float = 1.0) -> LossTerms:
        # While training torch's own generator is seeded by step; held-out measurements are the same every time.
        source = None if model.training else torch.Generator(x.device).manual_seed(0)
        measurement = model.operator.measure(x, model.problem.sigma, source)
        error = loss(model, x, measurement_image(measurement, model.operator), cov.values[:, :1, :1, :1], noise).flatten(1).mean(1)
        nothing = torch.zeros_like(error).detach()
        return LossTerms(error.mean(), error.detach(), nothing, nothing)

    if config.model.start:
        raise ValueError(f"model.start: wanted none, a conditional network starts from its preset, got {config.model.start!r}")
    return Parts(
        model=partial(ConditionalNetwork, network_config(config), problem),
        data=load_dataset(config.data),
        held_out=None if config.held_out is None else load_dataset(config.held_out),
        draw=draw,
        families=("levels",),
        loss=terms,
        settings={"conditional": to_dict(problem)},
    )


def load_conditional(path: str | Path, strict: bool = False) -> tuple[TrainConfig, Parts] | None:
    """The training run of a TOML file with a table ``[conditional]``; None for a file without. ``strict``: as if it said so of its data.

    Raises:
        ValueError: the file is not TOML, a key is unknown, or a value has the wrong type.
    """
    from anem.baselines import indi, palette

    mapping = read_toml(path)
    if "conditional" not in mapping:
        return None
    problem = from_dict(ConditionalConfig, mapping.pop("conditional"), where="conditional.")
    config = from_dict(TrainConfig, mapping)
    config = stricter(config) if strict else config
    method = {"palette": palette, "indi": indi}[problem.method]
    return config, conditional_parts(config, problem, method.levels, method.loss)
