"""Files of the commands: images in, and a folder that appears only when it is complete."""

from __future__ import annotations

import errno
import json
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from anem.images import from_integers, read_array, to_tensor

SUFFIXES = {".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp", ".gif", ".npy"}
RECORD = "result.json"


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """A temporary folder beside ``out`` that takes its place when the block ends well, and vanishes when it fails.

    An ``out`` that an earlier run wrote, and that holds nothing else, is replaced.

    Raises:
        ValueError: ``out`` is there and holds something else, or is where one works.
        OSError: it cannot be written.
    """
    out = out.resolve()
    if Path.cwd().is_relative_to(out):
        raise ValueError(f"{out}: wanted a folder of its own for the results, got one that holds the current folder")
    if not replaceable(out):
        raise ValueError(f"{out}: is there and holds other files than an earlier result; choose another --out")
    missing = [parent for parent in out.parents if not parent.exists()]
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(out)) from None
    fresh, old = work / "new", work / "old"
    try:
        fresh.mkdir()
        yield fresh
        if out.exists():
            out.rename(old)
        fresh.rename(out)
    except BaseException as error:
        if old.exists():
            old.rename(out)
        if isinstance(error, OSError) and error.errno == errno.ENOSPC and error.filename is None:
            raise OSError(error.errno, error.strerror, str(out)) from None  # a write that fails does not say where
        raise
    finally:
        shutil.rmtree(work, ignore_errors=True)
        for parent in missing:
            with suppress(OSError):
                parent.rmdir()  # only where it stayed empty


def replaceable(out: Path) -> bool:
    """Whether ``out`` is free, empty, or a folder with exactly the files that its own record lists."""
    if not out.exists():
        return True
    if not out.is_dir():
        return False
    if not (out / RECORD).is_file():
        return not any(out.iterdir())
    files = {file.relative_to(out).as_posix() for file in out.rglob("*") if not file.is_dir()}
    try:
        return files <= {RECORD, *json.loads((out / RECORD).read_text(encoding="utf-8"))["files"]}
    except (OSError, ValueError, KeyError, TypeError):
        return False


def check_writable(file: Path) -> None:
    """Raise OSError if ``file`` cannot be written: what takes long should not find out at its end. Leaves only its folder."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=file.parent, prefix=f".{file.name}."):
        pass


def write_record(folder: Path, record: dict) -> None:
    """The record of a result, with a list of all files beside it."""
    files = sorted(file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file())
    text = json.dumps(record | {"files": files}, indent=1, ensure_ascii=False)
    (folder / RECORD).write_text(text + "\n", encoding="utf-8")


def read_images(paths: Sequence[Path], channels: int, bounded: bool = True) -> tuple[list[str], Tensor]:
    """Names and intensities (B, C, H, W) of image files, of ``.npy`` arrays (one image or several), and of folders of these.

    Arguments:
        channels: what images are converted to (grey by luminance), and arrays must have.
        bounded: refuse floats outside [0, 1]; noisy measurements may leave it.

    Raises:
        ValueError: an unreadable file, an empty folder, images of different sizes; the message names the file.
    """
    names: list[str] = []
    images: list[Tensor] = []
    for path in (file for given in paths for file in expand(given)):
        x = read_one(path, channels, bounded)
        if images and x.shape[1:] != images[0].shape[1:]:
            sizes = f"{size(images[0])} ({names[0]}) and {size(x)} ({path.name})"
            raise ValueError(f"images: wanted one size in a call, got {sizes}; give them in separate calls")
        images.append(x)
        names += [path.stem] if len(x) == 1 else [f"{path.stem}_{i:04d}" for i in range(len(x))]
    return unique(names), torch.cat(images)


def expand(path: Path) -> list[Path]:
    """The image files of a folder, or the file itself."""
    if not path.is_dir():
        return [path]
    found = sorted(file for file in path.iterdir() if file.suffix.lower() in SUFFIXES)
    if not found:
        raise ValueError(f"{path}: no image in this folder")
    return found


def read_one(path: Path, channels: int, bounded: bool) -> Tensor:
    """One image file, (1, C, H, W), or the images of a ``.npy`` array, (B, C, H, W)."""
    if path.suffix.lower() != ".npy":
        return from_integers(torch.from_numpy(np.moveaxis(read_array(path, channels), -1, 0).copy())[None])
    array = read_npy(path)
    try:
        return to_tensor(array, channels, bounded=bounded)[0].float()
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def read_npy(path: Path) -> np.ndarray:
    """A NumPy file without pickled objects.

    Raises:
        ValueError: missing, damaged or of another kind.
    """
    try:
        return np.load(path, allow_pickle=False)
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file") from None
    except (OSError, ValueError, EOFError) as error:
        raise ValueError(f"{path}: not a readable .npy file ({' '.join(str(error).split())})") from None


def size(x: Tensor) -> str:
    """Height x width."""
    return f"{x.shape[-2]} x {x.shape[-1]}"


def unique(names: Sequence[str]) -> list[str]:
    """The names with a number added to those that would repeat an earlier one."""
    taken: list[str] = []
    for name in names:
        choices = (name, *(f"{name}_{i}" for i in range(2, len(names) + 2)))
        taken.append(next(choice for choice in choices if choice not in taken))
    return taken
