"""Whether the model's energy is the −log p of one density: seven audits on held-out MNIST, each with its aim.

``--split tuning`` (test images 1000–1999) is for trying out, ``--split report`` (0–999) for the one report at the end. Needs ``make data``.
A figure that chance leaves undecided is not judged in a quick run, and misses its aim in a full one, which says so.

audit.png shows every figure that should be 0.

* gradient: E_y[∂U/∂ℓ] = 0 for white noise and a draw of every noise family.
* strangers: log Z from below, by images that are nothing like digits, at the same covariances.
* paths: the energy difference between two levels of white noise, along detours through pixels, frequencies and blocks.
* variance: the one-call posterior variance against squared errors and the variance of samples, where λ ≤ c; and how far up in λ it
  agrees with the errors.
* flow: the probability-flow likelihood of the score against the energy.
* log Z: at both ends of the range and for a draw of every noise family.
* ranks: of the truth among posterior samples, and coverage of their intervals. The sampler's own error counts.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure as Picture

from anem.bench.harness import Context
from anem.bench.report import Figure
from anem.data import load_dataset, mnist
from anem.likelihood import Audit, AuditSize, Check, audits, trusted_level

__all__ = ["plot_checks", "report", "run"]


def run(context: Context) -> None:
    """All audits, the cheap ones first."""
    model = context.load(context.model)
    data = load_dataset(mnist(context.split, str(context.data / "mnist.npz")))
    size = AuditSize.quick() if context.quick else AuditSize()
    images = data.batch(torch.arange(min(size.most, len(data))), context.generator("images"))
    planned = list(audits(model, images, size, seed=context.seed))
    for audit in planned[::-1] if context.worker else planned:  # workers end at the same time if the long ones come first
        finished = f"{audit.name}/seconds"
        if context.done(finished):
            continue
        made = context.pieces(audit.name, [audit], _made)
        if made is None:
            continue
        for check in made[0]["checks"]:
            report(context, Check(**check))
        context.figure(finished, made[0]["seconds"])
    if context.worker:
        return
    plot_checks(context.report.figures, context.out / "audit.png")
    level = trusted_level((*_named(key), figure.holds) for key, figure in context.report.figures.items())
    context.figure("variance/trusted up to white noise of variance", "none" if level is None else level)


def _named(key: str) -> tuple[str, str, str]:
    """Audit, where and what, of a figure's name."""
    audit, _, rest = key.partition("/")
    where, _, what = rest.partition("/")
    return audit, where, what


def _made(audit: Audit) -> dict[str, Any]:
    start = time.perf_counter()
    checks = [asdict(check) for check in audit.run()]
    return {"checks": checks, "seconds": time.perf_counter() - start}


def report(context: Context, check: Check) -> None:
    """A figure and its standard error."""
    key = f"{check.audit}/{check.where}/{check.what}"
    asked, undecided = check.criterion is not None, check.holds is None
    aim = f"{check.criterion}; undecided" if asked and undecided else check.criterion
    context.figure(key, check.value, aim=aim, holds=bool(check.holds) if asked else None, quick=not undecided)
    context.figure(f"{key}, standard error", check.standard_error)


def plot_checks(figures: Mapping[str, Figure], file: Path) -> None:
    """Every judged figure that should be 0 in units of its limit, with its standard error; filled where the aim holds."""
    rows = []
    for key, figure in figures.items():
        limit = re.match(r"±([\d.e-]+)", figure.aim or "")
        if limit and isinstance(figure.value, int | float):
            error = figures[f"{key}, standard error"].value
            rows.append((key, figure.value / float(limit[1]), (float(error or 0)) / float(limit[1]), figure.holds))
    if not rows:
        return
    picture = Picture(figsize=(8.0, 1.0 + 0.17 * len(rows)), layout="constrained")
    ax = picture.subplots()
    ax.axvspan(-1, 1, color="tab:green", alpha=0.15)
    for i, (_, value, error, holds) in enumerate(rows):
        at = min(max(value, -5.0), 5.0)  # what is farther out is drawn at the edge
        ax.errorbar(
            at, i, xerr=error, fmt="o", color="tab:blue" if holds else "tab:red", fillstyle="full" if holds else "none", markersize=4
        )
    ax.set_yticks(range(len(rows)), [key for key, *_ in rows], fontsize=6)
    ax.set(xlim=(-5.2, 5.2), ylim=(len(rows) - 0.5, -0.5), xlabel="figure over its limit, with one standard error")
    picture.savefig(file, dpi=110)
