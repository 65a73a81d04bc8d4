"""``anem restore --blind``: the degradation is estimated, then the images restored with it."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from anem.cli import main
from anem.cli.restore import estimates_of
from anem.gaussian import make_power_law_gaussian
from anem.operators import GaussianBlur

SIZE = 16
PRIOR = make_power_law_gaussian(1, SIZE, SIZE, variance=0.015)
FAST = ("--steps", "2", "--samples", "2")


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """An empty folder to work in, with two blurred pictures; an exact Gaussian for every model."""
    monkeypatch.setattr("anem.hub.load", lambda name, device="cpu": PRIOR)
    monkeypatch.chdir(tmp_path)
    generator = torch.Generator().manual_seed(0)
    x = PRIOR.sample(2, generator)
    m = torch.cat([GaussianBlur(8, std).measure(image[None], 0.02, generator) for image, std in zip(x, (0.8, 1.6), strict=True)])
    np.save("blurred.npy", m.numpy()[:, 0])
    np.save("clean.npy", x.clamp(0, 1).numpy()[:1, 0])


def result(capsys, *arguments: str) -> dict:
    assert main(["restore", *arguments, *FAST, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_every_measurement_gets_an_estimate_of_its_own_and_is_restored_with_it(capsys):
    record = result(capsys, "blurred.npy", "--blind", "blur")
    assert record["blind"] == "blur" and "sigma" not in record and "task" not in record
    for image, truth in zip(record["estimates"], ({"std": 0.8, "sigma": 0.02}, {"std": 1.6, "sigma": 0.02}), strict=True):
        for parameter in image["parameters"]:
            assert parameter["estimate"] == pytest.approx(truth[parameter["name"]], rel=0.15)
            low, high = parameter["interval_90"]
            assert low < parameter["estimate"] < high
    restored = np.load("out/blurred_0001/arrays.npz")["mean"]
    assert np.isfinite(restored).all() and restored.shape == (1, SIZE, SIZE)


def test_clean_images_are_degraded_first_and_the_settings_not_told(capsys):
    record = result(capsys, "clean.npy", "--blind", "white", "--task", "denoise", "--sigma", "0.1")
    (image,) = record["estimates"]
    assert image["parameters"][0]["estimate"] == pytest.approx(0.1, rel=0.2)
    assert record["images"][0]["psnr_mean"] > record["images"][0]["psnr_measurement"]


def test_a_sigma_given_for_real_measurements_is_known(capsys):
    record = result(capsys, "blurred.npy", "--blind", "blur", "--sigma", "0.02")
    assert [[p["name"] for p in image["parameters"]] for image in record["estimates"]] == [["std"], ["std"]]


def test_other_settings_are_known_too(capsys):
    record = result(capsys, "blurred.npy", "--blind", "blur", "--known", "std=0.8")
    assert [[p["name"] for p in image["parameters"]] for image in record["estimates"]] == [["sigma"], ["sigma"]]
    assert record["known"] == {"std": 0.8}


def test_the_estimates_are_printed(capsys):
    assert main(["restore", "clean.npy", "--blind", "white", "--task", "denoise", *FAST]) == 0
    assert "white, sigma 0.0" in capsys.readouterr().out
    assert Path("out/sheet.png").exists()


def test_what_is_not_resolved_or_at_an_end_is_marked():
    box = {"name": "side", "estimate": 12.0, "interval_90": [11.0, 13.0], "at_edge": True}
    (line,) = estimates_of({"blind": "box", "estimates": [{"name": "a", "resolved": False, "parameters": [box]}]})
    assert line == "a: box, side 12 (11 to 13, not resolved, end of range)"


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["blurred.npy", "--blind", "fog"], "--blind"),
        (["--blind", "blur"], "--blind"),
        (["blurred.npy", "--blind", "blur", "--task", "deblur", "--measured"], "--measured"),
        (["blurred.npy", "--blind", "blur", "--scale", "2"], "--scale"),
        (["blurred.npy", "--blind", "blur", "--std", "2", "--length", "9"], "--std and --length would tell it"),
        (["blurred.npy", "--blind", "box", "--sigma", "0.1"], "--sigma"),
        (["blurred.npy", "--blind", "white", "--sigma", "0.1"], "unknown setting"),
        (["blurred.npy", "--blind", "blur", "--known", "length=2"], "blur: wanted settings among std, sigma, got length"),
        (["blurred.npy", "--blind", "blur", "--sigma", "0.1", "--known", "sigma=0.2"], "--known: wanted sigma once, got it by --sigma too"),
        (["blurred.npy", "--blind", "box", "--known", "sigma=0.1"], "--blind: box has no noise of one sigma"),
        (["clean.npy", "--task", "denoise", "--known", "sigma=2"], "--known: wanted settings of a --blind family"),
        (["blurred.npy", "--blind", "blur", "--schedule", "geometic"], "schedule: wanted one of geometric"),
        (["clean.npy", "--blind", "super-resolution", "--task", "sr2"], "wanted measurements of the images' size, got 8 x 8 from sr2"),
    ],
)
def test_unusable_input_is_one_line_and_exit_code_2(arguments, named, capsys):
    assert main(["restore", *arguments, *FAST]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and named in lines[0]
    assert not Path("out").exists()
