"""What watches a run: progress, history, TensorBoard, the exported model, and whatever a user adds."""

from __future__ import annotations

import copy
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
from rich.progress import Progress as Bar

from anem.data import load_dataset
from anem.files import write_text
from anem.headroom import LEAST, fit_headroom
from anem.hub import read_card
from anem.network import EnergyNetwork
from anem.train.checkpoint import TrainState
from anem.train.config import TrainConfig, to_dict
from anem.train.evaluate import Report

__all__ = ["Callback", "Export", "History", "Progress", "StepRecord", "TensorBoard", "default_callbacks"]


HEADROOM_IMAGES = 256
"""Held-out images that bound the energy."""


@dataclass(frozen=True)
class StepRecord:
    """One optimiser step, or the mean over the steps since the last record.

    Arguments:
        step, images: steps done and images seen after it.
        loss, a_dsm, a_csm: training losses.
        grad_norm: Euclidean norm of the gradient before clipping.
        learning_rate: the rate used.
        images_per_second: speed since this run began.
        seconds_left: until the images or the minutes of the run are used up.
    """

    step: int
    images: int
    loss: float
    a_dsm: float
    a_csm: float
    grad_norm: float
    learning_rate: float
    images_per_second: float
    seconds_left: float


class Callback:
    """Hooks of the training loop, called on the main process only; each does nothing unless overridden.

    ``state`` gives access to model, averaged model and optimiser; a hook that changes them changes the training.
    """

    def on_start(self, state: TrainState, config: TrainConfig) -> None:
        """Before the first step of this run; ``state.step`` > 0 if it resumes."""

    def on_step(self, state: TrainState, record: StepRecord) -> None:
        """After every ``log.steps`` optimiser steps and after the last."""

    def on_evaluate(self, state: TrainState, report: Report) -> None:
        """After every held-out evaluation."""

    def on_checkpoint(self, state: TrainState, path: Path) -> None:
        """After a checkpoint was written."""

    def on_end(self, state: TrainState) -> None:
        """After the last step of this run, also when it stops by an error."""


