"""MNIST on the device as tensors, batch by batch, and any picture of a digit in MNIST's form."""

import errno
import math
import sys
import tempfile
import warnings
from pathlib import Path

import filelock
import numpy as np
import torch
from PIL import Image, ImageOps

try:
    from torchvision.datasets import MNIST
    from torchvision.datasets.utils import check_integrity, check_md5, extract_archive
except (ImportError, RuntimeError, AttributeError) as error:  # "operator torchvision::nms does not exist" and its kin
    raise SystemExit(
        f"torch {torch.__version__} and the torchvision here do not fit together ({str(error).splitlines()[0]}); "
        "install a pair made for each other: pip install --force-reinstall torch torchvision"
    ) from None


class Loader:
    """Batches `(images (B, 1, 28, 28) float32, labels (B,) int64)` of a data set that lives on the device.

    With a generator each pass is in a fresh random order, without one in the given order; the last batch may be short.
    """

    def __init__(self, images: torch.Tensor, labels: torch.Tensor, batch_size: int, generator=None):
        self.images, self.labels, self.batch_size, self.generator = images, labels, batch_size, generator

    def __len__(self) -> int:
        return math.ceil(len(self.labels) / self.batch_size)

    def __iter__(self):
        size, images, labels = self.batch_size, self.images, self.labels
        if self.generator is None:
            yield from zip(images.split(size), labels.split(size))
            return
        # Indexing costs as much for one small batch as for many: gather several batches, then cut them apart.
        for index in torch.randperm(len(labels), generator=self.generator).to(labels.device).split(32 * size):
            yield from zip(images.index_select(0, index).split(size), labels[index].split(size))


def loaders(settings, args) -> tuple[Loader, Loader]:
    """The training loader, shuffled from `--seed`, and the test loader, as the recipe's settings and the flags say.

    With `--dry-run` each holds one batch.
    """
    both = []
    generator = torch.Generator().manual_seed(args.seed)
    train, test = read_mnist(args.data_dir)
    for (images, labels), size, order in (
        (train, settings.batch_size, generator),
        (test, settings.test_batch_size, None),
    ):
        if args.dry_run:
            images, labels = images[:size], labels[:size]
        images = normalize(images.to(args.device), settings.normalize)
        both.append(Loader(images, labels.to(args.device), size, order))
    return tuple(both)


def normalize(images: torch.Tensor, centred: bool) -> torch.Tensor:
    """Bytes `(N, 28, 28)` as float32 `(N, 1, 28, 28)`: `ToTensor()`, and `Normalize([0.5], [0.5])` if `centred`."""
    images = images[:, None].float().div_(255)
    return images.sub_(0.5).div_(0.5) if centred else images


