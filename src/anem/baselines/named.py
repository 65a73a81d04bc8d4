"""Baselines by name, as the command line and scripts ask for them: within a number of network calls, by their authors' settings."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from types import MappingProxyType
from typing import Any

from anem.baselines.composition import Composition
from anem.baselines.conditional import ConditionalNetwork
from anem.baselines.counted import Model
from anem.baselines.daps import DAPS
from anem.baselines.dps import DPS
from anem.baselines.indi import InDI
from anem.baselines.palette import Palette
from anem.baselines.paper_sampler import PaperSampler
from anem.baselines.red_diff import REDDiff
from anem.restore import Restorer

__all__ = ["BASELINES", "Baseline", "make_baseline"]

Setting = float | bool | None
"""Of a baseline: the annotations of its numbers."""


@dataclass(frozen=True)
class Baseline:
    """A method and how it spends network calls.

    Arguments:
        kind: its class.
        spend: from the network calls a sample may cost, and the settings given, to the settings that cost them.
        conditional: whether it needs a network trained for the task, in place of an energy.
    """

    kind: Callable[..., Restorer]
    spend: Callable[[int, Mapping[str, Setting]], dict[str, int]]
    conditional: bool = False

    @property
    def settings(self) -> dict[str, str]:
        """Names and types of the numbers that can be set."""
        numbers = {"int", "float", "bool", "float | None"}
        return {f.name: str(f.type) for f in fields(self.kind) if f.type in numbers and f.name != "samples"}  # type: ignore[arg-type]

    def check(self, given: Mapping[str, Setting]) -> None:
        """Raise ValueError for settings it does not have, or of another type."""
        known = self.settings
        for name, value in given.items():
            if name not in known:
                raise ValueError(f"{name}: no setting of it, wanted one of {', '.join(known)}")
            fits = {
                "int": type(value) is int,
                "bool": isinstance(value, bool),
                "float": type(value) in (int, float),
                "float | None": value is None or type(value) in (int, float),
            }
            if not fits[known[name]]:
                raise ValueError(f"{name}: wanted {known[name]}, got {value}")


def _steps(calls: int, given: Mapping[str, Setting]) -> dict[str, int]:
    return {"steps": calls}


def _daps(calls: int, given: Mapping[str, Setting]) -> dict[str, int]:
    return {"levels": max(1, calls // max(1, int(given.get("ode") or DAPS.ode)))}


def _composition(calls: int, given: Mapping[str, Setting]) -> dict[str, int]:
    return {"levels": max(2, calls // 5)}  # one call and four MALA steps each


def _paper(calls: int, given: Mapping[str, Setting]) -> dict[str, int]:
    corrections = int(given.get("corrections", PaperSampler.corrections) or 0)
    return {"levels": max(1, (calls - 1) // (1 + max(0, corrections)))}


BASELINES: Mapping[str, Baseline] = MappingProxyType(
    {
        "dps": Baseline(DPS, _steps),
        "red-diff": Baseline(REDDiff, _steps),
        "daps": Baseline(DAPS, _daps),
        "composition": Baseline(Composition, _composition),
        "paper": Baseline(PaperSampler, _paper),
        "palette": Baseline(Palette, _steps, conditional=True),
        "indi": Baseline(InDI, _steps, conditional=True),
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
        calls: network calls that a sample may cost. A composition has two levels at least, which are ten.
        samples: S.
        settings: numbers of the method in place of its authors', among them how the calls are spent.

    Raises:
        ValueError: no such method or setting, a model of another kind, calls < 1.
    """
    if name not in BASELINES:
        raise ValueError(f"method: wanted one of {', '.join(BASELINES)}, got {name!r}")
    if calls < 1:
        raise ValueError(f"calls: wanted at least 1, got {calls}")
    baseline, given = BASELINES[name], dict(settings or {})
    baseline.check(given)
    if baseline.conditional != isinstance(model, ConditionalNetwork):
        wanted = f"a conditional network trained for {name}" if baseline.conditional else "an energy"
        raise ValueError(f"model: wanted {wanted}, got {type(model).__name__}")
    if isinstance(model, ConditionalNetwork) and model.problem.method != name:
        raise ValueError(f"model: wanted a network trained for {name}, got one for {model.problem.method}")
    chosen: dict[str, Any] = {**baseline.spend(calls, given), **given}
    return baseline.kind(model, samples=samples, **chosen)
