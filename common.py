"""What both scripts need: shared flags, set-up, accuracy, records of a run, clean exits."""

import argparse
import contextlib
import ctypes
import errno
import inspect
import json
import math
import os
import signal
import statistics
import sys
import time
import uuid
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
import torch.nn.functional as F
from tqdm import tqdm

DATA_DIR = Path(__file__).resolve().parent / "data"


def set_up(args: argparse.Namespace) -> None:
    """Prepare the process for training: allocator, denormals, output line by line, and the files to be written.

    Call it before the first tensor is computed: threads inherit the processor's denormal mode when they start.
    """
    if sys.stdout:  # None where the process was started without one
        sys.stdout.reconfigure(line_buffering=True)
    keep_freed_memory()
    for kind in (np.float32, np.float64):
        np.finfo(kind)  # older numpys measure this at first use, and warn where denormals are flushed by then
    # Numbers under 1e-38 are slow on some processors; benchmarks/set_up.py saw no difference beyond its noise.
    torch.set_flush_denormal(True)
    for file in filter(None, (args.save_model, args.checkpoint, args.log)):
        check_writable(file)
    if args.plot:
        check_writable(args.plot / "curves.png")


def check_writable(file: Path) -> None:
    """Make the file's folder and try that a file can be written there; SystemExit with one line if not.

    Training can take hours; a path that cannot be written is better found before it.
    """
    if file.is_dir():
        raise SystemExit(f"{file}: is a folder; name a file in it")
    if file.exists() and not file.is_file():
        raise SystemExit(f"{file}: is no regular file; name another")
    trial = file.with_name(f".{file.name}.trial")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with open(trial, "wb") as f:
            f.write(bytes(1 << 20))
            f.flush()
            os.fsync(f.fileno())
        if file.exists():
            open(file, "ab").close()
    except OSError as error:
        raise SystemExit(f"{file}: cannot be written ({error.strerror}); name a place that can") from None
    finally:
        with contextlib.suppress(OSError):
            trial.unlink(missing_ok=True)


@contextlib.contextmanager
def clean_exit(args: argparse.Namespace):
    """End what stops a run from outside in one line: Ctrl-C with status 130, SIGTERM with 143, a closed pipe with 141.

    A machine that fails (memory, a full disk, no compiler) ends it with status 1. What the last whole epoch left stays.
    """

    def stop(*_):
        raise KeyboardInterrupt("terminated", 143)

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    except KeyboardInterrupt as error:
        how, status = error.args or ("interrupted", 130)
        kept = "nothing is kept (--checkpoint FILE keeps each epoch)"
        if args.checkpoint:
            kept = f"the same command goes on after the last whole epoch, from {args.checkpoint}"
        print(f"{how}: {kept}", file=sys.stderr)
        raise SystemExit(status) from None
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the interpreter flushes it once more
        raise SystemExit(141) from None
    except OSError as error:
        raise SystemExit(f"stopped: {error}") from None
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, MemoryError) or "memory" in str(error):
            remedy = "lower --batch-size or --test-batch-size"
        elif getattr(args, "compile", False) and "ompile" in str(error):
            remedy = "--compile needs a C++ compiler that works, such as g++; go without it"
        else:
            raise
        reason = (str(error).splitlines() or ["out of memory"])[0]
        raise SystemExit(f"stopped: {reason}; {remedy}") from None
    finally:
        signal.signal(signal.SIGTERM, before)


