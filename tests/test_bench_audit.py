"""``anem bench audit`` and ``anem audit`` on an exact energy, at the smallest size."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from anem.bench import audit, harness
from anem.bench.harness import Context, Settings, run_bench
from anem.bench.report import Report
from anem.cli import main
from anem.data import MNIST_SPLITS
from anem.energy import EnergyModel
from anem.gaussian import make_power_law_gaussian
from anem.likelihood import AuditSize, audits, trusted_level
from anem.likelihood.audits import ONE_CALL

TINY = AuditSize(
    flow=2,
    flow_steps=2,
    chains=4,
    population=1,
    steps=6,
    gradient=6,
    paths=2,
    nodes=8,
    truths=4,
    samples=3,
    variance=3,
    draws=2,
    sampling=3,
)


class Drifting(EnergyModel):
    """A Gaussian whose energy has the wrong slope in Σ."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = make_power_law_gaussian(1, 4, 4)
        self.statistics = self.inner.statistics

    def energy(self, y, cov):
        return self.inner.energy(y, cov) + 0.3 * cov.logdet()


@pytest.fixture(autouse=True)
def small(tmp_path, monkeypatch):
    """An empty folder to work in, sixteen made-up pictures of 4 x 4 as MNIST, an exact or a drifting energy for every model."""
    prior = make_power_law_gaussian(1, 4, 4)
    x = prior.sample(16, torch.Generator().manual_seed(0)).mul(256).clamp(0, 255).byte()[:, 0].numpy()
    (tmp_path / "data").mkdir()
    np.savez(tmp_path / "data" / "mnist.npz", x_test=x, y_test=np.zeros(16))
    np.save(tmp_path / "pictures.npy", x[..., None])
    monkeypatch.setitem(MNIST_SPLITS, "tuning", ("test", 0, 16))
    monkeypatch.setattr(AuditSize, "quick", lambda: TINY)
    monkeypatch.chdir(tmp_path)
    models = {"exact": prior, "drifting": Drifting()}
    monkeypatch.setattr("anem.hub.load", lambda name, device="cpu": models[name])
    monkeypatch.setattr(Context, "load", lambda self, name: models[name])
    monkeypatch.setattr(harness, "commit", lambda: "c0ffee")


def bench(tmp_path, model: str):
    settings = Settings(model=model, data=tmp_path / "data", quick=True, out=tmp_path)
    return run_bench(audit.run, "audit", settings, command=f"audit {model}", json_file=tmp_path / "audit.json")


def test_every_figure_has_its_error_and_an_interrupted_run_continues(tmp_path, monkeypatch):
    figures = bench(tmp_path, "exact").figures
    assert {key.split("/")[0] for key in figures} == {"gradient", "strangers", "paths", "variance", "flow", "log Z", "ranks"}
    judged = [key for key, figure in figures.items() if figure.aim]
    assert judged and all(f"{key}, standard error" in figures for key in judged)
    assert Image.open(tmp_path / "audit.png").height > 800
    monkeypatch.setattr(audit, "report", None)  # whatever is measured again fails
    assert bench(tmp_path, "exact").figures == figures


def test_a_drifting_energy_misses_its_aims(tmp_path):
    missed = bench(tmp_path, "drifting").missed
    assert any(key.startswith("log Z/") for key in missed) and any(key.startswith("gradient/") for key in missed)


def test_what_cannot_be_decided_is_missed_in_a_full_run_and_not_judged_in_a_quick_one(tmp_path):
    undecided = audit.Check("a", "b", "c", 0.0, 1.0, "±0.1 (s.e. 0.03)", None)
    for quick, holds in ((True, None), (False, False)):
        context = Context(Report("n", "c", 0, "n"), quick=quick, out=tmp_path)
        audit.report(context, undecided)
        assert context.report.figures["a/b/c"].holds is holds


def test_the_trusted_range_ends_at_the_first_level_that_is_wrong_or_undecided():
    what = ONE_CALL
    figures = [("variance", f"white {v}", what, holds) for v, holds in (("0.01", True), ("0.0001", True), ("0.1", False), ("1", True))]
    figures += [("variance", "white 0.001", "one call/samples − 1", False), ("gradient", "white 0.001", what, False)]
    assert trusted_level(figures) == 0.01
    assert trusted_level([*figures, ("variance", "white 0.001", what, None)]) == 0.0001
    assert trusted_level(figures[2:3]) is None


# --- the command ---


def test_the_command_prints_a_verdict_a_line_and_writes_the_same(capsys):
    code = main(["audit", "exact", "--quick", "--images", "pictures.npy", "--json", "--report", "figures.json"])
    printed = json.loads(capsys.readouterr().out)
    with open("figures.json", encoding="utf-8") as file:
        assert json.load(file) == printed
    assert "variance_trusted_to" in printed
    assert code == (1 if printed["failed"] else 0)
    x = torch.rand(2, 1, 4, 4)
    assert len({(c["audit"], c["where"]) for c in printed["checks"]}) >= len(list(audits(make_power_law_gaussian(1, 4, 4), x, TINY)))
    assert all({"value", "standard_error", "criterion", "holds"} <= set(c) for c in printed["checks"])
    assert main(["audit", "exact", "--quick", "--only", "paths"]) == 0
    lines = capsys.readouterr().out
    assert lines.count("detour") == 3 and "pass" in lines and "log Z" not in lines and "one call" not in lines
    main(["audit", "exact", "--quick", "--only", "variance"])
    assert "posterior variance from one call: within 10 % of the squared error" in capsys.readouterr().out


def test_a_failed_audit_is_exit_code_1(capsys):
    assert main(["audit", "drifting", "--quick", "--only", "logz"]) == 1
    output = capsys.readouterr()
    assert "FAIL" in output.out and "failed" in output.err


@pytest.mark.parametrize(
    "arguments",
    [
        ["--only", "nonsense"],
        ["--data", "elsewhere"],
        ["--images", "missing.png"],
        ["--seed", "-1"],
        ["--report", "."],
        ["--report", "pictures.npy/figures.json"],
    ],
    ids=lambda a: a[0],
)
def test_unusable_input_is_one_line_and_exit_code_2(arguments, capsys):
    assert main(["audit", "exact", "--quick", *arguments]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("anem: error: ")
