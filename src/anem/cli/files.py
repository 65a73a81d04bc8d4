"""Files that the commands write: a folder that appears only when it is complete."""

from __future__ import annotations

import errno
import json
import math
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

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
    blocked = next((place for place in (out, *out.parents) if place.exists() and not place.is_dir()), None)
    if blocked is not None:
        raise ValueError(f"{out}: wanted a folder for the results, {'which' if blocked == out else blocked} is a file")
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
    (folder / RECORD).write_text(to_json(record | {"files": files}) + "\n", encoding="utf-8")


def to_json(record: dict) -> str:
    """JSON of a record, with null for numbers that are not finite, which JSON does not have."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: plain(v) for key, v in value.items()}
        if isinstance(value, list | tuple):
            return [plain(v) for v in value]
        return None if isinstance(value, float) and not math.isfinite(value) else value

    return json.dumps(plain(record), indent=1, ensure_ascii=False, allow_nan=False)
