"""The tools that a maintainer runs by hand."""

import importlib.util
from pathlib import Path

import pytest
import torch

from anem.covariance import Covariance
from anem.network import EnergyNetwork, NetworkConfig
from anem.statistics import DataStatistics

TOOLS = Path(__file__).parent.parent / "tools"
IMAGES = torch.rand(12, 1, 8, 8, generator=torch.Generator().manual_seed(0)).square()


def tool(name: str):
    spec = importlib.util.spec_from_file_location(name, TOOLS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def network(seed: int, images: torch.Tensor = IMAGES, **changes) -> EnergyNetwork:
    config = NetworkConfig(channels=(4, 8), blocks=(1, 1), stem=1, embedding=4, rounds=1, **changes)
    model = EnergyNetwork(config, DataStatistics.fit(images)).requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    for p in model.parameters():
        p.copy_(torch.randn(p.shape, generator=generator))
    return model


@pytest.mark.parametrize("name", sorted(file.stem for file in TOOLS.glob("*.py")))
def test_what_a_tool_imports_is_there(name):
    tool(name)


def test_average_is_the_mean_of_every_weight_and_leaves_the_statistics():
    models = [network(seed) for seed in range(3)]
    wanted = [(p + 2 * q + 5 * r).double() / 8 for p, q, r in zip(*[m.parameters() for m in models], strict=True)]
    mean = tool("average_models").average(models, [0.5, 1, 2.5])
    for p, w in zip(mean.parameters(), wanted, strict=True):
        torch.testing.assert_close(p.double(), w, rtol=1e-6, atol=1e-6)
    for (name, found), kept in zip(mean.statistics.state_dict().items(), models[1].statistics.state_dict().values(), strict=True):
        assert torch.equal(found, kept), name


@pytest.mark.parametrize(
    "others",
    [
        pytest.param([], id="one model alone"),
        pytest.param([network(1, form="inner")], id="another network"),
        pytest.param([network(1, IMAGES + 0.1)], id="other data statistics"),
    ],
)
def test_average_refuses_what_has_no_mean(others):
    with pytest.raises(ValueError, match="wanted"):
        tool("average_models").average([network(0), *others], [1.0] * (1 + len(others)))


def test_a_model_of_an_average_has_a_weight(tmp_path):
    parse = tool("average_models").parse
    (tmp_path / "rate=1e-3").mkdir()
    assert parse("digits=0.3") == ("digits", 0.3) and parse("digits") == ("digits", 1.0)
    assert parse(str(tmp_path / "rate=1e-3")) == (str(tmp_path / "rate=1e-3"), 1.0)
    with pytest.raises(ValueError, match="wanted MODEL=WEIGHT with a number, got a=b"):
        parse("a=b")


def test_a_model_in_the_product_base_is_the_old_one_where_pixels_are_all_there_is():
    """In pixels the mixture with no Gaussian part is the product; the share's logit is lowered by what was asked."""
    model, convert = network(0, base="mixture"), tool("product_base").to_product
    with torch.no_grad():
        model.weigh.weight.zero_()
        model.weigh.bias.copy_(torch.tensor([-1e3, 0.1, 0.2]))
    product = convert(model, 20.0)
    assert product.config.base == "product" and (product.weigh.bias[0] - model.weigh.bias[0]).item() == pytest.approx(-2.0, rel=1e-3)
    y, cov = IMAGES[:2].double(), Covariance.white(0.1, (2, 1, 8, 8), like=IMAGES.double())
    torch.testing.assert_close(product.energy(y, cov), model.energy(y, cov))
    with pytest.raises(ValueError, match="wanted a model of the mixture base"):
        convert(product)
