"""How far below its base the energy of a model may be, from training images 55,000 to 59,999 of MNIST, written into its card.

    python tools/fit_headroom.py MODEL_FOLDER

``anem train`` does it by itself for what it trains. The weights stay as they are. Needs ``make data``.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path

import torch

from anem.corruptions import NoiseConfig
from anem.data import load_dataset, mnist
from anem.files import replacing
from anem.headroom import fit_headroom
from anem.network import EnergyNetwork

IMAGES = 512


def main(folder: str) -> None:
    model, card = EnergyNetwork.from_pretrained(folder), Path(folder, "card.json")
    images = load_dataset(mnist("validation", "data/mnist.npz")).batch(torch.arange(IMAGES), torch.Generator().manual_seed(1))
    found = fit_headroom(model, images, NoiseConfig())
    text = json.dumps(json.loads(card.read_text(encoding="utf-8")) | {"headroom": asdict(found)}, indent=1)
    with replacing(card) as path:
        path.write_text(text, encoding="utf-8")
    print(found)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(sys.argv[1])
