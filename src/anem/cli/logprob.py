"""``anem logprob``: log-probabilities of images under a given noise."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field

from tyro.conf import OmitArgPrefixes

from anem.cli.degradation import Degradation
from anem.cli.options import Device, Flag, Images, Model
from anem.cli.restore import examples


@dataclass
class LogProb:
    """Log-probability of images under noise of a given covariance, in nats and bits/dim.

    With --sigma alone, white noise is added to the images (not with --measured) and log p(y) is that of the noisy
    image y. With a degradation, y is the measurement as an image with anisotropic noise, and the evidence is the
    log-density of the measurement itself. Bits/dim are per pixel and for intensities 0 to 256.
    """

    images: Images = ()
    degradation: OmitArgPrefixes[Degradation] = field(default_factory=Degradation)
    model: Model = "digits"
    seed: int = 0
    """of the noise"""
    json: Flag = False
    """print as JSON"""
    device: Device = "cpu"

    def run(self) -> int:
        from rich.console import Console
        from rich.table import Table

        self.degradation.task = "denoise" if not self.degradation.given() else self.degradation.task
        self.degradation.check()
        record = {"model": self.model} | self.degradation.record() | {"seed": self.seed, "images": self.evaluate()}
        if self.json:
            print(json.dumps(record, indent=1, ensure_ascii=False))
            return 0
        grid = Table(title=f"{record.get('task', 'measurement')}, sigma {record['sigma']:g}", title_justify="left", header_style="bold")
        headings = {"log_prob": "log p(y), nats", "bits_per_dim": "bits/dim", "log_evidence": "evidence log p(m), nats"}
        grid.add_column("image")
        for heading in headings.values():
            grid.add_column(heading, justify="right")
        for entry in record["images"]:
            grid.add_row(entry["name"], *(f"{entry[key]:.3f}" for key in headings))
        Console(highlight=False).print(grid)
        return 0

    def evaluate(self) -> list[dict]:
        """Name and figures of every image."""
        import torch

        from anem.cli.files import read_images
        from anem.hub import load
        from anem.random import generators_for

        model = load(self.model, self.device)
        paths = self.images or examples(self.model)
        names, images = read_images(paths, len(model.statistics.mean), bounded=not self.degradation.real)
        images = images.to(self.device).double()
        operator = self.degradation.operator(tuple(images.shape), self.seed)
        generators = generators_for([self.seed + b for b in range(len(images))], self.device)
        measurement = self.degradation.apply(images, operator, generators)
        observation = operator.observe(measurement, self.degradation.noise, model.statistics, generators)
        with torch.no_grad():
            energies = [model.energy(o.y, o.cov) for o in (observation[b : b + 1] for b in range(len(names)))]
        entries = []
        for b, (name, energy) in enumerate(zip(names, energies, strict=True)):
            bits = float(energy) / (observation.y[b].numel() * math.log(2)) + 8
            evidence = float(observation.log_evidence_terms[b] - energy)
            entries.append({"name": name, "log_prob": -float(energy), "bits_per_dim": bits, "log_evidence": evidence})
        return entries
