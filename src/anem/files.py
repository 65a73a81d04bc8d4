"""Files that are written whole or not at all, and those of a model, read with one line on what is wrong with them."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import nn

__all__ = ["read_model", "replacing", "write_model", "write_text"]

Network = TypeVar("Network", bound=nn.Module)


@contextlib.contextmanager
def replacing(path: str | os.PathLike, durable: bool = False) -> Iterator[Path]:
    """A temporary path beside ``path`` that takes its place when the block ends well, and vanishes when it fails.

    Arguments:
        durable: only once its bytes are on the disk, so that a power cut leaves one or the other too.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.touch()
        mode = temporary.stat().st_mode
        yield temporary
        temporary.chmod(mode)  # as the user's umask has it, whatever the writer did
        if durable:
            with open(temporary, "rb") as file:
                os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: str | os.PathLike, text: str, durable: bool = False) -> None:
    """Replace the contents of ``path`` by ``text``, or leave it as it was; ``durable`` as in :func:`replacing`."""
    with replacing(path, durable) as temporary:
        temporary.write_text(text, encoding="utf-8")


def read_model(folder: str | Path, kind: str, build: Callable[[dict[str, Any]], Network]) -> Network:
    """The network that ``build`` makes of a card, with the weights beside it, in evaluation mode, its parameters frozen.

    Arguments:
        kind: what the card has to say its format is.

    Raises:
        FileNotFoundError: no such files.
        ValueError: a card or weights of another kind of model, a card of other weights, or weights that are not finite.
    """
    folder = Path(folder)
    try:
        card = json.loads((folder / "card.json").read_text(encoding="utf-8"))
        if card.get("format") != kind:
            raise ValueError(f"its card says format {card.get('format')!r}, wanted {kind!r}")
        card["network"] = {k: tuple(v) if isinstance(v, list) else v for k, v in card["network"].items()}
        model, weights = build(card), (folder / "model.safetensors").read_bytes()
        if card.get("sha256", digest := hashlib.sha256(weights).hexdigest()) != digest:
            raise ValueError("its card is of other weights")
        model.load_state_dict(load(weights))
        strange = [name for name, value in model.state_dict().items() if not bool(value.isfinite().all())]
        if strange:
            raise ValueError(f"wanted finite weights, got others in {strange[0]}")
    except FileNotFoundError:
        raise
    except (ArithmeticError, AttributeError, KeyError, TypeError, ValueError, RuntimeError, SafetensorError) as error:
        raise ValueError(f"{folder}: not a model of this package: {' '.join(str(error).split())[:200]}") from None
    return model.eval().requires_grad_(False)


def write_model(folder: Path, network: nn.Module, card: Mapping[str, object]) -> None:
    """``model.safetensors`` and ``card.json`` in ``folder``, created, both under temporary names before either takes its place.

    The card gets the ``sha256`` of the weights, so that one is not read with the other's.
    """
    folder.mkdir(parents=True, exist_ok=True)
    weights = save({name: value.detach().cpu().contiguous() for name, value in network.state_dict().items()})
    described = json.dumps({**card, "sha256": hashlib.sha256(weights).hexdigest()}, indent=1).encode()
    for half in folder.glob(".*.tmp"):  # of a process that was killed while writing
        half.unlink(missing_ok=True)
    with contextlib.ExitStack() as both:
        for name, data in {"card.json": described, "model.safetensors": weights}.items():
            both.enter_context(replacing(folder / name)).write_bytes(data)
