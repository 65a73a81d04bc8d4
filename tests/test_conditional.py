"""Palette and InDI: their losses and samplers against closed forms, their training, and what they refuse."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from anem.baselines import InDI, Palette, load_conditional
from anem.baselines import indi as indi_module
from anem.baselines import palette as palette_module
from anem.baselines.conditional import ConditionalConfig, ConditionalNetwork, conditional_parts, measurement_image
from anem.data import DataConfig
from anem.network import EnergyNetwork, NetworkConfig
from anem.operators import Identity, Inpainting, SuperResolution
from anem.random import generators_for
from anem.restorer import Restorer
from anem.statistics import DataStatistics
from anem.train import train
from anem.train.config import CheckpointConfig, LogConfig, ModelConfig, TrainConfig

CONFIGS = sorted((Path(__file__).parent.parent / "configs" / "baselines").glob("*.toml"))


def network(method: str = "palette", task: str = "inpaint-box", **settings) -> ConditionalNetwork:
    torch.manual_seed(0)
    shape = NetworkConfig(channels=(4, 4), blocks=(1, 1), stem=1, embedding=4)
    return ConditionalNetwork(shape, ConditionalConfig(method, task, settings, 0.1), DataStatistics(1, 8, 8)).eval()


class Exact(ConditionalNetwork):
    """The exact answers for pixels N(0, v) in u = 2x − 1 that the measurement says nothing of."""

    variance = 0.25

    def forward(self, seen, x, level):
        value = level.exp().reshape(-1, 1, 1, 1).to(x)
        if self.problem.method == "palette":
            y = x * (1 + value).sqrt()
            return value.sqrt() * y / (self.variance + value)
        clean = (1 - value) * self.variance / ((1 - value) ** 2 * self.variance + indi_module.NOISE**2 * value)
        return clean * (x - value * seen) - x


def exact(method: str) -> Exact:
    config = ConditionalConfig(method, "inpaint-box", {"box": 8}, 0.1)
    return Exact(NetworkConfig(channels=(4, 4), blocks=(1, 1), stem=1, embedding=4), config, DataStatistics(1, 8, 8)).eval()


def test_palette_draws_from_the_prior_where_nothing_is_seen():
    """Mean and variance within 5 standard errors, plus 3 % for the steps and the clamp, of pixels with standard deviation ½ in [−1, 1]."""
    operator = Inpainting.centre_box((8, 8), 8)
    x = Palette(exact("palette"), steps=200)(torch.zeros(40, 1, 8, 8, dtype=torch.float64), operator, 0.1, generators_for(range(40)))
    n = x.numel()
    assert abs(float((2 * x - 1).mean())) < 5 * 0.5 / n**0.5
    assert float((2 * x - 1).var()) == pytest.approx(0.25, rel=5 * (2 / n) ** 0.5 + 0.03)


class Informed(Exact):
    """The exact answer for such pixels seen through noise of variance 0.09 in u: it depends on what is seen."""

    def forward(self, seen, x, level):
        value = level.exp().reshape(-1, 1, 1, 1).to(x)
        y, variance = x * (1 + value).sqrt(), 1 / (1 / self.variance + 1 / 0.09)
        return value.sqrt() * (y - variance / 0.09 * seen) / (variance + value)


def test_palette_draws_from_the_posterior_where_the_measurement_says_something():
    """N(0.735 (2m − 1), 0.066) in u, pixel by pixel, to 5 standard errors and 3 %."""
    config, shape = ConditionalConfig("palette", "denoise", {}, 0.15), NetworkConfig(channels=(4, 4), blocks=(1, 1), stem=1, embedding=4)
    network = Informed(shape, config, DataStatistics(1, 8, 8)).eval()
    one = torch.rand(1, 1, 8, 8, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    palette = Palette(network, steps=1000, clamp=False)
    u = 2 * palette(one.expand(200, -1, -1, -1), Identity(), 0.15, generators_for(range(200)))[0] - 1
    variance = 1 / (1 / 0.25 + 1 / 0.09)
    mean = variance / 0.09 * (2 * measurement_image(one, Identity()) - 1)
    assert float((u.mean(0) - mean[0]).abs().max()) < (5 / 200**0.5 + 0.03) * variance**0.5
    assert float(u.var(0).mean()) == pytest.approx(variance, rel=5 * (2 / u.numel()) ** 0.5 + 0.03)


def test_indi_ends_at_one_regression_where_nothing_is_seen():
    """Its start is the measurement, its noise small: it leads to the conditional mean, not to draws, which have standard deviation ½."""
    operator = Inpainting.centre_box((8, 8), 8)
    x = InDI(exact("indi"), steps=50)(torch.zeros(20, 1, 8, 8, dtype=torch.float64), operator, 0.1, generators_for(range(20)))
    assert abs(float((2 * x - 1).mean())) < 0.1 and float((2 * x - 1).std()) < 0.4


@pytest.mark.parametrize("module", [palette_module, indi_module], ids=["palette", "indi"])
def test_the_exact_network_has_the_least_loss(module, generator):
    name = "palette" if module is palette_module else "indi"
    model = exact(name)
    x = 0.5 + 0.25 * torch.randn(2000, 1, 8, 8, generator=generator)
    noise, seen = torch.randn(x.shape, generator=generator), torch.full(x.shape, 0.8)
    level = module.levels(2000, generator).reshape(-1, 1, 1, 1)
    assert float(level.min()) > 0
    errors = module.loss(model, x, seen, level, noise).mean((1, 2, 3))
    best, v, e2 = float(errors.mean()), model.variance, indi_module.NOISE**2
    floor = v / (v + level) if name == "palette" else v * e2 * level / ((1 - level) ** 2 * v + e2 * level)
    # The mean over 64 pixels of a squared normal has the deviation √(2/64) of its mean. Five of them.
    assert abs(best - float(floor.mean())) < 5 * (2 / 64 * float(floor.square().mean()) / 2000) ** 0.5
    for variance in (0.1, 0.6):
        model.variance = variance
        assert float(module.loss(model, x, seen, level, noise).mean()) > best


def test_indi_has_the_law_of_its_recursion():
    """Every step is linear with Gaussian noise; mean and variance within 5 standard errors."""
    operator, v, noise = Inpainting.centre_box((8, 8), 8), Exact.variance, indi_module.NOISE
    x = 2 * InDI(exact("indi"), steps=4)(torch.zeros(40, 1, 8, 8, dtype=torch.float64), operator, 0.1, generators_for(range(40))) - 1
    seen, mean, variance = -1.0, -1.0, noise**2
    for t, then in ((1.0, 0.75), (0.75, 0.5), (0.5, 0.25), (0.25, 0.0)):
        gain = (1 - t) * v / ((1 - t) ** 2 * v + noise**2 * t)
        share = 1 - then / t
        keep = 1 - share + share * gain
        mean = keep * mean - share * gain * t * seen
        variance = keep**2 * variance + (noise**2 * then**2 * (1 / then - 1 / t) if then else 0)
    n = x.numel()
    assert abs(float(x.mean()) - mean) < 5 * (variance / n) ** 0.5
    assert float(x.var()) == pytest.approx(variance, rel=5 * (2 / n) ** 0.5)


@pytest.mark.parametrize(("module", "make"), [(palette_module, Palette), (indi_module, InDI)], ids=["palette", "indi"])
def test_the_network_is_asked_what_it_was_taught(module, make, generator):
    """Measurement, x_t and level mean the same in the loss and in the sampler's first call."""
    asked = []

    class Recorder(Exact):
        def forward(self, seen, x, level):
            asked.append((seen, x, level))
            return super().forward(seen, x, level)

    name = make.__name__.lower()
    model = Recorder(
        NetworkConfig(channels=(4, 4), blocks=(1, 1), stem=1, embedding=4),
        ConditionalConfig(name, "inpaint-box", {"box": 4}, 0.1),
        DataStatistics(1, 8, 8),
    ).eval()
    x = torch.rand(1, 1, 8, 8, generator=generator)
    m = model.operator.measure(x, 0.1, generator)
    make(model, steps=5)(m, model.operator, 0.1, generators_for([3]))
    seen, x_t, level = asked[0]
    asked.clear()
    value = level.exp().reshape(-1, 1, 1, 1)
    clean = 2 * x - 1
    if name == "palette":
        noise = (x_t * (1 + value).sqrt() - clean) / value.sqrt()
    else:
        noise = (x_t - (1 - value) * clean - value * seen) / (module.NOISE * value.sqrt())
    module.loss(model, x, measurement_image(m, model.operator), value, noise)
    for taught, wanted in zip(asked[0], (seen, x_t, level), strict=True):
        torch.testing.assert_close(taught, wanted.to(taught), rtol=1e-4, atol=1e-4)


