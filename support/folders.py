"""Folders of pictures as a data set: DIR/train/0 to DIR/train/9 and DIR/test/0 to DIR/test/9."""

from pathlib import Path

import numpy as np
import torch

from support.pictures import open_picture, read_picture

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp")


def read(root: Path) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Training and test set as MNIST's are: bytes `(N, 28, 28)` and int64 labels `(N,)` each.

    Raises SystemExit with one line where a picture cannot be read or a set has none.
    """
    return [read_part(root / "train"), read_part(root / "test")]


def read_part(folder: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """One of the two sets, in a shuffled but fixed order."""
    images, labels, unreadable = [], [], []
    for label in range(10):
        for path in sorted((folder / str(label)).glob("*")):
            if path.suffix.lower() not in SUFFIXES or path.name.startswith("."):
                continue
            try:
                images.append(as_bytes(path))
                labels.append(label)
            except Exception as error:  # a broken picture can make its decoder raise anything
                reason = getattr(error, "strerror", None) or " ".join(str(error).split())
                unreadable.append(f"{path}: {reason}")
    if unreadable:
        count = f"{len(unreadable)} of {len(unreadable) + len(labels)} pictures"
        raise SystemExit(f"{unreadable[0]}; {count} in {folder} cannot be read; remove them")
    if not labels:
        raise SystemExit(
            f"{folder}: has no pictures; put them into {folder / '0'} to {folder / '9'}"
        )
    # Shuffled, because --hold-out takes the last ones
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    return torch.stack(images)[order], torch.tensor(labels)[order]


def as_bytes(path: Path) -> torch.Tensor:
    """A picture as bytes `(28, 28)`; unchanged if it is grey, light on dark and 28 × 28 already."""
    with open_picture(path) as picture:
        if picture.size == (28, 28) and picture.mode == "L":
            pixels = np.array(picture)
            border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
            if np.median(border) < 128:
                return torch.from_numpy(pixels)
    return read_picture(path).mul(255).round().byte()