def read_mnist(root: Path) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Training and test set of a torchvision MNIST root: bytes `(N, 28, 28)` and int64 labels `(N,)` each.

    The first process unpacks the archives while others wait. What a kill left half-unpacked is unpacked again; a folder
    that cannot be written is only read. Raises SystemExit with one line where files are missing or wrong.
    """
    raw = root / "MNIST" / "raw"
    try:
        raw.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(raw / ".lock"):
            return unpack_and_read(root, raw)
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise SystemExit(f"{raw}: {error.strerror}; --data-dir names a folder with MNIST/raw in it") from None
    if all(complete(raw / archive.removesuffix(".gz")) for archive, _ in MNIST.resources):
        return unpack_and_read(root, raw)
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder, "MNIST", "raw")
        copy.mkdir(parents=True)
        for archive, md5 in MNIST.resources:
            if not check_integrity(raw / archive, md5):
                raise SystemExit(
                    f"{raw / archive}: is missing or damaged, and the folder cannot be written; restore it"
                )
            (copy / archive).symlink_to((raw / archive).resolve())
        return unpack_and_read(Path(folder), copy)


def unpack_and_read(root: Path, raw: Path) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """`read_mnist`, in a folder that no other process changes meanwhile."""
    names = [archive.removesuffix(".gz") for archive, _ in MNIST.resources]
    missing = [name for name in names if not complete(raw / name)]
    if missing:  # torchvision unpacks all four, and downloads an archive that is not there: see that nothing is lost
        for archive, md5 in MNIST.resources:
            packed, file = raw / archive, raw / archive.removesuffix(".gz")
            if packed.exists():
                if not check_md5(packed, md5):
                    raise SystemExit(f"{packed}: is not the official archive; restore it, or remove it to download it")
                if file.name in missing:  # only these: the others may be the user's own
                    file.unlink(missing_ok=True)
                    extract_archive(str(packed), str(raw))
            elif file.exists():
                raise SystemExit(f"{raw / missing[0]}: is missing, cut short or no IDX file; put a whole one there")
    for name in names:
        sizes, due = idx_sizes(raw / name), "(N, 28, 28)" if "images" in name else "(N,)"
        if sizes and (sizes[0] == 0 or sizes[1:] != ((28, 28) if "images" in name else ())):
            raise SystemExit(f"{raw / name}: holds {sizes}, not {due}; put MNIST's file there")
    sets = []
    for train in (True, False):
        try:
            data = MNIST(root, train=train, download=True)
            images, labels = data.data, data.targets
        except Exception as error:  # a network, an archive and a file of bytes can each fail in their own ways
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            raise SystemExit(f"{raw}: cannot read MNIST ({reason}); put the four official archives there") from None
        second = raw / names[1 if train else 3]
        if len(labels) != len(images):
            raise SystemExit(f"{second}: {len(labels)} labels for {len(images)} images; put the files of one set there")
        if labels.max() > 9:
            raise SystemExit(f"{second}: has the label {labels.max()}, not 0 to 9; put MNIST's file there")
        sets.append((images, labels))
    return sets


def complete(file: Path) -> bool:
    """Whether an unpacked IDX file is as long as its header says."""
    return idx_sizes(file) is not None


def idx_sizes(file: Path) -> tuple[int, ...] | None:
    """The sizes in the header of an unpacked IDX file of bytes; None where the file is not as long as they say."""
    try:
        with open(file, "rb") as f:
            head = f.read(4)
            sizes = tuple(int.from_bytes(f.read(4), "big") for _ in range(head[3]))
        whole = head[:3] == b"\0\0\x08" and head[3] and file.stat().st_size == 4 + 4 * len(sizes) + math.prod(sizes)
        return sizes if whole else None
    except (OSError, IndexError):
        return None


def read_picture(path: Path) -> torch.Tensor:
    """A picture of one digit in MNIST's own form: float32 `(28, 28)`, light on dark, 0 to 1.

    Any size, mode and colours: ink is what differs from the border's colour. The ink's box is scaled into 20 × 20 with
    its proportions kept and placed by its centre of mass in 28 × 28, as MNIST's digits are (LeCun et al. 1998).
    Raises OSError or ValueError for what is no picture or has no digit in it.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        with Image.open(path) as picture:
            picture = ImageOps.exif_transpose(picture)
            picture = picture.convert("F" if picture.mode[0] in "IF" else "RGBA")
    picture.thumbnail((560, 560))
    pixels = np.asarray(picture, dtype=np.float32)
    colour = pixels[..., None] if pixels.ndim == 2 else on_one_ground(pixels)
    border = np.concatenate([colour[0], colour[-1], colour[:, 0], colour[:, -1]])
    ground = np.median(border, axis=0)
    ink = np.linalg.norm(colour - ground, axis=-1)
    # paper is never quite even: what half of the border shows twice over is no ink
    ink = np.clip(ink - 2 * np.median(np.linalg.norm(border - ground, axis=-1)), 0, None)
    if not ink.max() > 0:
        raise ValueError("is all one colour, there is no digit in it")
    ink /= ink.max()
    rows, columns = (np.flatnonzero((ink > 0.15).any(axis)) for axis in (1, 0))
    digit = Image.fromarray(ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1])
    scale = 20 / max(digit.size)
    digit = np.asarray(digit.resize([max(1, round(scale * side)) for side in digit.size], Image.Resampling.BILINEAR))
    digit = digit / digit.max()
    top, left = (
        int(np.clip(round(14 - (digit.sum(1 - axis) @ np.arange(n)) / digit.sum()), 0, 28 - n))
        for axis, n in enumerate(digit.shape)
    )
    image = torch.zeros(28, 28)
    image[top : top + digit.shape[0], left : left + digit.shape[1]] = torch.from_numpy(digit)
    return image


def on_one_ground(pixels: np.ndarray) -> np.ndarray:
    """RGBA `(H, W, 4)` over a ground of one colour, as `(H, W, 3)`.

    Where most is opaque the ground is its usual colour; else what is opaque is the digit, and the ground contrasts.
    """
    colour, alpha = pixels[..., :3], pixels[..., 3:] / 255
    opaque = colour[alpha[..., 0] > 0.5]
    if len(opaque) == 0:
        return np.zeros_like(colour)
    ground = np.median(opaque, axis=0)
    if alpha.mean() < 0.5:
        ground = np.full(3, 255.0 if ground.mean() < 128 else 0.0, dtype=np.float32)
    return alpha * colour + (1 - alpha) * ground


def predict(model: torch.nn.Module, paths: list[Path], centred: bool) -> list[tuple]:
    """Print the digit in each picture, `path: 7 (0.998)`.

    Returns `[(path, image (28, 28), probabilities (10,)), …]`. What cannot be read gets a line on stderr alone.
    """
    model.eval()
    device = next(model.parameters()).device
    answers = []
    for path in paths:
        try:
            image = read_picture(path)
        except Exception as error:  # a broken file can raise anything that its decoder does
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            print(f"{path}: {reason}; give a picture of one digit".replace(f"{path}: [", "["), file=sys.stderr)
            continue
        with torch.no_grad():
            output = model(normalize((image[None] * 255).to(device), centred))
        probability = output.softmax(1)[0].cpu()
        print(f"{path}: {probability.argmax()} ({probability.max():.3f})")
        answers.append((path, image, probability))
    return answers
