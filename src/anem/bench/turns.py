"""Training in turns: a training goes on for about so many seconds of processor time, and stops where it can be taken up again.

Setting up, judging and writing checkpoints is not on the clock. With several threads in torch it is time on the wall.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from anem.bench.harness import Context, pieces_folder
from anem.bench.report import write_json
from anem.energy import EnergyModel
from anem.files import write_text
from anem.train import Callback, NonFiniteLoss, Parts, StepRecord, TrainConfig, TrainState, train

__all__ = ["Clock", "Contender", "Point", "Record", "advance", "next_goal", "rewind", "spend", "sweep"]


@dataclass(frozen=True, eq=False)
class Contender:
    """A training: its name, what it is configured to do, and its parts."""

    name: str
    config: TrainConfig
    parts: Parts


class Clock(Callback):
    """Seconds from the first to the last step of a call of :func:`train`, and the images seen after it. Wants ``log.steps`` = 1."""

    seconds = 0.0

    def __init__(self) -> None:
        self.now: Callable[[], float] = time.process_time if torch.get_num_threads() == 1 else time.perf_counter

    def on_start(self, state: TrainState, config: TrainConfig) -> None:
        self.begin, self.images = self.now(), state.images

    def on_step(self, state: TrainState, record: StepRecord) -> None:
        self.seconds, self.images = self.now() - self.begin, state.images


def advance(contender: Contender, images: int) -> tuple[EnergyModel, float]:
    """Train until ``images`` have been seen in all; returns the averaged model and the seconds of this call.

    Raises:
        KeyboardInterrupt: the training was stopped before.
    """
    clock = Clock()
    model = train(replace(contender.config, images=images), parts=replace(contender.parts, held_out=None), callbacks=[clock])
    if clock.images < images:
        raise KeyboardInterrupt
    assert isinstance(model, EnergyModel)
    return model, clock.seconds


@dataclass(frozen=True)
class Point:
    """What a training had come to after ``seconds`` and ``images`` in all: its figures by name, where it was judged."""

    seconds: float
    images: int
    figures: dict[str, float] = field(default_factory=dict)


def next_goal(points: Sequence[Point], turn: float, batch: int) -> int:
    """Images after the next turn, by the speed of the last one. The first is one step: the weights are next to untrained.

    Arguments:
        points: after every turn so far.
        turn: its seconds. batch: images a step; a turn has at least one.
    """
    if not points:
        return batch
    before, last = [Point(0.0, 0), *points][-2:]
    steps = turn * (last.images - before.images) / (last.seconds - before.seconds) / batch
    return last.images + batch * max(1, round(steps))


def rewind(contender: Contender, images: int) -> None:
    """Take up the training at ``images``: a checkpoint after the last turn on record is as good as none.

    Raises:
        ValueError: there is no checkpoint of that point.
    """
    folder = Path(contender.config.output) / "checkpoints"
    if not images:
        shutil.rmtree(folder, ignore_errors=True)
        return
    kept = folder / f"step-{images // contender.config.batch_size:08d}.safetensors"
    if not kept.is_file():
        raise ValueError(f"{kept}: missing, though the record ends there; move {contender.config.output} away to start afresh")
    write_text(folder / "latest", kept.name + "\n", durable=True)
    for other in folder.glob("step-*.safetensors"):
        if other != kept:
            other.unlink()


@dataclass
class Record:
    """How far a training is, in a file that is renewed with every turn.

    Arguments:
        file: where. settings: of the training, as plain values. commit: of the code that began it.
        points: after every turn. stopped: why it ended before its time, if it did.
    """

    file: Path
    settings: dict[str, Any]
    commit: str
    points: list[Point] = field(default_factory=list)
    stopped: str = ""

    @classmethod
    def open(cls, file: Path, settings: dict[str, Any], commit: str) -> Record:
        """The record in ``file``, or a new one.

        Raises:
            ValueError: the file is of a training with other settings.
        """
        if not file.exists():
            return cls(file, settings, commit)
        data = json.loads(file.read_text(encoding="utf-8"))
        if data["settings"] != settings:
            raise ValueError(f"{file}: of a training with other settings; move its folder away to start afresh")
        return cls(file, settings, data["commit"], [Point(**p) for p in data["points"]], data["stopped"])

    @property
    def last(self) -> Point:
        """The last point, before all if there is none."""
        return self.points[-1] if self.points else Point(0.0, 0)

    def save(self) -> None:
        """Write the file, whole or not at all."""
        write_json(self.file, asdict(self) | {"file": self.file.name})


def spend(contender: Contender, record: Record, seconds: float, images: float, turn: float) -> EnergyModel:
    """Train in turns until the seconds or the images are used up, or the loss is no number; returns the averaged model.

    The time is used up to one step.

    Raises:
        NonFiniteLoss: in the very first step.
        KeyboardInterrupt: the training was stopped; the same call goes on from the last turn on record.
    """
    rewind(contender, record.last.images)
    while not record.stopped and record.last.seconds < seconds and record.last.images < images:
        spent = record.last.seconds
        goal = min(next_goal(record.points, min(turn, seconds - spent), contender.config.batch_size), images)
        try:
            _, took = advance(contender, int(goal))
        except NonFiniteLoss as error:
            if not record.points:
                raise
            record.stopped = str(error)
            rewind(contender, record.last.images)
        else:
            record.points.append(Point(spent + took, int(goal)))
        record.save()
    return advance(contender, record.last.images)[0]


def sweep(context: Context) -> None:
    """Empty the folder of a quick run that begins, unless workers have: it is to show that everything runs, not to go on."""
    if context.quick and not context.report.figures and not context.worker and not any(pieces_folder(context.out).glob("*.claim")):
        shutil.rmtree(context.out, ignore_errors=True)
        context.out.mkdir(parents=True)
