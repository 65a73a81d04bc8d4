"""Histograms of the log-probabilities of sets of restorations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

__all__ = ["plot_histograms"]


def plot_histograms(sets: Sequence[Mapping[str, Any]], prior_sigma: float, file: Path) -> None:
    """Prior and posterior log-probabilities of every set, in nats, into a PNG.

    Arguments:
        sets: each with its "name", its "flag", and "prior" and "posterior", numbers. prior_sigma: σ of the noise of the prior.
    """
    figure = Figure(figsize=(9.0, 1.0 + 1.1 * len(sets)), layout="constrained")
    rows = figure.subplots(len(sets), 2, sharex="col", squeeze=False)
    for column, key in enumerate(("prior", "posterior")):
        values = np.concatenate([s[key] for s in sets])
        low, high = float(values.min()), float(values.max())
        margin = 0.02 * (high - low) or 0.5
        edges = np.linspace(low - margin, high + margin, 41)
        for ax, s in zip(rows[:, column], sets, strict=True):
            ax.hist(s[key], edges, color="tab:red" if s["flag"] else "tab:blue")
            ax.axvline(float(np.mean(s[key])), color="black", linewidth=1)
            ax.set_yticks([])
            if column == 0:
                flag = f"\n{s['flag']}" if s["flag"] else ""
                ax.set_ylabel(s["name"] + flag, rotation=0, ha="right", va="center", fontsize=8)
        title = f"prior, noise {prior_sigma:g}" if key == "prior" else "posterior"
        rows[0, column].set_title(f"log-probability under the {title}", fontsize=10)
        rows[-1, column].set_xlabel("nats")
    figure.savefig(file, dpi=110, format="png")
