"""How ``anem restore`` restores: by the energy's own sampler, or by a baseline over the same operators."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from anem.cli.options import named_values

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from anem.baselines import ConditionalNetwork
    from anem.baselines.named import Setting
    from anem.cli.report import Drawn
    from anem.energy import EnergyModel
    from anem.operators import LinearOperator
    from anem.sample import Sampler

__all__ = ["ENERGY", "METHODS", "by_baseline", "by_energy", "check_method", "load_for"]

ENERGY = "energy"
"""The method of this package."""

METHODS = "energy, dps, red-diff, daps, composition, paper, palette, indi"
"""Names of the methods, written out so that the help needs no import of torch."""


def check_method(name: str, settings: Sequence[str]) -> None:
    """Raise ValueError for a method that there is not, or settings it does not have."""
    from anem.baselines import BASELINES

    if name != ENERGY and name not in BASELINES:
        raise ValueError(f"--method: wanted one of {METHODS}, got {name}")
    given = named_values("--set", settings)
    if name == ENERGY and given:
        raise ValueError(f"--set: wanted a --method that has settings, not {ENERGY}, whose settings are options")
    if name != ENERGY:
        try:
            BASELINES[name].check(given)
        except ValueError as error:
            raise ValueError(f"--set: {name}: {error}") from None


def load_for(method: str, name: str, device: str) -> EnergyModel | ConditionalNetwork:
    """The model that a method restores by: an energy, or for some a network trained for one task.

    Raises:
        ValueError: a model of the other kind.
    """
    from anem.baselines import BASELINES, ConditionalNetwork
    from anem.hub import load, locate
    from anem.random import check_device

    if method == ENERGY or not BASELINES[method].conditional:
        return load(name, device)
    check_device(device)
    try:
        return ConditionalNetwork.from_pretrained(locate(name)).to(device)
    except (ValueError, FileNotFoundError) as error:
        raise ValueError(f"--model: wanted the folder of a network trained by 'anem train' for {method} ({error})") from None


def by_energy(
    model: EnergyModel,
    measurement: Tensor,
    operator: LinearOperator,
    sigma: float | Tensor,
    sampler: Sampler,
    samples: int,
    seed: int,
) -> Drawn:
    """Posterior samples by the energy itself."""
    import torch

    from anem.cli.inputs import check_observed
    from anem.cli.report import Drawn

    observation = operator.observe(measurement, sigma, model.statistics, torch.Generator(measurement.device).manual_seed(0))
    check_observed(observation, operator, float(torch.as_tensor(sigma).max()))
    found = sampler.posterior(model, measurement, operator, sigma, samples, seed)
    record: dict = {"calls": found.calls}
    if found.acceptance is not None:
        record["acceptance"] = round(float(found.acceptance.mean()), 3)
    trusted = observation.cov.values <= 10 * model.statistics.variance_of(observation.cov)
    variance = found.variance if found.variance is not None and bool(trusted.any()) else None
    variance = None if variance is None else torch.where(trusted, variance, torch.nan)
    return Drawn(found.samples, record | {"ends": found.sampler.final}, found.energy, variance)


def by_baseline(
    method: str,
    model: EnergyModel | ConditionalNetwork,
    measurement: Tensor,
    operator: LinearOperator,
    sigma: float | Tensor,
    calls: int,
    samples: int,
    settings: Mapping[str, Setting],
    generators: Sequence[torch.Generator],
) -> Drawn:
    """Restorations by a baseline.

    Raises:
        ValueError: settings, a model, an operator or noise that it is not for; restorations that are not finite.
    """
    from anem.baselines import counted, make_baseline
    from anem.cli.report import Drawn
    from anem.energy import NotFinite
    from anem.sample.chain import Diverged

    counting = counted(model)
    try:
        restored = make_baseline(method, counting, calls, samples, settings)(measurement, operator, sigma, list(generators)).detach()
        if not bool(restored.isfinite().all()):
            raise NotFinite("its restorations are not finite")
    except (Diverged, NotFinite) as error:
        raise ValueError(f"--method: {method} diverged, other settings (--set) or more --steps may help ({error})") from None
    except ValueError as error:
        raise ValueError(f"--method: {method}: {error}") from None
    return Drawn(restored, {"calls": round(counting.rows / restored[:, :, 0, 0, 0].numel())})
