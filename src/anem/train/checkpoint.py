"""Checkpoints: one safetensors file each, written beside its place and renamed, so that a reader never sees half of one.

All randomness of a run derives from (seed, step), hence weights, their average, the optimiser's moments and two counters are the
whole state. A checksum of the tensors travels in the header.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from anem.corruptions import NoiseConfig
from anem.data import DataConfig
from anem.files import replacing, write_text
from anem.train.config import CheckpointConfig
from anem.train.ema import EMA

__all__ = ["CheckpointStore", "Snapshot", "TrainState", "load_exactly"]

FORMAT = "anem-checkpoint-1"

RUN = ("seed", "weight", "statistics_images", "loss", "model", "data", "noise", "conditional")
"""Settings that make a run what it is: it goes on with the same, while rates, lengths, intervals and devices may change."""

READING = ("strict", "in_memory", "kind")
"""Settings of data that change nothing about the images."""

OPTIONAL = {f.name for kind in (DataConfig, NoiseConfig) for f in fields(kind) if f.default is None}
"""Settings that a file leaves out where they are None."""


@dataclass
class TrainState:
    """Everything that a training step changes: ``step`` optimiser steps done, ``images`` images seen.

    ``interrupted`` says, when the run has ended, that a signal ended it early.
    """

    model: nn.Module
    ema: EMA
    optimiser: torch.optim.Optimizer
    step: int = 0
    images: int = 0
    interrupted: bool = False

    def tensors(self) -> dict[str, Tensor]:
        """All tensors by name: ``model.…``, ``ema.…`` and ``optimiser.MOMENT.…`` for the moments of each parameter."""
        out = {f"model.{k}": v for k, v in self.model.state_dict().items()}
        out |= {f"ema.{k}": v for k, v in self.ema.model.state_dict().items()}
        for name, parameter in self.model.named_parameters():
            out |= {f"optimiser.{k}.{name}": v for k, v in self.optimiser.state.get(parameter, {}).items()}
        return {k: v.detach().cpu().contiguous().clone() for k, v in out.items()}

    def load(self, snapshot: Snapshot) -> None:
        """Continue from ``snapshot``.

        Raises:
            ValueError: it belongs to another model.
        """
        load_exactly(self.model, snapshot.part("model."), snapshot.path)
        load_exactly(self.ema.model, snapshot.part("ema."), snapshot.path)
        moments = snapshot.part("optimiser.")
        self.optimiser.state.clear()
        for name, parameter in self.model.named_parameters():
            for key in [k for k in moments if k.partition(".")[2] == name]:
                value = moments[key]
                # A moment has the memory layout of its parameter; the step counter stays on the CPU.
                copy = torch.empty_like(parameter).copy_(value) if value.ndim else value.clone()
                self.optimiser.state[parameter][key.partition(".")[0]] = copy.detach()
        self.step, self.images = snapshot.step, snapshot.images


@dataclass(frozen=True, eq=False)
class Snapshot:
    """A checkpoint that was read and found whole."""

    path: Path
    tensors: dict[str, Tensor]
    step: int
    images: int
    config: dict[str, Any]

    @classmethod
    def read(cls, path: str | Path) -> Snapshot:
        """Read and verify a checkpoint file.

        Raises:
            ValueError: the file is truncated, damaged, or not a checkpoint of this package.
        """
        path = Path(path)
        try:
            with safe_open(path, "pt") as file:
                header = file.metadata() or {}
                if header.get("format") != FORMAT:
                    raise ValueError(f"checkpoint {path}: wanted format {FORMAT!r}, got {header.get('format')!r}")
                tensors = {key: file.get_tensor(key) for key in file.keys()}
            step, images, config = int(header["step"]), int(header["images"]), json.loads(header["config"])
        except (SafetensorError, KeyError, json.JSONDecodeError) as error:
            raise ValueError(f"checkpoint {path}: truncated or damaged ({' '.join(str(error).split())})") from None
        if _checksum(tensors) != header.get("checksum"):
            raise ValueError(f"checkpoint {path}: damaged (the checksum of its tensors differs)")
        return cls(path, tensors, step, images, config)

    def check_continues(self, config: Mapping[str, Any]) -> None:
        """Raise ValueError if a run of this configuration is another than the checkpoint's; what that does not know may be anything."""

        def comparable(name: str, value: Any) -> Any:
            value = json.loads(json.dumps(value))
            return str(Path(value).resolve()) if name == "path" else value

        for key in (key for key in RUN if key in self.config and key in config):
            then, now = self.config[key], config[key]
            pairs = {key: (then, now)}
            if isinstance(then, Mapping) and isinstance(now, Mapping):
                names = (then.keys() & now.keys() | (then.keys() ^ now.keys()) & OPTIONAL) - {*READING}
                pairs = {f"{key}.{name}": (then.get(name), now.get(name)) for name in names}
            for name, (before, given) in sorted(pairs.items()):
                last = name.rpartition(".")[2]
                if comparable(last, before) != comparable(last, given):
                    raise ValueError(
                        f"checkpoint {self.path}: of a run with {name} = {json.dumps(before)}, got {json.dumps(given)};"
                        " give the run an output of its own, or go on with the same settings"
                    )

    def part(self, prefix: str) -> dict[str, Tensor]:
        """The tensors whose names start with ``prefix``, without it."""
        return {k.removeprefix(prefix): v for k, v in self.tensors.items() if k.startswith(prefix)}


