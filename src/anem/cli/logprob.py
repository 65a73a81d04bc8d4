"""``anem logprob``: log-probabilities of images under a given noise."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Annotated

from tyro.conf import OmitArgPrefixes, arg

from anem.cli.degradation import Degradation
from anem.cli.options import Device, Flag, Images, Model, check_seed
from anem.cli.restore import examples

COLUMNS = {
    "log_prob": "log p(y), nats",
    "log_evidence": "log p(m), nats",
    "bits_per_dim": "bits/dim",
    "bits_per_dim_8bit": "8-bit bound",
}
"""What the table shows, with its headings."""


@dataclass
class LogProb:
    """Log-probability of images under noise of a given covariance, in nats and bits/dim.

    Clean images are first degraded by --task, or get white noise of --sigma; with --measured they are left as they are.
    The figures are log p(y), y being the measurement rewritten as an image with anisotropic noise, the evidence log p(m)
    of the measurement itself, and the bits/dim of the evidence, for intensities from 0 to 256, per measured value. For clean
    images with white noise, also a bound on the bits/dim of the 8-bit image; it is tightest at a small --sigma, about 0.002.
    """

    images: Images = ()
    degradation: OmitArgPrefixes[Degradation] = field(default_factory=Degradation)
    model: Model = "digits"
    draws: Annotated[int, arg(metavar="N")] = 4
    """draws of what was not observed, over which the evidence is averaged"""
    seed: int = 0
    """of all random numbers"""
    json: Flag = False
    """print as JSON"""
    device: Device = "cpu"

    def run(self) -> int:
        from rich.box import SIMPLE_HEAD
        from rich.console import Console
        from rich.table import Table

        from anem.cli.files import to_json

        self.degradation.task = self.degradation.task if self.degradation.given() else "denoise"
        self.degradation.check()
        check_seed(self.seed)
        if self.draws < 1:
            raise ValueError(f"--draws: wanted at least 1, got {self.draws}")
        record = {"model": self.model} | self.degradation.record() | {"draws": self.draws, "seed": self.seed, "images": self.evaluate()}
        if self.json:
            print(to_json(record))
            return 0
        grid = Table(
            title=f"{record.get('task', 'measurement')}, sigma {record['sigma']:g}",
            title_justify="left",
            header_style="bold",
            box=SIMPLE_HEAD,
        )
        columns = [column for column in COLUMNS if column in record["images"][0]]
        grid.add_column("image", overflow="fold", min_width=15)
        for column in columns:
            grid.add_column(COLUMNS[column], justify="right")
        for entry in record["images"]:
            grid.add_row(entry["name"], *(f"{entry[column]:.3f}" for column in columns))
        Console(highlight=False).print(grid)
        return 0

    def evaluate(self) -> list[dict]:
        """Name and figures of every image."""
        from anem.cli.inputs import check_measurements, check_observed, read_clean, read_measurements
        from anem.corruptions import NoiseConfig
        from anem.hub import load
        from anem.images import to_integers
        from anem.likelihood import bits_per_dim, log_evidence
        from anem.likelihood.chunks import energies
        from anem.random import generators_for

        model = load(self.model, self.device)
        paths = self.images or examples(self.model)
        names, images = (read_measurements if self.degradation.real else read_clean)(paths, model)
        images = images.to(self.device).double()
        operator = self.degradation.operator(tuple(images.shape), self.seed)
        generators = generators_for(range(self.seed, self.seed + len(images)), self.device)
        measurement = self.degradation.apply(images, operator, generators)
        if self.degradation.real:
            check_measurements(names, measurement, operator, model, self.degradation.noise)
        observation = operator.observe(measurement, self.degradation.noise, model.statistics, generators)
        check_observed(observation, operator, self.degradation.noise)
        log_prob = -energies(model, observation.y, observation.cov)
        evidence = log_evidence(model, measurement, operator, self.degradation.noise, draws=self.draws, seed=self.seed)
        shape = observation.y.shape
        measured = int(operator.measured(shape, measurement).expand(shape)[0].sum())
        figures = {"log_prob": log_prob, "log_evidence": evidence, "bits_per_dim": 8 - evidence / (measured * math.log(2))}
        if self.degradation.task == "denoise" and not self.degradation.real and self.degradation.noise**2 >= NoiseConfig.lambda_min:
            figures["bits_per_dim_8bit"] = bits_per_dim(model, to_integers(images), self.degradation.noise, generators).total
        return [{"name": name} | {key: float(value[b]) for key, value in figures.items()} for b, name in enumerate(names)]
