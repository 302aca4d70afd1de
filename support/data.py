"""A data set's four files read with care: each is whole and of the right form, and none is ever written over."""

import contextlib
import gzip
import shutil
import sys
import tempfile
import zlib
from pathlib import Path

import numpy as np
import torch


def read(root: Path, folder: str) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Training and test set of a torchvision root: bytes `(N, 28, 28)` and int64 labels `(N,)` each.

    `folder` is named after torchvision's class; one that is missing is downloaded. Raises SystemExit with one line
    where a file is missing or wrong.
    """
    raw, sets = root / folder / "raw", []
    if not (root / folder).exists():
        download(root, folder)
    for part in ("train", "t10k"):
        (images, file), (labels, labels_file) = (
            read_idx(raw / f"{part}-{kind}-ubyte") for kind in ("images-idx3", "labels-idx1")
        )
        if images.shape[1:] != (28, 28) or len(images) == 0:
            raise SystemExit(f"{file}: holds {tuple(images.shape)}, not (N, 28, 28); put the set's own there")
        if labels.shape != images.shape[:1] or labels.max() > 9:
            what = f"a label from 0 to 9 for each of {len(images)} images"
            raise SystemExit(f"{labels_file}: holds {tuple(labels.shape)}, not {what}; put the set's own there")
        sets.append((images, labels.long()))
    return sets


def read_idx(file: Path) -> tuple[torch.Tensor, Path]:
    """The bytes in an IDX file, or in FILE.gz if there is none, in the shape that its header gives; and that file."""
    file = file if file.exists() else file.with_name(f"{file.name}.gz")
    try:
        data = np.fromfile(file, np.uint8)
        if file.suffix == ".gz":
            data = np.frombuffer(bytearray(gzip.decompress(data)), np.uint8)
        if len(data) < 4 or data[:3].tolist() != [0, 0, 8]:
            raise ValueError("it is not an IDX file of bytes")
        start = 4 + 4 * data[3]
        return torch.from_numpy(data[start:].reshape(data[4:start].view(">u4"))), file
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
                shutil.move(Path(place, folder), root / folder)
    except (OSError, RuntimeError) as error:  # RuntimeError: no mirror has it
        reason = " ".join(str(error).split())[:200]
        four = f"put its four archives into {root / folder / 'raw'}"
        raise SystemExit(f"{root / folder}: is missing and cannot be downloaded ({reason}); {four}") from None
