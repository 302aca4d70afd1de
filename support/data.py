"""Reads a data set's four files: checked for completeness and form, never overwritten."""

import contextlib
import gzip
import math
import os
import shutil
import sys
import tempfile
import textwrap
import zlib
from pathlib import Path

import numpy as np
import torch

NAMES = [
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
]
# May lie beside a downloaded set: torchvision's folders, and data/'s README.md
BESIDE = {"MNIST", "FashionMNIST", "KMNIST", "EMNIST", "QMNIST", "README.md"}


def read(root: Path, folder: str) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Training and test set of a torchvision root: bytes `(N, 28, 28)` and int64 labels `(N,)`.

    `folder` is torchvision's name of the set. It is downloaded if it is missing and `root` holds
    nothing else. Raises SystemExit with one line if a file is missing or wrong.
    """
    if os.path.isfile(root):
        raise SystemExit(f"--data-dir takes a folder, and {root} is a file")
    raw = root / folder / "raw"
    files = [find(raw, name) for name in NAMES]
    if None in files:
        if must_not_download(root, folder):
            missing = raw / NAMES[files.index(None)]
            there = ", ".join(listing(root)[:5]) or "nothing"
            remedy = f"put the four files of {folder} there, or give the --data-dir that has them"
            raise SystemExit(f"{missing}: is missing; {remedy} ({root} holds {there})")
        download(root, folder)
        files = [find(raw, name) for name in NAMES]
    return [read_part(files[0], files[1]), read_part(files[2], files[3])]


def find(raw: Path, name: str) -> Path | None:
    """The file of this name, gzipped or not; Kaggle's have a dot, or a folder of the same name."""
    for variant in (name, name.replace("-idx", ".idx")):
        for file in (raw / variant, raw / f"{variant}.gz", raw / variant / variant):
            if file.name in listing(file.parent) and not file.is_dir():
                return file
    return None


def listing(folder: Path) -> list[str]:
    """The names in a folder; none if it is missing, SystemExit if it cannot be read."""
    try:
        return sorted(os.listdir(folder))
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        reason = f"cannot be read ({error.strerror}); give a --data-dir that can be"
        raise SystemExit(f"{folder}: {reason}") from None


def must_not_download(root: Path, folder: str) -> bool:
    """Whether a part of the set is there, or a user's own files are."""
    if listing(root / folder):
        return True
    names = {name for name in listing(root) if not name.startswith(".")}
    if folder == "MNIST":  # the default: beside another set, --dataset was probably forgotten
        return bool(names)
    return not names <= BESIDE


def read_part(images_file: Path, labels_file: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """Images and labels; SystemExit with one line if they do not belong together."""
    images = read_idx(images_file)
    labels = read_idx(labels_file)
    remedy = "put the set's own file there"
    if images.shape[1:] != (28, 28) or len(images) == 0:
        raise SystemExit(f"{images_file}: holds {tuple(images.shape)}, not (N, 28, 28); {remedy}")
    if labels.shape != images.shape[:1]:
        what = f"holds {tuple(labels.shape)}, not a label for each of {len(images)} images"
        raise SystemExit(f"{labels_file}: {what}; {remedy}")
    if labels.max() > 9:
        raise SystemExit(f"{labels_file}: has labels up to {labels.max()}, not 9; {remedy}")
    return images, labels.long()


def read_idx(file: Path) -> torch.Tensor:
    """The bytes in an IDX file, gzipped or not, in the shape that its header gives."""
    try:
        data = file.read_bytes()
        if data.startswith(b"\x1f\x8b"):
            data = gzip.decompress(data)
        if data[:3] != b"\0\0\x08" or len(data) < 4:
            raise ValueError("it is not an IDX file of bytes")
        start = 4 + 4 * data[3]
        shape = np.frombuffer(data[4:start], ">u4").tolist()
        size = start + math.prod(shape)
        if len(data) != size:
            raise ValueError(f"it has {len(data)} bytes instead of {size}")
        pixels = np.frombuffer(bytearray(data[start:]), np.uint8)  # torch wants writable memory
        return torch.from_numpy(pixels.reshape(shape))
    except (OSError, EOFError, ValueError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or error
        what = f"cannot be read ({reason}); put the set's own file there"
        raise SystemExit(f"{file}: {what}") from None


def download(root: Path, folder: str) -> None:
    """Download a data set with torchvision; its folder appears once it is complete."""
    from torchvision import datasets

    try:
        with tempfile.TemporaryDirectory() as place:
            with contextlib.redirect_stdout(sys.stderr):
                getattr(datasets, folder)(place, download=True)
            root.mkdir(parents=True, exist_ok=True)
            with contextlib.suppress(OSError):
                os.rmdir(root / folder)  # only an empty one goes
            if not (root / folder).exists():  # another process may have been faster
                with tempfile.TemporaryDirectory(dir=root) as near:
                    moved = shutil.move(Path(place, folder), near)
                    os.rename(moved, root / folder)  # atomic within root
    except (OSError, RuntimeError) as error:  # RuntimeError: every mirror failed
        reason = textwrap.shorten(str(error), 250, placeholder=" …")
        what = root / folder if root.exists() else root
        remedy = f"put its four files into {root / folder / 'raw'}"
        raise SystemExit(
            f"{what}: does not exist, and {folder} cannot be downloaded ({reason}); {remedy}"
        ) from None