class History(Callback):
    """``history.jsonl``: one JSON object a line, ``kind`` start, step, evaluation or checkpoint.

    On resume the lines after the checkpoint are dropped, so that no step is there twice.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def _write(self, kind: str, state: TrainState, values: dict[str, Any]) -> None:
        with self.path.open("a") as file:
            file.write(json.dumps({"kind": kind, "step": state.step, "images": state.images} | values) + "\n")

    def on_start(self, state: TrainState, config: TrainConfig) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if self.path.exists():
            kept = [line for line in self.path.read_text().splitlines() if _step_of(line) <= state.step]
            write_text(self.path, "".join(line + "\n" for line in kept), durable=True)
        self._write("start", state, {"config": to_dict(config)})

    def on_step(self, state: TrainState, record: StepRecord) -> None:
        self._write("step", state, vars(record))

    def on_evaluate(self, state: TrainState, report: Report) -> None:
        self._write("evaluation", state, {"cells": report.to_dict()})

    def on_checkpoint(self, state: TrainState, path: Path) -> None:
        self._write("checkpoint", state, {"file": path.name})


def _step_of(line: str) -> float:
    """The step of a history line; infinity for a line cut off by a crash."""
    try:
        return json.loads(line)["step"]
    except (json.JSONDecodeError, KeyError, TypeError):
        return float("inf")


class TensorBoard(Callback):
    """The same figures as TensorBoard scalars, over images seen."""

    def __init__(self, folder: Path) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise ValueError("log.tensorboard: wanted the package tensorboard installed, or false") from None
        self.folder, self.make = folder, SummaryWriter

    def on_start(self, state: TrainState, config: TrainConfig) -> None:
        self.writer = self.make(str(self.folder), purge_step=state.images + 1 if state.step else None)

    def on_step(self, state: TrainState, record: StepRecord) -> None:
        for name in ("loss", "a_dsm", "a_csm", "grad_norm", "learning_rate", "images_per_second"):
            self.writer.add_scalar(f"train/{name}", getattr(record, name), state.images)

    def on_evaluate(self, state: TrainState, report: Report) -> None:
        for cell in report.cells():
            if cell.family == "all" or cell.level is None:
                where = "/".join(p for p in (cell.family, None if cell.level is None else f"1e{cell.level:+d}") if p)
                for name in ("a_dsm", "a_csm", "energy"):
                    self.writer.add_scalar(f"{name}/{where}", getattr(cell, name), state.images)

    def on_end(self, state: TrainState) -> None:
        self.writer.close()


class Progress(Callback):
    """A bar with loss, images/s and time left on a terminal; a line a record elsewhere."""

    def __init__(self) -> None:
        text = "loss {task.fields[loss]:.4f}  {task.fields[speed]:.0f} images/s  {task.fields[left]} left"
        columns = (TextColumn("training"), BarColumn(), MofNCompleteColumn(), TextColumn(text))
        console = Console(stderr=True)
        self.live = console.is_terminal
        self.bar = Bar(*columns, console=console, disable=not self.live)

    def on_start(self, state: TrainState, config: TrainConfig) -> None:
        self.total = config.images
        self.task = self.bar.add_task("", total=config.images, completed=state.images, loss=float("nan"), speed=0.0, left="?")
        self.bar.start()

    def on_step(self, state: TrainState, record: StepRecord) -> None:
        left = _clock(record.seconds_left)
        self.bar.update(self.task, completed=state.images, loss=record.loss, speed=record.images_per_second, left=left)
        if not self.live:
            done = f"step {record.step}  {record.images}/{self.total} images"
            print(f"{done}  loss {record.loss:.4f}  {record.images_per_second:.0f} images/s  {left} left", file=sys.stderr)

    def on_evaluate(self, state: TrainState, report: Report) -> None:
        c = report.cell()
        line = f"held out at step {state.step}: a_dsm {c.a_dsm:.4f}  a_csm {c.a_csm:.4f}  energy {c.energy:.4f} nats/dim"
        self.bar.console.print(line) if self.live else print(line, file=sys.stderr)

    def on_end(self, state: TrainState) -> None:
        self.bar.stop()
        if state.images < self.total:
            print(f"stopped at {state.images} of {self.total} images; to resume, run the same command again", file=sys.stderr)


def _clock(seconds: float) -> str:
    minutes, s = divmod(int(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{s:02d}"


class Export(Callback):
    """The averaged model as a pretrained folder, renewed with every checkpoint.

    Once it has seen all images its energy is bounded (:mod:`anem.headroom`), if there are 64 held-out ones or more.

    The model that :func:`anem.train.train` returns has no bound.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_start(self, state: TrainState, config: TrainConfig) -> None:
        if not hasattr(state.ema.model, "save_pretrained"):
            raise ValueError(f"callbacks: Export wants a model with save_pretrained, got {type(state.ema.model).__name__}; name others")
        self.config, self.cells = to_dict(config), []
        self.end, self.noise = config.images, config.noise
        self.held_out = None if config.held_out is None else load_dataset(config.held_out)
        if state.step and (self.folder / "card.json").is_file():
            self.cells = read_card(self.folder).get("held_out", [])

    def on_evaluate(self, state: TrainState, report: Report) -> None:
        self.cells = report.to_dict()

    def on_checkpoint(self, state: TrainState, path: Path) -> None:
        card = {"steps": state.step, "images_seen": state.images, "training": self.config, "held_out": self.cells}
        model = state.ema.model
        complete, held_out = state.images >= self.end, self.held_out
        if complete and held_out and len(held_out) >= LEAST and isinstance(model, EnergyNetwork) and model.config.form == "anchored":
            images = held_out.batch(torch.arange(min(HEADROOM_IMAGES, len(held_out))), torch.Generator().manual_seed(1))
            model = copy.copy(model)
            try:
                model.headroom = fit_headroom(model, images.to(model.offset.device), self.noise)
            except ValueError as error:  # the model is worth more than its bound
                card["without headroom"] = str(error)
        model.save_pretrained(self.folder, card)  # type: ignore[operator]


def default_callbacks(config: TrainConfig) -> list[Callback]:
    """Model export, which may refuse the model, and history; TensorBoard and progress as configured."""
    output = Path(config.output)
    callbacks: list[Callback] = [Export(output / "model"), History(output / "history.jsonl")]
    if config.log.tensorboard:
        callbacks.append(TensorBoard(output / "tensorboard"))
    if config.log.progress:
        callbacks.append(Progress())
    return callbacks
