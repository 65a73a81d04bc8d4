"""Compare the metrics with values from their official implementations, tests/data/golden_metrics.json.

    python tools/check_metrics.py DIR [--out results/golden_metrics.json]

DIR holds cifar10.npz and the weights of the metric networks (``python tools/fetch_data.py DIR cifar10 metrics``). Takes a few minutes,
nearly all for the Inception network. Exits 1 if a value is more than 1e-3 away, relatively.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from anem.bench.revision import code, commit
from anem.files import replacing
from anem.images import from_integers
from anem.metrics import DISTS, LPIPS, Inception, frechet_distance

GOLDEN = Path(__file__).parent.parent / "tests" / "data" / "golden_metrics.json"
TOLERANCE = 1e-3


def images(directory: Path) -> np.ndarray:
    """The first 256 CIFAR-10 test images, uint8 (256, 3, 32, 32)."""
    with np.load(directory / "cifar10.npz") as file:
        return np.moveaxis(file["x_test"][:256], -1, 1)


def perceptual(directory: Path) -> dict[str, list[float]]:
    """LPIPS and DISTS of 16 images against themselves shifted by two pixels and with noise of standard deviation 0.1."""
    a = images(directory)[:16] / 255
    noisy = np.clip(a + 0.1 * np.random.default_rng(0).standard_normal(a.shape), 0, 1)
    x, others = tensor(a), {"roll": tensor(np.roll(a, 2, axis=-1)), "noise": tensor(noisy)}
    networks = {"lpips_alex": LPIPS(directory, "alex"), "lpips_vgg": LPIPS(directory, "vgg"), "dists": DISTS(directory)}
    return {f"{name}.{key}": network(x, y).tolist() for name, network in networks.items() for key, y in others.items()}


def inception(directory: Path) -> dict[str, list[float]]:
    """Mean absolute feature of 128 images, and their Fréchet distance to 128 noisy others."""
    x = images(directory)
    noisy = np.clip(x[128:] + np.random.default_rng(1).normal(0, 25, (128, 3, 32, 32)), 0, 255).astype(np.uint8)
    network = Inception(directory)
    clean, other = (network(from_integers(torch.from_numpy(np.ascontiguousarray(v)))) for v in (x[:128], noisy))
    return {
        "inception_mean_abs_feature": [float(clean.abs().mean())],
        "fid_128_vs_128_noisy": [frechet_distance(clean, other)],
    }


def tensor(array: np.ndarray) -> Tensor:
    return torch.from_numpy(array.astype(np.float32))


def compared(values: dict[str, list[float]]) -> dict[str, dict]:
    """Every figure: the largest relative difference between its values and the golden ones."""
    golden = json.loads(GOLDEN.read_text(encoding="utf-8"))
    figures = {}
    for key, got in values.items():
        name, _, part = key.partition(".")
        wanted = np.atleast_1d(golden[name][part] if part else golden[name])
        difference = float(np.abs(np.asarray(got) / wanted - 1).max())
        figures[key] = {
            "value": difference,
            "aim": f"≤ {TOLERANCE:g}",
            "holds": difference <= TOLERANCE,
            "values": [round(v, 7) for v in got],
            "golden": wanted.tolist(),
        }
    return figures


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--out", type=Path, help="JSON file for the figures")
    arguments = parser.parse_args()
    figures = compared(perceptual(arguments.directory) | inception(arguments.directory))
    for key, figure in figures.items():
        print(f"{key:28} largest relative difference {figure['value']:.1e}  {'holds' if figure['holds'] else 'MISSED'}")
    if arguments.out:
        record = {
            "name": "golden_metrics",
            "command": "python tools/check_metrics.py DIR --out results/golden_metrics.json",
            "commit": commit(),
            "code": code(),
            "figures": figures,
        }
        with replacing(arguments.out) as temporary:
            temporary.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return 0 if all(figure["holds"] for figure in figures.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