def keep_freed_memory() -> None:
    """Let glibc keep what is freed instead of giving it back to the kernel; a no-op with another C library.

    oneDNN's LSTM takes and frees megabytes at each call. Given back, every page is faulted in again by the next step:
    up to 1.5 times as long, for 2 % less memory at most (benchmarks/set_up.py; the figures stand in the README).
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
        message = " ".join(message.splitlines())
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
    p.add_argument("--bf16", action="store_true", help="bfloat16 autocast in training")
    p.add_argument("--dry-run", action="store_true", help="one batch of training, one of test")
    p.add_argument("--log-interval", type=whole(0), metavar="N", help="a line every N steps (default: the tutorial's)")
    p.add_argument("--save-model", type=Path, metavar="FILE", help="write the trained state_dict")
    p.add_argument("--load-model", type=Path, metavar="FILE", help="start from it; with --epochs 0: evaluate it")
    p.add_argument(
        "--checkpoint", type=Path, metavar="FILE", help="kept after each epoch; where it exists, go on from it"
    )
    p.add_argument("--predict", type=Path, nargs="+", metavar="IMAGE", help="with --load-model: name the digit in each")
    p.add_argument("--log", type=Path, metavar="FILE", help="append one JSON object an epoch")
    p.add_argument("--plot", type=Path, metavar="DIR", help="write the pictures there")
    return p


def parse(p: argparse.ArgumentParser, argv: list[str] | None) -> argparse.Namespace:
    """The command line, checked as a whole; SystemExit with status 2 and one line where flags do not go together."""
    args = p.parse_args(argv)
    if args.predict and not args.load_model:
        p.error("--predict needs --load-model FILE, the trained model")
    files = {}
    for flag, file in (("--save-model", args.save_model), ("--checkpoint", args.checkpoint), ("--log", args.log)):
        if file and (other := files.setdefault(file.resolve(), flag)) != flag:
            p.error(f"{other} and {flag} both name {file}; give each its own")
    return args


def override(recipe: dict, args: argparse.Namespace) -> SimpleNamespace:
    """The recipe with what the flags of the same names set in its place."""
    chosen = {name: getattr(args, name, None) for name in recipe}
    settings = SimpleNamespace(**{name: recipe[name] if chosen[name] is None else chosen[name] for name in recipe})
    if args.dry_run:
        settings.epochs = min(settings.epochs, 1)
    return settings


def optimizer(name: str, model: torch.nn.Module, lr: float) -> torch.optim.Optimizer:
    """`torch.optim`'s optimizer of that name over the model's parameters, in its variant with the fewest kernels."""
    kind = getattr(torch.optim, name)
    variant = "fused" if "fused" in inspect.signature(kind).parameters else "foreach"
    return kind(model.parameters(), lr=lr, **{variant: True})


def evaluate(model: torch.nn.Module, loader) -> list[tuple[torch.Tensor, torch.Tensor]]:
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


def progress(loader, epoch: int, seen: list):
    """The loader's batches under a progress bar with the loss and accuracy of what `seen` holds; on a terminal only."""
    # drawn once a second: the scores of all that was seen take a millisecond or two
    with tqdm(total=len(loader), desc=f"Epoch {epoch}", leave=False, disable=None, mininterval=1) as bar:
        if bar.disable:
            yield from loader
            return
        for step, batch in enumerate(loader, 1):
            yield batch
            if step % 16 == 0 and bar.update(16):  # true when the bar was drawn
                loss, accuracy = score(seen)
                bar.set_postfix_str(f"loss {loss:.4f}, acc {accuracy:.4f}", refresh=False)


def autocast(args: argparse.Namespace):
    """What to open around a training step: bfloat16 autocast with `--bf16`, else nothing."""
    if args.bf16:
        return lambda: torch.autocast(args.device.type, torch.bfloat16)
    return contextlib.nullcontext


def running(epoch: int, epochs: int, step: int, seen, model, loader) -> str:
    """004's line within an epoch: loss and accuracy of the epoch's training samples so far."""
    loss, accuracy = score(seen)
    return f"[{epoch + 1}/{epochs}] Loss: {loss:.6f}, Acc: {accuracy:.6f}"


def describe(script: str, name: str, model: torch.nn.Module, recipe: SimpleNamespace, args, **more) -> dict:
    """Print the line before training and return what identifies the run in `--log` and `--checkpoint`."""
    parameters = sum(p.numel() for p in model.parameters())
    kind = " ".join([type(model).__name__, *more.values()])
    print(
        f"{name}: {kind}, {parameters:,} parameters, {recipe.optimizer} lr {recipe.lr:g}, "
        f"batch {recipe.batch_size}, {recipe.epochs} epochs, {args.device}, seed {args.seed}"
    )
    settings = {key: getattr(recipe, key) for key in ("optimizer", "lr", "batch_size", "test_batch_size", "normalize")}
    run = {"script": Path(script).name, "recipe": name, **more, "seed": args.seed, "device": str(args.device)}
    run |= {**settings, "bf16": args.bf16, "dry_run": args.dry_run, "parameters": parameters}
    return {**run, "run": uuid.uuid4().hex[:12]}


def record(run: dict, epoch: int, seen, valid, start: float) -> dict:
    """An epoch of a run as `--log` writes it: loss and accuracy over samples, and the seconds since `start`.

    Raises SystemExit with one line where a loss is not finite.
    """
    (train_loss, train_acc), (valid_loss, valid_acc) = score(seen), score(valid)
    seconds = time.perf_counter() - start
    if not math.isfinite(train_loss + valid_loss):
        losses = [F.cross_entropy(output.float(), label).item() for output, label in seen]
        step = next((k for k, loss in enumerate(losses, 1) if not math.isfinite(loss)), len(seen))
        raise SystemExit(f"epoch {epoch}, step {step}: the loss is not finite; lower --lr (it is {run['lr']:g})")
    scores = dict(train_loss=train_loss, train_acc=train_acc, valid_loss=valid_loss, valid_acc=valid_acc)
    return {**run, "epoch": epoch, **scores, "seconds": seconds}


def complete_log(path: Path, history: list[dict]) -> None:
    """Append what a log lacks of a run that goes on: a kill may have come between checkpoint and log."""
    have = set()
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else ():
        with contextlib.suppress(ValueError, TypeError, AttributeError):
            logged = json.loads(line)
            have.add((logged.get("run"), logged.get("epoch")))
    append_log(path, [r for r in history if (r["run"], r["epoch"]) not in have])


def append_log(path: Path, records: list[dict]) -> None:
    """Append records to a file, one JSON object a line, in a single write; all of it or nothing."""
    data = "".join(json.dumps(r) + "\n" for r in records).encode()
    file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    try:
        size = os.fstat(file).st_size
        if os.write(file, data) < len(data):
            os.ftruncate(file, size)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from None
    finally:
        os.close(file)


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
