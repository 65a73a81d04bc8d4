"""Posterior sampling: kernels that step down in noise, correctors that stay, schedules that say where to, and one loop over all three."""

from anem.sample.chain import FINAL, Callback, Chain, ChainState, Diverged, run_chain
from anem.sample.convergence import effective_sample_size, split_rhat
from anem.sample.correctors import MALA, ULA, Corrector, Info, State, Target
from anem.sample.guided import SCHEDULES, EnergyGuided, VarianceGuided, as_schedule, freeze
from anem.sample.kernels import KERNELS, SDE2M, Ancestral, Bridge, Euler, Flow, FlowEuler, Kernel, Noise, Sandwich, as_kernel
from anem.sample.mcmc import DualAveraging, Trace, sample_mcmc
from anem.sample.posterior import Restoration, Sampler, sample_posterior, sample_prior, steps_within
from anem.sample.schedules import Geometric, InOrder, Listed, Schedule, WaterFilling, end_of_path

__all__ = [
    "FINAL",
    "KERNELS",
    "MALA",
    "SCHEDULES",
    "SDE2M",
    "ULA",
    "Ancestral",
    "Bridge",
    "Callback",
    "Chain",
    "ChainState",
    "Corrector",
    "Diverged",
    "DualAveraging",
    "EnergyGuided",
    "Euler",
    "Flow",
    "FlowEuler",
    "Geometric",
    "InOrder",
    "Info",
    "Kernel",
    "Listed",
    "Noise",
    "Restoration",
    "Sampler",
    "Sandwich",
    "Schedule",
    "State",
    "Target",
    "Trace",
    "VarianceGuided",
    "WaterFilling",
    "as_kernel",
    "as_schedule",
    "effective_sample_size",
    "end_of_path",
    "freeze",
    "run_chain",
    "sample_mcmc",
    "sample_posterior",
    "sample_prior",
    "split_rhat",
    "steps_within",
]
