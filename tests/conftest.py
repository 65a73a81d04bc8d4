"""Every test starts from the same random state and leaves no trace of its own; no test touches the network."""

import os
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("MPLBACKEND", "Agg")

import pytest
import torch

torch.set_num_threads(1)  # sums in one order on every machine


@pytest.fixture(autouse=True)
def deterministic():
    """A fixed seed for code that uses torch's default generator; default dtype and determinism restored afterwards."""
    torch.manual_seed(0)
    yield
    torch.set_default_dtype(torch.float32)
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def generator() -> torch.Generator:
    """A generator of this test's own."""
    return torch.Generator().manual_seed(0)


@pytest.fixture
def full_disk(monkeypatch):
    """No space is left once the weights of a model are written and its card is not."""
    write = Path.write_bytes

    def full(file: Path, data: bytes) -> int:
        if "card.json" in file.name:
            raise OSError(28, "No space left on device")
        return write(file, data)

    monkeypatch.setattr(Path, "write_bytes", full)
