"""``anem restore --method``: baselines by name, from the command line and from Python, and what they refuse."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import anem
from anem.baselines import BASELINES, DAPS, DPS, Composition, ConditionalNetwork, PaperSampler, make_baseline
from anem.baselines.conditional import ConditionalConfig
from anem.cli import main
from anem.cli.method import ENERGY, METHODS
from anem.cli.options import named_values
from anem.gaussian import make_power_law_gaussian
from anem.network import NetworkConfig
from anem.operators import make_operator
from anem.random import generator_of, generators_for
from anem.sample import MALA
from anem.statistics import DataStatistics

SIZE = 8
PRIOR = make_power_law_gaussian(1, SIZE, SIZE, variance=0.015)
OF_ENERGIES = [name for name, baseline in BASELINES.items() if not baseline.conditional]
CONDITIONAL = [name for name, baseline in BASELINES.items() if baseline.conditional]
BOX = ("--task", "inpaint-box", "--box", "4", "--samples", "2")
NOISE = ("--sigma", "0.1")


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
        assert main(["restore", "x.npy", *BOX, *NOISE, "--method", method, *model, *arguments, "--json"]) == 0
        return json.loads(capsys.readouterr().out)

    return run


@pytest.fixture
def refused(capsys):
    def run(*arguments: str) -> str:
        assert main(["restore", "x.npy", *BOX, "--out", "new", *arguments]) == 2
        said = capsys.readouterr()
        (line,) = said.err.splitlines()
        assert said.out == "" and not Path("new").exists()
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
    own = [generator_of(seed, method) for seed in (5, 6)]  # and not those of the measurement's noise
    restored = make_baseline(method, model, 12, samples=2)(measurement, operator, 0.1, own)
    np.testing.assert_allclose(samples(), restored.detach(), atol=1e-5)
    assert record["method"] == method and record["steps"] == 12 and record["settings"] == {}
    assert "energy_samples" not in record["images"][0] and not Path("out/x_0000/std_exact.png").exists()


@pytest.mark.parametrize("method", BASELINES)
@pytest.mark.parametrize("steps", [10, 25])
def test_calls_are_counted_and_no_more_than_allowed(method, steps, restore):
    calls = restore(method, "--steps", str(steps))["calls"]
    assert 0.75 * steps <= calls <= steps


@pytest.mark.parametrize(("method", "least"), [("daps", 5), ("composition", 10), ("paper", 3), ("dps", 1), ("palette", 1)])
def test_fewer_calls_than_a_method_needs_are_refused(method, least, restore, refused):
    model = ("--model", method) if method in CONDITIONAL else ()
    if least > 1:
        line = refused("--method", method, *model, "--steps", str(least - 1))
        assert f"{method}: calls: wanted at least {least} network calls with these settings, got {least - 1}" in line
    assert restore(method, "--steps", str(least))["calls"] == least


def test_settings_that_cost_calls_are_minded():
    assert make_baseline("daps", PRIOR, 100, settings={"ode": 2}) == DAPS(PRIOR, levels=50, ode=2)
    assert make_baseline("paper", PRIOR, 101, settings={"corrections": 0}) == PaperSampler(PRIOR, levels=100, corrections=0)
    assert make_baseline("composition", PRIOR, 100, settings={"mala": 9}) == Composition(PRIOR, levels=10, corrector=MALA(9))
    assert make_baseline("dps", PRIOR, 100) == DPS(PRIOR, steps=100)


@pytest.mark.parametrize("method", BASELINES)
def test_the_settings_are_those_of_the_class(method):
    """Whatever a setting is called, it reaches the restorer; without any, the restorer has its authors' values."""
    baseline, model = BASELINES[method], network(method) if method in CONDITIONAL else PRIOR
    default = make_baseline(method, model, 100)
    for name, value in baseline.settings.items():
        if name == "mala":
            continue
        assert getattr(default, name) == value
        other = (not value) if isinstance(value, bool) else 0.9 if value is None else 2 * value
        assert getattr(make_baseline(method, model, 100, settings={name: other}), name) == other
        if name in baseline.optional:
            assert getattr(make_baseline(method, model, 100, settings={name: None}), name) is None


