"""``anem sample``: images drawn from a model's prior."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from tyro.conf import OmitArgPrefixes, Positional, arg

from anem.cli.options import Compile, Device, Flag, check_seed
from anem.cli.sampling import Sampling

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

COLUMNS = 8
"""Images in a row of the sheet."""


@dataclass
class Sample:
    """Draw images from a model's prior p(x): what it takes for data, the first thing to look at after 'anem train'.

    Writes the images, sample_*.png and samples.npy (N, C, H, W), and the picture sheet.png.
    """

    model: Annotated[Positional[str], arg(metavar="[MODEL]", help_behavior_hint="(default: digits)")] = "digits"
    """a bundled model (see 'anem models'), a folder, or a Hugging Face repository"""
    count: Annotated[int, arg(metavar="N")] = 32
    """images to draw"""
    steps: Annotated[int, arg(metavar="N")] = 50
    """steps of each draw; more are slower and draw more exactly"""
    sampling: OmitArgPrefixes[Sampling] = field(default_factory=Sampling)
    seed: int = 0
    """of all random numbers"""
    out: Annotated[Path, arg(metavar="DIR")] = Path("samples")
    """folder for the results; an earlier result there is replaced"""
    json: Flag = False
    """print the figures as JSON"""
    device: Device = "cpu"
    compile: Compile = False

    def run(self) -> int:
        from anem.cli.files import new_folder, to_json, write_record

        check_seed(self.seed)
        if self.count < 1 or self.steps < 1:
            raise ValueError(f"wanted --count and --steps >= 1, got {self.count} and {self.steps}")
        self.sampling.make(self.steps)
        with new_folder(self.out) as folder:
            record = self.draw(folder)
            write_record(folder, record)
        if self.json:
            print(to_json(record))
        else:
            cost = f"{record['calls']} network calls each, {record['seconds']:.1f} s"
            print(f"{self.count} samples of {self.model}, {cost}; pictures in {self.out}")
        return 0

    def draw(self, folder: Path) -> dict:
        """Draw, write the files, and say what was done: energies U(x_0, Σ_0) in nats, before the last denoising."""
        import numpy as np
        import torch

        from anem.cli.restore import progress
        from anem.hub import load
        from anem.images import save_image
        from anem.sample import sample_prior

        model = load(self.model, self.device)
        if self.compile:
            model.compile()
        start = time.perf_counter()
        with progress(self.steps) as bar:
            sampler = self.sampling.make(self.steps, bar)
            shape = (self.count, *model.statistics.spectrum.shape)
            drawn = sample_prior(
                model,
                shape,
                kernel=sampler.kernel,
                corrector=sampler.corrector,
                schedule=sampler.schedule,
                callback=sampler.callback,
                seed=self.seed,
                like=torch.zeros((), device=self.device),
            )
        images = drawn.samples[0].cpu()
        np.save(folder / "samples.npy", images.numpy(), allow_pickle=False)
        for b, x in enumerate(images):
            save_image(x, folder / f"sample_{b:0{len(str(self.count - 1))}d}.png")
        save_image(sheet(images), folder / "sheet.png")
        head = {"model": self.model, "count": self.count} | self.sampling.record() | {"steps": self.steps, "seed": self.seed}
        figures: dict = {"calls": drawn.calls, "seconds": round(time.perf_counter() - start, 2)}
        if drawn.acceptance is not None:
            figures["acceptance"] = round(float(drawn.acceptance.mean()), 3)
        return head | figures | {"energies": [round(float(u), 3) for u in drawn.energy[0]]}


def sheet(images: Tensor) -> Image:
    """Images (N, C, H, W) as one picture, several in a row."""
    from anem.sheet import Row, contact_sheet

    rows = images.split(COLUMNS)
    return contact_sheet([Row(f"samples {COLUMNS * i + 1} to {COLUMNS * i + len(row)}", row) for i, row in enumerate(rows)])
