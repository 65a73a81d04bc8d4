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
from anem.cli.estimate import NAMES as FAMILIES
from anem.cli.options import Compile, Device, Flag, Images, Model, check_seed

if TYPE_CHECKING:
    from torch import Tensor

    from anem.cli.report import Result
    from anem.energy import EnergyModel
    from anem.operators import LinearOperator
    from anem.sample import Callback


@dataclass
class Restore:
    """Draw restorations of degraded images from the posterior p(image given measurement).

    Clean images with --task are degraded first, and the restorations compared with them. Real measurements
    come with --mask, --kernel or --scale, and --sigma. Without images, bundled held-out digits are used:

        anem restore --task inpaint-box

    With --blind, the settings of the degradation are not known but estimated, image by image: of real measurements, or of clean
    images after --task. A --sigma given for real measurements is taken as known.

    Writes every sample, the posterior mean and standard deviation of every pixel, and the picture sheet.png.
    """

    images: Images = ()
    degradation: OmitArgPrefixes[Degradation] = field(default_factory=Degradation)
    blind: Annotated[str | None, arg(metavar="FAMILY", help=f"estimate the degradation first: {FAMILIES}", help_behavior_hint="")] = None
    samples: Annotated[int, arg(metavar="N")] = 4
    """restorations drawn of each image"""
    steps: Annotated[int, arg(metavar="N")] = 50
    """steps of each draw; more are slower and draw more exactly, few end nearer the posterior mean"""
    sampler: Annotated[str, arg(metavar="NAME")] = "ancestral"
    """kind of step: ancestral, euler, bridge, sde-2m, sandwich"""
    schedule: Annotated[str, arg(metavar="NAME")] = "water-filling"
    """path of the noise: water-filling, geometric (the paper's), or following the energy: energy (the paper's rule), variance"""
    mala: Annotated[int, arg(metavar="N")] = 0
    """Metropolis-adjusted Langevin steps after each step: a correction that accepts or refuses by the energy, one network call each"""
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
    compile: Compile = False

    def run(self) -> int:
        from rich.console import Console

        from anem.cli.files import new_folder, write_record
        from anem.cli.report import table
        from anem.sample import as_kernel, as_schedule

        if not self.images and not self.degradation.given() and self.blind is None:
            self.degradation.task = "inpaint-box"
        self.check_degradation()
        check_seed(self.seed)
        if self.samples < 1 or self.steps < 1:
            raise ValueError(f"wanted --samples and --steps >= 1, got {self.samples} and {self.steps}")
        if not as_kernel(self.sampler).stochastic:
            raise ValueError(f"--sampler: wanted one that draws samples, {self.sampler} is deterministic: one image, and no spread")
        if self.mala < 0:
            raise ValueError(f"--mala: wanted 0 steps or more, got {self.mala}")
        if self.mala and as_kernel(self.sampler).multistep:
            raise ValueError(f"--mala: wanted a --sampler of single steps, not {self.sampler}")
        if self.mala and as_schedule(self.schedule, self.steps).adaptive:
            raise ValueError(f"--mala: wanted a --schedule fixed beforehand, not {self.schedule}")
        with new_folder(self.out) as folder:
            result = self.restore(folder)
            result.write(folder)
            write_record(folder, result.record)
        if self.json:
            print(json.dumps(result.record, indent=1, ensure_ascii=False))
        else:
            for line in estimates_of(result.record):
                print(line)
            Console(highlight=False).print(table(result.record), f"pictures in {self.out}, all together in {self.out / 'sheet.png'}")
        return 0

    def check_degradation(self) -> None:
        """Raise ValueError for degradations that mean nothing, or that --blind is to find."""
        if self.blind is None:
            self.degradation.check()
            return
        if self.blind not in FAMILIES.split(", "):
            raise ValueError(f"--blind: wanted one of {FAMILIES}, got {self.blind}")
        told = [f"--{name}" for name in ("mask", "kernel", "scale", "measured") if getattr(self.degradation, name) not in (None, False)]
        if told:
            raise ValueError(f"--blind: estimates the degradation, and {' and '.join(told)} would tell it")
        if self.degradation.task is not None:
            self.degradation.check()
        elif not self.images:
            raise ValueError("--blind: wanted measurements, or a --task that degrades clean images")

    def restore(self, folder: Path) -> Result:
        """Degrade, sample and collect; the path goes to ``folder``."""
        import torch

        from anem.cli.files import read_images
        from anem.cli.report import Result
        from anem.hub import load
        from anem.random import generators_for
        from anem.sample import MALA, as_schedule, sample_posterior

        model = load(self.model, self.device)
        if self.compile:
            model.compile()
        real = self.degradation.real
        names, images = read_images(self.images or examples(self.model), len(model.statistics.mean), bounded=not real)
        images = images.to(self.device)
        measurement = images
        sigma: float | Tensor = self.degradation.noise
        if self.blind is None or self.degradation.task is not None:
            operator = self.degradation.operator(tuple(images.shape), self.seed)
            generators = generators_for(range(self.seed, self.seed + len(images)), self.device)
            measurement = self.degradation.apply(images, operator, generators)
        if self.blind is not None and measurement.shape != images.shape:
            size = " x ".join(str(n) for n in measurement.shape[-2:])
            raise ValueError(
                f"--blind: wanted measurements of the images' size, got {size} from {self.degradation.task}; sr4-fourier has it"
            )
        found: dict = {}
        start = time.perf_counter()
        if self.blind is not None:
            known = {} if self.degradation.task or self.degradation.sigma is None else {"sigma": self.degradation.sigma}
            operator, sigma, estimates = estimated(model, measurement.double(), self.blind, known, self.seed)
            found = {"blind": self.blind, "estimates": [{"name": n} | e for n, e in zip(names, estimates, strict=True)]}
        with progress(self.steps) as bar, self.drawn_path(folder) as path:
            restoration = sample_posterior(
                model,
                measurement,
                operator,
                sigma,
                samples=self.samples,
                steps=self.steps,
                kernel=self.sampler,
                corrector=MALA(self.mala) if self.mala else None,
                schedule=as_schedule(self.schedule, self.steps),
                seed=self.seed,
                callback=both(bar, path) if path else bar,
            )
            seconds = time.perf_counter() - start
        observation = operator.observe(measurement, sigma, model.statistics, torch.Generator(self.device).manual_seed(0))
        head = {"model": self.model} | found | ({} if self.degradation.task is None and found else self.degradation.record())
        head |= {"sampler": self.sampler, "schedule": self.schedule, "steps": self.steps, "calls": restoration.calls}
        if restoration.acceptance is not None:
            head |= {"mala": self.mala, "acceptance": round(float(restoration.acceptance.mean()), 3)}
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
        plot_paths({self.schedule: (recorder.basis, recorder.values)}, folder / "schedule.png")


