"""``anem restore --method``: baselines by name, from the command line and from Python, and what they refuse."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import anem
from anem.baselines import BASELINES, DAPS, DPS, ConditionalNetwork, PaperSampler, make_baseline
from anem.baselines.conditional import ConditionalConfig
from anem.cli import main
from anem.cli.method import ENERGY, METHODS, parse_settings
from anem.gaussian import make_power_law_gaussian
from anem.network import NetworkConfig
from anem.operators import make_operator
from anem.random import generators_for
from anem.statistics import DataStatistics

SIZE = 8
PRIOR = make_power_law_gaussian(1, SIZE, SIZE, variance=0.015)
OF_ENERGIES = [name for name, baseline in BASELINES.items() if not baseline.conditional]
CONDITIONAL = [name for name, baseline in BASELINES.items() if baseline.conditional]
BOX = ("--task", "inpaint-box", "--box", "4", "--sigma", "0.1", "--samples", "2")


def network(method: str) -> ConditionalNetwork:
    torch.manual_seed(0)
    shape = NetworkConfig(channels=(4, 4), blocks=(1, 1), stem=1, embedding=4)
    return ConditionalNetwork(shape, ConditionalConfig(method, "inpaint-box", {"box": 4}, 0.1), DataStatistics(1, SIZE, SIZE))


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """An empty folder to work in, with two clean images and networks for a box; an exact Gaussian for every energy."""
    monkeypatch.setattr("anem.hub.load", lambda name, device="cpu": PRIOR)
    monkeypatch.chdir(tmp_path)
    np.save("x.npy", PRIOR.sample(2, torch.Generator().manual_seed(0)).clamp(0, 1).numpy()[:, 0])
    for method in CONDITIONAL:
        network(method).save_pretrained(method)


@pytest.fixture
def restore(capsys):
    def run(method: str, *arguments: str) -> dict:
        model = ("--model", method) if method in CONDITIONAL else ()
        assert main(["restore", "x.npy", *BOX, "--method", method, *model, *arguments, "--json"]) == 0
        return json.loads(capsys.readouterr().out)

    return run


@pytest.fixture
def refused(capsys):
    def run(*arguments: str) -> str:
        assert main(["restore", "x.npy", *BOX, *arguments]) == 2
        said = capsys.readouterr()
        (line,) = said.err.splitlines()
        assert said.out == "" and not Path("out").exists()
        return line

    return run


def samples() -> np.ndarray:
    return np.stack([np.load(f"out/x_000{b}/arrays.npz")["samples"] for b in range(2)], 1)


def test_the_names_of_the_help_are_all():
    assert METHODS.split(", ") == [ENERGY, *BASELINES]


@pytest.mark.parametrize("method", BASELINES)
def test_the_command_line_and_python_restore_the_same(method, restore):
    record = restore(method, "--steps", "12", "--seed", "5")
    model = network(method).eval() if method in CONDITIONAL else PRIOR
    clean = torch.from_numpy(np.load("x.npy")).float()[:, None]
    operator = make_operator("inpaint-box", clean.shape, box=4)
    measurement = operator.measure(clean, 0.1, generators_for(range(5, 7)))
    restored = make_baseline(method, model, 12, samples=2)(measurement, operator, 0.1, generators_for(range(5, 7)))
    np.testing.assert_allclose(samples(), restored.detach(), atol=1e-5)
    assert record["method"] == method and record["steps"] == 12 and record["settings"] == {}
    assert "energy_samples" not in record["images"][0] and not Path("out/x_0000/std_exact.png").exists()


@pytest.mark.parametrize("method", BASELINES)
@pytest.mark.parametrize("steps", [10, 25])
def test_calls_are_counted_and_no_more_than_allowed(method, steps, restore):
    calls = restore(method, "--steps", str(steps))["calls"]
    assert 0.75 * steps <= calls <= steps


def test_settings_that_spend_calls_are_minded():
    assert make_baseline("daps", PRIOR, 100, settings={"ode": 2}).levels == 50
    assert make_baseline("daps", PRIOR, 100, settings={"ode": 2, "levels": 3}) == DAPS(PRIOR, levels=3, ode=2)
    assert make_baseline("paper", PRIOR, 101, settings={"corrections": 0}) == PaperSampler(PRIOR, levels=100, corrections=0)
    assert make_baseline("dps", PRIOR, 100) == DPS(PRIOR, steps=100)


def test_settings_change_what_is_restored(restore):
    restore("dps")
    plain = samples()
    record = restore("dps", "--set", "scale=0", "clip=false")
    assert record["settings"] == {"scale": 0, "clip": False}
    assert np.abs(samples() - plain).max() > 0.01


def test_a_seed_repeats_a_restoration(restore):
    found = []
    for seed in ("1", "1", "2"):
        restore("daps", "--steps", "10", "--seed", seed)
        found.append(samples())
    np.testing.assert_array_equal(found[0], found[1])
    assert np.abs(found[0] - found[2]).max() > 0.01


def test_an_unknown_degradation_is_estimated_for_a_baseline_too(restore, capsys):
    assert main(["restore", "x.npy", "--task", "denoise", "--sigma", "0.2", "--blind", "white", "--method", "composition", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["blind"] == "white" and len(record["estimates"]) == 2


def test_measurements_without_a_truth_give_a_table_all_the_same(capsys):
    Image.fromarray(np.full((SIZE, SIZE), 255, np.uint8)).save("mask.png")
    assert main(["restore", "x.npy", "--mask", "mask.png", "--sigma", "0.1", "--method", "red-diff", "--steps", "5"]) == 0
    printed = capsys.readouterr().out
    assert "restoration by red-diff, sigma 0.1" in printed and "x_0001" in printed and "energy" not in printed


def test_what_a_baseline_made_can_be_diagnosed(restore, capsys):
    restore("daps")
    assert main(["diagnose", "out", *BOX[:6], "--truth", "x.npy"]) == 0
    assert "out: mean" in capsys.readouterr().out


def test_settings_are_numbers_truths_or_none():
    given = ("a=1", "b=-2", "c=1e-4", "d=true", "e=False", "f=none")
    assert parse_settings(given) == {"a": 1, "b": -2, "c": 1e-4, "d": True, "e": False, "f": None}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--method", "magic"), "--method: wanted one of energy, dps"),
        (("--set", "scale=1"), "--set: wanted a --method that has settings"),
        (("--method", "dps", "--set", "size=1"), "dps: size: no setting of it, wanted one of scale, steps, clip"),
        (("--method", "dps", "--set", "scale"), "wanted NAME=VALUE"),
        (("--method", "dps", "--set", "scale=big"), "wanted NAME=VALUE"),
        (("--method", "dps", "--set", "=1"), "wanted NAME=VALUE"),
        (("--method", "dps", "--set", "scale=true"), "scale: wanted float, got True"),
        (("--method", "dps", "--set", "clip=1"), "clip: wanted bool, got 1"),
        (("--method", "daps", "--set", "ode=1.5"), "ode: wanted int, got 1.5"),
        (("--method", "daps", "--set", "ode=0"), "ode: wanted at least 1, got 0"),
        (("--method", "dps", "--set", "scale=-1"), "scale: wanted a number >= 0, got -1"),
        (("--method", "dps", "--set", "scale=nan"), "scale: wanted a number >= 0, got nan"),
        (("--method", "dps", "--steps", "1001"), "steps: wanted 1 to 1000, got 1001"),
        (("--method", "dps", "--sampler", "sde-2m", "--mala", "2"), "--sampler and --mala: for --method energy alone"),
        (("--method", "dps", "--plot-schedule"), "--plot-schedule: for --method energy alone"),
        (("--method", "palette", "--blind", "box"), "--blind: wanted a --method that restores by an energy"),
        (("--method", "palette", "--model", "indi"), "wanted a network trained for palette, got one for indi"),
        (("--method", "palette", "--model", "digits"), "not a model of this package"),
        (("--method", "palette", "--model", "palette", "--box", "5"), "wanted that of the training"),
        (("--method", "paper", "--set", "snr=1e30"), "paper"),
    ],
)
def test_what_is_refused(arguments, message, refused):
    assert message in refused(*arguments)


def test_a_baseline_needs_the_kind_of_model_it_was_made_for():
    with pytest.raises(ValueError, match="wanted an energy, got ConditionalNetwork"):
        make_baseline("dps", network("palette"))
    with pytest.raises(ValueError, match="wanted a conditional network trained for indi, got Gaussian"):
        make_baseline("indi", PRIOR)
    with pytest.raises(ValueError, match="method: wanted one of dps"):
        make_baseline("ours", PRIOR)
    with pytest.raises(ValueError, match="calls: wanted at least 1, got 0"):
        make_baseline("dps", PRIOR, 0)
    assert isinstance(make_baseline("paper", PRIOR), anem.Restorer)
