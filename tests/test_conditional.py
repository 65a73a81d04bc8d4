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
from anem.network import NetworkConfig
from anem.operators import Identity, Inpainting, SuperResolution
from anem.random import generators_for
from anem.restore import Restorer
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
    noise, seen = torch.randn(x.shape, generator=generator), torch.full(x.shape, 0.5)
    level = module.levels(2000, generator).reshape(-1, 1, 1, 1)
    assert float(level.min()) > 0
    best = float(module.loss(model, x, seen, level, noise).mean())
    for variance in (0.1, 0.6):
        model.variance = variance
        assert float(module.loss(model, x, seen, level, noise).mean()) > best


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