def test_palette_keeps_what_was_measured_and_draws_the_rest():
    """With a network that is exact in the missing pixels and useless elsewhere; mean and variance within 5 standard errors and 3 %."""

    class Half(Exact):
        def forward(self, seen, x, level):
            assert torch.equal(x[..., measured], seen[..., measured])  # what it sees of them is the measurement
            return super().forward(seen, x, level) * (self.operator.mask == 0).to(x)

    config = ConditionalConfig("palette", "inpaint-box", {"box": 4}, 0.1)
    model = Half(NetworkConfig(channels=(4, 4), blocks=(1, 1), stem=1, embedding=4), config, DataStatistics(1, 8, 8)).eval()
    measured = model.operator.mask[0] != 0
    m = model.operator.measure(torch.full((160, 1, 8, 8), 0.7, dtype=torch.float64), 0.02, torch.Generator().manual_seed(0))
    x = Palette(model, steps=200)(m, model.operator, 0.02, generators_for(range(160)))[0]
    torch.testing.assert_close(x[..., measured], m[..., measured])
    hidden = 2 * x[..., ~measured] - 1
    assert abs(float(hidden.mean())) < 5 * 0.5 / hidden.numel() ** 0.5
    assert float(hidden.var()) == pytest.approx(0.25, rel=5 * (2 / hidden.numel()) ** 0.5 + 0.03)


