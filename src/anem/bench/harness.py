"""The frame of every bench: figures with aims, one table, and a JSON file that survives an interruption."""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import json
import math
import multiprocessing
import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from rich.box import SIMPLE_HEAD
from rich.table import Table

import anem
from anem.hub import load, locate
from anem.network import EnergyNetwork
from anem.random import check_device, generator_of

__all__ = [
    "Context",
    "Figure",
    "Report",
    "code",
    "commit",
    "judge",
    "load_bench",
    "pieces_folder",
    "run_bench",
    "table",
    "weights_digest",
    "write_json",
]

Value = float | int | str | bool | None

_NUMBER = r"([-+]?\d*\.?\d+(?:[eE][-+]?\d+)?)"
_AIMS: tuple[tuple[str, Callable[..., bool]], ...] = (
    (rf"(?:≤|<=)\s*{_NUMBER}", lambda v, a: v <= a),
    (rf"(?:≥|>=)\s*{_NUMBER}", lambda v, a: v >= a),
    (rf"<\s*{_NUMBER}", lambda v, a: v < a),
    (rf">\s*{_NUMBER}", lambda v, a: v > a),
    (rf"{_NUMBER}\s*(?:–|to|\.\.)\s*{_NUMBER}", lambda v, a, b: a <= v <= b),
)


def judge(value: Value, aim: str) -> bool:
    """Whether a number meets an aim: ``"≤ 0.02"``, ``"≥ 1.8"``, ``"< 1"``, ``"> 0"`` or ``"0.9–1.2"`` (also <=, >=, to). NaN meets none.

    Raises:
        ValueError: an aim of another form.
    """
    for pattern, test in _AIMS:
        match = re.fullmatch(pattern, aim.strip())
        if match:
            numeric = isinstance(value, int | float) and not math.isnan(value)
            return numeric and test(value, *(float(g) for g in match.groups()))
    raise ValueError(f"aim: wanted '≤ a', '≥ a', '< a', '> a' or 'a–b', or an explicit holds=…, got {aim!r}")


@dataclass(frozen=True)
class Figure:
    """One measured value; ``holds`` is None where there is no aim or where it is not judged at this size."""

    value: Value
    aim: str | None = None
    holds: bool | None = None

    @property
    def verdict(self) -> str:
        """``"yes"``, ``"NO"``, ``"not judged"`` (an aim this size cannot decide), or nothing without an aim."""
        if self.holds is None:
            return "" if self.aim is None else "not judged"
        return "yes" if self.holds else "NO"


@dataclass
class Report:
    """All figures of a bench, and what produced them.

    Arguments:
        name: of the bench.
        commit: of the code, see :func:`commit`.
        seed: of all random numbers.
        command: the command line that repeats the run.
        wall_s: seconds spent, those of interrupted runs included.
        weights: digest of those of the model given; "" if there is none.
        code: what identifies the package alone, see :func:`code`: commits that do not touch it are the same here.
        workers: most processes that shared the work, and the processor while something was timed.
        figures: by key, in the order they were made.
    """

    name: str
    commit: str
    seed: int
    command: str
    wall_s: float = 0.0
    weights: str = ""
    code: str = ""
    workers: int = 1
    figures: dict[str, Figure] = field(default_factory=dict)

    @property
    def missed(self) -> list[str]:
        """Keys whose aim is missed."""
        return [key for key, figure in self.figures.items() if figure.holds is False]

    def as_dict(self) -> dict:
        """The JSON form."""
        figures = {k: {"value": f.value, "aim": f.aim, "holds": f.holds} for k, f in self.figures.items()}
        head = {"name": self.name, "commit": self.commit, "code": self.code, "weights": self.weights, "seed": self.seed}
        head |= {"wall_s": round(self.wall_s, 3), "command": self.command} | ({"workers": self.workers} if self.workers > 1 else {})
        return head | {"figures": figures}

    @classmethod
    def read(cls, file: Path) -> Report:
        """A report from its JSON form.

        Raises:
            ValueError: the file is not a bench report.
        """
        try:
            data = json.loads(file.read_text(encoding="utf-8"))
            figures = {k: Figure(f["value"], f["aim"], f["holds"]) for k, f in data["figures"].items()}
            head = (data[key] for key in ("name", "commit", "seed", "command", "wall_s"))
            return cls(*head, data.get("weights", ""), data.get("code", ""), data.get("workers", 1), figures)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{file}: not a bench report; move it away to start afresh") from error


