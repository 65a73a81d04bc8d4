"""The Markdown table of a comparison, read from its figures alone."""

from __future__ import annotations

from pathlib import Path

from anem.bench.harness import Figure, Report, format_value

__all__ = ["COLUMNS", "markdown", "write_table"]

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


def markdown(report: Report) -> str:
    """A table a task, a row a method, and below it the differences and what was tuned."""
    tasks: dict[str, dict[str, dict[str, Figure]]] = {}
    for key, figure in report.figures.items():
        task, _, rest = key.partition("/")
        method, _, name = rest.partition("/")
        if name:
            tasks.setdefault(task, {}).setdefault(method, {})[name] = figure
    lines = [f"# Comparison\n\n`{report.command}`, seed {report.seed}, commit {report.commit}.\n"]
    for key, figure in report.figures.items():
        if key.startswith("prior/"):
            lines.append(f"* {key.removeprefix('prior/')} prior: {figure.value}")
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


def _interval(figures: dict[str, Figure], name: str) -> str:
    value, low, high = (format_value(figures[n].value) for n in (name, f"{name}, 95 % from", f"{name}, 95 % to"))
    what = name.removesuffix(", ours minus it").replace(", ours minus half of it", " less half of it")
    return f"{what} {value} ({low} to {high})"


def write_table(report: Report, file: Path) -> None:
    """Write :func:`markdown` to a file."""
    file.write_text(markdown(report), encoding="utf-8")
