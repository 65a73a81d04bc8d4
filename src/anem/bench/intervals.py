"""Estimates with their bounds, as figures."""

from __future__ import annotations

from anem.bench.harness import Context
from anem.metrics import Interval

__all__ = ["report_interval"]


def report_interval(
    context: Context, key: str, interval: Interval, aim: str | None = None, quick: bool = True, upper: str | None = None
) -> None:
    """Figures of the bounds and, last, of the estimate itself under ``key``, whose aim is ``aim``; that of the upper bound is ``upper``."""
    percent = f"{100 * interval.level:g} %"
    context.figure(f"{key}, {percent} from", interval.low)
    context.figure(f"{key}, {percent} to", interval.high, aim=upper, quick=quick)
    context.figure(key, interval.value, aim=aim, quick=quick)
