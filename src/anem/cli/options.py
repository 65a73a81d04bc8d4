"""Options that several commands share, and what they say aside."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

__all__ = ["Compile", "Device", "Flag", "Images", "Model", "check_seed", "note"]

Flag = Annotated[bool, arg(help_behavior_hint="")]
"""A switch, off unless given."""

Compile = Annotated[
    bool,
    arg(
        help="compile the model, the first time 1 to 3 minutes a kind of noise: pays in long runs on a CPU, wants a C++ compiler",
        help_behavior_hint="",
    ),
]
"""For :meth:`anem.EnergyNetwork.compile`."""

Images = Annotated[
    Positional[tuple[Path, ...]],
    arg(
        metavar="[IMAGE ...]",
        help="pictures, .npy arrays or folders; converted to the model's grey or colour",
        help_behavior_hint="(default: bundled digits)",
    ),
]
"""Image files."""

Model = Annotated[str, arg(metavar="MODEL", help="a bundled model (see 'anem models'), a folder, or a Hugging Face repository")]
"""For :func:`anem.load`."""

Device = Annotated[str, arg(metavar="DEVICE", help="where to compute, such as cuda")]
"""For torch."""


def check_seed(seed: int) -> None:
    """Raise ValueError for a seed that not every source of random numbers takes."""
    if not 0 <= seed < 2**32:
        raise ValueError(f"--seed: wanted 0 to 2**32 - 1, got {seed}")


def note(text: str) -> None:
    """Say on stderr, in one line, what a user should know and a command goes on in spite of."""
    print(f"anem: note: {text}", file=sys.stderr)
