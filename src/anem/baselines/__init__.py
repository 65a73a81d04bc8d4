"""Other methods of restoration over the same operators and energies; every one is a :class:`~anem.restore.Restorer`."""

from anem.baselines.composition import Composition
from anem.baselines.conditional import ConditionalConfig, ConditionalNetwork, load_conditional
from anem.baselines.daps import DAPS
from anem.baselines.dps import DPS
from anem.baselines.indi import InDI
from anem.baselines.palette import Palette
from anem.baselines.paper_sampler import PaperSampler
from anem.baselines.red_diff import REDDiff

__all__ = [
    "DAPS",
    "DPS",
    "Composition",
    "ConditionalConfig",
    "ConditionalNetwork",
    "InDI",
    "Palette",
    "PaperSampler",
    "REDDiff",
    "load_conditional",
]
