"""The command line: what each command writes and prints, and one line on stderr for whatever is wrong."""

import json
import math
import os
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import anem
from anem.bench import BENCHES, harness
from anem.cli import main
from anem.cli.degradation import OWN, TASKS
from anem.gaussian import make_power_law_gaussian
from anem.metrics import psnr
from anem.operators import SETTINGS
from anem.sample import KERNELS, SCHEDULES, as_kernel

SIZE = 16


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """An empty working folder, and an exact Gaussian, grey or in colour, for every model name."""
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    monkeypatch.setattr("anem.hub.load", lambda name, device="cpu": make_power_law_gaussian(3 if name == "colour" else 1, SIZE, SIZE))


@pytest.fixture
def pictures(tmp_path) -> Path:
    """A folder of two grey pictures and one in colour, of 16 x 16 pixels."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    x = make_power_law_gaussian(3, SIZE, SIZE).sample(3, torch.Generator().manual_seed(1)).mul(256).clamp(0, 255).byte()
    for i, name in enumerate("abc"):
        image = Image.fromarray(x[i].permute(1, 2, 0).numpy())
        (image if name == "c" else image.convert("L")).save(folder / f"{name}.png")
    return folder


@pytest.fixture
def anem_says(capsys):
    """Run a command that succeeds and return what it prints."""

    def run(*arguments) -> str:
        code = main([str(a) for a in arguments])
        output = capsys.readouterr()
        assert code == 0, output.err
        return output.out

    return run


@pytest.fixture
def anem_refuses(capsys):
    """Run a command that fails, and return its one line on stderr."""

    def run(*arguments) -> str:
        code = main([str(a) for a in arguments])
        output = capsys.readouterr()
        assert code == 2
        assert output.out == ""
        lines = output.err.splitlines()
        assert len(lines) == 1 and lines[0].startswith("anem: error: "), output.err
        return lines[0]

    return run


FAST = ("--steps", 2, "--samples", 2)


def files_in(folder: Path) -> set[str]:
    return {f.relative_to(folder).as_posix() for f in folder.rglob("*") if f.is_file()}


def pixels(path: Path) -> torch.Tensor:
    return (torch.from_numpy(np.array(Image.open(path)))[None].float() + 0.5) / 256


# --- restore ---


def test_restore_writes_everything_it_promises(pictures, anem_says):
    printed = anem_says("restore", pictures / "a.png", pictures / "b.png", "--task", "inpaint-box", *FAST)
    own = {
        "clean.png",
        "measurement.png",
        "mean.png",
        "sample_0.png",
        "sample_1.png",
        "std.png",
        "std_exact.png",
        "measurement.npy",
        "mask.npy",
        "arrays.npz",
    }
    assert files_in(Path("out")) == {f"{name}/{f}" for name in "ab" for f in own} | {"sheet.png", "result.json"}
    assert "out/sheet.png" in printed
    record = json.loads(Path("out/result.json").read_text())
    assert set(record["files"]) == files_in(Path("out")) - {"result.json"}
    assert (record["task"], record["samples"], record["steps"], record["calls"]) == ("inpaint-box", 2, 2, 3)
    assert [entry["name"] for entry in record["images"]] == ["a", "b"]


def test_the_figures_are_those_of_the_files(pictures, anem_says):
    record = json.loads(anem_says("restore", pictures / "a.png", "--task", "inpaint-box", "--box", 4, *FAST, "--json"))
    entry, own = record["images"][0], Path("out/a")
    clean = pixels(own / "clean.png")
    assert torch.equal(clean, pixels(pictures / "a.png"))
    for key, file in (("psnr_mean", "mean"), ("psnr_measurement", "measurement")):
        assert entry[key] == pytest.approx(float(psnr(pixels(own / f"{file}.png"), clean)), abs=0.1)
    hidden = torch.zeros(SIZE, SIZE, dtype=torch.bool)
    hidden[6:10, 6:10] = True
    assert entry["psnr_mean_hidden"] == pytest.approx(float(psnr(pixels(own / "mean.png"), clean, hidden)), abs=0.1)
    arrays = np.load(own / "arrays.npz")
    assert arrays["samples"].shape == (2, 1, SIZE, SIZE)
    np.testing.assert_allclose(arrays["std"], arrays["samples"].std(0, ddof=1), atol=1e-6)
    np.testing.assert_allclose(arrays["mean"], arrays["samples"].mean(0), atol=1e-6)


def test_the_exact_variance_is_that_of_the_posterior_where_it_is_given(pictures, anem_says):
    sigma = 0.1
    anem_says("restore", pictures / "a.png", "--task", "inpaint-box", "--sigma", sigma, *FAST)
    exact = np.load("out/a/arrays.npz")["variance_exact"][0]
    hidden = np.zeros((SIZE, SIZE), bool)
    hidden[4:12, 4:12] = True
    np.testing.assert_array_equal(np.isnan(exact), hidden)
    model = make_power_law_gaussian(1, SIZE, SIZE)
    operator = anem.Inpainting.centre_box((SIZE, SIZE), 8)
    observation = operator.observe(torch.zeros(1, 1, SIZE, SIZE, dtype=torch.float64), sigma, model.statistics)
    truth = model.posterior(observation.y, observation.cov).variance.reshape(SIZE, SIZE)
    np.testing.assert_allclose(exact[~hidden], truth[~torch.from_numpy(hidden)], rtol=1e-4)


@pytest.mark.parametrize("task", TASKS.split(", "))
def test_every_task_of_the_help_is_one(task, pictures, anem_says):
    record = json.loads(anem_says("restore", pictures / "a.png", "--task", task, "--steps", 1, "--samples", 1, "--json"))
    assert record["task"] == task
    assert math.isfinite(record["images"][0]["psnr_mean"])
    assert not Path("out/a/std.png").exists()


def test_the_tasks_of_the_help_are_all():
    assert tuple(TASKS.split(", ")) == anem.TASKS


@pytest.mark.parametrize("sampler", [name for name in KERNELS if not as_kernel(name).stochastic])
def test_a_flow_is_not_taken_for_samples(sampler, pictures, anem_refuses):
    assert "--sampler: wanted one of ancestral" in anem_refuses(
        "restore", pictures / "a.png", "--task", "denoise", "--sampler", sampler, *FAST
    )


@pytest.mark.parametrize("sampler", [name for name in KERNELS if as_kernel(name).stochastic])
def test_every_sampler_runs(sampler, pictures, anem_says):
    assert anem_says("restore", pictures / "a.png", "--task", "denoise", "--sampler", sampler, *FAST)


def test_the_path_of_the_noise_is_drawn_when_asked_for(pictures, anem_says, tmp_path):
    common = ("restore", pictures / "a.png", "--task", "denoise", *FAST)
    anem_says(*common, "--out", tmp_path / "without")
    anem_says(*common, "--schedule", "variance", "--plot-schedule", "--out", tmp_path / "with")
    drawn = {p.name for p in (tmp_path / "with").iterdir()} - {p.name for p in (tmp_path / "without").iterdir()}
    assert drawn == {"schedule.png"} and Image.open(tmp_path / "with" / "schedule.png").width > 1000


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_every_schedule_runs(schedule, pictures, anem_says):
    assert anem_says("restore", pictures / "a.png", "--task", "denoise", "--schedule", schedule, *FAST)


def test_mala_costs_a_call_a_step_and_says_what_it_accepted(pictures, anem_says):
    common = ("restore", pictures / "a.png", "--task", "denoise", *FAST, "--json")
    plain, corrected = (json.loads(anem_says(*common, *more)) for more in ((), ("--mala", 2)))
    assert corrected["calls"] - plain["calls"] == 2 * plain["steps"]
    assert 0 < corrected["acceptance"] <= 1 and "acceptance" not in plain
    assert corrected["images"] != plain["images"]
    assert "of the MALA steps accepted" in anem_says(*common[:-1], "--mala", 1)


def test_a_seed_repeats_a_result_and_another_does_not(pictures, anem_says):
    def run(*arguments) -> bytes:
        anem_says("restore", pictures / "a.png", "--task", "inpaint-random", *FAST, *arguments)
        return Path("out/a/sample_1.png").read_bytes()

    first = run("--seed", 3)
    assert run("--seed", 3) == first
    assert run("--seed", 4) != first


def test_colour_is_kept_by_a_model_in_colour_and_lost_otherwise(pictures, anem_says):
    for model, shape in (("colour", (2, 3, SIZE, SIZE)), ("grey", (2, 1, SIZE, SIZE))):
        anem_says("restore", pictures / "c.png", "--task", "sr2", "--model", model, *FAST)
        assert np.load("out/c/arrays.npz")["samples"].shape == shape


def test_without_images_the_bundled_ones_are_used(pictures, monkeypatch, anem_says):
    for name in "bc":
        (pictures / f"{name}.png").unlink()
    monkeypatch.setattr("anem.hub.locate", lambda name: pictures.parent)
    pictures.rename(pictures.parent / "examples")
    assert "inpaint-box" in anem_says("restore", *FAST)
    assert "a" in anem_says("logprob")


def test_bundled_digits_are_there():
    examples = sorted((anem.hub.WEIGHTS / "digits" / "examples").glob("*.png"))
    assert len(examples) == 8
    assert {Image.open(e).size for e in examples} == {(28, 28)}


# --- real measurements ---


@pytest.fixture
def mask(tmp_path) -> Path:
    array = np.full((SIZE, SIZE), 255, np.uint8)
    array[:5] = 0
    Image.fromarray(array).save(tmp_path / "mask.png")
    return tmp_path / "mask.png"


def test_a_masked_measurement_keeps_what_was_seen(pictures, mask, anem_says):
    record = json.loads(anem_says("restore", pictures / "a.png", "--mask", mask, "--sigma", 0, *FAST, "--json"))
    assert record["mask"] == str(mask)
    assert "psnr_mean" not in record["images"][0] and not Path("out/a/clean.png").exists()
    given, mean = pixels(pictures / "a.png"), pixels(Path("out/a/mean.png"))
    assert (given - mean)[:, 5:].abs().max() < 0.02
    assert (given - mean)[:, :5].abs().max() > 0.05
    measurement = pixels(Path("out/a/measurement.png"))
    assert torch.equal(measurement[:, 5:], given[:, 5:])


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.float32])
def test_a_mask_may_be_an_array(dtype, pictures, mask, tmp_path, anem_says):
    array = np.ones((SIZE, SIZE), dtype)
    array[:5] = 0
    np.save(tmp_path / "mask.npy", array)
    results = []
    for file in (mask, tmp_path / "mask.npy"):
        anem_says("restore", pictures / "a.png", "--mask", file, "--sigma", 0.05, *FAST)
        results.append(np.load("out/a/arrays.npz")["samples"])
    np.testing.assert_array_equal(*results)


@pytest.mark.parametrize("task", ["denoise", "sr2"])
@pytest.mark.parametrize("model", ["grey", "colour"])
def test_a_measurement_is_left_unclipped_and_can_be_given_again(task, model, pictures, tmp_path, anem_says):
    anem_says("restore", pictures / "c.png", "--task", task, "--sigma", 0.5, *FAST, "--model", model)
    first = np.load("out/c/arrays.npz")
    Path("out/c/measurement.npy").rename(tmp_path / "m.npy")
    Path("out").rename(tmp_path / "before")
    anem_says("restore", tmp_path / "m.npy", "--task", task, "--measured", "--sigma", 0.5, *FAST, "--model", model)
    again = np.load("out/m/arrays.npz")
    assert first["measurement"].min() < -0.1 and np.array_equal(again["measurement"], first["measurement"])


def test_random_pixels_are_restored_again_by_the_mask_that_was_left(pictures, tmp_path, anem_says):
    """With another seed the task would hide other pixels, and take hidden ones for black."""
    anem_says("restore", pictures / "c.png", "--task", "inpaint-random", "--sigma", 0.05, *FAST)
    first = np.load("out/c/arrays.npz")
    Path("out/c").rename(tmp_path / "before")
    given = ("restore", tmp_path / "before/measurement.npy", "--sigma", 0.05, *FAST, "--seed", 1)
    anem_says(*given, "--mask", tmp_path / "before/mask.npy")
    again, mask = np.load("out/measurement/arrays.npz"), np.load(tmp_path / "before/mask.npy")
    assert mask.mean() == pytest.approx(0.2, abs=0.01) and (first["measurement"][0][mask == 0] == 0).all()
    seen = np.abs(again["samples"] - first["measurement"])[:, 0][:, mask > 0]
    assert seen.mean() < 0.1 and not np.array_equal(first["samples"], again["samples"])


@pytest.mark.parametrize("arguments", [("restore", "--task", "denoise", "--measured"), ("logprob", "--task", "denoise", "--measured")])
def test_clipped_noise_is_pointed_out(arguments, pictures, tmp_path, capsys):
    """8-bit pictures of noise on black: half of it is gone. Unclipped, or where the noise is less than a step, nothing is said."""
    rng, said = np.random.default_rng(0), []
    noisy = rng.normal(0, 0.1, (SIZE, SIZE))
    Image.fromarray((noisy.clip(0, 1) * 255).astype(np.uint8)).save(tmp_path / "clipped.png")
    np.save(tmp_path / "whole.npy", noisy)
    for file, sigma in (("clipped.png", 0.1), ("whole.npy", 0.1), ("clipped.png", 0.001)):
        command, *options = arguments
        fast = FAST if command == "restore" else ()
        assert main([command, str(tmp_path / file), *options, "--sigma", str(sigma), *map(str, fast)]) == 0
        said.append(capsys.readouterr().err)
    assert said[0].startswith("anem: note: clipped: 5") and "% of its pixels are at an end of the range" in said[0]
    assert said[1:] == ["", ""]


def test_hidden_pixels_are_not_taken_for_clipped_ones(pictures, mask, capsys):
    array = np.full((SIZE, SIZE), 100, np.uint8)
    array[:5] = 0
    Image.fromarray(array).save(pictures / "d.png")
    assert main(["restore", str(pictures / "d.png"), "--mask", str(mask), "--sigma", "0.05", *map(str, FAST)]) == 0
    assert capsys.readouterr().err == ""


def test_colour_made_grey_is_pointed_out_where_the_noise_counts(pictures, capsys):
    assert main(["logprob", str(pictures / "c.png"), "--task", "denoise", "--measured", "--sigma", "0.05"]) == 0
    assert "c.png: colour made grey" in capsys.readouterr().err
    Image.open(pictures / "a.png").convert("RGB").save(pictures / "a.png")  # grey in three channels
    assert main(["logprob", str(pictures / "a.png"), "--task", "denoise", "--measured", "--sigma", "0.05"]) == 0
    assert main(["logprob", str(pictures / "c.png"), "--task", "denoise", "--sigma", "0.05"]) == 0
    assert "colour" not in capsys.readouterr().err


def test_uncertainty_that_is_not_known_is_red(pictures, mask, anem_says):
    anem_says("restore", pictures / "a.png", "--mask", mask, "--sigma", 0.05, *FAST)
    drawn = np.asarray(Image.open("out/a/std_exact.png"))
    unknown = np.isnan(np.load("out/a/arrays.npz")["variance_exact"][0])
    assert unknown[:5].all() and not unknown[5:].any()
    assert (drawn[unknown] == (255, 0, 0)).all() and (drawn[~unknown] == drawn[~unknown][:, :1]).all()


def test_a_blur_kernel_from_a_picture_is_normalised_and_an_array_is_not(pictures, tmp_path, anem_says):
    kernel = np.array([[0, 100, 0], [100, 200, 100], [0, 100, 0]], np.uint8)
    Image.fromarray(kernel).save(tmp_path / "kernel.png")
    np.save(tmp_path / "kernel.npy", kernel / 600)
    results = []
    for file in ("kernel.png", "kernel.npy"):
        anem_says("restore", pictures / "a.png", "--kernel", tmp_path / file, "--sigma", 0.01, *FAST)
        results.append(np.load("out/a/arrays.npz")["samples"])
    np.testing.assert_allclose(*results, atol=1e-5)


def test_scale_and_measured_super_resolution_are_the_same(pictures, anem_says):
    results = []
    Image.open(pictures / "a.png").reduce(2).save("small.png")
    for options in (("--scale", 2), ("--task", "sr2", "--measured")):
        anem_says("restore", "small.png", *options, "--sigma", 0.01, *FAST)
        results.append(np.load("out/small/arrays.npz")["samples"])
    assert results[0].shape == (2, 1, SIZE, SIZE)
    np.testing.assert_array_equal(*results)


def test_arrays_are_measurements_beyond_the_range_of_pictures(tmp_path, anem_says):
    np.save(tmp_path / "noisy.npy", 1.5 * np.ones((2, SIZE, SIZE), np.float32))
    anem_says("restore", tmp_path / "noisy.npy", "--task", "denoise", "--measured", "--sigma", 0.5, *FAST)
    assert {d.name for d in Path("out").iterdir() if d.is_dir()} == {"noisy_0000", "noisy_0001"}


def test_images_of_one_name_are_kept_apart(pictures, anem_says):
    other = pictures.parent / "other"
    other.mkdir()
    (other / "a.png").write_bytes((pictures / "b.png").read_bytes())
    anem_says("restore", pictures / "a.png", other / "a.png", "--task", "denoise", *FAST)
    assert {d.name for d in Path("out").iterdir() if d.is_dir()} == {"a", "a_2"}


# --- the folder of results ---


def test_an_earlier_result_is_replaced_whole(pictures, anem_says):
    anem_says("restore", pictures / "a.png", "--task", "denoise", "--steps", 1, "--samples", 3)
    anem_says("restore", pictures / "b.png", "--task", "denoise", "--steps", 1, "--samples", 1)
    assert {f.split("/")[0] for f in files_in(Path("out"))} == {"b", "sheet.png", "result.json"}
    assert [p.name for p in Path.cwd().iterdir()] == ["out"]


def test_a_result_that_cannot_take_its_place_leaves_the_earlier_one(pictures, monkeypatch, anem_says, anem_refuses):
    anem_says("restore", pictures / "a.png", "--task", "denoise", *FAST)
    before, rename = files_in(Path("out")), Path.rename

    def fail(path, target):
        if path.name == "new":
            raise OSError(18, "Invalid cross-device link", str(path))
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", fail)
    assert "cross-device" in anem_refuses("restore", pictures / "b.png", "--task", "denoise", *FAST)
    assert files_in(Path("out")) == before
    assert [p.name for p in Path.cwd().iterdir()] == ["out"]


def test_the_current_folder_is_no_place_for_results(pictures, anem_says, anem_refuses):
    assert "current folder" in anem_refuses("restore", pictures / "a.png", "--task", "denoise", "--out", ".")
    assert "current folder" in anem_refuses("restore", pictures / "a.png", "--task", "denoise", "--out", "/")
    anem_says("restore", pictures / "a.png", "--task", "denoise", *FAST, "--out", "deep/er/out")
    assert "no such file" in anem_refuses("restore", "nothing.png", "--task", "denoise", "--out", "other/out")
    assert [p.name for p in Path.cwd().iterdir()] == ["deep"]


@pytest.mark.parametrize("make_record", [True, False])
def test_a_folder_with_other_files_is_left_alone(make_record, pictures, anem_says, anem_refuses):
    if make_record:
        anem_says("restore", pictures / "a.png", "--task", "denoise", *FAST)
    Path("out").mkdir(exist_ok=True)
    Path("out/thesis.tex").write_text("x")
    before = files_in(Path("out"))
    assert "other files" in anem_refuses("restore", pictures / "a.png", "--task", "denoise", *FAST)
    assert files_in(Path("out")) == before


def test_a_failure_leaves_the_earlier_result(pictures, monkeypatch, capsys, anem_says, anem_refuses):
    anem_says("restore", pictures / "a.png", "--task", "denoise", *FAST)
    before = Path("out/result.json").read_bytes()

    def fail(error):
        def save(*arguments):
            raise error

        monkeypatch.setattr("anem.cli.report.save_image", save)

    fail(OSError(28, "No space left on device", "out/a/mean.png"))
    assert "No space left on device" in anem_refuses("restore", pictures / "b.png", "--task", "denoise", *FAST)
    fail(KeyboardInterrupt())
    assert main(["restore", str(pictures / "b.png"), "--task", "denoise", "--steps", "1"]) == 130
    assert capsys.readouterr().err == "anem: interrupted\n"
    assert Path("out/result.json").read_bytes() == before
    assert [p.name for p in Path.cwd().iterdir()] == ["out"]


# --- what is refused ---


@pytest.fixture
def bad(tmp_path, pictures, mask) -> dict[str, Path]:
    """Files that something is wrong with, by what is wrong."""
    np.save(tmp_path / "nan.npy", np.full((SIZE, SIZE), np.nan))
    np.save(tmp_path / "bright.npy", np.full((SIZE, SIZE), 1.5))
    np.save(tmp_path / "five.npy", np.zeros((5, SIZE, SIZE, 5)))
    np.save(tmp_path / "objects.npy", np.array([{}], dtype=object))
    np.save(tmp_path / "negative.npy", np.full((SIZE, SIZE), -1.0))
    np.save(tmp_path / "words.npy", np.array([["a"]]))
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "text.npy").write_text("no array")
    (tmp_path / "cut.png").write_bytes((pictures / "a.png").read_bytes()[:60])
    Image.new("L", (SIZE + 1, SIZE)).save(tmp_path / "other_size.png")
    Image.new("L", (3, 3)).save(tmp_path / "black.png")
    Image.new("L", (SIZE + 2, 3), 255).save(tmp_path / "wide.png")
    np.save(tmp_path / "empty.npy", np.ones((0, 0), np.uint8))
    np.save(tmp_path / "colour.npy", np.ones((3, SIZE, SIZE), np.uint8))
    np.save(tmp_path / "bytes.npy", np.linspace(0, 255, SIZE * SIZE).reshape(SIZE, SIZE))
    (tmp_path / "empty").mkdir()
    (tmp_path / "result").mkdir()
    (tmp_path / "result" / "result.json").write_text("{}")
    (tmp_path / "result" / "sheet.png").write_bytes((pictures / "a.png").read_bytes())
    return {p.name: p for p in tmp_path.iterdir()} | {"a.png": pictures / "a.png"}


TASK = ("--task", "denoise")
REAL = ("--sigma", 0.1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("a.png",), "wanted one of --task, --mask"),
        (("a.png", "--task", "sr4", "--box", 4), "--box: goes with --task inpaint-box or inpaint-horizontal"),
        (("a.png", *TASK, "--scale", 2), "got --task and --scale"),
        (("a.png", "--task", "colourise"), "task: wanted one of"),
        (("a.png", "--scale", 2), "--sigma: wanted"),
        (("a.png", "--mask", "mask.png", "--measured", *REAL), "--measured: goes with --task"),
        (("a.png", "--task", "inpaint-random", "--measured", *REAL), "--task: inpaint-random hides other pixels for every seed"),
        (("a.png", *TASK, "--sigma", -1), "standard deviation >= 0, got -1"),
        (("a.png", *TASK, "--sigma", "nan"), "got nan"),
        (("a.png", *TASK, "--sigma", "inf"), "got inf"),
        (("a.png", *TASK, "--samples", 0), "--samples"),
        (("a.png", *TASK, "--steps", 0), "--steps"),
        (("a.png", *TASK, "--seed", -1), "--seed"),
        (("a.png", *TASK, "--mala", -1), "--mala: wanted 0 steps or more, got -1"),
        (("a.png", *TASK, "--mala", 1, "--sampler", "sde-2m"), "--mala: wanted a --sampler of single steps, not sde-2m"),
        (("a.png", *TASK, "--mala", 1, "--schedule", "variance"), "--mala: wanted a --schedule fixed beforehand, not variance"),
        (("a.png", *TASK, "--sampler", "magic"), "--sampler: wanted one of ancestral"),
        (("a.png", *TASK, "--schedule", "magic"), "schedule: wanted one of"),
        (("nothing.png", *TASK), "nothing.png: no such file"),
        (("nothing.npy", *TASK), "nothing.npy: no such file"),
        (("empty", *TASK), "no image in this folder"),
        (("text.png", *TASK), "text.png: not a readable image"),
        (("text.npy", *TASK), "text.npy: not a readable .npy file"),
        (("cut.png", *TASK), "cut.png: not a readable image"),
        (("objects.npy", *TASK), "objects.npy: not a readable .npy file"),
        (("nan.npy", *TASK), "nan.npy: images: wanted finite values"),
        (("nan.npy", *TASK, "--measured", *REAL), "nan.npy: images: wanted finite values"),
        (("bright.npy", *TASK), "bright.npy: images: wanted floats in [0, 1]"),
        (("five.npy", *TASK), "five.npy: images: wanted 1 channel(s)"),
        (("a.png", "other_size.png", *TASK), "wanted one size"),
        (("other_size.png", *TASK), "images: wanted 16 x 16, the size the model is for, got 16 x 17"),
        (("a.png", "--scale", 2, *REAL), "images: wanted 16 x 16, the size the model is for, got 32 x 32"),
        (("a.png", "--scale", 1, *REAL), "--scale: wanted between 2 and 64, got 1"),
        (("a.png", "--mask", "wide.png", *REAL), "mask: wanted the image's size"),
        (
            ("a.png", "--mask", "black.png", *REAL),
            "black.png: wanted a mask with pixels seen, of at least half of white (255), got 0 at most",
        ),
        (("a.png", "--mask", "bright.npy", *REAL), "bright.npy: wanted a mask of 0 (hidden) and 1 (seen), got 1.5 to 1.5"),
        (("a.png", "--mask", "words.npy", *REAL), "words.npy: wanted a mask (height, width)"),
        (("a.png", "--mask", "empty.npy", *REAL), "empty.npy: wanted a mask (height, width)"),
        (("a.png", "--mask", "colour.npy", *REAL), "wanted"),
        (
            ("a.png", "--task", "inpaint-random", "--missing", 1),
            "inpainting: wanted something of the image to be measured, got all of it hidden",
        ),
        (("a.png", *TASK, "--sigma", 1e4), "sigma: wanted noise through which intensities in [0, 1] can be seen"),
        (("a.png", *TASK, "--std", 2), "--std: goes with --task deblur"),
        (("a.png", "--task", "sr4", "--missing", 0.5), "--missing: goes with --task inpaint-random"),
        (("a.png", "--mask", "mask.png", "--angle", 3, *REAL), "--angle: goes with --task deblur-motion"),
        (
            ("bytes.npy", *TASK, "--measured", *REAL),
            "bytes.npy: images: wanted intensities, from 0 (black) to 1 (white) but for noise, got 0 to 255",
        ),
        (("result", *TASK), "result: wanted images, got a folder with the results of a command"),
        (("a.png", "--mask", "text.png", *REAL), "text.png: not a readable image"),
        (("a.png", "--kernel", "black.png", *REAL), "black picture"),
        (("a.png", "--kernel", "wide.png", *REAL), "kernel no larger than the image"),
        (("a.png", "--kernel", "five.npy", *REAL), "wanted a kernel (height, width)"),
        (("a.png", "--kernel", "words.npy", *REAL), "wanted a kernel (height, width) of numbers"),
        (("a.png", "--kernel", "nan.npy", *REAL), "nan.npy: wanted a kernel of finite numbers"),
        (("a.png", "--task", "deblur", "--kernel-size", SIZE + 1), "kernel no larger than the image"),
        (("a.png", "--task", "deblur", "--std", 0), "std: wanted"),
        (("a.png", "--task", "deblur-motion", "--length", -1), "length: wanted"),
        (("a.png", "--task", "inpaint-box", "--box", SIZE + 1), "box"),
        (("a.png", "--task", "inpaint-random", "--missing", 2), "missing: wanted a fraction"),
    ],
)
@pytest.mark.parametrize("command", ["restore", "logprob"])
def test_bad_input_is_one_line_and_leaves_nothing(command, arguments, message, bad, anem_refuses):
    sampling = ("--samples", "--steps", "--sampler", "--schedule", "--mala")
    if command == "logprob" and (len(arguments) == 1 or set(sampling) & set(map(str, arguments))):
        pytest.skip("restore alone")
    assert message in anem_refuses(command, *(bad.get(str(a), a) for a in arguments))
    assert list(Path.cwd().iterdir()) == []


def test_an_output_that_cannot_be_written_is_refused_before_anything_is_computed(pictures, monkeypatch, anem_refuses):
    monkeypatch.setattr("anem.sample.sample_posterior", None)
    Path("file").write_text("")
    assert "file" in anem_refuses("restore", pictures / "a.png", *TASK, "--out", "file/below")
    assert "which is a file" in anem_refuses("restore", pictures / "a.png", *TASK, "--out", "file")
    assert [p.name for p in Path.cwd().iterdir()] == ["file"]


def test_a_model_that_is_not_there_is_one_line(pictures, monkeypatch, anem_refuses):
    monkeypatch.undo()
    monkeypatch.chdir(pictures.parent / "work")
    line = anem_refuses("restore", pictures / "a.png", *TASK, "--model", "nonsense")
    assert "'nonsense': neither a bundled model" in line
    assert list(Path.cwd().iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("restore", "--sigma", "much"), ("--sigma", "'much'", "anem restore --help")),
        (("restore", "--tsk", "deblur"), ("--tsk", "anem restore --help")),
        (("restore", "--sigma"), ("--sigma", "anem restore --help")),
        (("train",), ("CONFIG", "anem train --help")),
        (("repair",), ("repair", "anem --help")),
    ],
)
def test_options_that_are_none_are_refused_in_one_line(arguments, words, anem_refuses):
    line = anem_refuses(*arguments)
    assert all(word in line for word in words) and not any(c in line for c in "│─╭"), line


def test_help_and_version(capsys):
    assert main([]) == main(["--help"]) == main(["restore", "--help"]) == 0
    capsys.readouterr()
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"anem {anem.__version__}\n"


# --- logprob ---


def test_logprob_is_the_density_of_the_noisy_image(pictures, anem_says):
    sigma, seed = 0.1, 4
    record = json.loads(anem_says("logprob", pictures / "a.png", pictures / "b.png", "--sigma", sigma, "--seed", seed, "--json"))
    for b, entry in enumerate(record["images"]):
        z = torch.randn(1, SIZE, SIZE, generator=torch.Generator().manual_seed(seed + b), dtype=torch.float64)
        y = (pixels(pictures / f"{entry['name']}.png").double() + sigma * z)[None]
        exact = float(make_power_law_gaussian(1, SIZE, SIZE).log_prob(y, anem.Covariance.white(sigma**2, y.shape, like=y)))
        assert entry["log_prob"] == pytest.approx(exact, rel=1e-6)
        assert entry["log_evidence"] == pytest.approx(exact, rel=1e-6)
        assert entry["bits_per_dim"] == pytest.approx(8 - exact / SIZE**2 / math.log(2), rel=1e-6)
        assert 0 < entry["bits_per_dim_8bit"] < 16


def test_the_evidence_of_a_blurred_image_is_its_gaussian_density(pictures, anem_says):
    """m = H x + σ v of a Gaussian is Gaussian, diagonal in Fourier."""
    sigma = 0.1
    record = json.loads(anem_says("logprob", pictures / "a.png", "--task", "deblur", "--measured", "--sigma", sigma, "--json"))
    model, operator = make_power_law_gaussian(1, SIZE, SIZE), anem.make_operator("deblur", (SIZE, SIZE))
    m = pixels(pictures / "a.png").double()[None]
    gain = operator.response(m.shape, m).abs()
    variance = gain.square() * model.statistics.variance_in("fourier", SIZE, SIZE, m) + sigma**2
    residual = m - operator(model.statistics.mean_image(m).expand_as(m))
    density = anem.Covariance(variance, "fourier")
    exact = -0.5 * float(density.norm2(residual) + density.logdet() + SIZE**2 * math.log(2 * math.pi))
    assert record["images"][0]["log_evidence"] == pytest.approx(exact, abs=1e-3)


def test_bits_count_measured_values_only(pictures, anem_says):
    entry = json.loads(anem_says("logprob", pictures / "a.png", "--task", "inpaint-half", "--json"))["images"][0]
    assert entry["bits_per_dim"] == pytest.approx(8 - entry["log_evidence"] / (SIZE**2 / 2) / math.log(2), rel=1e-6)
    assert "bits_per_dim_8bit" not in entry
    once = json.loads(anem_says("logprob", pictures / "a.png", "--task", "inpaint-half", "--draws", 1, "--json"))["images"][0]
    assert once["log_prob"] == pytest.approx(entry["log_prob"]) and once["log_evidence"] != entry["log_evidence"]
    assert "log p(m)" in anem_says("logprob", pictures / "a.png", "--task", "inpaint-half")


# --- models, train, bench ---


def test_models_are_listed_with_their_cards(tmp_path, monkeypatch, anem_says):
    monkeypatch.setattr("anem.hub.WEIGHTS", tmp_path)
    assert "no bundled models" in anem_says("models")
    card = {
        "data": "strokes",
        "known_limits": "reads nothing",
        "images_seen": 1_500_000,
        "statistics": {"channels": 1, "height": 28, "width": 28, "dct": []},
    }
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "card.json").write_text(json.dumps(card))
    (tmp_path / "mine" / "model.safetensors").write_bytes(b"")
    printed = " ".join(anem_says("models").split())
    assert all(words in printed for words in ("mine", "strokes; images 1 x 28 x 28;", "1,500,000 images", "reads nothing"))
    assert json.loads(anem_says("models", "--json")) == {"mine": card}
    assert json.loads(anem_says("models", "mine", "--json")) == card
    assert "images_seen: 1500000" in anem_says("models", "mine")


def test_train_says_where_the_model_is_and_whether_it_was_stopped(monkeypatch, capsys):
    monkeypatch.setattr("anem.train.train", lambda config, parts, callbacks: callbacks[-1].on_end(end))
    Path("c.toml").write_text('images = 100\nbatch_size = 10\n[log]\ntensorboard = false\n[data]\npath = "x"\n')
    for seen, interrupted, options, code in (
        (100, False, [], 0),
        (50, True, [], 130),
        (50, False, ["--minutes", "1"], 0),
        (50, True, ["--minutes", "1"], 130),
        (50, False, ["--images", "50"], 0),
    ):
        end = types.SimpleNamespace(images=seen, interrupted=interrupted)
        assert main(["train", "c.toml", "--output", "r", *options]) == code
        assert f"{seen} of {50 if '--images' in options else 100} images seen; the model is in r/model" in capsys.readouterr().out


def test_train_refuses_in_one_line(monkeypatch, anem_refuses):
    from anem.train import NonFiniteLoss

    assert "nothing.toml: No such file" in anem_refuses("train", "nothing.toml")
    Path("c.toml").write_text("imagse = 100")
    assert "did you mean 'images'" in anem_refuses("train", "c.toml")
    Path("c.toml").write_text('[log]\ntensorboard = false\n[data]\npath = "nothing.npz"\n')
    assert "nothing.npz" in anem_refuses("train", "c.toml")

    def diverge(config, parts, callbacks):
        raise NonFiniteLoss("non-finite loss nan at step 3")

    monkeypatch.setattr("anem.train.train", diverge)
    assert "at step 3" in anem_refuses("train", "c.toml")


def test_train_skips_what_it_cannot_read_in_one_line_or_stops_there(anem_refuses, capsys):
    folder = Path("pictures")
    folder.mkdir()
    for i in range(4):
        Image.fromarray(np.full((8, 8), 40 * i, np.uint8)).save(folder / f"{i}.png")
    (folder / "9.png").write_bytes(b"no picture")
    shape = "[model.overrides]\nchannels = [4]\nblocks = [1]\nstem = 1\nembedding = 4\nrounds = 1\n"
    log = "[log]\nprogress = false\ntensorboard = false\n"
    Path("c.toml").write_text(f'output = "r"\nimages = 4\nbatch_size = 4\ndevice = "cpu"\n{shape}{log}[data]\npath = "pictures"\n')
    assert "9.png" in anem_refuses("train", "c.toml", "--strict") and not Path("r").exists()
    assert main(["train", "c.toml"]) == 0
    assert capsys.readouterr().err.splitlines() == ["anem: warning: pictures: skipped 1 of 5 files as unreadable: 9.png"]


def test_a_training_that_cannot_start_writes_nothing(anem_refuses):
    np.save("x.npy", np.zeros((4, 9, 9), np.uint8))
    Path("c.toml").write_text('output = "r"\n[noise]\nonly = ["block-means-4"]\n[data]\npath = "x.npy"\n[log]\ntensorboard = false\n')
    assert "wanted a family that fits images of 9 x 9" in anem_refuses("train", "c.toml") and not Path("r").exists()


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: you asked for 9 bytes")])
def test_too_little_memory_is_said_in_one_line(error, pictures, anem_refuses, monkeypatch):
    def fails(*arguments, **options):
        raise error

    monkeypatch.setattr("anem.hub.load", fails)
    assert "out of memory" in anem_refuses("restore", pictures / "a.png", "--task", "denoise", *FAST)
    monkeypatch.setattr("anem.hub.load", lambda *a, **b: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        main(["restore", str(pictures / "a.png"), "--task", "denoise"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--scale", 100_000, "--sigma", 0.1), "--scale: wanted between 2 and 64"),
        (("--task", "deblur-motion", "--length", "1e9"), "length: wanted a motion blur no longer than the image"),
    ],
)
def test_degradations_far_larger_than_the_image_are_refused_before_they_are_made(options, message, pictures, anem_refuses):
    assert message in anem_refuses("restore", pictures / "a.png", *options)


@pytest.fixture
def bench(monkeypatch):
    """A bench named ``mine`` with one figure, judged in full runs only, whose value is set by the test."""
    module = types.ModuleType("mine")
    module.__doc__ = "Something to measure."
    module.value = 1.0

    def run(context):
        if not context.done("error"):
            context.figure("error", module.value, aim="≤ 2", quick=False)

    module.run = run
    monkeypatch.setitem(sys.modules, "mine", module)
    monkeypatch.setitem(BENCHES, "mine", "mine")
    monkeypatch.setattr(harness, "commit", lambda: "c0ffee")
    return module


def test_bench_prints_a_table_writes_json_and_says_if_an_aim_is_missed(bench, capsys):
    assert main(["bench", "mine", "--report", "here.json"]) == 0
    output = capsys.readouterr()
    assert "error" in output.out and "yes" in output.out
    report = json.loads(Path("here.json").read_text())
    assert report["command"] == "anem bench mine" and report["commit"] == "c0ffee"
    bench.value = 3.0
    assert main(["bench", "mine", "--report", "here.json"]) == 0, "finished figures are taken over"
    assert main(["bench", "mine", "--report", "here.json", "--fresh"]) == 1
    assert "1 missed: error" in capsys.readouterr().err
    assert main(["bench", "mine", "--quick"]) == 0
    assert "not judged" in capsys.readouterr().out
    assert json.loads(Path("runs/bench/mine-quick/mine.json").read_text())["command"] == "anem bench mine --quick"


def test_bench_lists_the_benches_and_refuses_others(bench, anem_says, anem_refuses):
    assert "Something to measure." in anem_says("bench")
    assert "no bench 'nonsense': wanted one of" in anem_refuses("bench", "nonsense")


def test_a_full_disk_is_named_by_the_folder_of_the_results(pictures, monkeypatch, anem_refuses):
    def fail(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("anem.cli.report.save_image", fail)
    line = anem_refuses("restore", pictures / "a.png", *TASK, *FAST, "--out", "results")
    assert line.endswith("/results: No space left on device")
    assert list(Path.cwd().iterdir()) == []


@pytest.mark.parametrize("minutes", ["-1", "nan", "inf"])
def test_a_time_that_is_none_is_refused(minutes, anem_refuses):
    assert "--minutes: wanted a time >= 0" in anem_refuses("train", "any.toml", "--minutes", minutes)


@pytest.mark.parametrize(
    ("first", "given", "wanted"),
    [
        ("", {}, "1000"),
        ("", {"GOMP_SPINCOUNT": "7"}, "7"),
        ("", {"OMP_WAIT_POLICY": "active"}, "None"),
        ("import torch", {}, "None"),
    ],
)
def test_waiting_threads_sleep_unless_the_environment_or_torch_has_settled_it(first, given, wanted):
    clean = {name: value for name, value in os.environ.items() if name not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    code = f"import os\n{first}\nfrom anem.cli import main\nmain(['--version'])\nprint(os.environ.get('GOMP_SPINCOUNT'))"
    done = subprocess.run([sys.executable, "-c", code], env=clean | given, capture_output=True, text=True, check=True)
    assert done.stdout.split()[-1] == wanted


# --- sample ---


def test_samples_of_the_prior_are_files_and_a_sheet(anem_says):
    record = json.loads(anem_says("sample", "--count", 11, "--steps", 3, "--seed", 4, "--json"))
    drawn = anem.sample_prior(make_power_law_gaussian(1, SIZE, SIZE), (11, 1, SIZE, SIZE), steps=3, seed=4)
    np.testing.assert_array_equal(np.load("samples/samples.npy"), drawn.samples[0])
    assert sorted(p.name for p in Path("samples").glob("sample_*.png"))[::10] == ["sample_00.png", "sample_10.png"]
    assert record["calls"] == 4 and record["energies"] == pytest.approx(drawn.energy[0].tolist(), abs=1e-3)
    assert Image.open("samples/sheet.png").width > 8 * SIZE
    assert "11 samples of digits" in anem_says("sample", "--count", 11, "--steps", 3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--count", 0), "wanted --count and --steps >= 1, got 0 and 50"),
        (("--sampler", "flow"), "--sampler: wanted one of"),
        (("--schedule", "magic"), "schedule: wanted one of"),
        (("--mala", -1), "--mala: wanted 0 steps or more"),
        (("--seed", -1), "--seed"),
    ],
)
def test_samples_that_mean_nothing_are_refused(arguments, message, capsys):
    assert main(["sample", *map(str, arguments)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line and not Path("samples").exists()


def test_the_options_of_tasks_are_their_settings():
    assert set(OWN) == {name for own in SETTINGS.values() for name in own}
