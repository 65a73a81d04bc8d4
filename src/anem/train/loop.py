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
from anem.random import normal, seed_of
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
    # Set-up: device, precision (TF32 rounding exceeds the noise at small variances), parts, state.
    if config.threads:
        torch.set_num_threads(config.threads)
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    wrapper = DistributedDataParallelKwargs(find_unused_parameters=True)
    accelerator = Accelerator(cpu=config.device == "cpu", mixed_precision="no", kwargs_handlers=[wrapper])
    pieces = accelerator.num_processes * config.accumulation
    if config.batch_size % pieces:
        raise ValueError(f"batch_size: wanted a multiple of {pieces} (processes × accumulation), got {config.batch_size}")
    size = config.batch_size // pieces
    parts = parts or build_parts(config)
    store = CheckpointStore(Path(config.output) / "checkpoints", config.checkpoint, to_dict(config))
    snapshot = None if (path := store.latest()) is None else Snapshot.read(path)
    devices = [accelerator.device] if accelerator.device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        torch.manual_seed(seed_of(config.seed, "weights"))
        model = parts.model(fit_statistics(config, parts.data, snapshot)).to(accelerator.device)
    fused = accelerator.device.type == "cuda"
    optimiser = torch.optim.Adam(model.parameters(), betas=config.optimiser.betas, eps=config.optimiser.epsilon, fused=fused)
    state = TrainState(model, EMA(model, config.ema), optimiser)
    if snapshot is not None:
        state.load(snapshot)
        for moments in optimiser.state.values():  # the fused optimiser wants its step counts beside the parameters
            moments["step"] = moments["step"].to(accelerator.device if fused else "cpu")
    if config.precision == "bfloat16":
        if not isinstance(model, EnergyNetwork):
            raise ValueError(f"precision: 'bfloat16' wants an EnergyNetwork, got {type(model).__name__}")
        model.unet.scope.precision = torch.bfloat16  # of this network: the averaged one stays as it is
    module = accelerator.prepare_model(LossModule(model.train(), parts.loss, config.weight))
    held_out = draw_held_out(config, parts)
    watchers = (default_callbacks(config) if callbacks is None else callbacks) if accelerator.is_main_process else ()

    statistics = copy.deepcopy(model.statistics).cpu()
    fast = fast_step(config, module, accelerator.device) if pieces == 1 else None
    parts.draw(
        (1, *parts.data.batch(torch.arange(1), torch.Generator().manual_seed(0)).shape[1:]), statistics, torch.Generator().manual_seed(0)
    )  # refused before anything is written

    def draw(step: int, seen: int, piece: int) -> tuple[Tensor, NoiseBatch, Tensor]:
        """Images, covariances and white noise of one piece of one step, a function of the arguments alone."""
        indices = parts.data.indices(seen, config.batch_size, config.seed)
        generator = torch.Generator().manual_seed(seed_of(config.seed, step, piece))
        x = parts.data.batch(indices[piece * size : (piece + 1) * size], generator)
        return x, parts.draw(tuple(x.shape), statistics, generator), normal(x.shape, generator, x)

    def checkpoint() -> None:
        if accelerator.is_main_process:
            path = store.save(state)
            for watcher in watchers:
                watcher.on_checkpoint(state, path)

    def evaluate() -> None:
        if held_out is not None and accelerator.is_main_process:
            report = held_out.evaluate(state.ema.model, parts.loss)
            for watcher in watchers:
                watcher.on_evaluate(state, report)

    started, first, sums, since = time.monotonic(), state.images, torch.zeros(4), state.step
    ahead: Future | None = None
    with torch.random.fork_rng(devices), _stop_requested() as stop, ThreadPoolExecutor(1) as background, contextlib.ExitStack() as at_end:
        for watcher in watchers:
            watcher.on_start(state, config)
            at_end.callback(watcher.on_end, state)
        while state.images < config.images:
            # One optimiser step: the pieces of the batch that belong to this process, then Adam and the average.
            if not fast:
                optimiser.zero_grad(set_to_none=True)
            losses, suspects = torch.zeros(3), []
            for k in range(config.accumulation):
                piece = accelerator.process_index * config.accumulation + k
                x, noise, eps = ahead.result() if ahead else draw(state.step, state.images, piece)
                if config.capture and fast:
                    ahead = background.submit(draw, state.step + 1, state.images + config.batch_size, piece)
                torch.manual_seed(seed_of(config.seed, state.step, piece, "dropout"))
                device = accelerator.device
                twin = None if noise.twin is None else noise.twin.to(device)
                inputs = x.to(device), noise.cov.to(device), eps.to(device), twin
                if fast:
                    total, a_dsm, a_csm = fast(*inputs)
                else:
                    with contextlib.nullcontext() if k == config.accumulation - 1 else accelerator.no_sync(module):
                        total, a_dsm, a_csm = module(*inputs)
                        accelerator.backward(total / config.accumulation)
                losses += torch.stack([total.detach(), a_dsm.mean(), a_csm.mean()]).cpu() / config.accumulation
                suspects.append((noise, (a_dsm + a_csm).cpu()))
            limit = config.optimiser.clip_norm or math.inf
            norm = nn.utils.clip_grad_norm_(model.parameters(), limit).cpu()
            if not bool(torch.isfinite(losses).all() and torch.isfinite(norm)):
                raise NonFiniteLoss(_blame(state.step, losses, norm, suspects, parts.families, store.latest()))
            rate = config.optimiser.rate(state.images)
            for group in optimiser.param_groups:
                group["lr"] = rate
            optimiser.step()
            state.step, state.images = state.step + 1, state.images + config.batch_size
            state.ema.update(model, state.images, config.batch_size)
            sums += torch.cat([losses, norm[None]])

            # Watch, evaluate, save; all processes agree on stopping.
            elapsed = time.monotonic() - started
            halt = stop.is_set() or 0 < 60 * config.max_minutes <= elapsed
            if accelerator.num_processes > 1:
                halt = bool(accelerator.reduce(torch.tensor(float(halt), device=accelerator.device), "sum") > 0)
            end = halt or state.images >= config.images
            if state.step % config.log.steps == 0 or end:
                loss, a_dsm, a_csm, grad_norm = (accelerator.reduce(sums.to(accelerator.device), "mean") / (state.step - since)).tolist()
                speed = (state.images - first) / elapsed
                left = (config.images - state.images) / speed
                left = min(left, 60 * config.max_minutes - elapsed) if config.max_minutes else left
                record = StepRecord(state.step, state.images, loss, a_dsm, a_csm, grad_norm, rate, speed, max(0.0, left))
                sums, since = torch.zeros(4), state.step
                for watcher in watchers:
                    watcher.on_step(state, record)
            if (config.evaluation.steps and state.step % config.evaluation.steps == 0) or state.images >= config.images:
                evaluate()
            if store.due(state.step) or end:
                checkpoint()
            if end:
                state.interrupted = stop.is_set() and state.images < config.images
                break
    accelerator.wait_for_everyone()
    return state.ema.model


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
