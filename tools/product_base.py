"""A trained model put into the product base (``NetworkConfig.base``), for a training to go on from.

    python tools/product_base.py OUT MODEL [SHIFT]

The weights stay as they are but for the share of Gaussian data: the logit of the learned weights is lowered by SHIFT, 13 unless given,
so that the share falls before the energies of the two cross and not after. Untrained, restorations are a little worse than before.
"""

from __future__ import annotations

import sys
from dataclasses import replace

import torch

from anem.hub import load
from anem.network import EnergyNetwork


def to_product(model: EnergyNetwork, shift: float = 13.0) -> EnergyNetwork:
    """A copy of a model of the mixture base in the product base.

    Raises:
        ValueError: a model of another base or form.
    """
    if model.config.base != "mixture" or model.config.form != "anchored":
        raise ValueError(f"wanted a model of the mixture base, got form {model.config.form!r} and base {model.config.base!r}")
    product = EnergyNetwork(replace(model.config, base="product"), model.statistics)
    product.load_state_dict(model.state_dict())
    with torch.no_grad():
        product.weigh.bias[0] -= shift / 10  # the network multiplies by 10
    return product


if __name__ == "__main__":
    if len(sys.argv) not in (3, 4):
        sys.exit(__doc__)
    to_product(load(sys.argv[2]), *map(float, sys.argv[3:])).save_pretrained(sys.argv[1], {"from": sys.argv[2]})
