"""Finding a model: bundled with the package, in a folder, or on the Hugging Face hub."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from anem.network import EnergyNetwork

__all__ = ["WEIGHTS", "bundled_models", "load", "locate", "read_card"]

WEIGHTS = Path(__file__).parent / "weights"
"""Folder of the bundled models, one folder each with ``model.safetensors`` and ``card.json``."""


def bundled_models() -> list[str]:
    """Names of the models that come with the package."""
    return sorted(file.parent.name for file in WEIGHTS.glob("*/model.safetensors"))


def read_card(folder: Path) -> dict:
    """The card of a model: its configuration, training and figures.

    Raises:
        FileNotFoundError: the folder has no card.
        ValueError: the card is not a JSON object.
    """
    file = folder / "card.json"
    if not file.is_file():
        inner = folder / "model"
        hint = f"; the model of this training is {inner}" if (inner / "card.json").is_file() else ""
        raise FileNotFoundError(f"{folder}: not a model, it has no card.json{hint}")
    try:
        card = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file}: not valid JSON ({error})") from error
    if not isinstance(card, dict):
        raise ValueError(f"{file}: wanted a JSON object, got {type(card).__name__}")
    return card


def locate(name_or_path: str | Path) -> Path:
    """Folder of a model.

    Arguments:
        name_or_path: the name of a bundled model, a folder made by ``save_pretrained``, or a Hugging Face repository
            ``"owner/name"``, fetched with the extra ``anem[hub]`` when no such folder exists.

    Raises:
        FileNotFoundError: none of the three.
        ValueError: a repository is named and the extra is not installed.
    """
    name = str(name_or_path)
    if name in bundled_models():
        return WEIGHTS / name
    path = Path(name_or_path)
    if path.is_dir():
        return path
    if path.exists():
        raise ValueError(f"model {name!r}: wanted the folder that holds model.safetensors and card.json, got a file")
    if isinstance(name_or_path, str) and re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", name):
        return _fetch(name)
    known = ", ".join(bundled_models()) or "none"
    raise FileNotFoundError(f"model {name!r}: neither a bundled model ({known}), nor a folder, nor a Hugging Face repository owner/name")


def _fetch(repository: str) -> Path:
    """Download a repository's weights and card into the Hugging Face cache."""
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
    except ImportError as error:
        raise ValueError(f"model {repository!r}: no such folder; to fetch it from Hugging Face, pip install 'anem[hub]'") from error
    try:
        return Path(snapshot_download(repository, allow_patterns=["model.safetensors", "card.json"]))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise FileNotFoundError(f"model {repository!r}: no such folder, and Hugging Face does not give it ({reason})") from error


def load(name_or_path: str | Path = "digits", device: torch.device | str = "cpu") -> EnergyNetwork:
    """A trained model, ready for use: in evaluation mode, its parameters frozen.

    Arguments:
        name_or_path: see :func:`locate`. Bundled models need no network.
        device: where to put it.

    Raises:
        FileNotFoundError: no such model.
        ValueError: files that are damaged or not a model of this package; a device that is not there.
    """
    from anem.network import EnergyNetwork
    from anem.random import check_device

    check_device(device)
    folder = locate(name_or_path)
    read_card(folder)
    if not (folder / "model.safetensors").is_file():
        raise FileNotFoundError(f"{folder}: not a model, it has no model.safetensors")
    return EnergyNetwork.from_pretrained(folder).to(device)
