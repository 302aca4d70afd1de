"""A data set's four files read with care: each is whole and of the right form, and none is ever written over.

An unpacked file is read as it is; where there is none, or only an incomplete one, its archive is unpacked in memory,
which takes a fifth of a second and leaves nothing behind; where there is neither, the archive is downloaded.
"""

import contextlib
import gzip
import math
import sys
import zlib
from pathlib import Path

import filelock
import numpy as np
import torch

FILES = ["train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"]
PATIENCE = 600  # seconds to wait for another process's download


def read(root: Path, folder: str = "MNIST") -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Training and test set of a torchvision root: bytes `(N, 28, 28)` and int64 labels `(N,)` each.

    `folder` is named after torchvision's class. Raises SystemExit with one line where files are missing or wrong.
    """
    raw = root / folder / "raw"
    files = [raw / name for name in FILES]
    try:
        missing = [k for k, file in enumerate(files) if not (file.exists() or file.with_suffix(".gz").exists())]
        if missing and any(file.exists() and not file.with_suffix(".gz").exists() for file in files):
            raise SystemExit(f"{files[missing[0]]}: is missing; put it beside the others")  # never another set's
        for k in missing:
            download(files[k].with_suffix(".gz"), folder)
        loaded = [load(file) for file in files]
    except OSError as error:
        what = error.filename or raw
        raise SystemExit(f"{what}: cannot be read ({error.strerror}); --data-dir names a torchvision root") from None
    for (images, images_file), (labels, labels_file) in zip(loaded[::2], loaded[1::2]):
        if images.shape[1:] != (28, 28) or len(images) == 0:
            raise SystemExit(f"{images_file}: holds {tuple(images.shape)}, not (N, 28, 28); put the right one there")
        if labels.shape != images.shape[:1]:
            shape = "×".join(map(str, labels.shape))
            raise SystemExit(f"{labels_file}: {shape} labels for {len(images)} images; put the set's own there")
        if labels.max() > 9:
            raise SystemExit(f"{labels_file}: has the label {labels.max()}, not 0 to 9; put the right one there")
        if len(images) > 1 and all(torch.equal(part, images[:1].expand_as(part)) for part in images.split(1000)):
            raise SystemExit(f"{images_file}: its images are all the same; put the right one there")
    return [(images, labels.long()) for (images, _), (labels, _) in zip(loaded[::2], loaded[1::2])]


def load(file: Path) -> tuple[torch.Tensor, Path]:
    """The bytes of an IDX file in the shape that its header says, and where they are from: the file or its archive."""
    packed = file.with_suffix(".gz")
    data = np.fromfile(file, np.uint8) if file.exists() else None
    shape = shape_of(data)
    if shape and packed.exists():
        checksum = packed.read_bytes()[-8:-4]  # there a gzip file has the CRC-32 of what it holds
        if zlib.crc32(data) != int.from_bytes(checksum, "little"):
            raise SystemExit(f"{file}: differs from {packed.name} beside it; remove one of the two")
    elif packed.exists():
        try:
            data = np.frombuffer(bytearray(gzip.decompress(packed.read_bytes())), np.uint8)
        except (EOFError, zlib.error, gzip.BadGzipFile):
            data = np.empty(0, np.uint8)
        file, shape = packed, shape_of(data)
    if shape is None:
        other = ", or remove it to download it" if file == packed else ""
        raise SystemExit(f"{file}: is damaged or not an IDX file; put a whole one there{other}")
    return torch.from_numpy(data[4 + 4 * len(shape) :]).view(shape), file


def shape_of(data: np.ndarray | None) -> tuple[int, ...] | None:
    """What the header of an IDX file of bytes says of its shape; None where the file is not of that size."""
    if data is None or len(data) < 4 or data[:3].tolist() != [0, 0, 8] or len(data) < 4 + 4 * data[3] or data[3] == 0:
        return None
    shape = tuple(data[4 : 4 + 4 * data[3]].view(">u4").tolist())
    return shape if len(data) == 4 + 4 * len(shape) + math.prod(shape) else None


def download(packed: Path, folder: str) -> None:
    """Fetch one archive from the first of torchvision's mirrors that has it; several processes take turns."""
    failure, part = "no mirror has it", packed.with_name(f".{packed.name}.part")
    try:
        from torchvision import datasets

        kind = getattr(datasets, folder)
        packed.parent.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(packed.with_name(".lock"), timeout=PATIENCE), contextlib.redirect_stdout(sys.stderr):
            for mirror in () if packed.exists() else kind.mirrors:
                try:
                    url, md5 = f"{mirror}{packed.name}", dict(kind.resources)[packed.name]
                    datasets.utils.download_url(url, packed.parent, part.name, md5)
                    part.replace(packed)
                    return
                except Exception as error:  # a network can fail in many ways
                    failure = " ".join(str(error).split())[:200] or type(error).__name__
    except (OSError, filelock.Timeout) as error:
        failure = getattr(error, "strerror", None) or f"{error}"
    except (ImportError, RuntimeError, AttributeError) as error:  # "operator torchvision::nms does not exist"
        failure = f"{str(error).splitlines()[0]}: pip install --force-reinstall torch torchvision makes a matching pair"
    if not packed.exists():
        four = ", ".join(f"{name}.gz" for name in FILES)
        raise SystemExit(f"{packed}: is missing and cannot be downloaded ({failure}); put {four} into {packed.parent}")
