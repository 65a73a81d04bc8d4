"""The training loop. To resume, run the same command again.

Everything random in step s derives from (seed, s, which piece of the batch), so an interrupted and resumed run equals an
uninterrupted one, bit for bit on one machine, and the state is only what :class:`TrainState` holds. The images of a step follow those
seen before it; so do those of a run that goes on with another ``batch_size``.
"""

from __future__ import annotations

import contextlib
import copy
import math
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs
from torch import Tensor, nn

from anem.corruptions import NoiseBatch
from anem.network import EnergyNetwork
from anem.random import generator_of, normal, seed_of
from anem.train.callbacks import Callback, StepRecord, default_callbacks
from anem.train.checkpoint import CheckpointStore, Snapshot, TrainState
from anem.train.config import TrainConfig, to_dict
from anem.train.ema import EMA
from anem.train.parts import Parts, build_parts, draw_held_out, fit_statistics
from anem.train.step import LossModule, fast_step

__all__ = ["NonFiniteLoss", "train"]


class NonFiniteLoss(RuntimeError):
    """A loss or gradient became NaN or infinite; the last checkpoint was written before and is good."""


@contextlib.contextmanager
def _stop_requested() -> Iterator[threading.Event]:
    """An event that the first SIGTERM or SIGINT sets; a second one acts as usual."""
    event, previous = threading.Event(), {}

    def handler(number: int, frame: Any) -> None:
        event.set()
        signal.signal(number, previous[number])

    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGTERM, signal.SIGINT):
            previous[number] = signal.signal(number, handler)
    try:
        yield event
    finally:
        for number, old in previous.items():
            signal.signal(number, old)


@contextlib.contextmanager
def _subnormals_are_zero() -> Iterator[None]:
    """Numbers below 1e-38 count as 0 meanwhile: a processor takes a hundred times longer over them, and losses near 0 make many.

    In this thread and those it starts; workers that torch has started before go on as they were.
    """
    before = bool(torch.full((), 1e-40, dtype=torch.float32, device="cpu") * 1 == 0)
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(before)


@_subnormals_are_zero()
def train(config: TrainConfig, *, parts: Parts | None = None, callbacks: Sequence[Callback] | None = None) -> nn.Module:
    """Train until ``config.images`` images, a time limit or a signal; returns the averaged (EMA) model.

    Resumes from the newest checkpoint in ``config.output`` if there is one.

    Arguments:
        parts: in place of what the config describes.
        callbacks: in place of :func:`default_callbacks`.

    Raises:
        NonFiniteLoss: with step, family and noise level; the last good checkpoint stays.
        ValueError: a damaged or foreign checkpoint, or a batch that does not divide among the processes.
        OSError: a checkpoint could not be written; the one before stays.
    """
    run = _Run(config, parts, callbacks)
    with run.own_random_numbers(), _stop_requested() as stop, run.watched():
        end = run.complete
        while not end:
            losses, norm = run.step()
            end = run.ends(stop.is_set())
            run.log(losses, norm, end)
            run.save(end)
            run.state.interrupted = end and run.asked and not run.complete
    run.accelerator.wait_for_everyone()
    return run.state.ema.model


