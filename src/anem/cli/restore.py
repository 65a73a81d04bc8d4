"""``anem restore``: posterior samples of degraded images, as files and as one picture."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from tyro.conf import OmitArgPrefixes, UseAppendAction, arg

from anem.cli.degradation import OWN, Degradation
from anem.cli.estimate import NAMES as FAMILIES
from anem.cli.method import ENERGY, METHODS, by_baseline, by_energy, check_method, load_for
from anem.cli.options import Compile, Device, Flag, Images, Model, check_seed, named_numbers, named_values
from anem.cli.sampling import Sampling

if TYPE_CHECKING:
    from torch import Tensor

    from anem.baselines import ConditionalNetwork
    from anem.cli.report import Drawn, Result
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

    Other methods than the energy's own: dps, red-diff, daps and composition ask the energy about white noise only; paper is the
    paper's sampler; palette and indi take the folder of a network trained for one task and its noise as --model, and images. Of
    these only composition, paper and daps with tau=none make use of --sigma. What they made, 'anem diagnose' judges.

    Writes every sample, the posterior mean and standard deviation of every pixel, and the picture sheet.png.
    """

    images: Images = ()
    degradation: OmitArgPrefixes[Degradation] = field(default_factory=Degradation)
    blind: Annotated[str | None, arg(metavar="FAMILY", help=f"estimate the degradation first: {FAMILIES}", help_behavior_hint="")] = None
    samples: Annotated[int, arg(metavar="N")] = 4
    """restorations drawn of each image"""
    method: Annotated[str, arg(metavar="NAME", help=f"how: {METHODS}", help_behavior_hint="")] = ENERGY
    set: Annotated[UseAppendAction[tuple[str, ...]], arg(metavar="NAME=VALUE", help_behavior_hint="")] = ()
    """a setting of another --method than energy in place of its authors', such as scale=1 of dps; may be given again for another"""
    known: Annotated[tuple[str, ...], arg(metavar="NAME=VALUE ...", help_behavior_hint="")] = ()
    """settings of the --blind family that are known, such as sigma=0.05"""
    steps: Annotated[int | None, arg(metavar="N", help_behavior_hint="(default: 50; 250 calls)")] = None
    """steps of each draw; more are slower and draw more exactly, few end nearer the posterior mean. Of other methods most network calls"""
    sampling: OmitArgPrefixes[Sampling] = field(default_factory=Sampling)
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

        from anem.cli.files import new_folder, to_json, write_record
        from anem.cli.report import table

        if not self.images and not self.degradation.given() and self.blind is None:
            self.degradation.task = "inpaint-box"
        self.check_degradation()
        check_seed(self.seed)
        if self.samples < 1 or self.budget < 1:
            raise ValueError(f"wanted --samples and --steps >= 1, got {self.samples} and {self.budget}")
        check_method(self.method, self.set)
        if self.method != ENERGY:
            self.check_unused()
        self.sampling.make(self.budget)
        with new_folder(self.out) as folder:
            result = self.restore(folder)
            result.write(folder)
            write_record(folder, result.record)
        if self.json:
            print(to_json(result.record))
        else:
            for line in estimates_of(result.record):
                print(line)
            Console(highlight=False).print(table(result.record), f"pictures in {self.out}, all together in {self.out / 'sheet.png'}")
        return 0

    @property
    def budget(self) -> int:
        """Steps of the energy's own sampler, or network calls of another method."""
        if self.steps is not None:
            return self.steps
        return 50 if self.method == ENERGY else 250

    def check_degradation(self) -> None:
        """Raise ValueError for degradations that mean nothing, or that --blind is to find."""
        from anem.baselines import BASELINES

        if self.degradation.sigma is not None and not self.degradation.task and "sigma" in named_numbers("--known", self.known):
            raise ValueError("--known: wanted sigma once, got it by --sigma too")
        if self.known and self.blind is None:
            raise ValueError("--known: wanted settings of a --blind family, got none to estimate")
        if self.blind is None:
            self.degradation.check(noise_known=self.method in BASELINES and BASELINES[self.method].conditional)
            return
        if self.blind not in FAMILIES.split(", "):
            raise ValueError(f"--blind: wanted one of {FAMILIES}, got {self.blind}")
        own = () if self.degradation.task is not None else OWN
        known = ("mask", "kernel", "scale", "measured", *own)
        told = [f"--{name.replace('_', '-')}" for name in known if getattr(self.degradation, name) not in (None, False)]
        if told:
            raise ValueError(f"--blind: estimates the degradation, and {' and '.join(told)} would tell it")
        if self.degradation.task is not None:
            self.degradation.check()
        elif not self.images:
            raise ValueError("--blind: wanted measurements, or a --task that degrades clean images")

    def check_unused(self) -> None:
        """Raise ValueError for options that mean nothing to other methods than the energy's own."""
        from anem.baselines import BASELINES
        from anem.blind import FAMILIES

        given = self.sampling.given() + (["--plot-schedule"] if self.plot_schedule else [])
        if given:
            raise ValueError(f"{' and '.join(given)}: for --method {ENERGY} alone, not {self.method}")
        for option in ("blind", "compile"):
            if getattr(self, option) and BASELINES[self.method].conditional:
                raise ValueError(f"--{option}: wanted a --method that restores by an energy, not {self.method}")
        even = self.blind is None or "sigma" in FAMILIES[self.blind]((8, 8)).settings
        if not even and not BASELINES[self.method].noise_maps(named_values("--set", self.set)):
            raise ValueError(
                f"--blind: wanted a family with one sigma, as {self.method} does not tell noisy pixels from others, got {self.blind}"
            )

    def restore(self, folder: Path) -> Result:
        """Degrade, sample and collect; the path goes to ``folder``."""
        from anem.cli.inputs import check_measurements, read_clean, read_measurements
        from anem.cli.report import Result
        from anem.operators import Identity
        from anem.random import generators_for

        model = load_for(self.method, self.model, self.device)
        if self.compile:
            model.compile()
        self.agree_on_noise(model)
        real = self.degradation.real
        names, images = (read_measurements if real else read_clean)(self.images or examples(self.model), model)
        images = images.to(self.device)
        measurement = images
        operator: LinearOperator = Identity()
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
        if real:
            check_measurements(names, measurement, operator, model, self.degradation.noise)
        found: dict = {}
        start = time.perf_counter()
        if self.blind is not None:
            known = named_numbers("--known", self.known)
            if self.degradation.sigma is not None and not self.degradation.task:
                known = {"sigma": self.degradation.sigma} | known
            operator, sigma, estimates = estimated(model, measurement.double(), self.blind, known, self.seed)
            found = {"blind": self.blind, "known": known, "estimates": [{"name": n} | e for n, e in zip(names, estimates, strict=True)]}
        drawn = self.draw(model, measurement, operator, sigma, folder)
        head = {"model": self.model} | found | ({} if self.degradation.task is None and found else self.degradation.record())
        head |= {"method": self.method} | drawn.record | {"samples": self.samples, "seed": self.seed}
        head |= {"seconds": round(time.perf_counter() - start, 2)}
        return Result(head, names, None if real else images, operator, measurement, drawn)

    def agree_on_noise(self, model: EnergyModel | ConditionalNetwork) -> None:
        """Take σ from a network that was trained for one, which --sigma may repeat."""
        problem = getattr(model, "problem", None)
        if problem is None:
            return
        given, own = self.degradation.sigma, problem.sigma
        if given is not None and abs(given - own) > 0.01 * own:
            raise ValueError(f"--sigma: wanted {own:g}, the noise that the network was trained for, got {given:g}")
        self.degradation.sigma = own

    def draw(
        self, model: EnergyModel | ConditionalNetwork, measurement: Tensor, operator: LinearOperator, sigma: float | Tensor, folder: Path
    ) -> Drawn:
        """Restorations by the method, its settings first in the record."""
        from anem.random import generator_of

        if self.method != ENERGY:
            generators = [generator_of(self.seed + b, self.method, device=self.device) for b in range(len(measurement))]
            settings = named_values("--set", self.set)
            drawn = by_baseline(self.method, model, measurement, operator, sigma, self.budget, self.samples, settings, generators)
            return replace(drawn, record={"settings": settings, "steps": self.budget} | drawn.record)
        with progress(self.budget) as bar, self.drawn_path(folder) as path:
            sampler = self.sampling.make(self.budget, both(bar, path) if path else bar)
            drawn = by_energy(model, measurement, operator, sigma, sampler, self.samples, self.seed)
        return replace(drawn, record=self.sampling.record() | {"steps": self.budget} | drawn.record)

    @contextmanager
    def drawn_path(self, folder: Path) -> Iterator[Callback | None]:
        """What records the path of the first sample of the first image, which is drawn at the end; None if not asked for."""
        if not self.plot_schedule:
            yield None
            return
        from anem.bench.paths import PathRecorder, plot_paths

        recorder = PathRecorder()
        yield recorder
        plot_paths({self.sampling.schedule: (recorder.basis, recorder.values)}, folder / "schedule.png")


def estimated(
    model: EnergyModel, measurement: Tensor, name: str, known: dict[str, float], seed: int
) -> tuple[LinearOperator, Tensor, list[dict]]:
    """Operator and noise of every measurement as most probable in a family, as one batch, and what a record says of the parameters."""
    import torch

    from anem.blind import FAMILIES, estimate
    from anem.cli.estimate import parameters

    family = FAMILIES[name](measurement.shape)
    if "sigma" in set(known) - set(family.settings):
        raise ValueError(f"--blind: {name} has no noise of one sigma, but {', '.join(family.settings)}; leave --sigma out")
    if known:
        family = family.change(known)
    found = [estimate(model, measurement[b : b + 1], family, seed=seed + b) for b in range(len(measurement))]
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
