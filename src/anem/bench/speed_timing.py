"""Times measured in alternation, and what the machine can do at best.

Two codes timed one after the other on a shared machine differ by what else it did meanwhile. Here every round runs each of them once, in
an order that turns round from one round to the next, and what counts are medians of ratios within a round. With one thread the clock is
the processor time of this process, which other programs slow down little; with several it is the time on the wall.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from anem.bench.counts import Counts

__all__ = ["Machine", "alternate", "exponent", "ratio", "seconds"]

Runs = Mapping[str, Callable[[], object]]


def alternate(runs: Runs, rounds: int = 5, clock: Callable[[], float] | None = None) -> dict[str, Tensor]:
    """Seconds of every run in every round, (rounds,) each, after one call of each that does not count.

    Arguments:
        runs: what to time, by name; a run should take far longer than the clock's tick, which for processor time may be 10 ms.
        rounds: how often. clock: in place of the one this module describes.

    Raises:
        ValueError: fewer than one round.
    """
    if rounds < 1:
        raise ValueError(f"rounds: wanted at least 1, got {rounds}")
    clock = clock or (time.process_time if torch.get_num_threads() == 1 else time.perf_counter)
    for run in runs.values():
        run()
    times: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(rounds):
        for name in list(runs)[:: 1 if number % 2 else -1]:
            start = clock()
            runs[name]()
            times[name].append(clock() - start)
    return {name: torch.tensor(t, dtype=torch.float64) for name, t in times.items()}


def seconds(times: Tensor) -> float:
    """Median of the rounds."""
    return float(times.quantile(0.5))


def ratio(times: Mapping[str, Tensor], over: str, under: str) -> float:
    """Median over rounds of the time of ``over`` divided by that of ``under`` in the same round."""
    return float((times[over] / times[under]).quantile(0.5))


def exponent(sizes: list[float], values: list[float]) -> float:
    """p of the least-squares fit of value ∝ sizeᵖ.

    Raises:
        ValueError: fewer than two sizes.
    """
    if len(sizes) < 2:
        raise ValueError(f"sizes: wanted at least 2, got {len(sizes)}")
    x, y = (torch.tensor([math.log(v) for v in column], dtype=torch.float64) for column in (sizes, values))
    x = x - x.mean()
    return float((x @ y) / (x @ x))


class Machine:
    """The best rates of this machine at this number of threads.

    Arguments:
        convolution: multiply-adds a second, the best of forward passes of the network's own 3 × 3 convolutions.
        memory: bytes a second of c = a·b on tensors larger than the caches, 48 MB together: short enough for a slice of a shared processor.
    """

    def __init__(self, convolution: float, memory: float) -> None:
        self.convolution, self.memory = convolution, memory

    @classmethod
    def measure(
        cls,
        batch: int = 32,
        shapes: tuple[tuple[int, int], ...] = ((48, 14), (96, 7), (96, 14)),
        rounds: int = 15,
        dtype: torch.dtype = torch.float32,
    ) -> Machine:
        """From convolutions of (channels, side) in ``shapes``, channels last, in ``dtype``, and a product of long vectors of float32."""
        runs: dict[str, Callable[[], object]] = {}
        work = {}
        for channels, side in shapes:
            x = torch.randn(batch, channels, side, side).to(dtype, memory_format=torch.channels_last)
            w = torch.randn(channels, channels, 3, 3).to(dtype, memory_format=torch.channels_last)
            runs[f"{channels}, {side}"] = lambda x=x, w=w: torch.conv2d(x, w, padding=1)  # type: ignore[misc]
            work[f"{channels}, {side}"] = batch * side**2 * channels**2 * 9
        a, b, c = (torch.ones(1 << 22) for _ in range(3))
        runs["memory"] = lambda: torch.mul(a, b, out=c)
        # The best round on the wall: a peak is what the machine can do, not what others left of it.
        times = alternate(runs, rounds, time.perf_counter)
        convolution = max(n / float(times[name].min()) for name, n in work.items())
        return cls(convolution, 3 * a.numel() * a.element_size() / float(times["memory"].min()))

    def floor(self, counts: Counts) -> float:
        """Seconds of the counted multiply-adds at the peak and of all other operations' bytes at the memory's rate."""
        return counts.multiply_adds / self.convolution + counts.bytes_moved / self.memory
