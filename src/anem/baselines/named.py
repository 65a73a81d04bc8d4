"""Baselines by name, as the command line, scripts and the comparison ask for them: within a number of network calls."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from anem.baselines.composition import Composition
from anem.baselines.conditional import ConditionalNetwork, Model
from anem.baselines.daps import DAPS
from anem.baselines.dps import DPS
from anem.baselines.indi import InDI
from anem.baselines.palette import Palette
from anem.baselines.paper_sampler import PaperSampler
from anem.baselines.red_diff import REDDiff
from anem.restorer import Restorer
from anem.sample import MALA

__all__ = ["BASELINES", "Baseline", "Setting", "make_baseline"]

Setting = float | bool | None
"""Value of a setting."""


@dataclass(frozen=True)
class Baseline:
    """A method, its settings and how it spends network calls.

    Arguments:
        kind: its class.
        arguments: from the network calls a sample may cost and all settings to the arguments of the class.
        settings: with their authors' values; that value's type is the setting's, and a setting that is None may also be a number.
        optional: settings that may also be None.
        conditional: whether it needs a network trained for the task, in place of an energy.
        noise_maps: whether, with some settings, it makes use of a σ that differs between pixels; if not it refuses one.
    """

    kind: Callable[..., Restorer]
    arguments: Callable[[int, Mapping[str, Any]], Mapping[str, Any]]
    settings: Mapping[str, Setting] = field(default_factory=dict)
    optional: tuple[str, ...] = ()
    conditional: bool = False
    noise_maps: Callable[[Mapping[str, Setting]], bool] = lambda settings: True

    def check(self, given: Mapping[str, Setting]) -> None:
        """Raise ValueError for settings it does not have, or of another type."""
        for name, value in given.items():
            if name not in self.settings:
                raise ValueError(f"{name}: no such setting, wanted {' or '.join(self.settings) or 'none'}")
            default = self.settings[name]
            kinds: tuple[type, ...] = (bool,) if isinstance(default, bool) else (int,) if isinstance(default, int) else (int, float)
            if type(value) not in kinds and not (value is None and name in self.optional):
                wanted = {bool: "true or false", int: "a whole number"}.get(kinds[0] if len(kinds) == 1 else float, "a number")
                raise ValueError(f"{name}: wanted {wanted}{' or none' if name in self.optional else ''}, got {value}")


def _levels(calls: int, each: int, least: int = 1, extra: int = 0) -> int:
    """Levels that ``calls`` pay for, at ``each`` a level.

    Raises:
        ValueError: fewer than ``least``.
    """
    if calls < least * each + extra:
        raise ValueError(f"calls: wanted at least {least * each + extra} network calls with these settings, got {calls}")
    return (calls - extra) // each


def _steps(calls: int, settings: Mapping[str, Any]) -> Mapping[str, Any]:
    return {"steps": calls, **settings}


def _daps(calls: int, settings: Mapping[str, Any]) -> Mapping[str, Any]:
    return {"levels": _levels(calls, max(1, settings["ode"])), **settings}


def _composition(calls: int, settings: Mapping[str, Any]) -> Mapping[str, Any]:
    if settings["mala"] < 0:
        raise ValueError(f"mala: wanted 0 steps or more, got {settings['mala']}")
    corrector = MALA(settings["mala"])
    levels = _levels(calls, 1 + settings["mala"], least=2)
    return {"levels": levels, "corrector": corrector} | {name: settings[name] for name in ("highest", "lowest", "added")}


def _paper(calls: int, settings: Mapping[str, Any]) -> Mapping[str, Any]:
    return {"levels": _levels(calls, 1 + max(0, settings["corrections"]), extra=1), **settings}


def _never(settings: Mapping[str, Setting]) -> bool:
    return False


BASELINES: Mapping[str, Baseline] = MappingProxyType(
    {
        "dps": Baseline(DPS, _steps, {"scale": DPS.scale, "clip": DPS.clip}, noise_maps=_never),
        "red-diff": Baseline(REDDiff, _steps, {"weight": REDDiff.weight, "learning_rate": REDDiff.learning_rate}, noise_maps=_never),
        "daps": Baseline(
            DAPS,
            _daps,
            {name: getattr(DAPS, name) for name in ("ode", "langevin", "learning_rate", "tau", "highest", "lowest")},
            optional=("tau",),
            noise_maps=lambda settings: settings.get("tau", DAPS.tau) is None,
        ),
        "composition": Baseline(
            Composition,
            _composition,
            {"mala": 4} | {name: getattr(Composition, name) for name in ("highest", "lowest", "added")},
            optional=("highest",),
        ),
        "paper": Baseline(PaperSampler, _paper, {name: getattr(PaperSampler, name) for name in ("corrections", "snr", "temperature")}),
        "palette": Baseline(Palette, _steps, {"clamp": Palette.clamp}, conditional=True, noise_maps=_never),
        "indi": Baseline(InDI, _steps, conditional=True, noise_maps=_never),
    }
)
"""All of them, by name."""


def make_baseline(name: str, model: Model, calls: int = 250, samples: int = 1, settings: Mapping[str, Setting] | None = None) -> Restorer:
    """A baseline that restores by a model.

    >>> from anem.gaussian import make_power_law_gaussian
    >>> make_baseline("dps", make_power_law_gaussian(1, 8, 8), calls=100, settings={"scale": 1.0}).steps
    100

    Arguments:
        name: one of :data:`BASELINES`.
        model: the prior; for "palette" and "indi" a :class:`ConditionalNetwork` that was trained for the task.
        calls: network calls that a sample may cost.
        samples: S.
        settings: in place of the authors'; :data:`BASELINES` has their names.

    Raises:
        ValueError: no such method or setting, a model of another kind, fewer calls than the method needs.
    """
    if name not in BASELINES:
        raise ValueError(f"method: wanted one of {', '.join(BASELINES)}, got {name!r}")
    if calls < 1:
        raise ValueError(f"calls: wanted at least 1, got {calls}")
    baseline, given = BASELINES[name], dict(settings or {})
    baseline.check(given)
    if baseline.conditional != isinstance(model, ConditionalNetwork):
        energy, network = "an energy", "a network for one task"
        wanted, got = (network, energy) if baseline.conditional else (energy, network)
        raise ValueError(f"model: wanted {wanted}, got {got}")
    if isinstance(model, ConditionalNetwork) and model.problem.method != name:
        raise ValueError(f"model: wanted a network trained for {name}, got one for {model.problem.method}")
    return baseline.kind(model, samples=samples, **baseline.arguments(calls, {**baseline.settings, **given}))
