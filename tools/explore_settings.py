"""Settings and numbers of calls of the methods of ``anem bench compare``, tried before the list of four of each is drawn up.

    python tools/explore_settings.py OUT.json [METHOD ...]

On 32 tuning images (test images 1128 to 1159 of MNIST), which no comparison tunes on or judges by: LPIPS, DISTS, KID and PSNR of every
candidate at every task, the same for all methods. Priors are read from ``runs``; needs ``make data``.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import torch

from anem.baselines import ConditionalNetwork, make_baseline
from anem.baselines.named import Setting
from anem.bench.compare_data import Images
from anem.bench.compare_judge import Judge
from anem.bench.compare_methods import METHODS, Make, Method, find_prior
from anem.bench.compare_problem import TASKS, Problem, restore
from anem.bench.revision import code, commit
from anem.files import replacing
from anem.hub import load
from anem.restorer import EnergyRestorer
from anem.sample import Sampler, WaterFilling, steps_within

COUNT, SKIP = 32, 96
BUDGETS = (250, 100, 50)
SEED = 40_000_000


def _ours(steps: int, power: float = 1.0) -> Make:
    return lambda model, calls: EnergyRestorer(model, Sampler(schedule=WaterFilling(min(steps, steps_within(calls)), power=power)))


def _baseline(name: str, **settings: Setting) -> Make:
    return lambda model, calls: make_baseline(name, model, calls, settings=settings)


CANDIDATES: dict[str, dict[str, Make]] = {
    "ours": {f"{n} steps, power {p:g}": _ours(n, p) for n in (4, 9, 24, 249) for p in (1.0, 0.5)},
    "paper's sampler": {"no corrector": _baseline("paper", corrections=0)}
    | {f"snr {r}": _baseline("paper", snr=r) for r in (0.03, 0.1, 0.16, 0.3)},
    "DPS": {f"ζ = {z:g}": _baseline("dps", scale=z) for z in (1.0, 2.0, 4.0, 8.0)},
    "RED-Diff": {
        f"lr {r}, λ {w}": _baseline("red-diff", learning_rate=r, weight=w)
        for r, w in ((0.1, 0.25), (0.1, 0.03), (0.03, 0.03), (0.01, 0.03), (0.03, 0.003))
    },
    "DAPS": {
        "5 flow steps, lr 1e-4": _baseline("daps"),
        "2, lr 1e-4, from 10": _baseline("daps", ode=2, highest=10.0),
        "2, largest stable step, from 10": _baseline("daps", ode=2, learning_rate=1e-3, highest=10.0),
        "2, lr 1e-4, τ = σ, from 10": _baseline("daps", ode=2, tau=None, highest=10.0),
        "5, lr 1e-4, from 10": _baseline("daps", highest=10.0),
    },
    "composition": {
        f"{s} MALA from {h or 'λ_max'}, added {a:g}": _baseline("composition", mala=s, highest=h, added=a)
        for s, a in ((1, 0.1), (4, 1.0), (4, 0.1), (4, 0.01), (9, 0.1))
        for h in (None, 1.0)
    },
    "Palette": {"clamp": _baseline("palette"), "no clamp": _baseline("palette", clamp=False)},
    "InDI": {"": _baseline("indi")},
}
"""What is tried of each method, at 250, 100 and 50 calls; of Palette and InDI also at 25 and 5, of the paper's sampler at 25 and 10."""

FEWER = {"paper's sampler": (25, 10), "Palette": (25, 5), "InDI": (25, 5)}


def trials(names: list[str]) -> Iterator[tuple[str, str, int, str, dict[str, float | str]]]:
    """(method, setting, calls, task, figures), one after the other."""
    images = Images.of("mnist", Path("data"), "tuning", 32, COUNT, 5000, SKIP)
    judge = Judge(Path("data"), load("digits"), images.reference)
    for name in names:
        for task in METHODS[name].tasks or TASKS:
            prior = METHODS[name].prior
            where = find_prior(name, task, Path("runs"), "digits")
            model = ConditionalNetwork.from_pretrained(where) if prior == "conditional" else load(where)
            if prior != "conditional":
                model.compile()
            problem = Problem.of(TASKS[task], images.judged, SEED)
            for setting, make in CANDIDATES[name].items():
                for calls in BUDGETS[:1] if name == "ours" else (*BUDGETS, *FEWER.get(name, ())):
                    try:
                        restored = restore(Method(prior, {"it": make}), "it", model, problem, calls)
                    except ValueError:  # so few calls are no step
                        continue
                    figures: dict[str, float | str] = {"diverged": "yes"}
                    if restored is not None:
                        figures = {k: float(v.mean()) for k, v in judge.scores(restored.x, problem).items()}
                        kernel = judge.kernel(restored.x)
                        if kernel is not None:
                            figures["KID"] = float(kernel(torch.ones(1, COUNT, dtype=torch.float64)))
                    yield name, setting, calls, task, figures


def main(out: str, *names: str) -> None:
    record: dict = {"command": f"python tools/explore_settings.py {out} {' '.join(names)}".strip(), "commit": commit(), "code": code()}
    found: dict[str, dict[str, float | str]] = {}
    for name, setting, calls, task, figures in trials(list(names or CANDIDATES)):
        found[f"{task}/{name}/{setting}, {calls} calls"] = figures
        with replacing(Path(out)) as path:
            path.write_text(json.dumps(record | {"trials": found}, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    if len(sys.argv) < 2 or not set(sys.argv[2:]) <= set(CANDIDATES):
        sys.exit(__doc__)
    main(*sys.argv[1:])