@dataclass
class CheckpointStore:
    """The checkpoints of one run in a folder: ``step-00001000.safetensors``, …, and ``latest``, the name of the newest.

    Arguments:
        folder: where they are.
        config: how often to write and how many to keep.
        card: the run's settings as plain values, stored in every file.
    """

    folder: Path
    config: CheckpointConfig
    card: dict[str, Any]
    written: float = field(default_factory=time.monotonic)

    def due(self, step: int) -> bool:
        """Whether the step or the minutes rule asks for a checkpoint now."""
        minutes = (time.monotonic() - self.written) / 60
        return (self.config.steps > 0 and step % self.config.steps == 0) or 0 < self.config.minutes <= minutes

    def latest(self) -> Path | None:
        """The newest checkpoint, or None before the first.

        Raises:
            ValueError: ``latest`` names a file that is not there.
        """
        pointer = self.folder / "latest"
        if not pointer.exists():
            return None
        path = self.folder / Path(pointer.read_text().strip()).name
        if not path.is_file():
            raise ValueError(f"checkpoint {path}: missing, though {pointer} names it")
        return path

    def save(self, state: TrainState) -> Path:
        """Write a checkpoint, point ``latest`` at it, and delete the oldest ones beyond ``keep``.

        Raises:
            OSError: it could not be written (disk full, say); earlier checkpoints and ``latest`` are as they were.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"step-{state.step:08d}.safetensors"
        tensors = state.tensors()
        header = {"format": FORMAT, "step": str(state.step), "images": str(state.images), "config": json.dumps(self.card)}
        header["checksum"] = _checksum(tensors)
        with replacing(path, durable=True) as temporary:
            try:
                save_file(tensors, temporary, header)
            except SafetensorError as error:
                raise OSError(f"checkpoint {path}: not written ({error}); the last good one is {self.latest()}") from None
        write_text(self.folder / "latest", path.name + "\n", durable=True)
        self.written = time.monotonic()
        old = sorted(p for p in self.folder.glob("step-*.safetensors") if p != path)
        for extra in old[: max(0, len(old) + 1 - self.config.keep)]:
            extra.unlink(missing_ok=True)
        for half in self.folder.glob("*.tmp"):  # of a process that was killed while writing
            half.unlink(missing_ok=True)
        return path


def _checksum(tensors: dict[str, Tensor]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def load_exactly(model: nn.Module, tensors: dict[str, Tensor], path: Path) -> None:
    """Copy ``tensors`` of the checkpoint at ``path`` into a module of exactly these names and shapes, or raise ValueError."""
    own = {k: tuple(v.shape) for k, v in model.state_dict().items()}
    got = {k: tuple(v.shape) for k, v in tensors.items()}
    wrong = sorted(k for k in own.keys() | got.keys() if own.get(k) != got.get(k))
    if wrong:
        k = wrong[0]
        more = f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""
        raise ValueError(f"checkpoint {path}: of another model: {k}: wanted {own.get(k, 'none')}, got {got.get(k, 'none')}{more}")
    model.load_state_dict(tensors)
