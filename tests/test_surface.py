"""The public surface ``anem``: names, loading a model, and images of the caller's own kind."""

import ast
import json
import shutil
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import anem
from anem import hub
from anem.gaussian import make_power_law_gaussian
from anem.network import EnergyNetwork, NetworkConfig
from anem.sample import VarianceGuided, sample_posterior
from anem.statistics import DataStatistics


def test_every_public_name_is_that_of_its_module():
    for module, names in anem._MODULES.items():
        for name in names:
            assert getattr(anem, name) is getattr(import_module(f"anem.{module}"), name)
    assert sorted(anem._MODULE_OF) == sorted(anem.__all__)
    assert set(anem.__all__) <= set(dir(anem))
    with pytest.raises(AttributeError, match="nonsense"):
        anem.nonsense  # noqa: B018


def test_type_checkers_see_the_same_names():
    tree = ast.parse(Path(anem.__file__).read_text(encoding="utf-8"))
    block = next(node for node in tree.body if isinstance(node, ast.If))
    seen = {node.module.removeprefix("anem."): tuple(a.name for a in node.names) for node in block.body}
    assert {m: sorted(n) for m, n in seen.items()} == {m: sorted(n) for m, n in anem._MODULES.items()}


def test_importing_the_package_imports_no_torch():
    code = "import sys, anem, anem.cli; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


# --- models ---


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A saved, untrained network for 8 x 8 images."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("model")
    network = EnergyNetwork(NetworkConfig.preset("tiny"), DataStatistics.fit(torch.rand(50, 1, 8, 8)))
    network.save_pretrained(path, {"description": "noise"})
    return path


def test_a_saved_model_gives_the_same_log_probability(folder, generator):
    y = torch.rand(2, 1, 8, 8, generator=generator)
    cov = anem.Covariance.white(0.01, y.shape)
    model = anem.load(folder)
    expected = EnergyNetwork.from_pretrained(folder).eval().log_prob(y, cov)
    assert torch.equal(model.log_prob(y, cov), expected)
    assert not model.training and not any(p.requires_grad for p in model.parameters())
    assert hub.read_card(folder)["description"] == "noise"


def test_bundled_models_are_found_by_name(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(hub, "WEIGHTS", tmp_path)
    assert anem.bundled_models() == []
    (tmp_path / "mine").symlink_to(folder)
    (tmp_path / "unfinished").mkdir()
    assert anem.bundled_models() == ["mine"]
    assert isinstance(anem.load("mine"), EnergyNetwork)


def copy(folder: Path, to: Path, change) -> Path:
    """A copy of a model with something wrong."""
    to.mkdir()
    for file in folder.iterdir():
        (to / file.name).write_bytes(file.read_bytes())
    change(to)
    return to


def other_network(path: Path) -> None:
    card = json.loads((path / "card.json").read_text())
    card["network"]["channels"] = [16, 16]
    (path / "card.json").write_text(json.dumps(card))


@pytest.mark.parametrize(
    "change",
    [
        lambda p: (p / "model.safetensors").write_bytes(b"no"),
        lambda p: (p / "model.safetensors").write_bytes((p / "model.safetensors").read_bytes()[:-100]),
        lambda p: (p / "card.json").write_text("{"),
        lambda p: (p / "card.json").write_bytes(b"\xff\xfe\x00"),
        lambda p: (p / "card.json").write_text("[]"),
        lambda p: (p / "card.json").write_text('{"model_type": "bert"}'),
        other_network,
    ],
    ids=["not safetensors", "cut off", "broken card", "card is no text", "card is no object", "foreign card", "other network"],
)
def test_a_damaged_or_foreign_model_is_refused(folder, tmp_path, change):
    path = copy(folder, tmp_path / "bad", change)
    with pytest.raises(ValueError, match="bad"):
        anem.load(path)


def test_a_model_that_is_not_there_is_named(folder, tmp_path):
    for name in ("nonsense", "own/er/name", tmp_path / "nothing"):
        with pytest.raises(FileNotFoundError, match="neither a bundled model"):
            anem.load(name)
    with pytest.raises(FileNotFoundError, match="no card.json"):
        anem.load(tmp_path)
    with pytest.raises(ValueError, match="wanted the folder"):
        anem.load(folder / "model.safetensors")
    without = copy(folder, tmp_path / "without", lambda p: (p / "model.safetensors").unlink())
    with pytest.raises(FileNotFoundError, match=r"no model.safetensors"):
        anem.load(without)
    with pytest.raises(ValueError, match="device: 'abacus'"):
        anem.load(folder, device="abacus")


def test_a_repository_needs_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ValueError, match=r"pip install 'anem\[hub\]'"):
        anem.load("owner/name")


