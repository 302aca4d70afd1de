"""What both scripts need: the data on the device, accuracy, set-up, shared flags, clean exits."""

import argparse
import contextlib
import ctypes
import importlib.metadata
import inspect
import json
import math
import statistics
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import torch
import torch.nn.functional as F

try:
    from torchvision.datasets import MNIST
except (ImportError, RuntimeError, AttributeError) as error:  # "operator torchvision::nms does not exist" and its kin
    versions = ", ".join(f"{p} {importlib.metadata.version(p)}" for p in ("torch", "torchvision"))
    raise SystemExit(
        f"{versions} do not fit together ({str(error).splitlines()[0]}); "
        "install a pair made for each other: pip install --force-reinstall torch torchvision"
    ) from None

DATA_DIR = Path(__file__).resolve().parent / "data"


def set_up(args: argparse.Namespace) -> torch.device:
    """Prepare the process for training: allocator, denormals, line-wise output; return the device of `--device`.

    Call it before the first tensor is computed: threads inherit the processor's denormal mode when they start.
    """
    sys.stdout.reconfigure(line_buffering=True)
    keep_freed_memory()
    # Gates saturate: products of small numbers fall under 1e-38, where the processor is many times slower.
    torch.set_flush_denormal(True)
    return args.device


def keep_freed_memory() -> None:
    """Let glibc keep what is freed instead of giving it back to the kernel; a no-op with another C library.

    oneDNN's LSTM takes and frees megabytes at each call. Given back, every page is faulted in again by the next step.
    """
    with contextlib.suppress(OSError, AttributeError, TypeError):
        mallopt = ctypes.CDLL(None).mallopt
        M_MMAP_THRESHOLD, M_TRIM_THRESHOLD = -3, -1
        mallopt(M_MMAP_THRESHOLD, 1 << 30)
        mallopt(M_TRIM_THRESHOLD, -1)


def device(name: str) -> torch.device:
    """The device that `--device` names; `auto` is the accelerator where there is one, else the CPU.

    Raises argparse.ArgumentTypeError for a name torch does not know or a device that is not there.
    """
    here = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if name == "auto":
        return here or torch.device("cpu")
    try:
        wanted = torch.device(name)
    except RuntimeError:
        raise argparse.ArgumentTypeError(f"{name!r} is no device; use auto, cpu, cuda, cuda:1, mps or xpu") from None
    if wanted.type != "cpu" and (
        here is None or wanted.type != here.type or (wanted.index or 0) >= torch.accelerator.device_count()
    ):
        raise argparse.ArgumentTypeError(f"{name!r} is not on this machine; use auto or cpu")
    return wanted


def whole(least: int, most: int = 2**31 - 1):
    """An argparse type: a whole number from `least` to `most`."""

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = None
        if value is None or not least <= value <= most:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from {least} to {most}")
        return value

    return parse


def positive(text: str) -> float:
    """An argparse type: a finite number above 0."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0, such as 0.01")
    return value


class Parser(argparse.ArgumentParser):
    """An argument parser that says what is wrong in one line, without the usage before it."""

    def error(self, message: str):
        self.exit(2, f"{self.prog}: {message} (--help lists the flags)\n")


def parser(doc: str) -> argparse.ArgumentParser:
    """A parser with the flags both scripts share; `doc` is the script's docstring."""
    p = Parser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    p.add_argument("--epochs", type=whole(0), metavar="N", help="default: the tutorial's")
    p.add_argument("--batch-size", type=whole(1), metavar="N", help="default: the tutorial's")
    p.add_argument("--test-batch-size", type=whole(1), metavar="N", help="default: the tutorial's")
    p.add_argument("--lr", type=positive, metavar="RATE", help="learning rate (default: the tutorial's)")
    p.add_argument("--seed", type=whole(0, 2**63 - 1), default=1, metavar="S", help="everything random (default: 1)")
    p.add_argument("--device", type=device, default="auto", help="auto, cpu, cuda, cuda:1, mps, xpu (default: auto)")
    p.add_argument("--data-dir", type=Path, default=DATA_DIR, metavar="DIR", help="a torchvision MNIST root")
    p.add_argument("--dry-run", action="store_true", help="one batch of training, one of test")
    p.add_argument("--log-interval", type=whole(0), metavar="N", help="a line every N steps (default: the tutorial's)")
    p.add_argument("--save-model", type=Path, metavar="FILE", help="write the trained state_dict")
    p.add_argument("--load-model", type=Path, metavar="FILE", help="start from it; with --epochs 0: evaluate it")
    p.add_argument("--log", type=Path, metavar="FILE", help="append one JSON object an epoch")
    return p


def override(recipe: dict, args: argparse.Namespace) -> SimpleNamespace:
    """The recipe with what the flags of the same names set in its place."""
    chosen = {name: getattr(args, name, None) for name in recipe}
    settings = SimpleNamespace(**{name: recipe[name] if chosen[name] is None else chosen[name] for name in recipe})
    if args.dry_run:
        settings.epochs = min(settings.epochs, 1)
    return settings


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
            yield from zip(images[index].split(size), labels[index].split(size))