class Context:
    """What a running bench is given, and where it reports.

    Arguments:
        report: grows as figures come.
        quick: whether this run must end within 60 s on two cores.
        out: folder for pictures, tables and checkpoints of the bench's own.
        model: name or path of the model to judge, for :func:`anem.load`.
        data: folder of the data sets (``make data``).
        split: "tuning", the images to try things out on, or "report", those of the one report at the end.
        images: images to train each model on, for benches that train, or to restore, for "compare"; None for the bench's own number.
        tasks, methods: what to compare, for benches that do; all if empty. skip: how many images to leave out before those compared.
        trained: folder of training runs whose models are compared.
        dataset: images to compare methods on: "mnist", or what :class:`anem.data.DataConfig` reads.
        compile: whether networks are compiled before they are judged. device: where they compute; all else stays on the CPU.
        worker: whether this is one of several processes that only make pieces, see :meth:`pieces`.
        save: called after every figure.
    """

    def __init__(
        self,
        report: Report,
        *,
        quick: bool,
        out: Path,
        model: str = "digits",
        data: Path = Path("data"),
        split: str = "tuning",
        images: int | None = None,
        tasks: tuple[str, ...] = (),
        methods: tuple[str, ...] = (),
        trained: Path = Path("runs"),
        dataset: str = "mnist",
        skip: int = 0,
        compile: bool = False,
        device: str = "cpu",
        worker: bool = False,
        save: Callable[[str, Figure], None] = lambda key, figure: None,
    ) -> None:
        self.report = report
        self.quick = quick
        self.out = out
        self.model = model
        self.data = data
        self.split = split
        self.images = images
        self.tasks, self.methods, self.trained, self.dataset, self.skip = tasks, methods, trained, dataset, skip
        self.seed = report.seed
        self.compile, self.device, self.worker = compile, device, worker
        self._save = save
        self._made: set[str] = set()

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
        if key in self._made:
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
        self._made.add(key)
        self._save(key, figure)

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
                made, part = make(item), file.with_name(f".{file.name}.{os.getpid()}.part")
                torch.save(made, part)
                part.replace(file)
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
                self._save(key, self.report.figures[key])
        before = set(self._made)
        run()
        if self.worker and (made := self._made - before):
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
    *,
    command: str,
    json_file: Path,
    out: Path,
    seed: int = 0,
    quick: bool = False,
    model: str = "digits",
    data: Path = Path("data"),
    split: str = "tuning",
    images: int | None = None,
    tasks: tuple[str, ...] = (),
    methods: tuple[str, ...] = (),
    trained: Path = Path("runs"),
    dataset: str = "mnist",
    skip: int = 0,
    compile: bool = False,
    device: str = "cpu",
    fresh: bool = False,
    workers: int = 1,
    on_figure: Callable[[str, Figure], None] = lambda key, figure: None,
) -> Report:
    """Run a bench to its end; interrupted, the same call continues after the last figure.

    Arguments:
        run: the bench.
        name: its name.
        command: the command line that repeats the run. Figures in ``json_file`` are taken over if command, seed, code and weights are
            the same.
        json_file: the report, rewritten atomically after every figure. Another report there is kept as ``json_file``.bak.
        out: folder for the bench's own files and the pieces it is made of, created.
        fresh: start over even if figures could be taken over.
        workers: processes that share the work of a bench made for it (:meth:`Context.pieces`, :meth:`Context.section`). Figures do not
            depend on it but for times, and for the rounding of sums in another number of threads.
        on_figure: called after every new figure.

    Raises:
        ValueError: ``json_file`` exists and is not a bench report; a device that cannot be used; workers < 1.
    """
    check_device(device)
    if workers < 1:
        raise ValueError(f"workers: wanted at least 1, got {workers}")
    report = Report(name, commit(), seed, command, weights=weights_digest(model), code=code())
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

    settings: dict[str, Any] = {"model": model, "data": data, "split": split, "images": images, "tasks": tasks, "methods": methods}
    settings |= {"trained": trained, "quick": quick, "out": out, "dataset": dataset, "skip": skip, "compile": compile, "device": device}
    _prepare_pieces(out, report, fresh)
    if workers > 1:
        _work(run, report, settings, workers)
    run(Context(report, save=save, **settings))
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
    for file in (*folder.glob("*.claim"), *folder.glob(".*.part")):
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


