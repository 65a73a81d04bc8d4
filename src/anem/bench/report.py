"""The report of a bench: figures with aims, as JSON and as a table."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.table import Table

from anem.files import write_text

__all__ = ["Figure", "Report", "Value", "format_value", "judge", "table", "write_json"]

Value = float | int | str | bool | None

_NUMBER = r"([-+]?\d*\.?\d+(?:[eE][-+]?\d+)?)"
_AIMS: tuple[tuple[str, Callable[..., bool]], ...] = (
    (rf"(?:≤|<=)\s*{_NUMBER}", lambda v, a: v <= a),
    (rf"(?:≥|>=)\s*{_NUMBER}", lambda v, a: v >= a),
    (rf"<\s*{_NUMBER}", lambda v, a: v < a),
    (rf">\s*{_NUMBER}", lambda v, a: v > a),
    (rf"{_NUMBER}\s*(?:–|to|\.\.)\s*{_NUMBER}", lambda v, a, b: a <= v <= b),
)


def judge(value: Value, aim: str) -> bool:
    """Whether a number meets an aim: ``"≤ 0.02"``, ``"≥ 1.8"``, ``"< 1"``, ``"> 0"`` or ``"0.9–1.2"`` (also <=, >=, to). NaN meets none.

    Raises:
        ValueError: an aim of another form.
    """
    for pattern, test in _AIMS:
        match = re.fullmatch(pattern, aim.strip())
        if match:
            numeric = isinstance(value, int | float) and not math.isnan(value)
            return numeric and test(value, *(float(g) for g in match.groups()))
    raise ValueError(f"aim: wanted '≤ a', '≥ a', '< a', '> a' or 'a–b', or an explicit holds=…, got {aim!r}")


@dataclass(frozen=True)
class Figure:
    """One measured value; ``holds`` is None where there is no aim or where it is not judged at this size."""

    value: Value
    aim: str | None = None
    holds: bool | None = None

    @property
    def verdict(self) -> str:
        """``"yes"``, ``"NO"``, ``"not judged"`` (an aim this size cannot decide), or nothing without an aim."""
        if self.holds is None:
            return "" if self.aim is None else "not judged"
        return "yes" if self.holds else "NO"


@dataclass
class Report:
    """All figures of a bench, and what produced them.

    Arguments:
        name: of the bench.
        commit: of the code, see :func:`anem.bench.revision.commit`.
        seed: of all random numbers.
        command: the command line that repeats the run.
        wall_s: seconds spent, those of interrupted runs included.
        weights: digest of those of the model given; "" if there is none.
        code: what identifies the package alone, see :func:`anem.bench.revision.code`: commits that do not touch it are the same here.
        workers: most processes that shared the work, and the processor while something was timed.
        figures: by key, in the order they were made.
    """

    name: str
    commit: str
    seed: int
    command: str
    wall_s: float = 0.0
    weights: str = ""
    code: str = ""
    workers: int = 1
    figures: dict[str, Figure] = field(default_factory=dict)

    @property
    def missed(self) -> list[str]:
        """Keys whose aim is missed."""
        return [key for key, figure in self.figures.items() if figure.holds is False]

    def as_dict(self) -> dict:
        """The JSON form."""
        figures = {k: {"value": f.value, "aim": f.aim, "holds": f.holds} for k, f in self.figures.items()}
        head = {"name": self.name, "commit": self.commit, "code": self.code, "weights": self.weights, "seed": self.seed}
        head |= {"wall_s": round(self.wall_s, 3), "command": self.command} | ({"workers": self.workers} if self.workers > 1 else {})
        return head | {"figures": figures}

    @classmethod
    def read(cls, file: Path) -> Report:
        """A report from its JSON form.

        Raises:
            ValueError: the file is not a bench report.
        """
        try:
            data = json.loads(file.read_text(encoding="utf-8"))
            figures = {k: Figure(f["value"], f["aim"], f["holds"]) for k, f in data["figures"].items()}
            head = (data[key] for key in ("name", "commit", "seed", "command", "wall_s"))
            return cls(*head, data.get("weights", ""), data.get("code", ""), data.get("workers", 1), figures)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{file}: not a bench report; move it away to start afresh") from error


def table(report: Report) -> Table:
    """The figures of a report, each with its aim and whether it holds."""
    grid = Table(
        title=f"{report.name}, seed {report.seed}, {report.wall_s:.0f} s", title_justify="left", header_style="bold", box=SIMPLE_HEAD
    )
    grid.add_column("figure", overflow="fold")
    grid.add_column("value", justify="right")
    grid.add_column("aim", justify="right")
    grid.add_column("holds")
    styles = {"yes": "green", "NO": "bold red", "not judged": "dim", "": ""}
    for key, figure in report.figures.items():
        grid.add_row(key, format_value(figure.value), figure.aim or "", figure.verdict, style=styles[figure.verdict])
    return grid


def format_value(value: Value, digits: int = 4) -> str:
    """So many significant digits of a float, anything else as it is."""
    return f"{value:.{digits}g}" if isinstance(value, float) else str(value)


def write_json(file: Path, data: dict) -> None:
    """Write JSON so that the file is at every moment either the old one or the whole new one."""
    file.parent.mkdir(parents=True, exist_ok=True)
    write_text(file, json.dumps(data, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
