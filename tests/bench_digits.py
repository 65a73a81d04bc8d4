"""Made-up digits and a tiny untrained model, for benches that judge a model on digits."""

from pathlib import Path

import numpy as np
import pytest
import torch

from anem.bench.harness import Settings, run_bench
from anem.bench.report import Report
from anem.data import MNIST_SPLITS
from anem.images import from_integers
from anem.network import EnergyNetwork, NetworkConfig
from anem.statistics import DataStatistics


def made_up_digits(folder: Path, monkeypatch: pytest.MonkeyPatch, count: int = 12) -> None:
    """Discs as ``mnist.npz`` (all splits take from them) and an untrained network as ``model``, both in ``folder``."""
    rng = np.random.default_rng(0)
    disc = np.hypot(*np.mgrid[-14:14, -14:14]) < rng.uniform(4, 12, (count, 1, 1))
    x = (disc * rng.integers(150, 256, disc.shape)).astype(np.uint8)
    labels = rng.integers(0, 10, count)
    np.savez(folder / "mnist.npz", x_train=x, y_train=labels, x_test=x, y_test=labels)
    for name in ("train", "tuning", "report"):
        monkeypatch.setitem(MNIST_SPLITS, name, ("test", 0, count))
    statistics = DataStatistics.fit(from_integers(torch.from_numpy(x)[:, None]))
    EnergyNetwork(NetworkConfig(channels=(4, 4), blocks=(1, 1), stem=2, embedding=4), statistics).save_pretrained(folder / "model")


def run_quick(run, folder: Path) -> Report:
    """The quick run of a bench in ``folder``; called again, it continues."""
    settings = Settings(model=str(folder / "model"), data=folder, quick=True, out=folder / "out")
    return run_bench(run, "bench", settings, command="bench", json_file=folder / "bench.json")