def estimated(
    model: EnergyModel, measurement: Tensor, name: str, known: dict[str, float], seed: int
) -> tuple[LinearOperator, Tensor, list[dict]]:
    """Operator and noise of every measurement as most probable in a family, as one batch, and what a record says of the parameters."""
    import torch

    from anem.blind import FAMILIES, estimate
    from anem.cli.estimate import parameters

    family = FAMILIES[name](measurement.shape)
    if set(known) - set(family.settings):
        raise ValueError(f"--sigma: {name} has no noise of one sigma, but {', '.join(family.settings)}; leave it out")
    if known:
        family = family.change(known)
    found = [estimate(model, measurement[b : b + 1], family, seed=seed) for b in range(len(measurement))]
    operator, sigma = family.degradation(torch.stack([e.theta for e in found]))
    return operator, sigma.to(measurement.device), [{"resolved": e.posterior.resolved, "parameters": parameters(e)} for e in found]


def estimates_of(record: dict) -> Iterator[str]:
    """What --blind found, a line an image, with 90 % intervals, marked as ``anem estimate`` marks them."""
    for image in record.get("estimates", ()):
        coarse = "" if image["resolved"] else ", not resolved"
        found = (
            f"{p['name']} {p['estimate']:.3g} ({p['interval_90'][0]:.3g} to {p['interval_90'][1]:.3g}{coarse}"
            f"{', end of range' if p['at_edge'] else ''})"
            for p in image["parameters"]
        )
        yield f"{image['name']}: {record['blind']}, " + ", ".join(found)


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
