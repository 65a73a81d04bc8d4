"""What a run trains and on what, built from its configuration or given by the caller."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import nn

from anem.corruptions import NoiseBatch, draw_covariances
from anem.data import load_dataset
from anem.hub import load
from anem.losses import dual_score_loss
from anem.network import EnergyNetwork, NetworkConfig
from anem.random import seed_of
from anem.statistics import DataStatistics
from anem.train.checkpoint import Snapshot, load_exactly
from anem.train.config import TrainConfig, from_dict
from anem.train.evaluate import HeldOut

__all__ = ["Parts", "build_parts", "draw_held_out", "fit_statistics", "loss_function", "network_config"]


@dataclass(frozen=True)
class Parts:
    """What a run trains and on what; :func:`build_parts` makes it from a config, tests and users may make their own.

    Arguments:
        model: statistics to an energy model with parameters.
        data: ``len``, ``batch(indices, generator)`` to (B, C, H, W) in [0, 1], ``indices(first, count, seed)``.
        held_out: another such data set, or None for no evaluation.
        draw: (shape, statistics, generator) to a noise batch with ``cov``, ``family`` (B,) and ``twin``, which may be None.
        families: names of the noise families.
        loss: (model, x, cov, noise, weight), and ``twin`` by name where there are twins, to terms ``total`` (), and ``a_dsm``, ``a_csm``,
            ``energy`` (B,).
        settings: what makes these parts, for checkpoints: a run that goes on with others under one of their names is refused.
    """

    model: Callable[[DataStatistics], nn.Module]
    data: Any
    held_out: Any | None
    draw: Callable[..., Any]
    families: tuple[str, ...]
    loss: Callable[..., Any]
    settings: Mapping[str, Any] = field(default_factory=dict)


def network_config(config: TrainConfig) -> NetworkConfig:
    """The preset with its overrides.

    Raises:
        ValueError: an unknown preset, or an override that is not a field of the network's configuration.
    """
    return from_dict(NetworkConfig, config.model.overrides, NetworkConfig.preset(config.model.preset), "model.overrides.")


def build_parts(config: TrainConfig) -> Parts:
    """Network, data, noise and loss as the config says."""
    return Parts(
        model=partial(_network, config),
        data=load_dataset(config.data),
        held_out=None if config.held_out is None else load_dataset(config.held_out),
        draw=partial(_draw, config),
        families=config.noise.family_names,
        loss=loss_function(config),
    )


def _network(config: TrainConfig, statistics: DataStatistics) -> EnergyNetwork:
    if not config.model.start:
        return EnergyNetwork(network_config(config), statistics)
    model = load(config.model.start).train().requires_grad_(True)
    model.headroom = None  # the network learns where it is wrong
    return model


def _draw(config: TrainConfig, shape: tuple[int, int, int, int], statistics: DataStatistics, generator: torch.Generator) -> NoiseBatch:
    return draw_covariances(shape, statistics, config.noise, generator, twins=config.loss.contrast > 0)


def loss_function(config: TrainConfig) -> Callable[..., Any]:
    """The loss as :class:`Parts` wants it, with the terms of the config."""
    return partial(dual_score_loss, config=config.loss)


def fit_statistics(config: TrainConfig, data: Any, snapshot: Snapshot | None) -> DataStatistics:
    """Mean and variances: of the checkpoint, of the model to start from, or fitted to ``statistics_images`` images spread over the data.

    Raises:
        ValueError: the checkpoint is of another model, or the model to start from does not fit the images.
    """
    if snapshot is not None:
        tensors = snapshot.part("model.statistics.")
        if "spectrum" not in tensors:
            raise ValueError(f"checkpoint {snapshot.path}: of another model: wanted data statistics, got none")
        channels, height, width = tensors["spectrum"].shape
        statistics = DataStatistics(channels, height, width, [int(k[3:]) for k in tensors if k.startswith("dct")])
        load_exactly(statistics, tensors, snapshot.path)
        return statistics
    if config.model.start:
        statistics = load(config.model.start).statistics
        wanted, got = len(statistics.mean), data.batch(torch.arange(1), torch.Generator().manual_seed(0)).shape[1]
        if wanted != got:
            raise ValueError(f"model.start: {config.model.start!r} wants images of {wanted} channels, got {got}")
        return statistics
    n = min(len(data), config.statistics_images)
    generator = torch.Generator().manual_seed(seed_of(config.seed, "statistics"))
    return DataStatistics.fit(data.batch(torch.linspace(0, len(data) - 1, n).long(), generator))


def draw_held_out(config: TrainConfig, parts: Parts) -> HeldOut | None:
    if parts.held_out is None:
        return None
    n = min(len(parts.held_out), config.evaluation.images)
    generator = torch.Generator().manual_seed(config.evaluation.seed)
    images = parts.held_out.batch(torch.arange(n), generator)
    return HeldOut(images, parts.draw, parts.families, config.evaluation.batch_size, config.evaluation.seed)
