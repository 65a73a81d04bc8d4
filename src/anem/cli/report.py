"""What a restoration leaves behind: files, a contact sheet, and figures."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from rich.box import SIMPLE_HEAD
from rich.table import Table
from torch import Tensor

from anem.bases import Pixel
from anem.cli.method import ENERGY
from anem.images import save_image
from anem.metrics import psnr
from anem.operators import Inpainting, LinearOperator
from anem.sample.posterior import Samples
from anem.sheet import Row, contact_sheet, viridis

SHOWN_IMAGES, SHOWN_SAMPLES = 12, 8
"""Most images and samples on a contact sheet."""

COLUMNS = {
    "psnr_measurement": "as given",
    "psnr_samples": "samples",
    "psnr_mean": "mean",
    "psnr_samples_hidden": "hidden: samples",
    "psnr_mean_hidden": "hidden: mean",
}
"""What the table shows of the PSNR in a record, with its headings."""


@dataclass(frozen=True, eq=False)
class Drawn(Samples):
    """Restorations and what is known of them.

    Arguments:
        samples: (S, B, C, H, W).
        record: figures of the run.
        energy: U(x_0, Σ_0) of every sample, in nats, (S, B).
        variance: posterior variance of every pixel from one network call, (B, C, H, W), raw: a model's error can make it negative. NaN
            where λ is far above the data variance, a small difference of large numbers; None where Σ is not diagonal in pixels, or
            nothing is left.
    """

    record: dict
    energy: Tensor | None = None
    variance: Tensor | None = None


@dataclass(eq=False)
class Result:
    """A restoration and what it is compared with.

    Arguments:
        head: the settings, first in the record.
        names: of the images.
        clean: (B, C, H, W), or None if the images were measurements.
        operator, measurement: H and m.
        drawn: restorations, and what is known of them.
    """

    head: dict
    names: list[str]
    clean: Tensor | None
    operator: LinearOperator
    measurement: Tensor
    drawn: Drawn

    @property
    def exact_std(self) -> Tensor | None:
        """Square root of the one-call variance, 0 where that is negative (the record has the share of such pixels)."""
        return None if self.drawn.variance is None else self.drawn.variance.clamp_min(0).sqrt()

    @cached_property
    def record(self) -> dict:
        """Settings and figures, ready for JSON: PSNR in dB with peak 1 (null: no error at all), energies in nats."""
        images: list[dict] = [{"name": name} for name in self.names]
        for key, values in self.ratios().items():
            for entry, value in zip(images, values.movedim(-1, 0).tolist(), strict=True):
                entry[key] = decibels(value)
        for b, entry in enumerate(images):
            if self.drawn.energy is not None:
                entry["energy_samples"] = [round(float(u), 3) for u in self.drawn.energy[:, b]]
            if self.drawn.variance is not None:
                variance = self.drawn.variance[b]
                entry["exact_variance_share"] = round(float(variance.isfinite().float().mean()), 4)
                entry["exact_variance_negative_share"] = round(float((variance < 0).float().mean()), 4)
        return self.head | {"images": images}

    def ratios(self) -> dict[str, Tensor]:
        """PSNR of what can be compared with the clean images, (B,) or (S, B), over all pixels and over those never measured."""
        if self.clean is None:
            return {}
        compared = {"mean": self.drawn.mean, "samples": self.drawn.samples}
        if self.measurement.shape == self.clean.shape:
            compared["measurement"] = self.operator.visualise(self.measurement)
        ratios = {f"psnr_{key}": psnr(x.clamp(0, 1), self.clean) for key, x in compared.items()}
        hidden = ~self.operator.measured(self.clean.shape, self.clean).expand(self.clean.shape)
        if self.operator.basis == Pixel() and bool(hidden.flatten(1).any(1).all()):
            ratios |= {f"psnr_{key}_hidden": psnr(compared[key].clamp(0, 1), self.clean, hidden) for key in ("mean", "samples")}
        return ratios

    def write(self, folder: Path) -> None:
        """All pictures and arrays into ``folder``, a folder an image, and ``sheet.png``; measurement and mask as the commands take them."""
        pictures = {"measurement": self.operator.visualise(self.measurement), "mean": self.drawn.mean}
        if self.clean is not None:
            pictures["clean"] = self.clean
        if self.drawn.std is not None:
            pictures["std"] = self.drawn.std
        if self.exact_std is not None:
            pictures["std_exact"] = gaps_in_red(self.exact_std)
        arrays = {"measurement": self.measurement, "mean": self.drawn.mean, "clean": self.clean, "std": self.drawn.std}
        arrays["variance_exact"] = self.drawn.variance
        for b, name in enumerate(self.names):
            own = folder / name
            own.mkdir()
            for kind, x in pictures.items():
                save_image(x[b], own / f"{kind}.png")
            for s, x in enumerate(self.drawn.samples[:, b]):
                save_image(x, own / f"sample_{s:0{len(str(len(self.drawn.samples) - 1))}d}.png")
            kept = {k: v[b].cpu().numpy() for k, v in arrays.items() if v is not None}
            np.save(own / "measurement.npy", self.measurement[b].movedim(0, -1).squeeze(-1).cpu().numpy())  # unclipped, to be read again
            if isinstance(self.operator, Inpainting):
                np.save(own / "mask.npy", self.operator.mask[b % len(self.operator.mask)].squeeze(0).cpu().numpy())
            np.savez_compressed(own / "arrays.npz", allow_pickle=False, samples=self.drawn.samples[:, b].cpu().numpy(), **kept)
        save_image(self.sheet(), folder / "sheet.png")

    def sheet(self) -> Image.Image:
        """The contact sheet: a column an image, from the clean one down to the uncertainty."""
        shown, std, exact = slice(SHOWN_IMAGES), self.drawn.std, self.exact_std
        rows = [] if self.clean is None else [Row("clean", self.clean[shown])]
        rows.append(Row("measurement", self.operator.visualise(self.measurement)[shown]))
        rows += [Row(f"sample {s + 1}", x[shown]) for s, x in enumerate(self.drawn.samples[:SHOWN_SAMPLES])]
        maximum = max((float(m[shown].square().mean(1).sqrt().nan_to_num(0.0).max()) for m in (std, exact) if m is not None), default=0.0)
        if std is not None:
            rows.append(Row(f"mean of {len(self.drawn.samples)} samples", self.drawn.mean[shown]))
            rows.append(Row("standard deviation of the samples", std[shown], maximum or 1.0))
        if exact is not None:
            label = "standard deviation from one network call (grey: too much noise for it)"
            rows.append(Row(label, self.coloured(exact[shown], maximum or 1.0)))
        entries = self.record["images"][shown]
        captions = [short(e["name"]) + (f" PSNR {average(e['psnr_mean'], 1)} dB" if "psnr_mean" in e else "") for e in entries]
        return contact_sheet(rows, captions)

    @staticmethod
    def coloured(std: Tensor, maximum: float) -> Tensor:
        """A map with gaps (NaN, in any channel) as colours, the gaps in grey, (N, 3, H, W)."""
        flat = std.square().mean(1).sqrt().cpu()
        return torch.where(flat.isnan()[:, None], 128.5 / 256, viridis(flat.nan_to_num(0.0) / maximum))


def gaps_in_red(x: Tensor) -> Tensor:
    """Images (N, C, H, W) as they are if they have no gaps (NaN in any channel), else in colour, (N, 3, H, W), with the gaps in red."""
    gaps = x.isnan().any(1, keepdim=True)
    if not bool(gaps.any()):
        return x
    red = x.new_tensor((1.0, 0.0, 0.0))[:, None, None]
    return torch.where(gaps, red, x.nan_to_num(0.0).expand(-1, 3, -1, -1))


def short(name: str, length: int = 15) -> str:
    """A name that fits over a column."""
    return name if len(name) <= length else f"{name[: length // 2 - 1]}..{name[-(length // 2 - 1) :]}"


def decibels(value: float | list[float]) -> float | list | None:
    """Figures in dB with two decimals; None where infinite, which JSON has no number for."""
    if isinstance(value, list):
        return [decibels(v) for v in value]
    return round(value, 2) if math.isfinite(value) else None


def table(record: dict) -> Table:
    """The figures of a record, an image a line."""
    cost = f"{record['calls']} network calls a sample, {record['seconds']:.1f} s"
    cost += f", {record['acceptance']:.0%} of the MALA steps accepted" if "acceptance" in record else ""
    noise = f"sigma {record['sigma']:g}" if "sigma" in record else "noise as estimated"
    method = "" if record["method"] == ENERGY else f" by {record['method']}"
    title = f"{record.get('task', 'restoration')}{method}, {noise}: {cost}"
    columns = {key: heading for key, heading in COLUMNS.items() if key in record["images"][0]}
    caption = "PSNR in dB, samples on average" if columns else None
    grid = Table(title=title, title_justify="left", caption=caption, caption_justify="left", header_style="bold", box=SIMPLE_HEAD)
    if not columns and "energy_samples" in record["images"][0]:
        columns = {"energy_samples": "mean energy of the samples, nats"}
    grid.add_column("image", overflow="fold", min_width=15)
    if not columns:  # of images alone, which is no wider than a name
        grid.min_width = min(len(title), 72)
    for heading in columns.values():
        grid.add_column(heading, justify="right")
    for entry in record["images"]:
        grid.add_row(entry["name"], *(average(entry[column]) for column in columns))
    return grid


def average(figures: float | list[float | None] | None, digits: int = 2) -> str:
    """A figure, or the mean of some; None stands for infinity."""
    values = figures if isinstance(figures, list) else [figures]
    return f"{sum(math.inf if v is None else v for v in values) / len(values):.{digits}f}"