def test_settings_change_what_is_restored(restore):
    restore("dps")
    plain = samples()
    record = restore("dps", "--set", "scale=0", "--set", "clip=true")
    assert record["settings"] == {"scale": 0, "clip": True}
    assert np.abs(samples() - plain).max() > 0.01


def test_a_network_for_one_task_brings_its_noise(restore, refused):
    assert restore("palette")["sigma"] == 0.1
    for method in CONDITIONAL:
        line = refused("--method", method, "--model", method, "--sigma", "0.2")
        assert "--sigma: wanted 0.1, the noise that the network was trained for, got 0.2" in line


def test_real_images_need_no_sigma_where_the_network_was_trained_for_one(restore):
    np.save("real.npy", np.load("x.npy"))
    for method in CONDITIONAL:
        given = ("real.npy", "--task", "inpaint-box", "--box", "4", "--measured", "--method", method, "--model", method, "--steps", "4")
        assert main(["restore", *given]) == 0


def test_other_methods_take_the_calls_that_python_gives_them(restore):
    assert restore("red-diff")["steps"] == 250


@pytest.mark.parametrize("method", ["dps", "red-diff", "daps"])
def test_a_method_that_does_not_use_sigma_refuses_a_map_of_it(method, capsys, monkeypatch):
    monkeypatch.setattr("anem.blind.estimate", None)  # before minutes go into it
    given = ("x.npy", "--task", "denoise", "--sigma", "0.2", "--blind", "box", "--method", method, "--steps", "10")
    assert main(["restore", *given]) == 2
    assert f"--blind: wanted a family with one sigma, as {method} does not tell noisy pixels" in capsys.readouterr().err
    assert not Path("out").exists()
    even = torch.full((1, 1, SIZE, SIZE), 0.1)
    uneven = even.clone()
    uneven[..., :4] = 3.0
    measurement = torch.full((1, 1, SIZE, SIZE), 0.5)
    restorer = make_baseline(method, PRIOR, 10)
    restorer(measurement, make_operator("denoise", (SIZE, SIZE)), even, generators_for([0]))
    with pytest.raises(ValueError, match="sigma: wanted one number an image"):
        restorer(measurement, make_operator("denoise", (SIZE, SIZE)), uneven, generators_for([0]))


def test_which_methods_say_that_they_take_a_map_of_sigma():
    settings = [("daps", {"tau": None}), *((name, {}) for name in BASELINES)]
    taken = [name for name, given in settings if BASELINES[name].noise_maps(given)]
    assert taken == ["daps", "composition", "paper"]


def test_methods_that_use_sigma_take_a_map_of_it():
    sigma = torch.full((1, 1, SIZE, SIZE), 0.1)
    sigma[..., :4] = 3.0
    measurement = torch.full((1, 1, SIZE, SIZE), 0.5)
    restored = {}
    for name, settings in (("composition", {}), ("paper", {}), ("daps", {"tau": None})):
        for level in (0.1, sigma):
            restorer = make_baseline(name, PRIOR, 20, settings=settings)
            restored[name, torch.is_tensor(level)] = restorer(
                measurement, make_operator("denoise", (SIZE, SIZE)), level, generators_for([0])
            )
        assert (restored[name, True] - restored[name, False]).abs().max() > 0.01


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
    assert main(["diagnose", "out", *BOX[:4], *NOISE, "--truth", "x.npy"]) == 0
    assert "out: mean" in capsys.readouterr().out


