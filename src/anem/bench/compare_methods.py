"""What a comparison compares: methods, each with the prior it uses and at most four settings to be tuned."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from anem.baselines import make_baseline
from anem.baselines.named import Setting
from anem.energy import EnergyModel
from anem.hub import read_card
from anem.restorer import EnergyRestorer, Restorer
from anem.sample import Sampler, WaterFilling, steps_within

__all__ = ["METHODS", "OURS", "PRIORS", "Method", "Prior", "find_prior"]

Prior = Literal["anisotropic", "tasks", "isotropic", "given", "conditional"]

PRIORS: Mapping[Prior, str] = MappingProxyType(
    {"anisotropic": "comparison-digits", "tasks": "comparison-tasks-digits", "isotropic": "isotropic-digits"}
)
"""Runs whose models the methods use, by the kind of noise they saw: the configurations of the same names."""

OURS = "ours"
"""Name of the method that the others are compared with."""

Make = Callable[[Any, int], Restorer]
"""A restorer from a prior (for conditional methods, their network) and the network calls a sample may cost, with one sample an image."""


@dataclass(frozen=True)
class Method:
    """A row of the comparison.

    Arguments:
        prior: the model it uses: trained on all families of noise, on those of the bench's tasks or on white noise, in each case with the
            images of :data:`PRIORS`; the one the bench was given, which may have been trained for longer; or a network for each task.
        settings: at most four, by name; the best on tuning images is used.
        rival: whether "ours" is wanted to be better.
        tasks: those it is for; all if empty.
    """

    prior: Prior
    settings: Mapping[str, Make]
    rival: bool = True
    tasks: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not 1 <= len(self.settings) <= 4:
            raise ValueError(f"settings: wanted 1 to 4, got {len(self.settings)}")


def find_prior(name: str, task: str, trained: Path, given: str, dataset: str = "mnist") -> str:
    """Name or folder of the model that a method uses for a task.

    Runs on another data set than MNIST end in its name, ``comparison-NAME`` and so on in place of ``comparison-digits``.

    Raises:
        ValueError: it was not trained yet, or not to its end; says how to.
    """
    prior = METHODS[name].prior
    if prior == "given":
        return given
    run = f"{name.lower()}-{task}" if prior == "conditional" else PRIORS[prior]
    if dataset != "mnist":
        run = f"{run.removesuffix('-digits')}-{Path(dataset).stem}"
    folder = trained / run / "model"
    config = f"baselines/{run}" if prior == "conditional" else run
    if not (folder / "model.safetensors").is_file():
        raise ValueError(f"{folder}: no model there; `anem train configs/{config}.toml` trains it")
    card = read_card(folder)
    seen, wanted = card.get("images_seen"), card.get("training", {}).get("images")
    if isinstance(seen, int) and isinstance(wanted, int) and seen < wanted:
        raise ValueError(f"{folder}: wanted a model trained to its end, got one of {seen} of {wanted} images; `anem train` continues")
    return str(folder)


def _ours(most: int | None = None, power: float = 1.0) -> Make:
    def make(model: EnergyModel, calls: int) -> Restorer:
        allowed = steps_within(calls)
        return EnergyRestorer(model, Sampler(schedule=WaterFilling(min(most or allowed, allowed), power=power)))

    return make


def _baseline(name: str, **settings: Setting) -> Make:
    return lambda model, calls: make_baseline(name, model, calls, settings=settings)


def _share(name: str, share: float) -> Make:
    """With a part of the calls, at least one."""
    return lambda network, calls: make_baseline(name, network, max(1, round(share * calls)))


def _composition(mala: int, highest: float | None = None, added: float = 1.0) -> Make:
    """With two levels at least, if need be by fewer MALA steps."""

    def make(model: EnergyModel, calls: int) -> Restorer:
        settings = {"mala": min(mala, calls // 2 - 1), "highest": highest, "added": added}
        return make_baseline("composition", model, calls, settings=settings)

    return make


_CONDITIONAL = ("box", "strong-blur", "x4")

# Ancestral steps leave out the posterior variance of what they step over: the fewer, the nearer to the posterior mean.
_SAMPLER: dict[str, Make] = {
    "all steps": _ours(),
    "4 steps": _ours(4),
    "9 steps": _ours(9),
    "4 steps, the first largest": _ours(4, power=0.5),
}

METHODS: Mapping[str, Method] = MappingProxyType(
    {
        OURS: Method("tasks", _SAMPLER, rival=False),
        "ours, all noise": Method("anisotropic", _SAMPLER, rival=False),
        "ours, bundled": Method("given", _SAMPLER, rival=False),
        "paper's sampler": Method(
            "tasks",
            {"no corrector": _baseline("paper", corrections=0)} | {f"snr {r}": _baseline("paper", snr=r) for r in (0.03, 0.1, 0.16)},
        ),
        "DPS": Method("isotropic", {f"ζ = {z}": _baseline("dps", scale=z) for z in (0.3, 1.0, 2.0, 4.0)}),
        # λ of the authors is for σ of another size: with ours the data term has to weigh more.
        "RED-Diff": Method(
            "isotropic",
            {
                f"lr {r}, λ {w}": _baseline("red-diff", learning_rate=r, weight=w)
                for r, w in ((0.1, 0.25), (0.1, 0.03), (0.03, 0.03), (0.01, 0.03))
            },
        ),
        # From σ = 10 on (in u) nothing is seen of a digit: the levels above are spent on noise.
        "DAPS": Method(
            "isotropic",
            {
                "5 flow steps, lr 1e-4": _baseline("daps"),
                "2 flow steps, lr 1e-4, from σ = 10": _baseline("daps", ode=2, highest=10.0),
                "2 flow steps, the largest stable step, from σ = 10": _baseline("daps", ode=2, learning_rate=1e-3, highest=10.0),
                "2 flow steps, lr 1e-4, τ = σ, from σ = 10": _baseline("daps", ode=2, tau=None, highest=10.0),
            },
        ),
        "composition": Method(
            "isotropic",
            {
                "4 MALA": _composition(4),
                "4 MALA, added 0.1 from σ = 1": _composition(4, 1.0, 0.1),
                "4 MALA, added 0.01 from σ = 1": _composition(4, 1.0, 0.01),
                "4 MALA, added 0.01": _composition(4, None, 0.01),
            },
        ),
        "Palette": Method(
            "conditional",
            {f"{s:.0%} of the calls": _share("palette", s) for s in (1.0, 0.4, 0.1)} | {"no clamp": _baseline("palette", clamp=False)},
            tasks=_CONDITIONAL,
        ),
        "InDI": Method("conditional", {f"{s:.0%} of the calls": _share("indi", s) for s in (1.0, 0.4, 0.1, 0.02)}, tasks=_CONDITIONAL),
    }
)
"""All methods, by name."""
