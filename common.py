"""Data loaders, accuracy, timing and flags: what each script needs; a script trains with this file alone.

What some flags and torchrun need beyond that, clean exits and the care for the data set's files are in support/.
"""

try:
    from support import archives, exits, files, flags, records  # first: Ctrl-C ends in one line, while importing, too
except ImportError as error:  # copied without support/
    if (error.name or "").split(".")[0] != "support":
        raise
    exits = None

import argparse
import contextlib
import ctypes
import functools
import itertools
import math
import os
import statistics
import sys
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from tqdm import tqdm

DATA_DIR = Path(__file__).resolve().parent / "data"
DATASETS = {"mnist": "MNIST", "fashion-mnist": "FashionMNIST", "kmnist": "KMNIST"}  # torchvision's classes and folders
CLASSES = {
    "mnist": [*"0123456789"],
    "fashion-mnist": ["T-shirt/top", "Trouser", "Pullover", "Dress", "Coat",
                      "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"],
    "kmnist": ["o", "ki", "su", "tsu", "na", "ha", "ma", "ya", "re", "wo"],
}  # fmt: skip
NEED_SUPPORT = ["save_model", "load_model", "checkpoint", "predict", "log", "plot", "compile"]
PROCESSES = int(os.environ["WORLD_SIZE"]) if "TORCHELASTIC_RUN_ID" in os.environ else 1
if exits and PROCESSES > 1:
    from support import processes
