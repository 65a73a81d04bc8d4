"""Options that several commands share, and what they say aside."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

__all__ = ["Compile", "Device", "Flag", "Images", "Model", "check_seed", "named_numbers", "named_values", "note"]

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


def named_values(option: str, words: Sequence[str]) -> dict[str, float | bool | None]:
    """Values by name from words NAME=VALUE; values are finite numbers, true, false or none.

    Raises:
        ValueError: none of these, or a name twice; the message names the option.
    """
    constants = {"true": True, "false": False, "none": None}
    found: dict[str, float | bool | None] = {}
    for word in words:
        name, _, value = word.partition("=")
        if name in found:
            raise ValueError(f"{option}: wanted {name} once, got {found[name]} and {value}")
        try:
            found[name] = constants[value.lower()] if value.lower() in constants else _number(value)
        except (ValueError, OverflowError):
            name = ""
        if not name:
            raise ValueError(f"{option}: wanted NAME=VALUE with a finite number, true, false or none, got {word!r}")
    return found


def named_numbers(option: str, words: Sequence[str]) -> dict[str, float]:
    """Numbers by name from words NAME=VALUE, as :func:`named_values`; other values are refused."""
    found = named_values(option, words)
    other = [f"{name}={value}" for name, value in found.items() if isinstance(value, bool) or value is None]
    if other:
        raise ValueError(f"{option}: wanted NAME=VALUE with a number, got {other[0]!r}")
    return {name: float(value) for name, value in found.items() if value is not None}


def _number(text: str) -> int | float:
    """A whole number if it is written as one.

    Raises:
        ValueError, OverflowError: not a finite number.
    """
    if not math.isfinite(float(text)):
        raise ValueError(text)
    return int(text) if text.lstrip("+-").isdecimal() else float(text)