def test_a_repository_that_cannot_be_reached_is_named():
    pytest.importorskip("huggingface_hub")
    with pytest.raises(FileNotFoundError, match="'owner-that-is-not/name-that-is-not': no such folder, and Hugging Face"):
        anem.load("owner-that-is-not/name-that-is-not")


# --- images of the caller's own kind ---

MODEL = make_power_law_gaussian(1, 8, 8)
HIDDEN = anem.Inpainting.centre_box((8, 8), 4)


def restored(measurement, samples=3):
    return anem.sample_posterior(MODEL, measurement, HIDDEN, 0.05, samples=samples, steps=2, seed=5)


PIXELS = np.random.default_rng(0).integers(0, 256, (2, 8, 8), dtype=np.uint8)
TENSOR = (torch.from_numpy(PIXELS)[:, None].float() + 0.5) / 256


def test_tensors_give_what_the_sampler_gives():
    result = restored(TENSOR)
    expected = sample_posterior(MODEL, TENSOR, HIDDEN, 0.05, samples=3, steps=2, seed=5)
    assert torch.equal(result.samples, expected.samples)
    assert torch.equal(result.mean, expected.mean)
    assert torch.equal(result.std, expected.std)


@pytest.mark.parametrize(
    "measurement",
    [PIXELS, PIXELS[..., None], TENSOR[:, 0].numpy(), TENSOR.double(), PIXELS[0], TENSOR[0], TENSOR[0, 0]],
    ids=["uint8", "uint8 with channels", "float", "double tensor", "one grey array", "one tensor", "one flat tensor"],
)
def test_arrays_and_tensors_come_back_as_they_were(measurement):
    result = restored(measurement)
    assert type(result.samples) is type(result.mean) is type(result.std) is type(measurement)
    assert result.samples.dtype == result.mean.dtype == measurement.dtype
    assert result.samples.shape == (3, *measurement.shape)
    assert result.mean.shape == result.std.shape == measurement.shape
    # The 8-bit measurement is the float one; a written sample is its float sample, rounded down.
    images = np.asarray(measurement).size // 64
    floats = restored(TENSOR).samples.numpy().reshape(3, 2, 64)[:, :images]
    own = np.asarray(result.samples).reshape(floats.shape)
    expected = np.clip(np.floor(256 * floats), 0, 255) if own.dtype == np.uint8 else floats
    np.testing.assert_allclose(own, expected, atol=1 if own.dtype == np.uint8 else 1e-6)
    std = np.asarray(result.std).reshape(floats.shape[1:])
    np.testing.assert_allclose(std, floats.std(0, ddof=1), atol=1e-6)


def test_pictures_come_back_as_pictures():
    one = restored(Image.fromarray(PIXELS[0]))
    assert [s.mode for s in one.samples] == ["L"] * 3 and one.samples[0].size == (8, 8)
    assert isinstance(one.mean, Image.Image)
    assert one.std.shape == (8, 8)
    several = restored([Image.fromarray(p) for p in PIXELS])
    assert [[type(x) for x in row] for row in several.samples] == [[Image.Image] * 2] * 3
    assert len(several.mean) == 2 and len(several.std) == 2
    np.testing.assert_array_equal(np.asarray(several.samples[0][0]), np.asarray(one.samples[0]))


def test_one_sample_has_no_deviation():
    assert restored(TENSOR, samples=1).std is None


@pytest.mark.parametrize(
    ("measurement", "message"),
    [
        (torch.full((1, 1, 8, 8), float("nan")), "finite"),
        (torch.zeros(1, 3, 8, 8), "1 channel"),
        (torch.zeros(1, 1, 9, 9), "mask: wanted"),
        ("picture.png", "images: wanted"),
        ([], "empty"),
    ],
)
def test_measurements_that_do_not_fit_are_refused(measurement, message):
    with pytest.raises(ValueError, match=message):
        restored(measurement)


