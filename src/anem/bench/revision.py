"""What a figure was made with: the state of the code, and weights."""

from __future__ import annotations

import hashlib
import subprocess
from pathlib import Path

import anem
from anem.hub import locate

__all__ = ["code", "commit", "weights_digest"]


def weights_digest(model: str) -> str:
    """What identifies the weights of a model by name or folder; "" where there are none."""
    try:
        return hashlib.sha256((locate(model) / "model.safetensors").read_bytes()).hexdigest()[:12]
    except (ValueError, OSError):
        return ""


def commit() -> str:
    """What identifies the state of the repository: the git commit, with a digest of changes to the package, or the released version."""
    return _revision("HEAD")


def code() -> str:
    """What identifies the package: the git tree of its folder, with a digest of changes to it, or the released version."""
    return _revision("HEAD:./")


def _revision(of: str) -> str:
    package = Path(anem.__file__).parent
    released = f"anem {anem.__version__}"
    try:
        if not _git(package, "ls-files", "__init__.py"):
            return released
        head = _git(package, "rev-parse", of).decode().strip()
        changes = _git(package, "diff", "HEAD", "--", ".")
        for file in _git(package, "ls-files", "--others", "--exclude-standard", "*.py").decode().split():
            changes += file.encode() + (package / file).read_bytes()
    except (OSError, subprocess.CalledProcessError):
        return released
    return head if not changes else f"{head}+{hashlib.sha256(changes).hexdigest()[:8]}"


def _git(folder: Path, *arguments: str) -> bytes:
    return subprocess.run(["git", *arguments], cwd=folder, capture_output=True, check=True).stdout
