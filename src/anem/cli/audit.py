"""``anem audit``: whether a model's energy is the −log p of one density."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from tyro.conf import Positional, arg

from anem.cli.options import Compile, Device, Flag, check_seed

if TYPE_CHECKING:
    from rich.table import Table
    from torch import Tensor

    from anem.energy import EnergyModel
    from anem.likelihood import Check

AUDITS = {
    "gradient": "E[∂U/∂log λ] = 0",
    "paths": "differences of U do not depend on the path of Σ",
    "variance": "posterior variance from one call: squared errors, samples",
    "flow": "likelihood of the score = likelihood of the energy",
    "logz": "∫ e^{−U} dy = 1",
    "strangers": "images unlike the data do not carry more than that",
    "ranks": "truths rank uniformly among posterior samples",
}
"""What can be asked for with --only."""


@dataclass
class Audit:
    """Check that a model's energy is the -log p of one density: seven identities, on held-out images.

    Figures come with a standard error and a verdict: pass, FAIL, or undecided where the error is too large to tell. Exit code 1
    if one fails. On a CPU the whole audit of the digits model takes hours; --quick takes a minute, and decides less.

    The audits: gradient, strangers, paths, variance, flow, logz, ranks.
    """

    model: Annotated[Positional[str], arg(metavar="[MODEL]", help_behavior_hint="(default: digits)")] = "digits"
    """a bundled model (see 'anem models'), a folder, or a Hugging Face repository"""
    images: Annotated[tuple[Path, ...], arg(metavar="IMAGE ...", help_behavior_hint="(default: held-out MNIST digits)")] = ()
    """held-out pictures, 8-bit arrays or folders: the more, the more is decided"""
    data: Annotated[Path, arg(metavar="DIR")] = Path("data")
    """folder of the data sets that 'make data' fetches"""
    only: Annotated[tuple[str, ...], arg(metavar="AUDIT ...", help_behavior_hint="(default: all)")] = ()
    """some of the audits"""
    quick: Flag = False
    """a small run"""
    seed: int = 0
    """of all random numbers"""
    json: Flag = False
    """print the figures as JSON"""
    report: Annotated[Path | None, arg(metavar="FILE", help_behavior_hint="")] = None
    """also write them to this JSON file"""
    device: Device = "cpu"
    compile: Compile = False

    def run(self) -> int:
        from rich.console import Console

        from anem.cli.files import check_writable, to_json
        from anem.files import write_text
        from anem.likelihood import trusted_level

        check_seed(self.seed)
        unknown = [name for name in self.only if name not in AUDITS]
        if unknown:
            raise ValueError(f"--only: wanted some of {', '.join(AUDITS)}, got {', '.join(unknown)}")
        if self.report is not None and self.report.is_dir():
            raise ValueError(f"--report: wanted a file, got the folder {self.report}")
        if self.report is not None:
            check_writable(self.report)
        checks = self.audit()
        failed = sum(check.verdict == "FAIL" for check in checks)
        record = {"model": self.model, "quick": self.quick, "seed": self.seed, "failed": failed, "checks": [entry(c) for c in checks]}
        if any(check.audit == "variance" for check in checks):
            record["variance_trusted_to"] = trusted_level((c.audit, c.where, c.what, c.holds) for c in checks)
        if self.json:
            print(to_json(record))
        else:
            Console(highlight=False).print(table(checks, self.model), trust(record), sep="\n", end="")
        if self.report is not None:
            write_text(self.report, to_json(record) + "\n")
        undecided = sum(check.verdict == "undecided" for check in checks)
        if failed or undecided:
            print(f"{failed} failed, {undecided} undecided of {len(checks)} figures", file=sys.stderr)
        return 1 if failed else 0

    def audit(self) -> list[Check]:
        """Run the audits asked for, with a line of progress on a terminal."""
        from rich.console import Console

        from anem.hub import load
        from anem.likelihood import AuditSize, audits

        model = load(self.model, self.device)
        if self.compile:
            model.compile()
        size = AuditSize.quick() if self.quick else AuditSize()
        x = self.held_out(model, size.most).to(self.device)
        console = Console(stderr=True)
        checks = []
        with console.status("") as status:
            for audit in audits(model, x, size, seed=self.seed):
                name = audit.name.split("/")[0].lower().replace(" ", "")
                if not self.only or name in self.only:
                    status.update(audit.name)
                    checks += audit.run()
        return checks

    def held_out(self, model: EnergyModel, count: int) -> Tensor:
        """The first images, dequantised, (N, C, H, W)."""
        import torch

        from anem.cli.inputs import read_clean
        from anem.data import ImageData, StreamedData, load_dataset, mnist
        from anem.images import to_integers

        if self.images:
            data: ImageData | StreamedData = ImageData(to_integers(read_clean(self.images, model)[1]))
        else:
            file = self.data / "mnist.npz"
            if not file.is_file():
                raise ValueError(f"images: wanted held-out images, --images, or the digits in {file}, which 'make data' fetches")
            data = load_dataset(mnist("tuning", str(file)))
        return data.batch(torch.arange(min(count, len(data))), torch.Generator().manual_seed(self.seed))


def entry(check: Check) -> dict:
    """What a record says of a figure."""
    head = {"audit": check.audit, "where": check.where, "what": check.what}
    return head | {"value": check.value, "standard_error": check.standard_error, "criterion": check.criterion, "holds": check.holds}


def trust(record: dict) -> str:
    """A line on where the one-call variance can be trusted, if that was audited."""
    if "variance_trusted_to" not in record:
        return ""
    level = record["variance_trusted_to"]
    until = "at no level of white noise that was looked at" if level is None else f"for white noise of variance up to {level:g}"
    return f"posterior variance from one call: within 10 % of the squared error {until}\n"


def table(checks: Sequence[Check], model: str) -> Table:
    """A line a figure, with its verdict."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    grid = Table(title=f"audit of {model}", title_justify="left", header_style="bold", box=SIMPLE_HEAD)
    for heading in ("at", "figure", "value ± s.e.", "wanted", "verdict"):
        grid.add_column(heading, justify="right" if heading.startswith("value") else "left", overflow="fold")
    styles = {"pass": "green", "FAIL": "bold red", "undecided": "yellow", "": "dim"}
    for check in checks:
        number = f"{check.value:.3g} ± {check.standard_error:.1g}"
        grid.add_row(check.where, check.what, number, check.criterion or "", check.verdict, style=styles[check.verdict])
    return grid
