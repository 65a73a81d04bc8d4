"""The Markdown table of a comparison, read from its figures alone."""

from __future__ import annotations

from pathlib import Path

from anem.bench.compare_methods import METHODS
from anem.bench.report import Figure, Report, format_value
from anem.files import write_text

__all__ = ["COLUMNS", "markdown", "overview", "write_table"]

COLUMNS = (
    "calls",
    "seconds an image",
    "PSNR",
    "SSIM",
    "LPIPS",
    "DISTS",
    "KID",
    "distance to m (σ)",
    "energy above the truth's (nats/dim)",
    "diversity",
    "setting",
)
"""Columns after the method's name."""

_LARGER_IS_BETTER = {"LPIPS": False, "KID": False, "DISTS": False, "PSNR": True}
"""Measures of the tables at the head, one table each."""

_Methods = dict[str, dict[str, Figure]]
"""Figures of a task at a number of calls, by method and name."""


def _tasks(report: Report) -> dict[str, _Methods]:
    """By task and calls, such as "box, 250 calls"."""
    tasks: dict[str, _Methods] = {}
    for key, figure in report.figures.items():
        task, _, rest = key.partition("/")
        method, _, name = rest.partition("/")
        if name:
            tasks.setdefault(task, {}).setdefault(method, {})[name] = figure
    return tasks


def overview(report: Report) -> str:
    """For every number of calls a table a measure, a row a method and a column a task; the network calls used, and the differences.

    The least or largest of a column is bold. The model given to the bench, which may have been trained for longer than the others, and the
    truth, whose KID is that of as many true images, take no part in that.
    """
    tasks, lines = _tasks(report), list[str]()
    for calls in dict.fromkeys(name.rpartition(", ")[2] for name in tasks if ", " in name):
        at = {name.removesuffix(f", {calls}"): methods for name, methods in tasks.items() if name.endswith(f", {calls}")}
        lines.append(f"\n## {calls}\n")
        for measure, larger in _LARGER_IS_BETTER.items():
            columns = {task: _column(methods, measure, larger) for task, methods in at.items()}
            lines += _grid(measure, list(at), {(m, task): cell for task, column in columns.items() for m, cell in column.items()})
        used = {(m, task): f"{value:.0f}" for task, methods in at.items() for m, f in methods.items() if (value := _number(f, "calls"))}
        lines += _grid("calls used", list(at), used)
        for measure in ("LPIPS", "KID"):
            name = f"{measure}, ours minus it"
            found = {(m, task): _interval(f, name, 3) for task, methods in at.items() for m, f in methods.items() if name in f}
            lines += _grid(f"{measure}, ours minus", list(at), {k: v.partition(" ")[2] for k, v in found.items()})
    return "\n".join(lines)


def _column(methods: _Methods, measure: str, larger: bool) -> dict[str, str]:
    """A measure of every method that has it, three digits, the best in bold."""
    values = {m: value for m, figures in methods.items() if (value := _number(figures, measure)) is not None}
    ranked = {m: value for m, value in values.items() if m in METHODS and METHODS[m].prior != "given"}
    best = (max if larger else min)(ranked.values(), default=None)
    return {m: f"**{value:.3g}**" if m in ranked and value == best else f"{value:.3g}" for m, value in values.items()}


def _number(figures: dict[str, Figure], name: str) -> float | None:
    value = figures[name].value if name in figures else None
    return float(value) if isinstance(value, (int, float)) else None


def _grid(head: str, columns: list[str], cells: dict[tuple[str, str], str]) -> list[str]:
    """Lines of a table, methods in their own order, and an empty one; none without cells."""
    if not cells:
        return []
    rows = [m for m in ("truth", *METHODS) if any((m, c) in cells for c in columns)]
    lines = [f"| {head} | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    return [*lines, *(f"| {m} | " + " | ".join(cells.get((m, c), "") for c in columns) + " |" for m in rows), ""]


def markdown(report: Report) -> str:
    """:func:`overview`, then a table a task, a row a method, and below it the differences and what was tuned."""
    tasks = _tasks(report)
    lines = [f"# Comparison\n\n`{report.command}`, seed {report.seed}, commit {report.commit}.\n"]
    for key, figure in report.figures.items():
        if key.startswith("prior/"):
            lines.append(f"* {key.removeprefix('prior/')} prior: {figure.value}")
    lines.append(overview(report))
    for task, methods in tasks.items():
        lines += [f"\n## {task}\n", "| method | " + " | ".join(COLUMNS) + " |", "|---" * (len(COLUMNS) + 1) + "|"]
        for method, figures in methods.items():
            cells = [format_value(figures[c].value) if c in figures else "" for c in COLUMNS]
            lines.append(f"| {method} | " + " | ".join(cells) + " |")
        lines.append("\nOurs minus the others, with 95 % intervals:\n")
        for method, figures in methods.items():
            found = [_interval(figures, name) for name in figures if name.endswith(("ours minus it", "ours minus half of it"))]
            lines += [f"* {method}: " + "; ".join(found)] if found else []
        judged = {k: f for k, f in report.figures.items() if k.startswith(f"{task}/") and f.holds is not None}
        if judged:
            lines.append("\nAims:\n")
        for key, figure in judged.items():
            lines.append(f"* {key.removeprefix(f'{task}/')}: {format_value(figure.value)}, wanted {figure.aim}: {figure.verdict}")
        lines.append("\nTuning (LPIPS, or −PSNR without its weights, on tuning images):\n")
        for method, figures in methods.items():
            trials = [f"{n.removeprefix('tuning: ')}: {format_value(f.value)}" for n, f in figures.items() if n.startswith("tuning: ")]
            lines += [f"* {method}: " + "; ".join(trials)] if trials else []
    return "\n".join(lines) + "\n"


def _interval(figures: dict[str, Figure], name: str, digits: int = 4) -> str:
    value, low, high = (format_value(figures[n].value, digits) for n in (name, f"{name}, 95 % from", f"{name}, 95 % to"))
    what = name.removesuffix(", ours minus it").replace(", ours minus half of it", " less half of it")
    return f"{what} {value} ({low} to {high})"


def write_table(report: Report, file: Path) -> None:
    """Write :func:`markdown` to a file."""
    write_text(file, markdown(report))
