"""Train the bundled digit classifier and write it with its card.

    python tools/train_classifier.py data/mnist.npz [--epochs 6] [--out src/anem/weights/digit_classifier.safetensors]

Trained on MNIST training images 0 to 54999, moved at random, with fresh dequantisation and a little noise; the last weights are kept.
The card gives the accuracy on training images 55000 to 59999 and on test images 1000 to 1999. A few minutes on one core.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor, nn

from anem.data import ImageData, load_dataset, mnist
from anem.files import replacing
from anem.metrics import DigitClassifier
from anem.random import normal, uniform


def moved(x: Tensor, generator: torch.Generator) -> Tensor:
    """Digits turned by up to 12 degrees, scaled by up to 10 % and shifted by up to 2 pixels."""
    turn, scale, right, down = (2 * uniform((4, len(x)), generator, x) - 1) * x.new_tensor([0.21, 0.1, 2 / 14, 2 / 14])[:, None]
    cos, sin = (1 + scale) * turn.cos(), (1 + scale) * turn.sin()
    affine = torch.stack([torch.stack([cos, -sin, right], -1), torch.stack([sin, cos, down], -1)], 1)
    grid = nn.functional.affine_grid(affine, list(x.shape), align_corners=False)
    return nn.functional.grid_sample(x, grid, align_corners=False)


def train(data: ImageData, epochs: int, batch_size: int, rate: float, seed: int) -> DigitClassifier:
    """The classifier after ``epochs`` passes of Adam, with the rate on a cosine to zero after a short rise."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    model = DigitClassifier()
    optimiser = torch.optim.Adam(model.parameters(), lr=rate)
    steps = epochs * len(data) // batch_size
    for step in range(steps):
        indices = data.indices(step * batch_size, batch_size, seed)
        x = moved(data.batch(indices, generator), generator)
        x = x + 0.1 * uniform((len(x), 1, 1, 1), generator, x) * normal(x.shape, generator, x)
        for group in optimiser.param_groups:
            group["lr"] = rate * min(1, (step + 1) / 100) * 0.5 * (1 + math.cos(math.pi * step / steps))
        loss = nn.functional.cross_entropy(model(x), data.labels[indices], label_smoothing=0.05)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        if step % 100 == 0:
            print(f"step {step} of {steps}, loss {loss.item():.3f}", flush=True)
    return model.eval()


@torch.no_grad()
def accuracy(model: DigitClassifier, data: ImageData) -> float:
    right = [model(data.batch(part)).argmax(1) == data.labels[part] for part in torch.arange(len(data)).split(500)]
    return float(torch.cat(right).double().mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="mnist.npz")
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("src/anem/weights/digit_classifier.safetensors"))
    arguments = parser.parse_args()
    sets = {split: load_dataset(mnist(split, arguments.data)) for split in ("train", "validation", "tuning")}
    model = train(sets["train"], arguments.epochs, arguments.batch_size, arguments.rate, arguments.seed)
    options = f"--epochs {arguments.epochs} --batch-size {arguments.batch_size} --rate {arguments.rate:g} --seed {arguments.seed}"
    card = {
        "name": "digit_classifier",
        "description": "labels of 28 x 28 digits, and 64 features for distances between sets of digits",
        "trained_on": "MNIST training images 0 to 54999",
        "command": f"python tools/train_classifier.py data/mnist.npz {options}",
        "parameters": sum(p.numel() for p in model.parameters()),
        "accuracy": {split: round(accuracy(model, sets[split]), 5) for split in ("validation", "tuning")},
        "splits": {"validation": "training images 55000 to 59999", "tuning": "test images 1000 to 1999"},
    }
    with replacing(arguments.out) as temporary:
        temporary.write_bytes(save(model.state_dict()))
    with replacing(arguments.out.with_suffix(".json")) as temporary:
        temporary.write_text(json.dumps(card, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(card["accuracy"]))


if __name__ == "__main__":
    main()