def test_a_schedule_has_a_name_as_a_kernel_has():
    named, own = (
        anem.sample_posterior(MODEL, TENSOR, HIDDEN, 0.05, steps=steps, seed=5, schedule=schedule).samples
        for schedule, steps in (("variance", 3), (VarianceGuided(3), None))
    )
    assert torch.equal(named, own)
    with pytest.raises(ValueError, match="steps: wanted none beside a schedule, which has 3 of its own, got 5"):
        anem.sample_posterior(MODEL, TENSOR, HIDDEN, 0.05, steps=5, schedule=VarianceGuided(3))
    with pytest.raises(ValueError, match="schedule: wanted one of geometric, water-filling, energy, variance, got 'magic'"):
        anem.sample_posterior(MODEL, TENSOR, HIDDEN, 0.05, schedule="magic")


def test_a_negative_seed_is_named():
    with pytest.raises(ValueError, match="seed: wanted whole numbers >= 0, got -1"):
        anem.sample_posterior(MODEL, TENSOR, HIDDEN, 0.05, seed=-1)


def test_a_device_without_numbers_is_refused(folder):
    with pytest.raises(ValueError, match="device: 'meta' cannot be used here"):
        anem.load(folder, "meta")


@pytest.mark.parametrize("method", ["gradients", "denoise", "posterior_variance", "log_prob"])
@pytest.mark.parametrize(
    ("y", "cov", "message"),
    [
        (TENSOR[:1], (2, 1, 8, 8), "wanted the shape of the covariance"),
        (TENSOR[0], (1, 1, 8, 8), r"wanted \(B, 1, H, W\)"),
        (torch.zeros(2, 3, 8, 8), (2, 3, 8, 8), r"wanted \(B, 1, H, W\), the model's channels"),
        (torch.full((2, 1, 8, 8), float("nan")), (2, 1, 8, 8), "finite"),
        (torch.zeros(2, 1, 8, 8, dtype=torch.uint8), (2, 1, 8, 8), "a tensor of floats, got torch.uint8"),
        (PIXELS, (2, 1, 8, 8), "a tensor of floats, got ndarray"),
    ],
    ids=["batch", "rank", "channels", "nan", "integers", "array"],
)
def test_what_is_no_noisy_image_of_the_model_is_refused(folder, method, y, cov, message):
    for model in (MODEL, anem.load(folder)):
        with pytest.raises(ValueError, match=message):
            getattr(model, method)(y, anem.Covariance.white(0.01, cov))
    with pytest.raises(ValueError, match="cov: wanted a Covariance, got Tensor"):
        getattr(MODEL, method)(TENSOR, torch.ones(2, 1, 8, 8))


@pytest.mark.parametrize("method", ["energy", "forward"])
@pytest.mark.parametrize(
    ("y", "cov", "message"),
    [
        (TENSOR[:1], (2, 1, 8, 8), "wanted the shape of the covariance"),
        (TENSOR[:1].expand(2, -1, -1, -1), (1, 1, 8, 8), "wanted the shape of the covariance"),
        (torch.zeros(2, 3, 8, 8), (2, 3, 8, 8), r"wanted \(B, 1, H, W\), the model's channels"),
        (PIXELS, (2, 1, 8, 8), "a tensor of floats, got ndarray"),
    ],
    ids=["batch", "batch of covariances", "channels", "array"],
)
def test_the_network_itself_broadcasts_nothing(folder, method, y, cov, message):
    with pytest.raises(ValueError, match=message):
        getattr(anem.load(folder), method)(y, anem.Covariance.white(0.01, cov))


def test_the_energy_of_nan_is_refused_and_a_sampler_may_propose_it(folder):
    """A proposal without an energy is refused by the sampler, image by image; so one network call lets it pass, as NaN."""
    model, cov = anem.load(folder), anem.Covariance.white(0.01, (2, 1, 8, 8))
    y = torch.stack([torch.zeros(1, 8, 8), torch.full((1, 8, 8), torch.nan)])
    with pytest.raises(ValueError, match="y: wanted finite values, got NaN or infinity"):
        model.energy(y, cov)
    assert model(y, cov).energy.isnan().tolist() == [False, True]


def test_a_full_disk_between_two_files_leaves_the_earlier_model(folder, tmp_path, full_disk):
    path = tmp_path / "model"
    shutil.copytree(folder, path)
    before = {file.name: file.read_bytes() for file in path.iterdir()}
    other = EnergyNetwork(NetworkConfig.preset("tiny"), DataStatistics.fit(torch.rand(50, 1, 8, 8)))
    with pytest.raises(OSError, match="No space left"):
        other.save_pretrained(path)
    assert {file.name: file.read_bytes() for file in path.iterdir()} == before
