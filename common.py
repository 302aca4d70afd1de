"""What a script needs to train: data loaders, a batch in parts, lines per epoch, flags. Some flags need support/."""

import argparse
import contextlib
import functools
import math
import os
import shlex
import signal
import sys
import time
from pathlib import Path

try:
    import torch
    from torch import nn
    from tqdm.auto import tqdm
except ModuleNotFoundError as error:
    raise SystemExit(f"{error.name} is missing: pip install -r requirements.txt") from None

DATASETS = {"mnist": "MNIST", "fashion-mnist": "FashionMNIST", "kmnist": "KMNIST"}  # torchvision's classes and folders
CLOTHES = ["T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"]
KANA = ["o", "ki", "su", "tsu", "na", "ha", "ma", "ya", "re", "wo"]
CLASSES = {"mnist": [*"0123456789"], "fashion-mnist": CLOTHES, "kmnist": KANA}
OPTIMIZERS = {"SGD": "fused", "Adam": "fused", "AdamW": "fused", "Adadelta": "foreach", "RMSprop": "foreach"}
FILES = ["save_model", "load_model", "checkpoint", "log", "plot", "predict"]
UNLOGGED = {*FILES, "epochs", "log_interval", "opening", "running", "closing", "model", "data_dir", "saving", "classes"}
DATA_DIR, SUPPORT = Path(__file__).with_name("data"), Path(__file__).with_name("support").exists()
WORLD = int(os.environ["WORLD_SIZE"]) if "TORCHELASTIC_RUN_ID" in os.environ else 1  # processes under torchrun
CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
CORES = max(1, CORES // int(os.environ.get("LOCAL_WORLD_SIZE", 1)))  # of this process
say = functools.partial(print, flush=True)  # at once, also into a pipe


class Loader:
    """Batches `(images (B, 1, 28, 28) float32, labels (B,) int64)` of a data set that lives on the device as bytes.

    `images` are `(N, 28, 28)` uint8, `labels` `(N,)` int64. With a generator each pass is in a new random order, or in
    several (`orders`), an image of each in turn; the last batch may be short. Values are those of `ToTensor()`, then of
    `Normalize([0.5], [0.5])` if `normalize`. `transform(images, generator)` turns hundreds of images into as many.
    """

    def __init__(self, images, labels, batch_size, generator=None, normalize=False, transform=None, orders=1):
        self.images, self.labels, self.batch_size = images, labels, batch_size
        self.generator, self.normalize, self.transform, self.orders = generator, normalize, transform, orders

    def __len__(self) -> int:
        return math.ceil(self.orders * len(self.labels) / self.batch_size)

    def __iter__(self):
        size, n, g = self.batch_size, len(self.labels), self.generator
        orders = [torch.randperm(n, generator=g) if g else torch.arange(n) for _ in range(self.orders)]
        # Indexing costs as much for one small batch as for many: gather hundreds of images, then cut them apart.
        for index in torch.stack(orders, 1).flatten().to(self.labels.device).split(size * max(1, 800 // size)):
            images = to_float(self.images.index_select(0, index), self.normalize)
            images = self.transform(images, self.generator) if self.transform else images
            yield from zip(images.split(size), self.labels[index].split(size))


def to_float(images: torch.Tensor, normalize: bool = False) -> torch.Tensor:
    """Pixels `(N, 28, 28)` from 0 to 255 as float32 `(N, 1, 28, 28)` from 0 to 1, or from -1 to 1 if `normalize`."""
    images = images[:, None].to(torch.float32, copy=True).div_(255)
    return images.sub_(0.5).div_(0.5) if normalize else images


def read(root: Path, name: str = "mnist") -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Training and test set of a torchvision root: bytes `(N, 28, 28)` and int64 labels `(N,)` each.

    Raises SystemExit with one line where a file is missing or wrong. Without support/ torchvision reads them.
    """
    if SUPPORT:
        from support import data

        return data.read(Path(root), DATASETS[name])
    from torchvision import datasets

    kind = getattr(datasets, DATASETS[name])
    return [(part.data, part.targets) for part in (kind(root, train, download=True) for train in (True, False))]


def loaders(args, transform=None, orders=1) -> tuple[Loader, Loader]:
    """The training loader, shuffled from `args.seed`, in batches `orders` times as large, and the test loader."""
    train, test = read(args.data_dir, args.dataset)
    if n := args.hold_out:
        train, test = ([each[part] for each in train] for part in (slice(-n), slice(-n, None)))
        if len(train[1]) == 0:
            raise SystemExit(f"--hold-out {n} leaves no images to train on; lower it")
    if args.dry_run:
        train, test = [each[: args.batch_size] for each in train], [each[: args.test_batch_size] for each in test]
    train, test = ([each.to(args.device) for each in part] for part in (train, test))
    size, rng, normalize = orders * args.batch_size, torch.Generator().manual_seed(args.seed), args.normalize
    return Loader(*train, size, rng, normalize, transform, orders), Loader(*test, args.test_batch_size, None, normalize)


class Parallel(nn.Module):
    """The same model and weights, each batch computed in parts: side by side, or without support/ one after another.

    Evaluation takes parts of about 125 images. Models with random numbers, buffers, batch norm or several outputs get
    whole batches, which keeps their mathematics. `bf16`: train in bfloat16; SystemExit where the device has none.
    """

    def __init__(self, model, parts=CORES, bf16=False):
        super().__init__()
        self.model, self.parts, self.bf16, kind = model, parts, bf16, next(model.parameters()).device.type
        kinds = nn.modules.batchnorm._BatchNorm, nn.modules.dropout._DropoutNd
        drawing = any(isinstance(layer, kinds) or getattr(layer, "dropout", 0) for layer in model.modules())
        self.whole = drawing or next(model.buffers(), None) is not None
        recurrent = bf16 and any(type(layer) in (nn.LSTM, nn.GRU, nn.RNN) for layer in model.modules())
        if recurrent and (kind == "cuda" or not torch.ops.mkldnn._is_mkldnn_bf16_supported()):
            raise SystemExit(f"--bf16: torch has no bfloat16 for recurrent layers on this {kind}; leave it out")
        self.together = lambda compute, _, x, n: torch.cat([compute(part) for part in x.tensor_split(n)[::-1]][::-1])
        if SUPPORT:
            from support.parallel import SideBySide

            self.together = SideBySide(CORES)

    def forward(self, images):
        most = self.parts if torch.is_grad_enabled() else max(self.parts, len(images) // 125)
        count = min(most, len(images) // 16) if images.device.type == "cpu" else 1
        if self.whole or (count < 2 and WORLD == 1) or images.requires_grad or torch.is_autocast_enabled("cpu"):
            return self.compute(images)
        state = torch.get_rng_state()
        with contextlib.suppress(AttributeError, TypeError):  # what the parts return cannot be put together
            outputs = self.together(self.compute, self.model.parameters(), images, max(1, count))
            if torch.equal(state, torch.get_rng_state()):
                return outputs
        self.whole = True  # several outputs, or random numbers were drawn, as F.dropout does
        torch.set_rng_state(state)
        return self.compute(images)

    def compute(self, images):
        if not self.bf16:
            return self.model(images)
        with torch.autocast(images.device.type, torch.bfloat16, self.training, cache_enabled=False):  # threads share it
            return torch.utils._pytree.tree_map(torch.Tensor.float, self.model(images))


@contextlib.contextmanager
def session(args, state: dict, *loaders: Loader):
    """Prints the first line, then yields a run's history, a record per epoch: empty, or that of its `--checkpoint`.

    `state` is what a checkpoint holds, `{"model": model, "optimizer": optimizer, …}`. torch's threads are one until the
    end. Raises SystemExit with one line where a file does not fit or cannot be written.
    """
    model, n, size = state["model"], args.epochs, sum(p.numel() for p in state["model"].parameters())
    args.settings = {name: value for name, value in vars(args).items() if name not in UNLOGGED}
    args.settings |= {"device": str(args.device), "processes": WORLD, "parameters": size}
    with contextlib.ExitStack() as stack:
        history = stack.enter_context(args.saving.opened(args, state, loaders)) if args.saving else []
        kind = f"{type(model).__name__} {args.cell}" if "cell" in args else type(model).__name__
        split = f" over {WORLD} processes" * (WORLD > 1) + f" in {args.parts} parts" * (args.parts > 1)
        how = f"{args.optimizer} lr {args.lr:g}, batch {args.batch_size}{split}, {n} epoch{'s' * (n != 1)}"
        where = str((args.data_dir / DATASETS[args.dataset]).absolute()).removeprefix(f"{Path.cwd()}{os.sep}")
        data = f"{' + '.join(f'{len(loader.labels):,}' for loader in loaders)} images of {where}"
        say(f"{args.recipe}: {kind}, {size:,} parameters, {how}, {args.device}, seed {args.seed}, {data}")
        stack.callback(torch.set_num_threads, torch.get_num_threads())
        torch.set_num_threads(1)  # small products take longer, and vary more, when cores share them
        yield history


def progress(args, epoch: int, steps: int, first_batch=None):
    """What `train` calls after a step to move the bar and print a line, or None; `first_batch()` is for that line."""
    names = dict(epoch=epoch, number=epoch + 1, epochs=args.epochs, step=-1)
    say(args.opening.format(**names), end="")
    hidden = not sys.stderr.isatty() and "ipykernel" not in sys.modules
    if hidden and not args.log_interval:
        return None
    bar = tqdm(total=steps, desc=f"Epoch {epoch}", leave=False, mininterval=1, disable=hidden)

    def after_step(total, correct, count):
        names["step"] += 1
        if bar.update():  # true if it was redrawn
            bar.set_postfix_str(f"loss {total / count:.4f}, acc {correct / count:.4f}")
        if args.log_interval and (names["step"] + 1) % args.log_interval == 0:
            bar.clear()
            scores = dict(loss=total / count, acc=correct / count, first_batch=first_batch and first_batch())
            say(args.running.format(**scores, **names))
        if names["step"] + 1 == steps:
            bar.close()

    return after_step


def end_epoch(args, state: dict, history: list, start: float, train_loss, train_acc, valid_loss, valid_acc) -> None:
    """Record the epoch, save it, print its lines; SystemExit with one line where a loss is not finite."""
    if not math.isfinite(train_loss + valid_loss):
        raise SystemExit(f"epoch {len(history)}: the loss is not finite; lower --lr (it is {args.lr:g})")
    scores = dict(train_loss=train_loss, train_acc=train_acc, valid_loss=valid_loss, valid_acc=valid_acc)
    history.append({**args.settings, "epoch": len(history), **scores, "seconds": time.perf_counter() - start})
    if args.saving:
        args.saving.save_epoch(args, state, history)
    say(args.closing.format(number=len(history), **scores) + epoch_line(history[-1]))


def epoch_line(record: dict) -> str:
    """The `time-major` tutorial's line per epoch, from a record of the history."""
    line = "Epoch {epoch}. Train Loss: {train_loss:.6f}, Train Acc: {train_acc:.6f}, "
    line += "Valid Loss: {valid_loss:.6f}, Valid Acc: {valid_acc:.6f}, Time {time}"
    return line.format(time=time.strftime("%H:%M:%S", time.gmtime(record["seconds"])), **record)


def finish(args, model: nn.Module, net: nn.Module, history: list, train_loader: Loader, test_loader: Loader) -> None:
    """Print the `mlp` tutorial's end, test loss and accuracy of each class; write what `--save-model`, `--plot` ask."""
    net.eval()
    with torch.no_grad():
        outputs, labels = (torch.cat(part).cpu() for part in zip(*((net(x).float(), y) for x, y in test_loader)))
    say(f"Test Loss: {nn.functional.cross_entropy(outputs, labels):.6f}\n")
    right = torch.bincount(labels[outputs.argmax(1) == labels], minlength=10).tolist()
    for name, r, n in zip(args.classes, right, torch.bincount(labels, minlength=10).tolist()):
        say(f"The test accuracy of {name:>2} is : {f'{100 * r // n:2d}%' if n else 'None'} ({r:2d}/{n:2d})")
    say(f"\nTest Accuracy (Overall): {100 * sum(right) / len(labels):.2f}% ({sum(right)}/{len(labels)})")
    if args.saving:
        args.saving.save_results(args, model, history, train_loader, test_loader, outputs, labels)


def at_least(least: float, kind: type = int, most: float = 2**31 - 1):
    """An argparse type: a number from `least` to `most`."""

    def number(text: str):
        if not least <= kind(text) <= most:
            raise argparse.ArgumentTypeError(f"{text!r} is not from {least} to {most}")
        return kind(text)

    return number


def parser(script: str, doc: str) -> argparse.ArgumentParser:
    """A parser with the flags that all scripts share, for a script's `__file__` and `__doc__`; errors are one line."""
    style, switch = argparse.RawDescriptionHelpFormatter, argparse.BooleanOptionalAction
    p = argparse.ArgumentParser(Path(script).name, description=doc, formatter_class=style, allow_abbrev=False)
    p.error = lambda message: p.exit(2, f"{p.prog}: {message} (--help lists the flags)\n")
    p.register("type", Path, lambda text: Path(os.path.expanduser(text)))  # ~/
    running = "[{number}/{epochs}] Loss: {loss:.6f}, Acc: {acc:.6f}"  # as in the `batch-first` tutorial
    p.set_defaults(script=p.prog, parts=None, saving=None, opening="", running=running, closing="")
    add, count, natural = p.add_argument, at_least(1), at_least(0)
    add("--epochs", type=natural, metavar="N", help="how often to go through the training images")
    add("--batch-size", type=count, metavar="N", help="images per training step")
    add("--test-batch-size", type=count, metavar="N", help="images per step of evaluation")
    add("--optimizer", choices=OPTIMIZERS, help="from torch.optim, with its defaults for all but --lr")
    add("--lr", type=at_least(1e-38, float, 1e38), metavar="RATE", help="learning rate")
    add("--seed", type=at_least(0, int, 2**63 - 1), default=1, metavar="S", help="random seed (default: 1)")
    add("--device", default="auto", help="cpu, cuda, cuda:1, mps, xpu, or auto: any accelerator (default)")
    add("--dataset", choices=DATASETS, default="mnist", help="default: mnist; the others are downloaded once")
    add("--data-dir", type=Path, default=DATA_DIR, metavar="DIR", help="holds MNIST/raw/ (default: the scripts' data/)")
    add("--hold-out", type=natural, default=0, metavar="N", help="test on the last N training images instead")
    add("--normalize", action=switch, default=False, help="pixels from -1 to 1 instead of 0 to 1")
    add("--bf16", action=switch, default=False, help="train in bfloat16")
    add("--dry-run", action="store_true", help="one batch of training, one of test")
    add("--log-interval", type=natural, default=0, metavar="N", help="print progress every N steps; 0: never")
    add("--save-model", type=Path, metavar="FILE", help="write the trained state_dict")
    add("--load-model", type=Path, metavar="FILE", help="start from these weights; with --epochs 0, evaluate them")
    add("--checkpoint", type=Path, metavar="FILE", help="saved after each epoch; the same command resumes from it")
    add("--log", type=Path, metavar="FILE", help="append one JSON object per epoch")
    add("--plot", type=Path, metavar="DIR", help="write figures to DIR")
    add("--predict", type=Path, nargs="+", metavar="IMAGE", help="with --load-model: name the digit in each picture")
    return p


def parse(p: argparse.ArgumentParser, argv, recipes: dict) -> argparse.Namespace:
    """The settings of a recipe, each overridden by its flag; SystemExit(2) with one line for a bad flag.

    `argv` is a list of words or one string; None means the command line's, or none in a notebook. `recipes` is
    `{name: settings}`, or `{name: function of the flags that returns settings}`; the first is the default.
    """
    p.set_defaults(recipe=next(iter(recipes)))
    if argv is None:  # a notebook's kernel has flags of its own
        argv = [] if "ipykernel" in sys.modules and Path(sys.argv[0]).name != p.prog else sys.argv[1:]
    argv = shlex.split(argv) if isinstance(argv, str) else [str(word) for word in argv]
    if SUPPORT:
        from support import flags

        argv = flags.words(p, argv, recipes)
    args = p.parse_args(argv)
    recipe = recipes[args.recipe]
    p.set_defaults(**(recipe(args) if callable(recipe) else recipe))
    args = p.parse_args(argv)
    if SUPPORT:
        flags.check(p, args)
    elif needing := [name for name in [*FILES, "compile"] if vars(args).get(name)] or ["nproc-per-node"] * (WORLD > 1):
        p.error(f"--{needing[0].replace('_', '-')} needs the folder support/ beside common.py; copy it, too")
    auto = torch.accelerator.current_accelerator(check_available=True) or "cpu"
    args.device = torch.device(auto if args.device == "auto" else args.device)
    args.epochs = min(args.epochs, 1) if args.dry_run else args.epochs
    most = args.batch_size // WORLD // 16 if args.device.type == "cpu" else 1
    args.parts, args.classes = max(1, min(args.parts or CORES, most)), CLASSES[args.dataset]
    return args


def run(main, flag: str = "--checkpoint") -> None:
    """Run a script's `main` as a program: Ctrl-C, SIGTERM or a closed pipe (`| head`) end it without a traceback."""

    def stop(number, _):
        raise KeyboardInterrupt(number)

    signal.signal(signal.SIGINT, stop)
    signal.signal(signal.SIGTERM, stop)
    try:
        main()
        sys.stdout.flush()
    except KeyboardInterrupt as error:
        kept = any(word.startswith(flag) for word in sys.argv)
        print("interrupted;", "the same command resumes" if kept else f"nothing was saved ({flag})", file=sys.stderr)
        sys.exit(128 + error.args[0])
    except BrokenPipeError:
        os._exit(141)  # sys.exit would flush once more