def test_palette_learns_from_missing_pixels_only(generator):
    model = network(box=4)
    x, noise = torch.rand(2, 1, 8, 8, generator=generator), torch.randn(2, 1, 8, 8, generator=generator)
    error = palette_module.loss(model, x, x, torch.ones(2, 1, 1, 1), noise)
    hidden = (model.operator.mask == 0).expand_as(error)
    assert bool((error[~hidden] == 0).all())
    torch.testing.assert_close(error.mean(), noise[hidden].square().mean())  # an untrained network says 0


@pytest.mark.parametrize("make", [Palette, InDI])
def test_a_restoration_does_not_depend_on_its_batch_mates(make, generator):
    model = network(make.__name__.lower(), box=4)
    torch.nn.init.normal_(model.unet.leave.weight, std=0.1, generator=generator)
    restorer, operator = make(model, steps=4, samples=2), model.operator
    m = operator.measure(torch.rand(3, 1, 8, 8, generator=generator), 0.1, generator)
    every = restorer(m, operator, 0.1, generators_for([5, 6, 7]))
    assert isinstance(restorer, Restorer) and every.shape == (2, 3, 1, 8, 8)
    torch.testing.assert_close(restorer(m[1:2], operator, 0.1, generators_for([6])), every[:, 1:2], rtol=0, atol=1e-5)
    assert float((every[0] - every[1]).abs().max()) > 1e-4


@pytest.mark.parametrize("operator", [Identity(), Inpainting.centre_box((8, 8), 2)], ids=lambda o: o.name)
def test_another_operator_than_that_of_the_training_is_refused(operator):
    with pytest.raises(ValueError, match="inpaint-box"):
        Palette(network(box=4), steps=2)(torch.zeros(1, 1, 8, 8), operator, 0.1)


