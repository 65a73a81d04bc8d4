"""What a restoration leaves behind: files, a contact sheet, and figures."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from rich.table import Table
from torch import Tensor

from anem.images import save_image
from anem.operators import LinearOperator
from anem.sample import Restoration
from anem.sheet import Row, contact_sheet, viridis

COLUMNS, SAMPLES = 12, 8
"""Most images and samples on a contact sheet."""


@dataclass(eq=False)
class Result:
    """A restoration and what it is compared with.

    Arguments:
        head: the settings, first in the record.
        names: of the images.
        clean: (B, C, H, W), or None if the images were measurements.
        operator, measurement: H and m.
        restoration: samples and one-call results.
        trusted: coordinates whose λ is not far above the data variance, bool (B, C, H, W).
    """

    head: dict
    names: list[str]
    clean: Tensor | None
    operator: LinearOperator
    measurement: Tensor
    restoration: Restoration
    trusted: Tensor

    @cached_property
    def exact_std(self) -> Tensor | None:
        """Posterior standard deviation of every pixel from one network call, (B, C, H, W).

        NaN where λ is far above the data variance (a small difference of large numbers there) or the raw variance is negative; None
        where Σ is not diagonal in pixels or nothing is left.
        """
        variance = self.restoration.variance
        if variance is None or not bool(self.trusted.any()):
            return None
        return torch.where(self.trusted & (variance >= 0), variance.clamp_min(0).sqrt(), math.nan)

    @cached_property
    def record(self) -> dict:
        """Settings and figures, ready for JSON: PSNR in dB with peak 1, energies in nats."""
        samples, images = self.restoration.samples, []
        for b, name in enumerate(self.names):
            entry: dict = {"name": name}
            if self.clean is not None:
                x = self.clean[b]
                entry["psnr_mean"] = psnr(self.restoration.mean[b], x)
                entry["psnr_samples"] = [psnr(s, x) for s in samples[:, b]]
                if self.measurement.shape == self.clean.shape:
                    entry["psnr_measurement"] = psnr(self.operator.visualise(self.measurement)[b], x)
            entry["energy_samples"] = [round(float(u), 3) for u in self.restoration.energy[:, b]]
            if self.exact_std is not None:
                entry["exact_std_share"] = round(float(torch.isfinite(self.exact_std[b]).float().mean()), 4)
            images.append(entry)
        return self.head | {"images": images}

    def write(self, folder: Path) -> None:
        """All pictures and arrays into ``folder``, one folder an image, and ``sheet.png``."""
        pictures = {"measurement": self.operator.visualise(self.measurement), "mean": self.restoration.mean}
        if self.clean is not None:
            pictures["clean"] = self.clean
        # A standard deviation of intensities in [0, 1] is at most ½.
        deviations = {"std": self.restoration.std, "std_exact": self.exact_std}
        pictures |= {f"{name}_x2": 2 * std.nan_to_num(0.0) for name, std in deviations.items() if std is not None}
        arrays = {"measurement": self.measurement, "mean": self.restoration.mean, "clean": self.clean, **deviations}
        for b, name in enumerate(self.names):
            own = folder / name
            own.mkdir()
            for kind, x in pictures.items():
                save_image(x[b], own / f"{kind}.png")
            for s, x in enumerate(self.restoration.samples[:, b]):
                save_image(x, own / f"sample_{s:0{len(str(len(self.restoration.samples) - 1))}d}.png")
            kept = {k: v[b].cpu().numpy() for k, v in arrays.items() if v is not None}
            np.savez_compressed(own / "arrays.npz", allow_pickle=False, samples=self.restoration.samples[:, b].cpu().numpy(), **kept)
        save_image(self.sheet(), folder / "sheet.png")

    def sheet(self) -> Image.Image:
        """The contact sheet: a column an image, from the clean one down to the uncertainty."""
        shown, std, exact = slice(COLUMNS), self.restoration.std, self.exact_std
        rows = [] if self.clean is None else [Row("clean", self.clean[shown])]
        rows.append(Row("measurement", self.operator.visualise(self.measurement)[shown]))
        rows += [Row(f"sample {s + 1}", x[shown]) for s, x in enumerate(self.restoration.samples[:SAMPLES])]
        if std is not None:
            maximum = max(float(std[shown].square().mean(1).sqrt().max()), 1e-6)
            rows.append(Row(f"mean of {len(self.restoration.samples)} samples", self.restoration.mean[shown]))
            rows.append(Row("standard deviation of the samples", std[shown], maximum))
            if exact is not None:
                rows.append(Row("the same exactly, from one network call (grey: not to be had so)", self.coloured(exact[shown], maximum)))
        entries = self.record["images"][shown]
        captions = [e["name"] + (f"\nPSNR {e['psnr_mean']:.1f} dB" if "psnr_mean" in e else "") for e in entries]
        return contact_sheet(rows, captions)

    @staticmethod
    def coloured(std: Tensor, maximum: float) -> Tensor:
        """A map with gaps (NaN, in any channel) as colours, the gaps in grey, (N, 3, H, W)."""
        flat = std.square().mean(1).sqrt().cpu()
        return torch.where(flat.isnan()[:, None], 150.5 / 256, viridis(flat.nan_to_num(0.0) / maximum))


def psnr(x: Tensor, reference: Tensor) -> float:
    """Peak signal-to-noise ratio of an image, in dB, for a peak of 1; two decimals."""
    return round(-10 * math.log10(max(float((x.clamp(0, 1) - reference).square().mean()), 1e-12)), 2)


def table(record: dict) -> Table:
    """The figures of a record, an image a line."""
    cost = f"{record['calls']} network calls a sample, {record['seconds']:.1f} s"
    title = f"{record.get('task', 'restoration')}, sigma {record['sigma']:g}: {cost}"
    grid = Table(title=title, title_justify="left", header_style="bold")
    grid.add_column("image")
    compared = "psnr_mean" in record["images"][0]
    for heading in ("measurement dB", "samples dB", "mean dB") if compared else ("energy of samples (nats)",):
        grid.add_column(heading, justify="right")
    for entry in record["images"]:
        if compared:
            figures = [f"{v:.2f}" if (v := entry.get("psnr_measurement")) is not None else "", average(entry["psnr_samples"], 2)]
            grid.add_row(entry["name"], *figures, f"{entry['psnr_mean']:.2f}")
        else:
            grid.add_row(entry["name"], average(entry["energy_samples"], 1))
    return grid


def average(values: list[float], digits: int) -> str:
    """Mean of some figures."""
    return f"{sum(values) / len(values):.{digits}f}"
