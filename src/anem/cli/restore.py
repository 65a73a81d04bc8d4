"""``anem restore``: posterior samples of degraded images, as files and as one picture."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from tyro.conf import OmitArgPrefixes, arg

from anem.cli.degradation import Degradation
from anem.cli.options import Device, Flag, Images, Model, check_seed

if TYPE_CHECKING:
    from anem.cli.report import Result
    from anem.sample import Callback


@dataclass
class Restore:
    """Draw restorations of degraded images from the posterior p(image given measurement).

    Clean images with --task are degraded first, and the restorations compared with them. Real measurements
    come with --mask, --kernel or --scale, and --sigma. Without images, bundled held-out digits are used:

        anem restore --task inpaint-box

    Writes every sample, the posterior mean and standard deviation of every pixel, and the picture sheet.png.
    """

    images: Images = ()
    degradation: OmitArgPrefixes[Degradation] = field(default_factory=Degradation)
    samples: Annotated[int, arg(metavar="N")] = 4
    """restorations drawn of each image"""
    steps: Annotated[int, arg(metavar="N")] = 50
    """steps of each draw; more are slower and more exact"""
    sampler: Annotated[str, arg(metavar="NAME")] = "ancestral"
    """kind of step: ancestral, euler, bridge, sde-2m, sandwich"""
    schedule: Annotated[str, arg(metavar="NAME")] = "geometric"
    """path of the noise: geometric, or following the energy: energy (the paper's rule), variance"""
    plot_schedule: Flag = False
    """also draw the path of the first sample of the first image, schedule.png"""
    model: Model = "digits"
    seed: int = 0
    """of all random numbers"""
    out: Annotated[Path, arg(metavar="DIR")] = Path("out")
    """folder for the results; an earlier result there is replaced"""
    json: Flag = False
    """print the figures as JSON"""
    device: Device = "cpu"

    def run(self) -> int:
        from rich.console import Console

        from anem.cli.files import new_folder, write_record
        from anem.cli.report import table

        if not self.images and not self.degradation.given():
            self.degradation.task = "inpaint-box"
        self.degradation.check()
        check_seed(self.seed)
        if self.samples < 1 or self.steps < 1:
            raise ValueError(f"wanted --samples and --steps >= 1, got {self.samples} and {self.steps}")
        with new_folder(self.out) as folder:
            result = self.restore(folder)
            result.write(folder)
            write_record(folder, result.record)
        if self.json:
            print(json.dumps(result.record, indent=1, ensure_ascii=False))
        else:
            Console(highlight=False).print(table(result.record), f"pictures in {self.out}, all together in {self.out / 'sheet.png'}")
        return 0

    def restore(self, folder: Path) -> Result:
        """Degrade, sample and collect; the path goes to ``folder``."""
        import torch

        from anem.cli.files import read_images
        from anem.cli.report import Result
        from anem.hub import load
        from anem.random import generators_for
        from anem.sample import as_schedule, sample_posterior

        model = load(self.model, self.device)
        real = self.degradation.real
        names, images = read_images(self.images or examples(self.model), len(model.statistics.mean), bounded=not real)
        images = images.to(self.device)
        operator = self.degradation.operator(tuple(images.shape), self.seed)
        generators = generators_for(range(self.seed, self.seed + len(images)), self.device)
        measurement = self.degradation.apply(images, operator, generators)
        start = time.perf_counter()
        with progress(self.steps) as bar, self.drawn_path(folder) as path:
            restoration = sample_posterior(
                model,
                measurement,
                operator,
                self.degradation.noise,
                samples=self.samples,
                steps=self.steps,
                kernel=self.sampler,
                schedule=as_schedule(self.schedule, self.steps),
                seed=self.seed,
                callback=both(bar, path) if path else bar,
            )
            seconds = time.perf_counter() - start
        observation = operator.observe(measurement, self.degradation.noise, model.statistics, torch.Generator(self.device).manual_seed(0))
        head = {"model": self.model} | self.degradation.record()
        head |= {"sampler": self.sampler, "schedule": self.schedule, "steps": self.steps, "calls": restoration.calls}
        head |= {"samples": self.samples, "seed": self.seed}
        head |= {"ends": restoration.sampler.final, "seconds": round(seconds, 2)}
        height, width = observation.cov.shape[-2:]
        prior = model.statistics.variance_in(observation.cov.basis, height, width, measurement)
        trusted = observation.cov.values <= 10 * prior
        return Result(head, names, None if real else images, operator, measurement, restoration, trusted)

    @contextmanager
    def drawn_path(self, folder: Path) -> Iterator[Callback | None]:
        """What records the path of the first sample of the first image, which is drawn at the end; None if not asked for."""
        if not self.plot_schedule:
            yield None
            return
        from anem.bench.paths import PathRecorder, plot_paths

        recorder = PathRecorder()
        yield recorder
        plot_paths({self.schedule: recorder}, folder / "schedule.png")


def both(first: Callback, second: Callback) -> Callback:
    """Two callbacks as one."""

    def callback(step: int, state, cov, evaluation) -> None:
        first(step, state, cov, evaluation)
        second(step, state, cov, evaluation)

    return callback


def examples(model: str) -> tuple[Path, ...]:
    """The images that come with a model, as a folder."""
    from anem.hub import locate

    folder = locate(model) / "examples"
    if not folder.is_dir():
        raise ValueError(f"images: model {model!r} has no examples of its own; give some images")
    return (folder,)


@contextmanager
def progress(steps: int) -> Iterator[Callback]:
    """A progress bar on a terminal's stderr, as a callback of the sampler."""
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("sampling", total=None)

        def callback(step: int, state, cov, evaluation) -> None:
            bar.update(task, total=state.total * steps, completed=state.chains.start * steps + step * len(state.chains))

        yield callback