def loaders(settings: SimpleNamespace, args: argparse.Namespace) -> tuple[Loader, Loader]:
    """The training loader, shuffled from `--seed`, and the test loader; one batch in each with `--dry-run`."""
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

    Raises SystemExit with one line where the files are missing or wrong.
    """
    raw = root / "MNIST" / "raw"
    try:
        sets = [MNIST(root, train=train, download=True) for train in (True, False)]
    except (OSError, RuntimeError) as error:
        raise SystemExit(f"{raw}: cannot read MNIST: {' '.join(str(error).split())}") from None
    return [(s.data, s.targets) for s in sets]


def optimizer(name: str, model: torch.nn.Module, lr: float) -> torch.optim.Optimizer:
    """`torch.optim`'s optimizer of that name over the model's parameters, in its variant with the fewest kernels."""
    kind = getattr(torch.optim, name)
    variant = "fused" if "fused" in inspect.signature(kind).parameters else "foreach"
    return kind(model.parameters(), lr=lr, **{variant: True})


def evaluate(model: torch.nn.Module, loader: Loader) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """The model's outputs and the labels, batch by batch, without gradients; what `score` and `report` take."""
    model.eval()
    with torch.no_grad():
        return [(model(images), labels) for images, labels in loader]


def score(seen: list[tuple[torch.Tensor, torch.Tensor]]) -> tuple[float, float]:
    """Mean cross-entropy and accuracy over all samples of `[(outputs (B, 10), labels (B,)), …]`."""
    output, label = map(torch.cat, zip(*seen))
    loss = F.cross_entropy(output.float(), label)
    accuracy = (output.argmax(1) == label).float().mean()
    return tuple(torch.stack((loss, accuracy)).tolist())


def running(epoch: int, epochs: int, step: int, seen, model, loader: Loader) -> str:
    """004's line within an epoch: loss and accuracy of the epoch's training samples so far."""
    loss, accuracy = score(seen)
    return f"[{epoch + 1}/{epochs}] Loss: {loss:.6f}, Acc: {accuracy:.6f}"


def describe(script: str, name: str, model: torch.nn.Module, recipe: SimpleNamespace, args, **more) -> dict:
    """Print the line before training and return what identifies the run in every record of `--log`."""
    parameters = sum(p.numel() for p in model.parameters())
    kind = " ".join([type(model).__name__, *more.values()])
    print(
        f"{name}: {kind}, {parameters:,} parameters, {recipe.optimizer} lr {recipe.lr:g}, "
        f"batch {recipe.batch_size}, {recipe.epochs} epochs, {args.device}, seed {args.seed}"
    )
    run = {"script": Path(script).name, "recipe": name, **more, "seed": args.seed, "device": str(args.device)}
    return {**run, "lr": recipe.lr, "batch_size": recipe.batch_size, "parameters": parameters}


def record(run: dict, epoch: int, seen, valid, start: float) -> dict:
    """An epoch of a run as `--log` writes it: loss and accuracy over samples, and the seconds since `start`."""
    (train_loss, train_acc), (valid_loss, valid_acc) = score(seen), score(valid)
    return {
        **run,
        "epoch": epoch,
        "train_loss": train_loss,
        "train_acc": train_acc,
        "valid_loss": valid_loss,
        "valid_acc": valid_acc,
        "seconds": time.perf_counter() - start,
    }


def append_log(path: Path, records: list[dict]) -> None:
    """Append records to a file, one JSON object a line, in a single write."""
    lines = "".join(json.dumps(r) + "\n" for r in records)
    with open(path, "a", encoding="utf-8") as file:
        file.write(lines)


def table(rows: list[tuple[dict, list[dict]]]) -> None:
    """Print the comparison of several runs: `[(run, its epochs' records), …]`."""
    print(f"\n{'recipe':<12} {'parameters':>10} {'epochs':>6} {'test accuracy':>13} {'seconds an epoch':>16}")
    for run, history in rows:
        accuracy, seconds = "-", "-"
        if history:
            accuracy = f"{100 * history[-1]['valid_acc']:.2f}%"
            seconds = f"{statistics.median(r['seconds'] for r in history):.2f}"
        print(f"{run['recipe']:<12} {run['parameters']:>10,} {len(history):>6} {accuracy:>13} {seconds:>16}")


def epoch_line(r: dict) -> str:
    """001's line an epoch, from the record that `--log` writes."""
    minutes, seconds = divmod(int(r["seconds"]), 60)
    return (
        f"Epoch {r['epoch']}. Train Loss: {r['train_loss']:.6f}, Train Acc: {r['train_acc']:.6f}, "
        f"Valid Loss: {r['valid_loss']:.6f}, Valid Acc: {r['valid_acc']:.6f}, "
        f"Time {minutes // 60:02d}:{minutes % 60:02d}:{seconds:02d}"
    )


def report(seen: list[tuple[torch.Tensor, torch.Tensor]]) -> None:
    """Print 003's end: the test loss, the accuracy of each digit, and overall."""
    output, label = (torch.cat(part).cpu() for part in zip(*seen))
    right = torch.bincount(label[output.argmax(1) == label], minlength=10).tolist()
    total = torch.bincount(label, minlength=10).tolist()
    print(f"Test Loss: {score(seen)[0]:.6f}\n")
    for digit, (r, n) in enumerate(zip(right, total)):
        percent = f"{100 * r // n:2d}%" if n else "None"
        print(f"The test accuracy of {digit:2d} is : {percent} ({r:2d}/{n:2d})")
    r, n = sum(right), sum(total)
    print(f"\nTest Accuracy (Overall): {100 * r / n:.2f}% ({r}/{n})")
