"""Benches: every claim about the package as figures with aims, run with ``anem bench NAME``.

A bench is a module with a one-line docstring and a function ``run(context)`` that reports its figures to a
:class:`~anem.bench.harness.Context`. It is listed here by name, and imported only when it runs.
"""

from anem.bench.harness import Context, load_bench, run_bench
from anem.bench.report import Figure, Report, table

__all__ = ["BENCHES", "SHARED", "Context", "Figure", "Report", "load_bench", "run_bench", "table"]

BENCHES = {
    "oracle": "anem.bench.oracle",
    "samplers": "anem.bench.samplers",
    "sampling": "anem.bench.sampling",
    "digits": "anem.bench.digits",
    "ablation": "anem.bench.ablation",
    "compare": "anem.bench.compare",
    "mala": "anem.bench.mala",
    "schedules": "anem.bench.schedules",
    "blind": "anem.bench.blind",
    "speed": "anem.bench.speed",
    "recipe": "anem.bench.recipe",
    "estimators": "anem.bench.estimators",
    "audit": "anem.bench.audit",
    "diagnose": "anem.bench.diagnose",
}
"""Module of every bench, by its name."""

SHARED = ("audit", "blind", "compare", "diagnose", "digits", "mala", "recipe", "schedules")
"""Those whose work several processes can share."""
