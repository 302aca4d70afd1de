"""A data set's four files read with care: each is whole and of the right form, and none is ever written over."""

import contextlib
import gzip
import math
import os
import re
import shutil
import sys
import tempfile
import textwrap
import zlib
from pathlib import Path

import numpy as np
import torch

NAMES = [f"{part}-{kind}-ubyte" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1")]
LIKE_DATA = re.compile(r"ubyte|mnist.*\.|^(train|test)\w*\.|\.(npz|parquet|zip)$", re.IGNORECASE)
SETS = {"MNIST", "FashionMNIST", "KMNIST", "EMNIST", "QMNIST"}  # torchvision's folders, which can lie side by side
TYPES = {b"\0\0\x0b": "int16", b"\0\0\x0c": "int32", b"\0\0\x0d": "float32"}  # how IDX files of other numbers begin


def read(root: Path, folder: str) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Training and test set of a torchvision root: bytes `(N, 28, 28)` and int64 labels `(N,)` each.

    `folder` is named after torchvision's class. It is downloaded if it is missing and nothing like it is in `root`.
    Raises SystemExit with one line where a file is missing or wrong.
    """
    raw, sets = root / folder / "raw", []
    missing = [name for name in NAMES if not find(raw, name)]
    if missing:
        if remedy := diagnose(root, folder):
            raise SystemExit(f"{raw / missing[0]}: is missing; {remedy}")
        download(root, folder)
    for names in (NAMES[:2], NAMES[2:]):
        files = [find(raw, name) for name in names]
        images, labels = map(read_idx, files)
        if images.shape[1:] != (28, 28) or len(images) == 0:
            raise SystemExit(f"{files[0]}: holds {tuple(images.shape)}, not (N, 28, 28); put the set's own there")
        if labels.shape != images.shape[:1] or labels.max() > 9:
            what = f"a label from 0 to 9 for each of {len(images)} images"
            raise SystemExit(f"{files[1]}: holds {tuple(labels.shape)}, not {what}; put the set's own there")
        sets.append((images, labels.long()))
    return sets


def find(raw: Path, name: str) -> Path | None:
    """The file of this name, packed or not, also as Kaggle names it: with a dot, or in a folder of the same name."""
    names = name, name.replace("-idx", ".idx")
    files = (raw / file for each in names for file in (each, f"{each}.gz", f"{each}/{each}"))
    return next((file for file in files if os.path.isfile(file)), None)  # False where a folder may not be read


def diagnose(root: Path, folder: str) -> str:
    """What to do about a set that is elsewhere, of another form or in part there; "" where nothing like it is."""
    if not os.path.exists(root):  # or where it is may not be entered
        return ""
    here, raw = root.resolve(), root / folder / "raw"
    above = [place for place in here.parents[:2] if here in (place / folder, place / folder / "raw")]
    below = [place for at in ("*", "*/*") for place in sorted(root.glob(at)) if find(place / folder / "raw", NAMES[0])]
    if above or below:
        return f"give --data-dir {[*above, *below][0]}"
    if os.path.isfile(root):
        return f"--data-dir takes a folder, and {root} is a file"
    others = [name for name in sorted(SETS) if os.path.isdir(root / name / "raw")]
    if folder == "MNIST" and others and not os.path.exists(root / folder):  # the default: another was perhaps forgotten
        return f"{root} holds {' and '.join(others)}; give another --data-dir, or --dataset for one that it holds"
    files = [file for at in ("*", "*/*", "*/*/*") for file in root.glob(at) if os.path.isfile(file)]
    files = [file for file in files if folder in file.relative_to(root).parts or LIKE_DATA.search(file.name)]
    found = [str(file.relative_to(root)) for file in files if not (SETS - {folder}) & {*file.relative_to(root).parts}]
    what = f"put the four files of {folder} into {raw}"
    return f"{what} ({root} holds {', '.join(sorted(found)[:4])})" if found else what * os.path.exists(root / folder)


def read_idx(file: Path) -> torch.Tensor:
    """The bytes in an IDX file, which may be packed, in the shape that its header gives."""
    try:
        data = np.fromfile(file, np.uint8)
        if data[:2].tobytes() == b"\x1f\x8b":
            data = np.frombuffer(bytearray(gzip.decompress(data)), np.uint8)
        if (begin := data[:3].tobytes()) != b"\0\0\x08" or len(data) < 4:
            raise ValueError(f"it is not an IDX file of bytes, but {TYPES.get(begin, 'something else')}")
        start = 4 + 4 * int(data[3])
        if (size := math.prod(data[4:start].view(">u4").tolist()) + start) != len(data):
            raise ValueError(f"it has {len(data)} bytes instead of {size}")
        return torch.from_numpy(data[start:].reshape(data[4:start].view(">u4")))
    except (OSError, EOFError, ValueError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or error
        raise SystemExit(f"{file}: cannot be read ({reason}); put the set's own file there") from None


def download(root: Path, folder: str) -> None:
    """Fetch a data set with torchvision; its folder appears once all of it is there."""
    from torchvision import datasets

    try:
        with tempfile.TemporaryDirectory() as place, contextlib.redirect_stdout(sys.stderr):
            getattr(datasets, folder)(place, download=True)
            root.mkdir(parents=True, exist_ok=True)
            if not (root / folder).exists():  # another process may have been faster
                with tempfile.TemporaryDirectory(dir=root) as near:  # where a rename is atomic
                    os.rename(shutil.move(Path(place, folder), near), root / folder)
    except (OSError, RuntimeError) as error:  # RuntimeError: no mirror has it
        reason = textwrap.shorten(str(error), 250, placeholder=" …")
        four = f"put its four files into {root / folder / 'raw'}"
        what = root / folder if os.path.exists(root) else root
        raise SystemExit(f"{what}: does not exist, and {folder} cannot be downloaded ({reason}); {four}") from None
