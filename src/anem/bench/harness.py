"""The frame of every bench: what it is asked, and a report that survives an interruption and may be made by several processes."""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import json
import math
import multiprocessing
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from anem.bench.report import Figure, Report, Value, judge, write_json
from anem.bench.revision import code, commit, weights_digest
from anem.files import replacing
from anem.hub import load
from anem.network import EnergyNetwork
from anem.random import check_device, generator_of

__all__ = ["Context", "Settings", "load_bench", "pieces_folder", "run_bench"]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What a bench is asked to do.

    Arguments:
        out: folder for pictures, tables and checkpoints of the bench's own, and for the pieces it is made of.
        quick: whether this run must end within 60 s on two cores.
        model: name or path of the model to judge, for :func:`anem.load`.
        data: folder of the data sets (``make data``).
        split: "tuning", the images to try things out on, or "report", those of the one report at the end.
        images: images to train each model on, for benches that train, or to restore, for "compare"; None for the bench's own number.
        tasks, methods: what to compare, for benches that do; all if empty. skip: how many images to leave out before those compared.
        trained: folder of training runs whose models are compared.
        dataset: images to compare methods on: "mnist", or what :class:`anem.data.DataConfig` reads.
        compile: whether networks are compiled before they are judged. device: where they compute; all else stays on the CPU.
    """

    out: Path
    quick: bool = False
    model: str = "digits"
    data: Path = Path("data")
    split: str = "tuning"
    images: int | None = None
    tasks: tuple[str, ...] = ()
    methods: tuple[str, ...] = ()
    trained: Path = Path("runs")
    dataset: str = "mnist"
    skip: int = 0
    compile: bool = False
    device: str = "cpu"


@dataclass(frozen=True, eq=False)
class Context(Settings):
    """What a running bench is given, and where it reports.

    Arguments:
        report: grows as figures come.
        worker: whether this is one of several processes that only make pieces, see :meth:`pieces`.
        save: called after every figure.
    """

    report: Report = field(kw_only=False)
    worker: bool = False
    save: Callable[[str, Figure], None] = lambda key, figure: None
    made: set[str] = field(default_factory=set, init=False)
    """Keys of the figures of this run."""

    @property
    def seed(self) -> int:
        """Of all random numbers."""
        return self.report.seed

    def load(self, name_or_path: str) -> EnergyNetwork:
        """A model by name or folder, made faster as was asked for: random numbers and all but the network's calls are the same anywhere."""
        model = load(name_or_path)
        if self.device != "cpu":
            model.compute_on(self.device)
        if self.compile:
            model.compile()
        return model

    def figure(self, key: str, value: Value | torch.Tensor, aim: str | None = None, holds: bool | None = None, quick: bool = True) -> None:
        """Report a figure.

        Arguments:
            key: its name, unique in the bench, such as ``"oracle/box/energy bias (nats/dim)"``.
            value: a number (a tensor with one entry will do), a string or a bool.
            aim: what it should be, in a form :func:`judge` reads, or in words together with ``holds``.
            holds: whether the aim is met, where :func:`judge` cannot tell.
            quick: whether the aim means something in a quick run; if not, it is shown there but not judged.

        Raises:
            ValueError: a key used twice in this run, ``holds`` without an aim, or an aim that cannot be read.
        """
        if isinstance(value, torch.Tensor) or hasattr(value, "item"):
            value = value.item()
        if holds is not None and aim is None:
            raise ValueError(f"figure {key!r}: holds without an aim")
        if key in self.made:
            raise ValueError(f"figure {key!r}: reported twice")
        if aim is not None and holds is None:
            holds = judge(value, aim)
        if self.quick and not quick:
            holds = None
        # JSON has no NaN or infinity: a value that is not finite is written as its name, and meets no numeric aim but "> a", "≥ a".
        if isinstance(value, float) and not math.isfinite(value):
            value = str(value)
        figure = Figure(value, aim, None if holds is None else bool(holds))
        self.report.figures[key] = figure
        self.made.add(key)
        self.save(key, figure)

    def done(self, *keys: str) -> bool:
        """Whether an interrupted run of the same command by the same code has already made all these figures."""
        return all(key in self.report.figures for key in keys)

    def pieces(self, label: str, items: Sequence[Any], make: Callable[[Any], dict[str, Any]]) -> list[dict[str, Any]] | None:
        """``make`` of every item, kept in files: what an interrupted run or a worker has made is read back.

        None in a worker, which makes those that nobody else is making. Items must not depend on each other.

        Arguments:
            label: what the files are called by, unique in the bench. make: plain values and tensors by name.
        """
        folder = pieces_folder(self.out)
        folder.mkdir(parents=True, exist_ok=True)
        name = hashlib.sha256(label.encode()).hexdigest()[:16]
        found = []
        for i, item in enumerate(items):
            file = folder / f"{name}-{i}.pt"
            if self.worker and not _claim(file):
                continue
            if not file.exists():
                made = make(item)
                with replacing(file) as part:
                    torch.save(made, part)
            if not self.worker:
                found.append(torch.load(file, weights_only=True))
        return None if self.worker else found

    def claim(self, label: str) -> bool:
        """Whether this process is the one to do what the label names; it is unless it is a worker and another was first."""
        return not self.worker or _claim(pieces_folder(self.out) / f"{hashlib.sha256(label.encode()).hexdigest()[:16]}.done")

    def section(self, label: str, run: Callable[[], None]) -> None:
        """Figures that ``run`` makes, that no other section needs, and that it leaves out if they are :meth:`done`.

        A worker makes those of sections that nobody else is at, and keeps them for the report, where ``run`` finds them done. Files that
        ``run`` writes are its own affair; if they are gone it may make the figures again.
        """
        file = pieces_folder(self.out) / f"{hashlib.sha256(label.encode()).hexdigest()[:16]}.json"
        if self.worker and not _claim(file):
            return
        if not self.worker and file.exists():
            for key, figure in json.loads(file.read_text(encoding="utf-8")).items():
                self.report.figures[key] = Figure(**figure)
                self.save(key, self.report.figures[key])
        before = set(self.made)
        run()
        if self.worker and (made := self.made - before):
            write_json(file, {key: asdict(self.report.figures[key]) for key in self.report.figures if key in made})

    def generator(self, *labels: str | int, device: torch.device | str = "cpu") -> torch.Generator:
        """A generator that depends on the seed and the labels only, so that a resumed run draws what an uninterrupted one would."""
        return generator_of(self.seed, *labels, device=device)