say = functools.partial(print, flush=True)  # at once, also into a pipe
CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
if PROCESSES > 1:
    CORES = max(1, CORES // int(os.environ["LOCAL_WORLD_SIZE"]))  # each process has its own
SAMPLES = 16  # fewest images in a part of a batch
RUNNING = "[{number}/{epochs}] Loss: {loss:.6f}, Acc: {acc:.6f}"  # loss and accuracy of an epoch so far


class Loader:
    """Batches `(images (B, 1, 28, 28) float32, labels (B,) int64)` of a data set that lives on the device as bytes.

    The data set is `images` `(N, 28, 28)` uint8 and `labels` `(N,)` int64. With a generator each pass is in a new
    random order, without one in the given order; the last batch may be short. Values are those of `ToTensor()`, and of
    `Normalize([0.5], [0.5])` after it if `normalize`. `transform(images, generator)`, if given, turns a few hundred
    images `(M, 1, 28, 28)` at a time into as many others.
    """

    def __init__(self, images, labels, batch_size, generator=None, normalize=False, transform=None):
        self.images, self.labels, self.batch_size = images, labels, batch_size
        self.generator, self.normalize, self.transform = generator, normalize, transform

    def __len__(self) -> int:
        return math.ceil(len(self.labels) / self.batch_size)

    def __iter__(self):
        size, total = self.batch_size, len(self.labels)
        order = torch.randperm(total, generator=self.generator) if self.generator else torch.arange(total)
        # Indexing costs as much for one small batch as for many: gather hundreds of images, then cut them apart.
        for index in order.to(self.labels.device).split(size * max(1, 800 // size)):
            images = to_float(self.images.index_select(0, index), self.normalize)
            images = self.transform(images, self.generator) if self.transform else images
            yield from zip(images.split(size), self.labels[index].split(size))


def to_float(images: torch.Tensor, normalize: bool = False) -> torch.Tensor:
    """Pixels `(N, 28, 28)` from 0 to 255 as float32 `(N, 1, 28, 28)` from 0 to 1, or from -1 to 1 if `normalize`."""
    images = images[:, None].to(torch.float32, copy=True).div_(255)
    return images.sub_(0.5).div_(0.5) if normalize else images


def read(root: Path, name: str = "mnist") -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Training and test set of a torchvision root: bytes `(N, 28, 28)` and int64 labels `(N,)` each."""
    if exits:
        return archives.read(root, DATASETS[name])
    from torchvision import datasets

    kind = getattr(datasets, DATASETS[name])
    try:
        return [(part.data, part.targets) for part in (kind(root, train, download=True) for train in (True, False))]
    except (OSError, RuntimeError) as error:  # a network and files can each fail in their own ways
        raise SystemExit(f"{root}: cannot read {DATASETS[name]} ({' '.join(str(error).split())[:200]})") from None


def loaders(args, transform=None) -> tuple[Loader, Loader]:
    """The training loader, shuffled from `args.seed`, and the test loader; each of one batch with `--dry-run`.

    With `--hold-out N` the last N training images take the test set's place. `transform` is for the training images.
    Raises SystemExit with one line where nothing would be left to train on.
    """
    training, test = read(args.data_dir, args.dataset)
    if n := args.hold_out:
        if n >= len(training[1]):
            raise SystemExit(f"--hold-out {n} leaves no training images (there are {len(training[1])}); lower it")
        training, test = zip(*((each[:-n], each[-n:]) for each in training))
    both, generator = [], torch.Generator().manual_seed(args.seed)
    for (images, labels), size, *more in (
        (training, args.batch_size, generator, args.normalize, transform),
        (test, args.test_batch_size, None, args.normalize),
    ):
        count = size if args.dry_run else len(labels)
        both.append(Loader(images[:count].to(args.device), labels[:count].to(args.device), size, *more))
    return tuple(both if PROCESSES == 1 else map(processes.Share, both))


def optimizer(model: torch.nn.Module, args) -> torch.optim.Optimizer:
    """torch.optim's `args.optimizer` at `args.lr`, in its variant with the fewest kernels."""
    variant = "fused" if args.optimizer in ("SGD", "Adam", "AdamW") else "foreach"
    return getattr(torch.optim, args.optimizer)(model.parameters(), lr=args.lr, **{variant: True})


def use_bfloat16(model: torch.nn.Module, device: torch.device) -> None:
    """Let the model compute in bfloat16 while it trains (`--bf16`); its outputs, and so the loss, stay float32.

    Raises SystemExit with one line where the device cannot: a CPU without AVX512 has no `nn.LSTM` in bfloat16, and
    cuDNN computes one in float16 under any autocast. Running out of memory stays a RuntimeError.
    """
    forward = model.forward

    def autocast(images):
        with torch.autocast(device.type, torch.bfloat16, enabled=model.training):
            return forward(images).float()

    def check(module, inputs, outputs):
        if outputs[0].dtype == torch.float16:
            raise SystemExit("--bf16: cuDNN computes an LSTM in float16, not bfloat16; leave it out")

    model.forward = autocast
    hooks = [layer.register_forward_hook(check) for layer in model.modules() if isinstance(layer, torch.nn.RNNBase)]
    try:
        model(torch.zeros(1, 1, 28, 28, device=device))
    except RuntimeError as error:
        if "primitive" not in str(error) and "bfloat16" not in str(error).lower():
            raise
        why = f"this model cannot be trained in bfloat16 on {device} (for an LSTM a CPU needs AVX512)"
        raise SystemExit(f"--bf16: {why}; leave it out") from None
    finally:
        for hook in hooks:
            hook.remove()


class Parts(torch.autograd.Function):
    """The forward pass of a batch in parts, and its backward pass; see `in_parts`."""

    @staticmethod
    def forward(ctx, on_threads, forward, recording, images, *parameters):
        def run(part):
            with torch.set_grad_enabled(recording):  # each thread has its own
                return forward(part)

        ctx.on_threads, ctx.parameters = on_threads, parameters
        ctx.outputs = on_threads(run, images)
        return torch.cat([output.detach() for output in ctx.outputs])

    @staticmethod
    def backward(ctx, gradient):
        parts = zip(ctx.outputs, gradient.split([len(output) for output in ctx.outputs]))
        gradients = ctx.on_threads(lambda part: torch.autograd.grad(part[0], ctx.parameters, part[1]), [*parts])
        return None, None, None, None, *(functools.reduce(torch.add, each) for each in zip(*gradients))


def in_parts(model: torch.nn.Module, args) -> None:
    """On the CPU, compute each batch in `args.parts` parts, each from beginning to end on one thread.

    Given two threads, `nn.LSTM` has them wait for each other hundreds of times a step, and where another program
    has one of the cores each wait can cost a time slice. Parts wait twice a step: beside one busy process a step of
    `sgd` takes 9.1 ms, the tutorial's way 48 (benchmarks/busy.py; n = 3, AMD EPYC, 2 cores, torch 2.14).
    Results depend on the parts, not on the number of threads. Evaluation takes parts of about 125 images where that
    gives more parts, even with `--parts 1`. Without this call everything works, on one thread.
    """
    if args.device.type != "cpu":
        return
    forward, parameters = model.forward, list(model.parameters())

    def prepare():  # settings of a thread, not of the process
        torch.set_num_threads(1)
        torch.set_flush_denormal(True)

    pool = ThreadPoolExecutor(args.threads, initializer=prepare)

    def on_threads(function, parts):
        results, left = [None] * len(parts), iter(range(len(parts)))

        def work():
            for k in left:  # whoever is free takes the next
                results[k] = function(parts[k])

        others = [pool.submit(work) for _ in range(min(args.threads, len(parts)) - 1)]
        work()
        for other in others:
            other.result()
        return results

    def forward_in_parts(images):
        recording = torch.is_grad_enabled()
        most = args.parts if recording else max(args.parts, len(images) // 125)
        parts = images.tensor_split(min(most, max(1, len(images) // SAMPLES)))
        return forward(images) if len(parts) == 1 else Parts.apply(on_threads, forward, recording, parts, *parameters)

    model.forward = forward_in_parts


def in_processes(model: torch.nn.Module, loader: Loader) -> torch.nn.Module:
    """The model as it is; under torchrun, where `loader` gives each process its share, as DistributedDataParallel."""
    return model if PROCESSES == 1 else processes.replicated(model, loader)


def score(seen: list[tuple[torch.Tensor, torch.Tensor]]) -> tuple[float, float]:
    """Mean cross-entropy and accuracy over all samples of `[(outputs (B, 10), labels (B,)), …]`."""
    outputs, labels = map(torch.cat, zip(*seen))
    loss = F.cross_entropy(outputs.float(), labels)
    accuracy = (outputs.argmax(1) == labels).float().mean()
    return tuple(torch.stack((loss, accuracy)).tolist())


def epoch_line(r: dict) -> str:
    """The `time-major` tutorial's line per epoch, from the record that `--log` writes."""
    minutes, seconds = divmod(int(r["seconds"]), 60)
    return (
        f"Epoch {r['epoch']}. Train Loss: {r['train_loss']:.6f}, Train Acc: {r['train_acc']:.6f}, "
        f"Valid Loss: {r['valid_loss']:.6f}, Valid Acc: {r['valid_acc']:.6f}, "
        f"Time {minutes // 60:02d}:{minutes % 60:02d}:{seconds:02d}"
    )


def report(seen: list[tuple[torch.Tensor, torch.Tensor]], names=range(10)) -> None:
    """Print the end of the `mlp` tutorial: the test loss, the accuracy of each class, and overall.

    Raises SystemExit with one line where the loss is not finite.
    """
    loss, _ = score(seen)
    if not math.isfinite(loss):
        raise SystemExit("the test loss is not finite: these weights are unusable; train again or load another model")
    outputs, labels = (torch.cat(part).cpu() for part in zip(*seen))
    right = torch.bincount(labels[outputs.argmax(1) == labels], minlength=10).tolist()
    total = torch.bincount(labels, minlength=10).tolist()
    say(f"Test Loss: {loss:.6f}\n")
    for name, r, n in zip(names, right, total):
        percent = f"{100 * r // n:2d}%" if n else "None"
        say(f"The test accuracy of {name!s:>2} is : {percent} ({r:2d}/{n:2d})")
    r, n = sum(right), sum(total)
    say(f"\nTest Accuracy (Overall): {100 * r / n:.2f}% ({r}/{n})")


class Run:
    """What is printed and kept around one recipe's loop: `epochs`, `batches`, `end_epoch`, `finish`, in this order.

    `history` holds a record per epoch, as `--log` writes it; its records start with the run's `settings`. A `scheduler`
    is resumed with the optimizer. An `average` of the weights, if given, is tested and saved instead of the model.
    """

    def __init__(self, args, model, optimizer, train_loader, test_loader, scheduler=None, average=None):
        self.args, self.model, self.optimizer = args, model, optimizer
        self.scheduler, self.average = scheduler, average
        self.result = average.module if average else model  # what is tested, saved and returned
        self.train_loader, self.test_loader, self.history = train_loader, test_loader, []
        names = ["script", "recipe", *getattr(args, "logged", []), "cell", "hidden", "layers", "seed", "device"]
        names += ["dataset", "optimizer", "lr", "batch_size", "test_batch_size", "parts", "normalize", "bf16"]
        names += ["compile", "dry_run", "hold_out"]
        parameters, kind = sum(p.numel() for p in model.parameters()), type(model).__name__
        split = f" over {PROCESSES} processes" if PROCESSES > 1 else ""
        split += f" in {args.parts} parts" if getattr(args, "parts", 1) > 1 else ""
        self.settings = {name: getattr(args, name) for name in names if name in args}
        self.settings |= {"device": str(args.device), "processes": PROCESSES, "parameters": parameters}
        say(
            f"{args.recipe}: {f'{kind} {args.cell}' if 'cell' in args else kind}, {parameters:,} parameters, "
            f"{args.optimizer} lr {args.lr:g}, batch {args.batch_size}{split}, "
            f"{args.epochs} {'epoch' if args.epochs == 1 else 'epochs'}, {args.device}, seed {args.seed}"
        )
        if exits:
            records.begin(self)
        if average and not average.n_averaged:
            average.update_parameters(model)  # the first update copies, including what --load-model has just read
        if PROCESSES > 1:
            processes.agree(self)
        if args.bf16 and len(self.history) < args.epochs:
            use_bfloat16(model, args.device)

    def score(self, seen: list) -> tuple[float, float]:
        """Mean cross-entropy and accuracy of what all processes saw."""
        scores = score(seen)
        return scores if PROCESSES == 1 else processes.mean(*scores, sum(len(labels) for _, labels in seen))

    def epochs(self):
        """Once per epoch that is still to be trained; its clock starts here."""
        while len(self.history) < self.args.epochs:
            self.start, self.trained = time.perf_counter(), []
            if "opening" in self.args:
                say(self.fill(self.args.opening))
            yield

    def batches(self):
        """The training batches of an epoch in pieces; between two pieces lines are printed and the bar moves.

        The caller adds each piece's outputs and labels to `trained` before it asks for the next.
        """
        loader, done, total = iter(self.train_loader), 0, len(self.train_loader)
        interval, on_terminal = self.args.log_interval or total, bool(sys.stderr) and sys.stderr.isatty()
        look = dict(desc=f"Epoch {len(self.history)}", leave=False, mininterval=1)
        with tqdm(total=total, **look) if on_terminal else contextlib.nullcontext() as bar:
            while done < total:
                size, old = min(interval - done % interval, total - done, 16 if on_terminal else 256), len(self.trained)
                yield itertools.islice(loader, size)
                done += size
                # Small tensors that outlive the large ones around them fragment the heap: 10.3 GiB instead of 2.4 for 2
                # million images (benchmarks/scale.py)
                self.trained[old:] = [tuple(map(torch.cat, zip(*self.trained[old:])))]
                if bar and bar.update(size):  # true if it was redrawn; scoring all that was trained is slow
                    bar.set_postfix_str("loss {:.4f}, acc {:.4f}".format(*score(self.trained)))
                if self.args.log_interval and done % interval == 0:
                    if bar:
                        bar.clear()
                    say(self.running_line(done))

    def running_line(self, steps: int) -> str:
        """The tutorial's line within an epoch, after that many steps."""
        form, values = getattr(self.args, "running", RUNNING), {"step": steps - 1}
        if "{first_batch" in form:
            images, labels = next(iter(self.test_loader))
            self.model.eval()
            with torch.no_grad():
                counts = (self.model(images).argmax(1) == labels).sum().item(), len(labels)
            hits, n = processes.total(*counts) if PROCESSES > 1 else counts
            values["first_batch"] = hits / n
        else:
            values["loss"], values["acc"] = self.score(self.trained)
        return self.fill(form, **values)

    def fill(self, form: str, **values) -> str:
        """One of the recipe's lines with this epoch's values in it."""
        epoch = len(self.history)
        return form.format(epoch=epoch, number=epoch + 1, epochs=self.args.epochs, **values)

    def end_epoch(self, tested: list) -> None:
        """Score an epoch, `trained` and `tested`, save what the flags ask for, then print its lines.

        Raises SystemExit with one line where a loss is not finite.
        """
        args, epoch = self.args, len(self.history)
        (train_loss, train_acc), (valid_loss, valid_acc) = self.score(self.trained), self.score(tested)
        seconds = time.perf_counter() - self.start
        if not math.isfinite(train_loss + valid_loss):
            outputs, labels = map(torch.cat, zip(*self.trained))
            bad = F.cross_entropy(outputs.float(), labels, reduction="none").isfinite().logical_not().nonzero()
            size = args.batch_size if PROCESSES == 1 else self.train_loader.size
            step = bad[0].item() // size + 1 if len(bad) else len(self.train_loader)
            raise SystemExit(f"epoch {epoch}, step {step}: the loss is not finite; lower --lr (it is {args.lr:g})")
        scores = dict(train_loss=train_loss, train_acc=train_acc, valid_loss=valid_loss, valid_acc=valid_acc)
        lines = [self.fill(args.closing, **scores)] if "closing" in args else []
        self.history.append({**self.settings, "epoch": epoch, **scores, "seconds": seconds})
        if exits:
            records.save_epoch(self)
        say(*lines, epoch_line(self.history[-1]), sep="\n")

    def finish(self, tested: list) -> tuple[torch.nn.Module, list[dict]]:
        """Print the accuracy of each class, write the model and the pictures; returns `(model, history)`."""
        tested = tested if PROCESSES == 1 else processes.gathered(tested, self.test_loader)
        report(tested, CLASSES[self.args.dataset])
        if exits:
            records.end(self, tested, CLASSES[self.args.dataset])
        for model in (self.model, self.result):
            vars(model).pop("forward", None)  # what `use_bfloat16` and `in_parts` put there
        return self.result, self.history


def predict(model: torch.nn.Module, args) -> tuple[torch.nn.Module, list]:
    """Answer `--predict`; returns `(model, [])`. Raises SystemExit with status 1 if a picture has no answer."""
    from support import predict

    predict.main(model, args, functools.partial(to_float, normalize=args.normalize), CLASSES[args.dataset])
    return model, []


def summary(runs: list, results: list[tuple]) -> tuple | list[tuple]:
    """What `main` returns: one recipe's `(model, history)`; of several recipes a list, after a table of them."""
    if len(results) == 1:
        return results[0]
    say(f"\n{'recipe':<12} {'parameters':>10} {'epochs':>6} {'test accuracy':>13} {'seconds per epoch':>17}")
    for args, (model, history) in zip(runs, results):
        parameters = sum(p.numel() for p in model.parameters())
        accuracy = f"{100 * history[-1]['valid_acc']:.2f}%" if history else "-"
        seconds = f"{statistics.median(r['seconds'] for r in history):.2f}" if history else "-"
        say(f"{args.recipe:<12} {parameters:>10,} {len(history):>6} {accuracy:>13} {seconds:>17}")
    return results


@contextlib.contextmanager
def session(runs: list):
    """Prepare the process for training; denormals, threads and signal handlers are put back afterwards."""
    before = torch.get_num_threads(), torch.full((1,), 1e-40).mul(1).item() == 0
    with contextlib.ExitStack() as stack:
        if exits:
            stack.enter_context(exits.clean(runs[0]))
            if PROCESSES > 1:
                stack.enter_context(processes.group(runs))
            stack.enter_context(files.ready(runs))
        keep_freed_memory()
        for kind in (np.float32, np.float64):
            np.finfo(kind)  # older numpys measure this at first use, and warn where denormals are flushed by then
        # Numbers under 1e-38 are slow on some processors; benchmarks/set_up.py saw no difference beyond its noise.
        torch.set_flush_denormal(True)  # before the first tensor is computed: threads inherit it when they start
        for run in runs:
            run.threads = before[0] if PROCESSES == 1 else CORES  # for `in_parts`; torchrun asks torch for a single one
        if runs[0].device.type == "cpu":
            # Small products, such as an MLP's, take longer, and vary more, when cores share them.
            torch.set_num_threads(1)
        try:
            yield
        finally:
            torch.set_num_threads(before[0])
            torch.set_flush_denormal(before[1])


def keep_freed_memory() -> None:
    """Let glibc keep what is freed instead of giving it back to the kernel; a no-op with another C library.

    oneDNN's LSTM takes and frees megabytes at each call. Given back, every page is faulted in again by the next step:
    up to 1.3 times as long (benchmarks/set_up.py, n = 3, AMD EPYC, 2 cores, torch 2.14; docs/speed.md).
    """
    with contextlib.suppress(OSError, AttributeError, TypeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(-3, 1 << 30)  # M_MMAP_THRESHOLD
        mallopt(-1, -1)  # M_TRIM_THRESHOLD: never


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line, without the usage before it."""

    def error(self, message: str):
        self.exit(2, f"{self.prog}: {' '.join(message.split())} (--help lists the flags)\n")

    def exit(self, status: int = 0, message: str | None = None):
        if exits:
            with exits.clean():
                pass  # flushes what --help printed, perhaps into a closed pipe
            if status and PROCESSES > 1 and processes.RANK:
                time.sleep(10)  # rank 0 says the same, and torchrun then ends the others
        super().exit(status, message)


def number(kind: type, least: float, most: float = 2**31 - 1, wanted: str | None = None):
    """An argparse type: an int or a float from `least` to `most`, or as `wanted` says."""
    wanted = wanted or f"{'an integer' if kind is int else 'a number'} from {least} to {most}"

    def parse(text: str):
        with contextlib.suppress(ValueError):
            if least <= kind(text) <= most:
                return kind(text)
        raise argparse.ArgumentTypeError(f"{text!r} is not {wanted}")

    return parse


def device(name: str) -> torch.device:
    """An argparse type: a device that is there; `auto` is the accelerator where there is one, else the CPU."""
    if name == "auto":
        return torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.ones(1, device=name).item()
        return torch.device(name)
    except Exception:  # each kind of device has its own way to say that it is not there
        raise argparse.ArgumentTypeError(f"{name!r} is not available on this machine; use auto or cpu") from None


def parser(script: str, doc: str, normalize: bool = True) -> Parser:
    """A parser with the flags that all scripts share, for a script's `__file__` and `__doc__`.

    Without `--normalize` for a network that normalizes its input itself.
    """
    style = argparse.RawDescriptionHelpFormatter
    defaults = "Flags that name no default take the recipe's, or are off."
    p = Parser(prog=Path(script).name, description=doc, epilog=defaults, formatter_class=style, allow_abbrev=False)
    count, add, file = number(int, 1), p.add_argument, dict(type=Path, metavar="FILE")
    optimizers = ["SGD", "Adam", "AdamW", "Adadelta", "RMSprop"]
    add("--optimizer", choices=optimizers, help="from torch.optim, with its defaults for all but --lr")
    add("--epochs", type=number(int, 0), metavar="N", help="how often to go through the training images")
    add("--batch-size", type=count, metavar="N", help="images per training step")
    add("--test-batch-size", type=count, metavar="N", help="images per step of evaluation")
    rate = number(float, 5e-324, torch.finfo(torch.float32).max, "a float32 number above 0, such as 0.01")
    add("--lr", type=rate, metavar="RATE", help="learning rate")
    add("--seed", type=number(int, 0, 2**63 - 1), default=1, metavar="S", help="random seed (default: 1)")
    add("--device", type=device, default="auto", help="cpu, cuda, cuda:1, mps, xpu, or auto: any accelerator (default)")
    add("--dataset", choices=DATASETS, default="mnist", help="default: mnist; the others are downloaded once")
    add("--data-dir", type=Path, default=DATA_DIR, metavar="DIR", help="holds MNIST/raw/ (default: the scripts' data/)")
    add("--bf16", action=argparse.BooleanOptionalAction, help="bfloat16 autocast in training")
    if normalize:
        add("--normalize", action=argparse.BooleanOptionalAction, help="pixels from -1 to 1 instead of 0 to 1")
    add("--dry-run", action="store_true", help="one batch of training, one of test")
    add("--hold-out", type=number(int, 0), default=0, metavar="N", help="test on the last N training images instead")
    add("--log-interval", type=number(int, 0), metavar="N", help="print progress every N steps; 0: never")
    add("--save-model", **file, help="write the trained state_dict")
    add("--load-model", **file, help="start from these weights; with --epochs 0, evaluate them")
    add("--checkpoint", **file, help="saved after each epoch; the same command resumes from it")
    add("--predict", type=Path, nargs="+", metavar="IMAGE", help="with --load-model: name the digit in each picture")
    add("--log", **file, help="append one JSON object per epoch")
    add("--plot", type=Path, metavar="DIR", help="write figures to DIR")
    return p


def parse(p: Parser, argv: list[str] | None, recipes: dict) -> list[argparse.Namespace]:
    """The recipes that the command line asks for, each entry overridden by the flag of that name.

    A recipe is a dictionary, or a function of the flags that returns one (a flag that is not given is None there).

    Raises SystemExit with status 2 and one line for a bad flag, or flags that contradict each other.
    """
    if exits and PROCESSES > 1:
        processes.hush()
    args = p.parse_args(argv)
    names = list(recipes) if "all" in args.recipe else list(dict.fromkeys(args.recipe))
    needing = [f"--{name.replace('_', '-')}" for name in NEED_SUPPORT if getattr(args, name, None)]
    needing += ["torchrun"] if PROCESSES > 1 else []
    if needing and not exits:
        p.error(f"{needing[0]} needs the folder support/ beside {Path(__file__).name}; copy it too")
    given = {name: value for name, value in vars(args).items() if value is not None}
    tables = [recipes[name](args) if callable(recipes[name]) else recipes[name] for name in names]
    usual = vars(args) | {"script": p.prog, "bf16": False, "normalize": False}
    runs = [argparse.Namespace(**usual | table | given | {"recipe": name}) for name, table in zip(names, tables)]
    for run in runs:
        run.epochs = min(run.epochs, 1) if run.dry_run else run.epochs
        if "parts" in run:
            most = run.batch_size // PROCESSES // SAMPLES if run.device.type == "cpu" else 1
            run.parts = max(1, min(run.parts or CORES, most))
        if args.plot and len(runs) > 1:
            run.plot = args.plot / run.recipe
    if exits and (wrong := flags.contradiction(runs, PROCESSES)):
        p.error(wrong)
    return runs