def test_settings_are_numbers_truths_or_none():
    given = ("a=1", "b=-2", "c=1e-4", "d=true", "e=False", "f=none")
    assert named_values("--set", given) == {"a": 1, "b": -2, "c": 1e-4, "d": True, "e": False, "f": None}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--method", "magic"), "--method: wanted one of energy, dps"),
        (("--set", "scale=1"), "--set: wanted a --method that has settings"),
        (("--method", "dps", "--set", "size=1"), "--set: dps: size: no such setting, wanted scale or clip"),
        (("--method", "dps", "--set", "steps=10"), "--set: dps: steps: no such setting"),
        (("--method", "indi", "--set", "clamp=1"), "--set: indi: clamp: no such setting, wanted none"),
        (("--method", "dps", "--set", "scale"), "--set: wanted NAME=VALUE"),
        (("--method", "dps", "--set", "scale=big"), "--set: wanted NAME=VALUE"),
        (("--method", "dps", "--set", "scale=inf"), "--set: wanted NAME=VALUE with a finite number"),
        (("--method", "dps", "--set", f"scale={'9' * 400}"), "--set: wanted NAME=VALUE with a finite number"),
        (("--method", "dps", "--set", "=1"), "--set: wanted NAME=VALUE"),
        (("--method", "dps", "--set", "scale=1", "--set", "scale=2"), "--set: wanted scale once, got 1 and 2"),
        (("--method", "dps", "--set", "scale=true"), "--set: dps: scale: wanted a number, got True"),
        (("--method", "dps", "--set", "scale=none"), "--set: dps: scale: wanted a number, got None"),
        (("--method", "dps", "--set", "clip=1"), "--set: dps: clip: wanted true or false, got 1"),
        (("--method", "daps", "--set", "ode=1.5"), "--set: daps: ode: wanted a whole number, got 1.5"),
        (("--method", "daps", "--set", "tau=true"), "--set: daps: tau: wanted a number or none, got True"),
        (("--method", "daps", "--set", "ode=0"), "--method: daps: ode: wanted at least 1, got 0"),
        (("--method", "daps", "--set", "tau=0"), "--method: daps: tau: wanted a number > 0, got 0"),
        (("--method", "daps", "--set", "lowest=0"), "--method: daps: lowest: wanted a number > 0, got 0"),
        (("--method", "daps", "--set", "highest=-1"), "--method: daps: highest: wanted a number > 0, got -1"),
        (("--method", "daps", "--set", "highest=0.01"), "--method: daps: lowest: wanted at most highest, 0.01, got 0.1"),
        (("--method", "red-diff", "--set", "learning_rate=-1"), "--method: red-diff: wanted weight >= 0 and learning_rate > 0"),
        (("--method", "paper", "--set", "corrections=-1"), "--method: paper: wanted levels >= 1 and corrections >= 0"),
        (("--method", "paper", "--set", "temperature=-1"), "--method: paper: wanted snr > 0 and temperature >= 0"),
        (("--method", "composition", "--set", "mala=-1"), "--method: composition: mala: wanted 0 steps or more, got -1"),
        (("--method", "composition", "--set", "highest=-1"), "--method: composition: wanted levels >= 2 and highest > lowest > 0"),
        (("--method", "dps", "--set", "scale=-1"), "--method: dps: scale: wanted a number >= 0, got -1"),
        (("--method", "dps", "--set", "scale=1e300"), "--method: dps diverged, other settings (--set)"),
        (("--method", "paper", "--set", "snr=1e30"), "--method: paper diverged, other settings (--set)"),
        (("--method", "dps", "--steps", "1001"), "--method: dps: steps: wanted 1 to 1000, got 1001"),
        (("--method", "dps", "--steps", "0"), "--steps"),
        (("--method", "dps", "--sampler", "sde-2m", "--mala", "2"), "--sampler and --mala: for --method energy alone"),
        (("--method", "dps", "--plot-schedule"), "--plot-schedule: for --method energy alone"),
        (("--method", "palette", "--blind", "box"), "--blind: wanted a --method that restores by an energy"),
        (("--method", "palette", "--compile"), "--compile: wanted a --method that restores by an energy"),
        (("--method", "palette", "--model", "indi"), "wanted a network trained for palette, got one for indi"),
        (("--method", "palette"), "--model: wanted the folder of a network trained by 'anem train' for palette"),
        (("--method", "palette", "--model", "palette", "--box", "5"), "--method: palette: operator: wanted that of the training"),
    ],
)
def test_what_is_refused(arguments, message, refused):
    assert message in refused(*arguments)


def test_a_baseline_needs_the_kind_of_model_it_was_made_for():
    with pytest.raises(ValueError, match="wanted an energy, got a network for one task"):
        make_baseline("dps", network("palette"))
    with pytest.raises(ValueError, match="wanted a network for one task, got an energy"):
        make_baseline("indi", PRIOR)
    with pytest.raises(ValueError, match="method: wanted one of dps"):
        make_baseline("ours", PRIOR)
    with pytest.raises(ValueError, match="calls: wanted at least 1, got 0"):
        make_baseline("dps", PRIOR, 0)
    assert isinstance(make_baseline("paper", PRIOR), anem.Restorer)
