"""``anem bench``: figures, their aims, and whether they hold."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from anem.cli.options import Compile, Device, Flag, check_seed


@dataclass
class Bench:
    """Measure a claim about the package: figures, each with its aim and whether it holds.

    Exit code 1 if an aim is missed. An interrupted bench continues when the same command is run again.
    Without a NAME, lists the benches.
    """

    name: Annotated[Positional[str], arg(metavar="[NAME]", help_behavior_hint="")] = ""
    """which bench"""
    quick: Flag = False
    """a small run, within 60 s on two cores; judges only the aims that mean something at that size"""
    report: Annotated[Path | None, arg(metavar="FILE", help_behavior_hint="(default: OUT/NAME.json)")] = None
    """JSON file for the figures"""
    out: Annotated[Path | None, arg(metavar="DIR", help_behavior_hint="(default: runs/bench/NAME)")] = None
    """folder for the bench's pictures and partial results"""
    model: Annotated[str, arg(metavar="MODEL")] = "digits"
    """name or folder of the model to judge"""
    data: Annotated[Path, arg(metavar="DIR")] = Path("data")
    """folder of the data sets that 'make data' fetches"""
    split: Literal["tuning", "report"] = "tuning"
    """images on which a model is judged: those to try things out on, or those of the one report at the end"""
    images: Annotated[int | None, arg(metavar="N", help_behavior_hint="(default: the bench's own)")] = None
    """images to train each model on, for benches that train, or to restore, for compare"""
    tasks: Annotated[tuple[str, ...], arg(metavar="TASK", help_behavior_hint="(default: all)")] = ()
    """what to restore, for compare"""
    methods: Annotated[tuple[str, ...], arg(metavar="METHOD", help_behavior_hint="(default: all)")] = ()
    """by what, for compare"""
    trained: Annotated[Path, arg(metavar="DIR")] = Path("runs")
    """folder of training runs, for compare"""
    dataset: Annotated[str, arg(metavar="D")] = "mnist"
    """images to compare methods on: mnist, or a folder or .npz file, whose images are divided by their order"""
    skip: int = 0
    """images to leave out before those that are judged, for compare: what was looked at while a method was made"""
    seed: int = 0
    """of all random numbers"""
    compile: Compile = False
    device: Device = "cpu"
    workers: int = 1
    """processes that share the work, for audit, blind, compare, diagnose, digits, mala, recipe and schedules"""
    fresh: Flag = False
    """start over instead of continuing"""

    def run(self) -> int:
        from rich.console import Console

        from anem.bench import BENCHES, SHARED, load_bench, run_bench, table
        from anem.bench.harness import Settings
        from anem.bench.report import Figure, format_value

        if not self.name:
            for name in BENCHES:
                print(f"{name:12s} {(load_bench(name, BENCHES).__doc__ or '').splitlines()[0]}")
            return 0
        check_seed(self.seed)
        if self.images is not None and self.images < 1:
            raise ValueError(f"--images: wanted at least 1, got {self.images}")
        if self.skip < 0:
            raise ValueError(f"--skip: wanted at least 0, got {self.skip}")
        if self.workers < 1:
            raise ValueError(f"--workers: wanted at least 1, got {self.workers}")
        if self.workers > 1 and self.name in BENCHES and self.name not in SHARED:
            raise ValueError(f"--workers: wanted 1 for {self.name}, or one of {', '.join(SHARED)}, got {self.workers}")
        if self.skip and self.name != "compare":
            raise ValueError(f"--skip: wanted 0 for {self.name}, or compare, got {self.skip}")
        bench = load_bench(self.name, BENCHES)
        log = Console(stderr=True, highlight=False)

        def show(key: str, figure: Figure) -> None:
            log.print(f"{key}: {format_value(figure.value)}", style="dim", markup=False)

        out = self.out or Path("runs/bench") / (f"{self.name}-quick" if self.quick else self.name)
        report = run_bench(
            bench.run,
            self.name,
            Settings(**{f.name: getattr(self, f.name) for f in fields(Settings)} | {"out": out}),
            command=self.command(),
            json_file=self.report or out / f"{self.name}.json",
            seed=self.seed,
            fresh=self.fresh,
            workers=self.workers,
            on_figure=show,
        )
        Console().print(table(report))
        if report.missed:
            log.print(f"{len(report.missed)} missed: " + ", ".join(report.missed), style="bold red", markup=False)
        return 1 if report.missed else 0

    def command(self) -> str:
        """The command line that repeats this run, without where it writes."""
        words = ["anem", "bench", self.name]
        for option in fields(self):
            value = getattr(self, option.name)
            if option.name not in ("name", "report", "out", "data", "workers", "fresh") and value != option.default:
                given = value if isinstance(value, tuple) else () if value is True else (value,)
                words += [f"--{option.name}", *map(str, given)]
        return shlex.join(words)
