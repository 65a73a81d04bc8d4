"""The mean of the weights of several models of one network, such as trainings that went on from one model with different seeds.

    python tools/average_models.py OUT MODEL MODEL [...]

Writes OUT as a model, with held-out figures of training images 55,000 to 59,999 of MNIST in its card. Needs ``make data``.
"""

from __future__ import annotations

import sys

import torch

from anem.corruptions import NoiseConfig, draw_covariances
from anem.data import load_dataset, mnist
from anem.hub import load
from anem.losses import dual_score_loss
from anem.network import EnergyNetwork
from anem.train.evaluate import HeldOut


def average(models: list[EnergyNetwork]) -> EnergyNetwork:
    """The first model with the mean of all weights.

    Raises:
        ValueError: fewer than two models, or different networks or data statistics.
    """
    first, *others = models
    if not others or any(m.config != first.config for m in others):
        raise ValueError("wanted two or more models of the same network")
    states = [m.state_dict() for m in models]
    for name, value in states[0].items():
        if name.startswith("statistics.") and not all(torch.equal(value, state[name]) for state in states):
            raise ValueError(f"wanted models with the same data statistics, got different {name}")
        value.copy_(torch.stack([state[name].double() for state in states]).mean(0))
    return first


def main(out: str, *names: str) -> None:
    model = average([load(name) for name in names])
    images = load_dataset(mnist("validation", "data/mnist.npz")).batch(torch.arange(2048), torch.Generator().manual_seed(1))
    noise = NoiseConfig(stratified=True)
    families = noise.family_names

    def draw(shape, statistics, generator):
        return draw_covariances(shape, statistics, noise, generator)

    report = HeldOut(images, draw, families, 64, 1).evaluate(model, dual_score_loss)
    model.save_pretrained(out, {"average_of": list(names), "held_out": report.to_dict()})


if __name__ == "__main__":
    if len(sys.argv) < 4:
        sys.exit(__doc__)
    main(*sys.argv[1:])