class _Run:
    """One process's part of a training: what it is made of, and where it stands."""

    def __init__(self, config: TrainConfig, parts: Parts | None, callbacks: Sequence[Callback] | None) -> None:
        self.config = config
        if config.threads:
            torch.set_num_threads(config.threads)
        # TF32 rounding exceeds the noise at small variances.
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
        wrapper = DistributedDataParallelKwargs(find_unused_parameters=True)
        self.accelerator = Accelerator(cpu=config.device == "cpu", mixed_precision="no", kwargs_handlers=[wrapper])
        self.device = self.accelerator.device
        pieces = self.accelerator.num_processes * config.accumulation
        if config.batch_size % pieces:
            raise ValueError(f"batch_size: wanted a multiple of {pieces} (processes × accumulation), got {config.batch_size}")
        self.size = config.batch_size // pieces
        self.parts = parts = parts or build_parts(config)
        self.store = CheckpointStore(Path(config.output) / "checkpoints", config.checkpoint, to_dict(config) | dict(parts.settings))
        self.state = self._state()
        self.module = self.accelerator.prepare_model(LossModule(self.state.model.train(), parts.loss, config.weight))
        self.fast = fast_step(config, self.module, self.device) if pieces == 1 else None
        self.held_out = draw_held_out(config, parts)
        main = self.accelerator.is_main_process
        self.watchers = (default_callbacks(config) if callbacks is None else callbacks) if main else ()
        self.statistics = copy.deepcopy(self.state.model.statistics).cpu()
        seed = torch.Generator().manual_seed
        shape = (1, *parts.data.batch(torch.arange(1), seed(0)).shape[1:])
        parts.draw(shape, self.statistics, seed(0))  # refused before anything is written
        self.started, self.first = time.monotonic(), self.state.images
        self.sums, self.since = torch.zeros(4), self.state.step
        self.ahead: Future | None = None
        self.asked = False
        self.background = ThreadPoolExecutor(1)

    def _state(self) -> TrainState:
        """A fresh model and optimiser, or those of the newest checkpoint."""
        config, path = self.config, self.store.latest()
        snapshot = None if path is None else Snapshot.read(path)
        if snapshot is not None:
            snapshot.check_continues(self.store.card)
        with self.own_random_numbers():
            torch.manual_seed(seed_of(config.seed, "weights"))
            model = self.parts.model(fit_statistics(config, self.parts.data, snapshot)).to(self.device)
        fused = self.device.type == "cuda"
        optimiser = torch.optim.Adam(model.parameters(), betas=config.optimiser.betas, eps=config.optimiser.epsilon, fused=fused)
        state = TrainState(model, EMA(model, config.ema), optimiser)
        if snapshot is not None:
            state.load(snapshot)
            for moments in optimiser.state.values():  # the fused optimiser wants its step counts beside the parameters
                moments["step"] = moments["step"].to(self.device if fused else "cpu")
        if config.precision == "bfloat16":
            if not isinstance(model, EnergyNetwork):
                raise ValueError(f"precision: 'bfloat16' wants an EnergyNetwork, got {type(model).__name__}")
            model.unet.scope.precision = torch.bfloat16  # of this network: the averaged one stays as it is
        return state

    def own_random_numbers(self) -> contextlib.AbstractContextManager:
        """What is drawn inside leaves the caller's random numbers as they are."""
        return torch.random.fork_rng([self.device] if self.device.type == "cuda" else [])

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        """Callbacks are told of the start, and of the end however it comes."""
        with self.background, contextlib.ExitStack() as at_end:
            for watcher in self.watchers:
                watcher.on_start(self.state, self.config)
                at_end.callback(watcher.on_end, self.state)
            yield

    @property
    def complete(self) -> bool:
        """Whether all images have been seen."""
        return self.state.images >= self.config.images

    # --- one step ---

    def step(self) -> tuple[Tensor, Tensor]:
        """One step of Adam and of the average over the pieces of the batch that are this process's: losses (3,) and the gradient's norm.

        Raises:
            NonFiniteLoss: either is not finite.
        """
        config, state = self.config, self.state
        if not self.fast:
            state.optimiser.zero_grad(set_to_none=True)
        losses, suspects = torch.zeros(3), []
        for k in range(config.accumulation):
            noise, values = self._piece(k)
            losses += torch.stack([v.mean() for v in values]) / config.accumulation
            suspects.append((noise, values[1] + values[2]))
        norm = nn.utils.clip_grad_norm_(state.model.parameters(), config.optimiser.clip_norm or math.inf).cpu()
        if not bool(torch.isfinite(losses).all() and torch.isfinite(norm)):
            raise NonFiniteLoss(_blame(state.step, losses, norm, suspects, self.parts.families, self.store.latest()))
        for group in state.optimiser.param_groups:
            group["lr"] = config.optimiser.rate(state.images)
        state.optimiser.step()
        state.step, state.images = state.step + 1, state.images + config.batch_size
        state.ema.update(state.model, state.images, config.batch_size)
        return losses, norm

    def _piece(self, k: int) -> tuple[NoiseBatch, list[Tensor]]:
        """Gradients of the k-th piece, added to those that are there; its noise, the loss, (), and both losses of every image, (B,)."""
        config, state, piece = self.config, self.state, self.accelerator.process_index * self.config.accumulation + k
        x, noise, eps = self.ahead.result() if self.ahead else self._draw(state.step, state.images, piece)
        if config.capture and self.fast:
            self.ahead = self.background.submit(self._draw, state.step + 1, state.images + config.batch_size, piece)
        torch.manual_seed(seed_of(config.seed, state.step, piece, "dropout"))
        twin = None if noise.twin is None else noise.twin.to(self.device)
        inputs = x.to(self.device), noise.cov.to(self.device), eps.to(self.device), twin
        if self.fast:
            values = self.fast(*inputs)
        else:
            last = k == config.accumulation - 1
            with contextlib.nullcontext() if last else self.accelerator.no_sync(self.module):
                values = self.module(*inputs)
                self.accelerator.backward(values[0] / config.accumulation)
        return noise, [v.detach().cpu() for v in values]

    def _draw(self, step: int, seen: int, piece: int) -> tuple[Tensor, NoiseBatch, Tensor]:
        """Images, covariances and white noise of one piece of one step, a function of the arguments alone."""
        indices = self.parts.data.indices(seen, self.config.batch_size, self.config.seed)
        generator = generator_of(self.config.seed, step, piece)
        x = self.parts.data.batch(indices[piece * self.size : (piece + 1) * self.size], generator)
        return x, self.parts.draw(tuple(x.shape), self.statistics, generator), normal(x.shape, generator, x)

    # --- what is done about it ---

    def ends(self, asked: bool) -> bool:
        """Whether this was the last step; all processes agree on that, and on whether a signal ``asked`` for it."""
        late = 0 < 60 * self.config.max_minutes <= time.monotonic() - self.started
        if self.accelerator.num_processes > 1:
            told = torch.tensor([float(asked), float(late)], device=self.device)
            asked, late = (self.accelerator.reduce(told, "sum") > 0).tolist()
        self.asked = asked
        return asked or late or self.complete

    def log(self, losses: Tensor, norm: Tensor, end: bool) -> None:
        """Tell the callbacks of the means since the last time, every so many steps and at the end."""
        state, config = self.state, self.config
        self.sums += torch.cat([losses, norm[None]])
        if state.step % config.log.steps and not end:
            return
        elapsed = time.monotonic() - self.started
        means = (self.accelerator.reduce(self.sums.to(self.device), "mean") / (state.step - self.since)).tolist()
        speed = (state.images - self.first) / elapsed
        left = (config.images - state.images) / speed
        left = min(left, 60 * config.max_minutes - elapsed) if config.max_minutes else left
        rate = state.optimiser.param_groups[0]["lr"]
        record = StepRecord(state.step, state.images, *means, rate, speed, max(0.0, left))
        self.sums, self.since = torch.zeros(4), state.step
        for watcher in self.watchers:
            watcher.on_step(state, record)

    def save(self, end: bool) -> None:
        """Evaluate and write a checkpoint where these are due."""
        state, main = self.state, self.accelerator.is_main_process
        every = self.config.evaluation.steps
        if main and self.held_out is not None and ((every and state.step % every == 0) or self.complete):
            report = self.held_out.evaluate(state.ema.model, self.parts.loss)
            for watcher in self.watchers:
                watcher.on_evaluate(state, report)
        if main and (self.store.due(state.step) or end):
            path = self.store.save(state)
            for watcher in self.watchers:
                watcher.on_checkpoint(state, path)


def _blame(step: int, losses: Tensor, norm: Tensor, suspects: list, families: tuple[str, ...], path: Path | None) -> str:
    """What went wrong, where, and what is left."""
    found = []
    for noise, loss in suspects:
        level = noise.cov.values.log10().flatten(1).mean(1).cpu()
        bad = (~torch.isfinite(loss)).nonzero().flatten().tolist()
        found += [f"{families[int(noise.family[i])]} at log10 variance {float(level[i]):.2f}" for i in bad]
    where = "; ".join(found[:3]) or "no single image (the gradient overflowed, or another process was first)"
    good = f"the last good checkpoint is {path}" if path else "there is no checkpoint yet"
    return f"non-finite loss {float(losses[0])} (gradient norm {float(norm)}) at step {step}: {where}; {good}"
