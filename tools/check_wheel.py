#!/usr/bin/env python3
"""Restore one image with nothing but an installed wheel.

    PYTHON -I tools/check_wheel.py WHEEL

PYTHON is that of an environment into which WHEEL was installed. Checks that the package is imported from there and not from a source
tree, that the wheel holds every file of the source tree (the weights among them), and that the installed command restores a bundled
image in an empty folder.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import sysconfig
import tempfile
import zipfile
from pathlib import Path

SOURCE = Path(__file__).resolve().parent.parent / "src"


def missing_from(wheel: Path) -> list[str]:
    """Files of the source tree that the wheel lacks."""
    files = (file for file in (SOURCE / "anem").rglob("*") if file.is_file() and "__pycache__" not in file.parts)
    wanted = {file.relative_to(SOURCE).as_posix() for file in files}
    return sorted(wanted - set(zipfile.ZipFile(wheel).namelist()))


def installed_package() -> Path:
    """Folder of the imported package, which must be the installed one."""
    import anem

    folder, site = Path(anem.__file__).resolve().parent, Path(sysconfig.get_path("purelib")).resolve()
    if folder.parent != site:
        sys.exit(f"anem: wanted the one installed in {site}, got {folder}")
    return folder


def restore_one(image: Path, folder: Path) -> list[Path]:
    """Pictures made by the installed command from one image, run in ``folder``."""
    command = Path(sysconfig.get_path("scripts")) / "anem"
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    environment["HF_HUB_OFFLINE"] = "1"
    arguments = [command, "restore", image, "--task", "inpaint-box", "--samples", "1"]
    done = subprocess.run(arguments, cwd=folder, env=environment, stdin=subprocess.DEVNULL)
    if done.returncode:
        sys.exit(f"anem restore: exit code {done.returncode}")
    return sorted(folder.rglob("*.png"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("wheel", type=Path)
    wheel = parser.parse_args().wheel
    if missing := missing_from(wheel):
        sys.exit(f"{wheel.name}: lacks {', '.join(missing)}")
    package = installed_package()
    examples = sorted((package / "weights").glob("*/examples/*.png"))
    if not examples or not list((package / "weights").glob("*/model.safetensors")):
        sys.exit(f"{wheel.name}: wanted a bundled model with weights and example images, got none")
    with tempfile.TemporaryDirectory() as folder:
        pictures = restore_one(examples[0], Path(folder))
    if not pictures:
        sys.exit("anem restore: wanted pictures in the current folder, got none")
    print(f"{wheel.name}: restored {examples[0].name} in an empty folder, {len(pictures)} pictures")


if __name__ == "__main__":
    main()