@pytest.mark.parametrize(
    ("task", "settings", "message"),
    [
        ("inpaint-box", {"missing": 0.9}, "conditional.settings: wanted box for inpaint-box, got missing"),
        ("deblur", {"size": 16}, "conditional.settings: wanted kernel_size, std for deblur, got size"),
        ("sr4", {"std": 1.0}, "conditional.settings: wanted none for sr4, got std"),
        ("fog", {}, "conditional.task: wanted one of denoise, .*, got 'fog'"),
    ],
)
def test_settings_of_another_task_are_refused(task, settings, message):
    with pytest.raises(ValueError, match=message):
        ConditionalConfig("palette", task, settings)


def test_a_measurement_becomes_an_image_of_the_size_of_x():
    assert measurement_image(torch.ones(1, 1, 2, 2), SuperResolution(4)).shape == (1, 1, 8, 8)
    assert network("indi", "sr4")(torch.zeros(1, 1, 8, 8), torch.zeros(1, 1, 8, 8), torch.zeros(1)).shape == (1, 1, 8, 8)


@pytest.mark.parametrize("module", [palette_module, indi_module], ids=["palette", "indi"])
def test_the_trainer_trains_it_and_it_loads_again(module, tmp_path, generator):
    import numpy as np

    np.save(tmp_path / "x.npy", torch.randint(256, (16, 8, 8), generator=generator).to(torch.uint8).numpy())
    overrides = {"channels": [4, 4], "blocks": [1, 1], "stem": 1, "embedding": 4}
    data = DataConfig(path=str(tmp_path / "x.npy"))
    config = TrainConfig(
        output=str(tmp_path / "run"),
        images=32,
        batch_size=8,
        device="cpu",
        model=ModelConfig(overrides=overrides),
        data=data,
        held_out=data,
        checkpoint=CheckpointConfig(minutes=0),
        log=LogConfig(progress=False, tensorboard=False),
    )
    name = "palette" if module is palette_module else "indi"
    parts = conditional_parts(config, ConditionalConfig(name, "inpaint-box", {"box": 4}, 0.1), module.levels, module.loss)
    trained = train(config, parts=parts).eval()
    again = ConditionalNetwork.from_pretrained(tmp_path / "run" / "model")
    x = torch.rand(2, 1, 8, 8, generator=generator)
    assert torch.equal(trained(x, x, torch.zeros(2)), again(x, x, torch.zeros(2)))
    assert float(again(x, x, torch.zeros(2)).abs().max()) > 0
    with pytest.raises(ValueError, match="wanted 'anem-energy-3'"):
        EnergyNetwork.from_pretrained(tmp_path / "run" / "model")
    weights = tmp_path / "run" / "model" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ValueError, match="not a model of this package"):
        ConditionalNetwork.from_pretrained(tmp_path / "run" / "model")
    twice = train(replace(config, output=str(tmp_path / "other")), parts=parts).eval()
    assert torch.equal(trained(x, x, torch.zeros(2)), twice(x, x, torch.zeros(2)))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_every_preset_is_a_training_run(path, monkeypatch):
    monkeypatch.setattr("anem.baselines.conditional.load_dataset", lambda config: None)
    config, parts = load_conditional(path)
    assert config.output == f"runs/{path.stem}" and config.images == 500_000
    model = parts.model(DataStatistics(1, 28, 28))
    assert model.problem.method == path.stem.split("-")[0]
    assert model.operator(torch.zeros(1, 1, 28, 28)).shape[1] == 1


def test_a_file_of_another_kind_is_none_of_these():
    assert load_conditional(CONFIGS[0].parent.parent / "digits.toml") is None


def test_a_full_disk_leaves_the_model_that_was_there(tmp_path, request):
    network().save_pretrained(tmp_path, {"data": "before"})
    kept = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    request.getfixturevalue("full_disk")
    with pytest.raises(OSError, match="No space"):
        network("indi").save_pretrained(tmp_path, {"data": "after"})
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == kept
