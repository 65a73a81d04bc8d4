"""The mean of the weights of several models of one network, such as trainings that went on from one model with different seeds.

    python tools/average_models.py OUT MODEL[=WEIGHT] MODEL[=WEIGHT] [...]

Models without a WEIGHT count as 1. Writes OUT as a model, with held-out figures of training images 55,000 to 59,999 of MNIST in its card.
Needs ``make data``.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from anem.corruptions import NoiseConfig, draw_covariances
from anem.data import load_dataset, mnist
from anem.headroom import fit_headroom
from anem.hub import load
from anem.losses import dual_score_loss
from anem.network import EnergyNetwork
from anem.train.evaluate import HeldOut


def average(models: Sequence[EnergyNetwork], shares: Sequence[float]) -> EnergyNetwork:
    """The first model with the mean of all weights, each model counted by its share.

    Raises:
        ValueError: fewer than two models, different networks or data statistics, or shares that are not positive.
    """
    if not all(0 < share < math.inf for share in shares):
        raise ValueError(f"wanted positive weights of the models, got {', '.join(f'{share:g}' for share in shares)}")
    part = torch.tensor(shares, dtype=torch.float64) / math.fsum(shares)
    first, *others = models
    if not others or any(m.config != first.config for m in others):
        raise ValueError("wanted two or more models of the same network")
    states = [m.state_dict() for m in models]
    for name, value in states[0].items():
        if name.startswith("statistics.") and not all(torch.equal(value, state[name]) for state in states):
            raise ValueError(f"wanted models with the same data statistics, got different {name}")
        value.copy_(torch.stack([p * state[name].double() for p, state in zip(part, states, strict=True)]).sum(0))
    return first


def parse(word: str) -> tuple[str, float]:
    """A model and its weight, from MODEL or MODEL=WEIGHT; folders may have a = in their names.

    Raises:
        ValueError: a weight that is no number.
    """
    path, _, share = word.rpartition("=")
    if not path or Path(word).is_dir():
        return word, 1.0
    try:
        return path, float(share)
    except ValueError:
        raise ValueError(f"wanted MODEL=WEIGHT with a number, got {word}") from None


def main(out: str, *names: str) -> None:
    paths, shares = zip(*(parse(name) for name in names), strict=True)
    model = average([load(path) for path in paths], shares)
    images = load_dataset(mnist("validation", "data/mnist.npz")).batch(torch.arange(2048), torch.Generator().manual_seed(1))
    noise = NoiseConfig(stratified=True)
    families = noise.family_names

    def draw(shape, statistics, generator):
        return draw_covariances(shape, statistics, noise, generator)

    model.headroom = fit_headroom(model, images[:512], NoiseConfig())
    report = HeldOut(images, draw, families, 64, 1).evaluate(model, dual_score_loss)
    model.save_pretrained(out, {"average_of": list(names), "held_out": report.to_dict()})


if __name__ == "__main__":
    if len(sys.argv) < 4:
        sys.exit(__doc__)
    main(*sys.argv[1:])
