"""anem: Anisotropic Normalized Energy Models for image restoration.

Names load on first use, so that ``import anem`` is quick.
"""

from importlib import import_module
from typing import TYPE_CHECKING

__version__ = "0.1.0"

__all__ = [
    "MALA",
    "TASKS",
    "ULA",
    "Choice",
    "Covariance",
    "DataStatistics",
    "DualAveraging",
    "EnergyModel",
    "EnergyNetwork",
    "Estimate",
    "Evaluation",
    "Gaussian",
    "GaussianBlur",
    "GaussianMixture",
    "Identity",
    "Inpainting",
    "KernelBlur",
    "LinearOperator",
    "MotionBlur",
    "NetworkConfig",
    "Observation",
    "Restoration",
    "RestoredImages",
    "Restorer",
    "SuperResolution",
    "Trace",
    "audits",
    "bundled_models",
    "choose",
    "estimate",
    "load",
    "log_evidence",
    "make_operator",
    "sample_mcmc",
    "sample_posterior",
    "sample_prior",
]

if TYPE_CHECKING:
    from anem.blind import Choice, Estimate, choose, estimate
    from anem.covariance import Covariance
    from anem.energy import EnergyModel, Evaluation
    from anem.gaussian import Gaussian, GaussianMixture
    from anem.hub import bundled_models, load
    from anem.likelihood import audits, log_evidence
    from anem.network import EnergyNetwork, NetworkConfig
    from anem.operators import (
        TASKS,
        GaussianBlur,
        Identity,
        Inpainting,
        KernelBlur,
        LinearOperator,
        MotionBlur,
        Observation,
        SuperResolution,
        make_operator,
    )
    from anem.restoration import RestoredImages, sample_posterior
    from anem.restorer import Restorer
    from anem.sample import MALA, ULA, DualAveraging, Restoration, Trace, sample_mcmc, sample_prior
    from anem.statistics import DataStatistics

_MODULES = {
    "blind": ("Choice", "Estimate", "choose", "estimate"),
    "covariance": ("Covariance",),
    "energy": ("EnergyModel", "Evaluation"),
    "gaussian": ("Gaussian", "GaussianMixture"),
    "hub": ("bundled_models", "load"),
    "likelihood": ("audits", "log_evidence"),
    "network": ("EnergyNetwork", "NetworkConfig"),
    "operators": (
        "TASKS",
        "GaussianBlur",
        "Identity",
        "Inpainting",
        "KernelBlur",
        "LinearOperator",
        "MotionBlur",
        "Observation",
        "SuperResolution",
        "make_operator",
    ),
    "restoration": ("RestoredImages", "sample_posterior"),
    "restorer": ("Restorer",),
    "sample": ("MALA", "ULA", "DualAveraging", "Restoration", "Trace", "sample_mcmc", "sample_prior"),
    "statistics": ("DataStatistics",),
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> object:
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'anem' has no attribute {name!r}")
    value = getattr(import_module(f"anem.{_MODULE_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
