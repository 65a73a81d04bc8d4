"""``anem estimate``: the degradation that an image went through, from the image alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from tyro.conf import arg

from anem.cli.options import Compile, Device, Flag, Images, Model, check_seed, named_numbers

if TYPE_CHECKING:
    from rich.table import Table
    from torch import Tensor

    from anem import blind

NAMES = "white, box, box-anywhere, band, blur, motion, super-resolution"


@dataclass
class Estimate:
    """Estimate what happened to images: the noise, the blur, the box of stronger noise.

    The parameters are those that make the image most probable under the model, with a 90 % interval and the runner-up;
    several families are compared by their evidence. Clean images with --truth are degraded first:

        anem estimate --family blur --truth std=1.2 sigma=0.02

    Writes result.json and a picture of the evidence per image and family.
    """

    images: Images = ()
    family: Annotated[tuple[str, ...], arg(metavar="F ...", help=f"one or more of {NAMES}", help_behavior_hint="")] = ()
    known: Annotated[tuple[str, ...], arg(metavar="NAME=VALUE ...", help_behavior_hint="")] = ()
    """settings that are known, such as sigma=0.05, in every family that has them"""
    truth: Annotated[tuple[str, ...], arg(metavar="NAME=VALUE ...", help_behavior_hint="")] = ()
    """the images are clean: degrade them by the first family with these settings"""
    draws: Annotated[int, arg(metavar="N")] = 4
    """draws of what was not observed; more are slower and more exact"""
    budget: Annotated[int, arg(metavar="N")] = 5000
    """most settings of a family in one search, of which there are two where the first stays too coarse; intervals that would need more
    are marked as not resolved"""
    model: Model = "digits"
    seed: int = 0
    """of all random numbers"""
    out: Annotated[Path, arg(metavar="DIR")] = Path("estimate")
    """folder for the results; an earlier result there is replaced"""
    json: Flag = False
    """print the figures as JSON"""
    device: Device = "cpu"
    compile: Compile = False

    def run(self) -> int:
        from rich.console import Console

        from anem.cli.files import new_folder, to_json, write_record

        self.check()
        with new_folder(self.out) as folder:
            record = self.estimate(folder)
            write_record(folder, record)
        if self.json:
            print(to_json(record))
        else:
            Console(highlight=False).print(table(record), f"pictures in {self.out}")
        return 0

    def check(self) -> None:
        """Raise ValueError for options that mean nothing."""
        from anem.blind import FAMILIES

        unknown = [name for name in self.family if name not in FAMILIES]
        if not self.family or unknown:
            raise ValueError(f"--family: wanted one or more of {', '.join(FAMILIES)}, got {', '.join(unknown) or 'none'}")
        if len(set(self.family)) < len(self.family):
            raise ValueError(f"--family: wanted every family once, got {' '.join(self.family)}")
        check_seed(self.seed)
        if self.budget < 1 or self.draws < 1:
            raise ValueError(f"wanted --budget and --draws >= 1, got {self.budget} and {self.draws}")

    def families(self, shape: Sequence[int]) -> list[blind.Family]:
        """The families for images of a shape (…, H, W), with what is known."""
        from anem.blind import FAMILIES

        known, families = named_numbers("--known", self.known), [FAMILIES[name](shape) for name in self.family]
        strange = [name for name in known if not any(name in f.settings for f in families)]
        if strange:
            raise ValueError(f"--known: no setting {', '.join(strange)} in {', '.join(self.family)}")
        return [f.change({name: v for name, v in known.items() if name in f.settings}) for f in families]

    def estimate(self, folder: Path) -> dict:
        """Estimate, draw, and collect the figures."""
        from anem.blind import choose
        from anem.cli.evidence_plot import plot_evidence
        from anem.cli.inputs import check_size, note_clipping, read_clean, read_measurements
        from anem.cli.restore import examples
        from anem.hub import load
        from anem.random import generators_for

        model = load(self.model, self.device)
        if self.compile:
            model.compile()
        names, images = (read_clean if self.truth else read_measurements)(self.images or examples(self.model), model)
        check_size(images.shape, model)
        images = images.to(self.device).double()
        families = self.families(images.shape)
        if self.truth:
            images = self.degrade(images, generators_for(range(self.seed, self.seed + len(images)), self.device))
        else:
            note_clipping(names, images)
        entries = []
        for b, name in enumerate(names):
            choice = choose(model, images[b : b + 1], families, draws=self.draws, seed=self.seed + b, budget=self.budget)
            for found, family in zip(choice.estimates, self.family, strict=True):
                plot_evidence(found, f"{name}: {family}", folder / f"{name}_{family}.png")
            entries.append({"name": name} | figures(choice, self.family))
        head = {"model": self.model, "families": list(self.family), "known": named_numbers("--known", self.known)}
        return head | {
            "truth": named_numbers("--truth", self.truth),
            "draws": self.draws,
            "budget": self.budget,
            "seed": self.seed,
            "images": entries,
        }

    def degrade(self, images: Tensor, generators: list) -> Tensor:
        """Measurements of clean images under the settings of --truth."""
        from anem.blind import FAMILIES

        family = FAMILIES[self.family[0]](images.shape)
        truth = named_numbers("--truth", self.truth)
        if set(truth) != set(family.settings):
            raise ValueError(f"--truth: wanted {', '.join(family.settings)} of {family.name}, got {', '.join(truth)}")
        family.check(truth)
        theta = images.new_tensor([[truth[name] for name in family.parameters]])
        if not bool(family.possible(theta).all()):
            raise ValueError(f"--truth: wanted settings possible for {family.name} on images of {images.shape[-2]} x {images.shape[-1]}")
        operator, sigma = family.degradation(theta)
        return operator.measure(images, sigma, generators)


def figures(choice: blind.Choice, names: Sequence[str]) -> dict:
    """What a record says about one image, ready for JSON: evidences in nats."""
    families = []
    for name, found, log_marginal, p in zip(
        names, choice.estimates, choice.log_marginal.tolist(), choice.probabilities.tolist(), strict=True
    ):
        posterior = found.posterior
        entry = {"family": name, "probability": p, "log_marginal": log_marginal, "log_evidence": found.log_evidence}
        entry |= {"entropy": posterior.entropy, "resolved": posterior.resolved, "calls": found.calls}
        families.append(entry | {"parameters": parameters(found), "runner_up": runner_up(found)})
    return {"best": names[choice.order[0]], "estimates": families}


def parameters(found: blind.Estimate) -> list[dict]:
    """Estimate and uncertainty of every parameter."""
    posterior = found.posterior
    columns = (found.theta, found.standard_error, posterior.mean, posterior.std, posterior.interval(0.9), found.at_edge)
    rows = zip(found.family.parameters, *(column.tolist() for column in columns), strict=True)
    return [
        {"name": name, "estimate": theta, "standard_error": None if math.isnan(error) else error}
        | {"mean": mean, "std": std, "interval_90": interval, "at_edge": edge}
        for name, theta, error, mean, std, interval, edge in rows
    ]


def runner_up(found: blind.Estimate) -> dict | None:
    """The second-best answer and how far its evidence is behind the best, as computed (no bias is taken off either), or None."""
    cells = found.cells
    index = cells.runner_up()
    if index is None:
        return None
    theta = dict(zip(found.family.parameters, cells.theta[index].tolist(), strict=True))
    return {"theta": theta, "behind": found.highest - float(cells.log_evidence[index])}


def table(record: dict) -> Table:
    """A line a parameter, in families from the most probable one down; intervals of cells that are too coarse are marked."""
    from rich.table import Table

    grid = Table(title="estimated degradation", title_justify="left", header_style="bold")
    grid.add_column("image", overflow="fold", min_width=8)
    for heading in ("family", "parameter", "estimate", "90 % interval", "runner-up"):
        grid.add_column(heading, overflow="fold")
    for image in record["images"]:
        for e in sorted(image["estimates"], key=lambda e: -e["log_marginal"]):
            second = e["runner_up"]
            probability = f" {100 * e['probability']:.1f}%" if len(image["estimates"]) > 1 else ""
            for i, p in enumerate(e["parameters"]):
                error = "" if p["standard_error"] is None else f" ± {p['standard_error']:.2g}"
                note = ", end of range" if p["at_edge"] else ""
                other = "none" if second is None else f"{second['theta'][p['name']]:.3g}"
                behind = f", {second['behind']:.1f} nats behind" if second is not None and i == 0 else ""
                head = (image["name"], e["family"] + probability) if i == 0 else ("", "")
                low, high = p["interval_90"]
                width = f"{low:.3g} to {high:.3g}" + ("" if e["resolved"] else ", not resolved")
                grid.add_row(*head, p["name"], f"{p['estimate']:.4g}{error}{note}", width, other + behind)
    if not all(e["resolved"] for image in record["images"] for e in image["estimates"]):
        grid.caption = "not resolved: the evidence is narrower than the cells it was computed on; the interval is about as wide as a cell"
    return grid
