"""Other methods of restoration over the same operators and energies; every one is a :class:`~anem.restorer.Restorer`."""

from anem.baselines.composition import Composition
from anem.baselines.conditional import ConditionalConfig, ConditionalNetwork, load_conditional
from anem.baselines.counted import Counted, CountedNetwork, counted
from anem.baselines.daps import DAPS
from anem.baselines.dps import DPS
from anem.baselines.indi import InDI
from anem.baselines.named import BASELINES, Baseline, make_baseline
from anem.baselines.palette import Palette
from anem.baselines.paper_sampler import PaperSampler
from anem.baselines.red_diff import REDDiff

__all__ = [
    "BASELINES",
    "DAPS",
    "DPS",
    "Baseline",
    "Composition",
    "ConditionalConfig",
    "ConditionalNetwork",
    "Counted",
    "CountedNetwork",
    "InDI",
    "Palette",
    "PaperSampler",
    "REDDiff",
    "counted",
    "load_conditional",
    "make_baseline",
]