def _work(run: Callable[[Context], None], report: Report, settings: dict[str, Any], workers: int) -> None:
    """Make pieces in so many processes. One that fails leaves its pieces to be made afterwards, where what is wrong is then said."""
    spawn = multiprocessing.get_context("spawn")
    started = [spawn.Process(target=_worker, args=(run, report, settings, workers), daemon=True) for _ in range(workers)]
    for process in started:
        process.start()
    for process in started:
        process.join()


def _worker(run: Callable[[Context], None], report: Report, settings: dict[str, Any], workers: int) -> None:
    torch.set_num_threads(max(1, torch.get_num_threads() // workers))
    with contextlib.suppress(ValueError):  # which the report will meet as well
        run(Context(report, worker=True, **settings))


def table(report: Report) -> Table:
    """The figures of a report, each with its aim and whether it holds."""
    grid = Table(
        title=f"{report.name}, seed {report.seed}, {report.wall_s:.0f} s", title_justify="left", header_style="bold", box=SIMPLE_HEAD
    )
    grid.add_column("figure", overflow="fold")
    grid.add_column("value", justify="right")
    grid.add_column("aim", justify="right")
    grid.add_column("holds")
    styles = {"yes": "green", "NO": "bold red", "not judged": "dim", "": ""}
    for key, figure in report.figures.items():
        grid.add_row(key, format_value(figure.value), figure.aim or "", figure.verdict, style=styles[figure.verdict])
    return grid


def format_value(value: Value, digits: int = 4) -> str:
    """So many significant digits of a float, anything else as it is."""
    return f"{value:.{digits}g}" if isinstance(value, float) else str(value)


def write_json(file: Path, data: dict) -> None:
    """Write JSON so that the file is at every moment either the old one or the whole new one."""
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_name(f".{file.name}.{os.getpid()}.part")
    try:
        part.write_text(json.dumps(data, indent=1, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")
        part.replace(file)
    finally:
        with contextlib.suppress(FileNotFoundError):
            part.unlink()


def weights_digest(model: str) -> str:
    """What identifies the weights of a model by name or folder; "" where there are none."""
    try:
        return hashlib.sha256((locate(model) / "model.safetensors").read_bytes()).hexdigest()[:12]
    except (ValueError, OSError):
        return ""


def commit() -> str:
    """What identifies the state of the repository: the git commit, with a digest of changes to the package, or the released version."""
    return _revision("HEAD")


def code() -> str:
    """What identifies the package: the git tree of its folder, with a digest of changes to it, or the released version."""
    return _revision("HEAD:./")


def _revision(of: str) -> str:
    package = Path(anem.__file__).parent
    released = f"anem {anem.__version__}"
    try:
        if not _git(package, "ls-files", "__init__.py"):
            return released
        head = _git(package, "rev-parse", of).decode().strip()
        changes = _git(package, "diff", "HEAD", "--", ".")
        for file in _git(package, "ls-files", "--others", "--exclude-standard", "*.py").decode().split():
            changes += file.encode() + (package / file).read_bytes()
    except (OSError, subprocess.CalledProcessError):
        return released
    return head if not changes else f"{head}+{hashlib.sha256(changes).hexdigest()[:8]}"


def _git(folder: Path, *arguments: str) -> bytes:
    return subprocess.run(["git", *arguments], cwd=folder, capture_output=True, check=True).stdout