def load_bench(name: str, benches: Mapping[str, str]) -> ModuleType:
    """The module of a bench.

    Raises:
        ValueError: no bench of that name.
    """
    if name not in benches:
        raise ValueError(f"no bench {name!r}: wanted one of {', '.join(benches)}")
    return importlib.import_module(benches[name])


def run_bench(
    run: Callable[[Context], None],
    name: str,
    settings: Settings,
    *,
    command: str,
    json_file: Path,
    seed: int = 0,
    fresh: bool = False,
    workers: int = 1,
    on_figure: Callable[[str, Figure], None] = lambda key, figure: None,
) -> Report:
    """Run a bench to its end; interrupted, the same call continues after the last figure.

    Arguments:
        run: the bench.
        name: its name.
        settings: what it is asked to do.
        command: the command line that repeats the run. Figures in ``json_file`` are taken over if command, seed, code and weights are
            the same.
        json_file: the report, rewritten atomically after every figure. Another report there is kept as ``json_file``.bak.
        fresh: start over even if figures could be taken over.
        workers: processes that share the work of a bench made for it (:meth:`Context.pieces`, :meth:`Context.section`). Figures do not
            depend on it but for times, and for the rounding of sums in another number of threads.
        on_figure: called after every new figure.

    Raises:
        ValueError: ``json_file`` exists and is not a bench report; a device that cannot be used; workers < 1.
    """
    out = settings.out
    check_device(settings.device)
    if workers < 1:
        raise ValueError(f"workers: wanted at least 1, got {workers}")
    report = Report(name, commit(), seed, command, weights=weights_digest(settings.model), code=code())
    another = False
    if json_file.exists():
        earlier = Report.read(json_file)
        same = all(getattr(earlier, key) == getattr(report, key) for key in ("name", "code", "seed", "command", "weights"))
        another = not same or fresh
        report = report if another else earlier
        if fresh:  # else the same command would go on from it, after an interruption before the first figure
            json_file.replace(json_file.with_name(f"{json_file.name}.bak"))
            another = False
    report.workers = max(report.workers, workers)
    out.mkdir(parents=True, exist_ok=True)
    json_file.parent.mkdir(parents=True, exist_ok=True)
    spent, start = report.wall_s, time.perf_counter()

    def write() -> None:
        nonlocal another
        if another:  # only now that there is something to put in its place
            json_file.replace(json_file.with_name(f"{json_file.name}.bak"))
            another = False
        report.wall_s = spent + time.perf_counter() - start
        write_json(json_file, report.as_dict())

    def save(key: str, figure: Figure) -> None:
        write()
        on_figure(key, figure)

    _prepare_pieces(out, report, fresh)
    if workers > 1:
        _work(run, report, settings, workers)
    run(Context(report, save=save, **vars(settings)))
    write()
    return report


def pieces_folder(out: Path) -> Path:
    """Where a bench keeps its pieces."""
    return out / "pieces"


def _prepare_pieces(out: Path, report: Report, fresh: bool) -> None:
    """Drop pieces of another run, and claims of workers that are gone."""
    folder, mark = pieces_folder(out), pieces_folder(out) / "of.json"
    identity = {key: getattr(report, key) for key in ("name", "code", "seed", "command", "weights")}
    if fresh or not mark.exists() or json.loads(mark.read_text(encoding="utf-8")) != identity:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(exist_ok=True)
        write_json(mark, identity)
    for file in (*folder.glob("*.claim"), *folder.glob(".*.tmp")):
        file.unlink()


def _claim(file: Path) -> bool:
    """Whether this worker is the one to make a piece.

    Raises:
        SystemExit: the process that it works for is gone.
    """
    employer = multiprocessing.parent_process()
    if employer is not None and not employer.is_alive():
        raise SystemExit(1)
    if file.exists():
        return False
    try:
        file.with_suffix(".claim").touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


def _work(run: Callable[[Context], None], report: Report, settings: Settings, workers: int) -> None:
    """Make pieces in so many processes. One that fails leaves its pieces to be made afterwards, where what is wrong is then said."""
    spawn = multiprocessing.get_context("spawn")
    started = [spawn.Process(target=_worker, args=(run, report, settings, workers), daemon=True) for _ in range(workers)]
    for process in started:
        process.start()
    for process in started:
        process.join()


def _worker(run: Callable[[Context], None], report: Report, settings: Settings, workers: int) -> None:
    torch.set_num_threads(max(1, torch.get_num_threads() // workers))
    with contextlib.suppress(ValueError):  # which the report will meet as well
        run(Context(report, worker=True, **vars(settings)))
