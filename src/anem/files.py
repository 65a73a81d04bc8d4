"""The files of a model, written whole or not at all."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import save
from torch import nn

__all__ = ["write_model"]


def write_model(folder: Path, network: nn.Module, card: Mapping[str, object]) -> None:
    """``model.safetensors`` and ``card.json`` in ``folder``, created, both under temporary names before either takes its place."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: value.detach().cpu().contiguous() for name, value in network.state_dict().items()}
    files = {"model.safetensors": save(tensors), "card.json": json.dumps(card, indent=1).encode()}
    try:
        for name, data in files.items():
            (folder / f".{name}.tmp").write_bytes(data)
        for name in files:
            (folder / f".{name}.tmp").replace(folder / name)
    finally:
        for name in files:
            (folder / f".{name}.tmp").unlink(missing_ok=True)
