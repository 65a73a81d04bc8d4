"""``anem diagnose``: how probable restorations are, from any method, under the prior and given their measurement."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from tyro.conf import OmitArgPrefixes, Positional, arg

from anem.cli.degradation import Degradation
from anem.cli.options import Device, Flag, Model, check_seed

if TYPE_CHECKING:
    from rich.table import Table
    from torch import Tensor

    from anem.energy import EnergyModel
    from anem.likelihood import Scores
    from anem.operators import LinearOperator


@dataclass
class Diagnose:
    """Log-probabilities of restorations, under the prior and given their measurement, beside the truth where it is known.

    Give a folder (or file) for each set of restorations, in the order of the measurements; a result of 'anem restore' counts as two
    sets, samples and means. One measurement, or one truth, serves any number of restorations. Without --measurement the clean
    images are degraded by --task, with the noise that 'anem restore' adds to the same images:

        anem restore --task inpaint-box && anem diagnose out --task inpaint-box

    A set whose prior log-probability is too high for the truths (or else for posterior samples of the model) is flagged as
    over-smoothed, one whose is too low as off-distribution: by more than a standard deviation over images, and 3 standard errors.
    Writes result.json and the histograms.
    """

    sets: Annotated[Positional[tuple[Path, ...]], arg(metavar="SET ...", help_behavior_hint="")]
    """folders of restorations"""
    measurement: Annotated[tuple[Path, ...], arg(metavar="IMAGE ...", help_behavior_hint="")] = ()
    """what they were made from"""
    truth: Annotated[tuple[Path, ...], arg(metavar="IMAGE ...", help_behavior_hint="(default: bundled digits)")] = ()
    """the clean images; with --measurement, unknown unless given"""
    degradation: OmitArgPrefixes[Degradation] = field(default_factory=Degradation)
    prior_sigma: Annotated[float, arg(metavar="STD")] = 0.03
    """standard deviation of the noise under which the prior is asked; less looks at finer details"""
    samples: Annotated[int, arg(metavar="N")] = 4
    """posterior samples to compare with where no truth is known"""
    steps: Annotated[int, arg(metavar="N")] = 50
    """steps of each"""
    model: Model = "digits"
    seed: int = 0
    """of all random numbers"""
    out: Annotated[Path, arg(metavar="DIR")] = Path("diagnosis")
    """folder for the results; an earlier result there is replaced"""
    json: Flag = False
    """print the figures as JSON"""
    device: Device = "cpu"

    def run(self) -> int:
        from rich.console import Console

        from anem.bench.histograms import plot_histograms
        from anem.cli.files import new_folder, to_json, write_record

        self.check()
        with new_folder(self.out) as folder:
            record = self.diagnose()
            plot_histograms(record["sets"], record["prior_sigma"], folder / "histograms.png")
            write_record(folder, record)
        if self.json:
            print(to_json(record))
        else:
            Console(highlight=False).print(table(record), f"histograms in {self.out / 'histograms.png'}")
        return 0

    def check(self) -> None:
        """Raise ValueError for options that mean nothing."""
        if not self.sets:
            raise ValueError("diagnose: wanted at least one set of restorations")
        check_seed(self.seed)
        if self.samples < 2 or self.steps < 1:
            raise ValueError(f"wanted --samples >= 2 and --steps >= 1, got {self.samples} and {self.steps}")
        if self.degradation.measured:
            raise ValueError("--measured: give the measurements by --measurement")
        self.degradation.measured = bool(self.measurement) and self.degradation.task is not None
        self.degradation.check()
        if not self.measurement and self.degradation.task is None:
            raise ValueError("--measurement: wanted the images that go with --mask, --kernel or --scale")

    def diagnose(self) -> dict:
        """Read, score and compare."""
        import torch

        from anem.hub import load
        from anem.likelihood import compare, score
        from anem.sample import sample_posterior

        model = load(self.model, self.device)
        sets = {name: x.to(self.device) for name, x in self.read_sets(model).items()}
        operator, measurement, truth = self.measured(model)
        count = max(len(x) for x in sets.values())
        odd = [name for name, x in sets.items() if len(x) != count]
        if odd or len(measurement) not in (1, count):
            sizes = ", ".join(f"{len(x)} of {name}" for name, x in sets.items())
            raise ValueError(
                f"sets: wanted as many restorations in each as measurements (or one measurement), got {sizes}, {len(measurement)}"
            )
        if truth is not None and len(truth) not in (1, count):
            raise ValueError(f"--truth: wanted one image, or {count}, got {len(truth)}")
        sigma, own = self.degradation.noise, measurement.expand(count, -1, -1, -1)

        def scored(x: Tensor) -> Scores:
            return score(model, x, own, operator, sigma, prior_sigma=self.prior_sigma, seed=self.seed)

        scores = {name: scored(x) for name, x in sets.items()}
        if truth is not None:
            scores = {"truth": scored(truth.expand(count, -1, -1, -1)), **scores}
            reference = scores["truth"].prior[None]
        else:
            drawn = sample_posterior(model, own, operator, sigma, samples=self.samples, steps=self.steps, seed=self.seed)
            ours = [scored(x.clamp(0, 1)) for x in drawn.samples]
            scores = {"posterior samples": ours[0], **scores}
            reference = torch.stack([s.prior for s in ours])
        compared = {name: compare(s.prior, reference, s.dimensions) for name, s in scores.items()}
        head = {"model": self.model} | self.degradation.record() | {"prior_sigma": self.prior_sigma, "seed": self.seed}
        head["reference"] = next(iter(scores))
        return head | {"sets": [entry(name, s, compared[name].__dict__ | {"flag": compared[name].flag}) for name, s in scores.items()]}

    def read_sets(self, model: EnergyModel) -> dict[str, Tensor]:
        """The restorations by the names of their folders."""
        from anem.cli.files import RECORD
        from anem.cli.inputs import read_clean, unique

        found: list[tuple[str, list[Path]]] = []
        for path in self.sets:
            if (path / RECORD).is_file():
                found += restored(path)
            else:
                found.append((path.name, [path]))
        names = unique([name for name, _ in found])
        return {name: read_clean(files, model)[1] for name, (_, files) in zip(names, found, strict=True)}

    def measured(self, model: EnergyModel) -> tuple[LinearOperator, Tensor, Tensor | None]:
        """Operator, measurements and clean images, or None."""
        from anem.cli.inputs import check_measurements, read_clean, read_measurements
        from anem.cli.restore import examples
        from anem.random import generators_for

        given = self.truth or (() if self.measurement else examples(self.model))
        truth = read_clean(given, model)[1].to(self.device) if given else None
        names, seen = read_measurements(self.measurement, model) if self.measurement else ([], truth)
        if seen is None:
            raise ValueError("--measurement: wanted at least one image")
        seen = seen.to(self.device)
        operator = self.degradation.operator(tuple(seen.shape), self.seed)
        if names:
            check_measurements(names, seen, operator, model, self.degradation.noise)
        generators = generators_for(range(self.seed, self.seed + len(seen)), self.device)
        return operator, self.degradation.apply(seen, operator, generators), truth


def restored(folder: Path) -> list[tuple[str, list[Path]]]:
    """The first sample and the mean of every image of a result of 'anem restore', as two sets."""
    from anem.cli.files import RECORD

    try:
        names = [image["name"] for image in json.loads((folder / RECORD).read_text(encoding="utf-8"))["images"]]
        first = [min((folder / name).glob("sample_*.png")) for name in names]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{folder}: not a result of 'anem restore', nor a folder of images") from error
    return [(f"{folder.name}: sample", first), (f"{folder.name}: mean", [folder / name / "mean.png" for name in names])]


def entry(name: str, scores: Scores, compared: dict) -> dict:
    """What a record says about one set, ready for JSON: log-probabilities in nats."""
    lists = {"prior": scores.prior, "posterior": scores.posterior, "misfit": scores.misfit}
    d = scores.dimensions
    means = {"prior_per_dim": float(scores.prior.mean()) / d, "posterior_per_dim": float(scores.posterior.mean()) / d}
    return {"name": name} | means | compared | {key: [round(float(v), 4) for v in value] for key, value in lists.items()}


def table(record: dict) -> Table:
    """A line a set."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    title = f"{record.get('task', 'restorations')}, sigma {record['sigma']:g}; log-probabilities in nats/dim"
    grid = Table(title=title, title_justify="left", header_style="bold", box=SIMPLE_HEAD)
    grid.add_column("set", overflow="fold")
    for heading in ("prior", f"less {record['reference']}", "posterior", "misfit"):
        grid.add_column(heading, justify="right")
    grid.add_column("flag")
    for s in record["sets"]:
        error = "" if s["standard_error"] is None else f" ± {s['standard_error']:.3f}"
        misfit = sum(s["misfit"]) / len(s["misfit"])
        figures = (f"{s['prior_per_dim']:.3f}", f"{s['difference']:+.3f}{error}", f"{s['posterior_per_dim']:.3f}", f"{misfit:.2f}")
        grid.add_row(s["name"], *figures, s["flag"], style="yellow" if s["flag"] else "")
    return grid
