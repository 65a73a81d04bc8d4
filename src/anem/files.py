"""The files of a model, written whole or not at all, and read with one line on what is wrong with them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import nn

__all__ = ["read_model", "write_model"]

Network = TypeVar("Network", bound=nn.Module)


def read_model(folder: str | Path, kind: str, build: Callable[[dict[str, Any]], Network]) -> Network:
    """The network that ``build`` makes of a card, with the weights beside it.

    Arguments:
        kind: what the card has to say its format is.

    Raises:
        FileNotFoundError: no such files.
        ValueError: a card or weights of another kind of model, or weights that are not finite.
    """
    folder = Path(folder)
    try:
        card = json.loads((folder / "card.json").read_text(encoding="utf-8"))
        if card.get("format") != kind:
            raise ValueError(f"its card says format {card.get('format')!r}, wanted {kind!r}")
        card["network"] = {k: tuple(v) if isinstance(v, list) else v for k, v in card["network"].items()}
        model = build(card)
        model.load_state_dict(load((folder / "model.safetensors").read_bytes()))
        strange = [name for name, value in model.state_dict().items() if not bool(value.isfinite().all())]
        if strange:
            raise ValueError(f"wanted finite weights, got others in {strange[0]}")
    except FileNotFoundError:
        raise
    except (ArithmeticError, AttributeError, KeyError, TypeError, ValueError, RuntimeError, SafetensorError) as error:
        raise ValueError(f"{folder}: not a model of this package: {' '.join(str(error).split())[:200]}") from None
    return model


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
