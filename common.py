"""What the scripts share: loaders, flags, a batch in parts, the run. Some flags need support/.

A user's mistake raises SystemExit with one line that says what, where and how to mend it.
"""

import argparse
import contextlib
import copy
import io
import math
import os
import pickle
import random
import shlex
import signal
import sys
import time
import types
from pathlib import Path

try:
    import numpy as np
    import torch
    from torch import nn
    from torch.utils._pytree import tree_map
    from tqdm.auto import tqdm
except ModuleNotFoundError as error:
    raise SystemExit(f"{error.name} is missing: pip install -r requirements.txt") from None

DATASETS = {"mnist": "MNIST", "fashion-mnist": "FashionMNIST", "kmnist": "KMNIST"}  # torchvision's
CLOTHES = "T-shirt/top,Trouser,Pullover,Dress,Coat,Sandal,Shirt,Sneaker,Bag,Ankle boot"
CLASSES = {
    "mnist": list("0123456789"),
    "fashion-mnist": CLOTHES.split(","),
    "kmnist": "o ki su tsu na ha ma ya re wo".split(),
}
OPTIMIZERS = {  # fused or foreach: the same update in fewer kernels
    "SGD": {"fused": True},
    "Adam": {"fused": True},
    "AdamW": {"fused": True},
    "Adadelta": {"foreach": True},
    "RMSprop": {"foreach": True},
}
SUPPORT = Path(__file__).with_name("support").exists()
RANK, WORLD = 0, 1  # this process, and how many there are
if "TORCHELASTIC_RUN_ID" in os.environ:  # under torchrun
    RANK, WORLD = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])


def cores() -> int:
    """How many cores this process may use; torchrun's processes on a machine share its cores."""
    if hasattr(os, "sched_getaffinity"):
        count = len(os.sched_getaffinity(0))
    else:
        count = os.cpu_count()
    return max(1, count // int(os.environ.get("LOCAL_WORLD_SIZE", 1)))


CORES = cores()
FILES = ["save_model", "load_model", "checkpoint", "log", "plot", "predict"]
DEFAULTS = {  # where the recipe says nothing
    "seed": 1,
    "device": "auto",
    "dataset": "mnist",
    "data_dir": Path(__file__).with_name("data"),
    "hold_out": 0,
    "normalize": False,
    "bf16": False,
    "parts": None,
    "dry_run": False,
    "log_interval": 0,
    **dict.fromkeys(FILES),
}


class Loader:
    """Batches `(images (B, 1, 28, 28) float32, labels (B,) int64)`, on the device of the tensors.

    `images` are `(N, 28, 28)` uint8, `labels` `(N,)` int64. With a generator each pass is in a new
    random order; the last batch may be short. Values are those of `ToTensor()`, then of
    `Normalize([0.5], [0.5])` if `normalize`. `transform(images, generator)` returns the changed
    float images, for hundreds at once.
    """

    def __init__(self, images, labels, batch_size, generator=None, normalize=False, transform=None):
        self.images = images
        self.labels = labels
        self.batch_size = batch_size
        self.generator = generator
        self.normalize = normalize
        self.transform = transform

    def __len__(self) -> int:
        return math.ceil(len(self.labels) / self.batch_size)

    def order(self) -> torch.Tensor:
        """The indices of the images, in the order of one pass."""
        if self.generator is None:
            return torch.arange(len(self.labels))
        return torch.randperm(len(self.labels), generator=self.generator)

    def __iter__(self):
        size = self.batch_size
        # Indexing takes as long for one small batch as for hundreds of images: take those at once
        hundreds = size * max(1, 800 // size)
        for index in self.order().to(self.labels.device).split(hundreds):
            images = to_float(self.images.index_select(0, index), self.normalize)
            if self.transform:
                images = self.transform(images, self.generator)
            yield from zip(images.split(size), self.labels[index].split(size))


def to_float(images: torch.Tensor, normalize: bool = False) -> torch.Tensor:
    """Pixels `(N, 28, 28)` from 0 to 255 as float32 `(N, 1, 28, 28)` from 0 to 1.

    With `normalize` from -1 to 1.
    """
    images = images[:, None].to(torch.float32, copy=True).div_(255)
    return images.sub_(0.5).div_(0.5) if normalize else images


def read(root: Path, name: str = "mnist") -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Training and test set: images `(N, 28, 28)` uint8 and labels `(N,)` int64 each.

    From a torchvision root, or from pictures in root/train/0 to 9 and root/test/0 to 9. Raises
    SystemExit if a file is missing or wrong. Without support/ torchvision reads them.
    """
    if SUPPORT:
        from support import data, folders

        if has_pictures(root):
            return folders.read(Path(root))
        return data.read(Path(root), DATASETS[name])
    from torchvision import datasets

    dataset = getattr(datasets, DATASETS[name])
    sets = [dataset(root, train, download=True) for train in (True, False)]
    return [(each.data, each.targets) for each in sets]


def has_pictures(root: Path) -> bool:
    """Whether a data folder holds a user's own pictures, in train/ and test/."""
    return os.path.isdir(os.path.join(root, "train"))


def loaders(args) -> tuple[Loader, Loader]:
    """The training loader, shuffled from `args.seed`, and the test loader, on `args.device`."""
    (images, labels), (test_images, test_labels) = read(args.data_dir, args.dataset)
    if args.hold_out:
        test_images, test_labels = images[-args.hold_out :], labels[-args.hold_out :]
        images, labels = images[: -args.hold_out], labels[: -args.hold_out]
        if len(labels) == 0:
            raise SystemExit(f"--hold-out {args.hold_out} leaves no images to train on; lower it")
    if args.dry_run:
        images, labels = images[: args.batch_size], labels[: args.batch_size]
        test_images = test_images[: args.test_batch_size]
        test_labels = test_labels[: args.test_batch_size]
    train_set = images.to(args.device), labels.to(args.device)
    test_set = test_images.to(args.device), test_labels.to(args.device)
    generator = torch.Generator().manual_seed(args.seed)
    train_loader = Loader(*train_set, args.batch_size, generator, args.normalize)
    test_loader = Loader(*test_set, args.test_batch_size, normalize=args.normalize)
    return train_loader, test_loader


def optimizer(args, model: nn.Module, **hyperparameters) -> torch.optim.Optimizer:
    """The optimizer that the flags name; torch's defaults but for --lr and what is given."""
    kind = getattr(torch.optim, args.optimizer)
    faster = OPTIMIZERS.get(args.optimizer, {})
    return kind(model.parameters(), lr=args.lr, **faster, **hyperparameters)


def compiled_train(optimizer):
    """What `--compile` has instead of `train`: its step as one graph, for plain SGD."""
    from support.compiled import training

    return training(optimizer)


class Parallel(nn.Module):
    """The same model and weights, each CPU batch computed in parts; with support/, side by side.

    Large batches of evaluation get parts of about 125 images. If parts would change the results,
    batches stay whole, and a line on stderr says why. To find out, a copy of the model is tried on
    the first batch of training and of evaluation. That misses trained tensors that are not
    parameters, state outside the model, and batches that change gradients but no outputs.
    Second derivatives, a second backward, torch.func and exporting this wrapper do not work; export
    `model`. `bf16` trains in bfloat16; SystemExit if the device has none.
    """

    def __init__(self, model, parts=CORES, bf16=False):
        super().__init__()
        self.model = model
        self.parts = parts
        self.bf16 = bf16
        self.reasons = {}  # by train or eval, with or without gradients
        self.told = False
        if bf16:
            check_bf16(model)

    def forward(self, images):
        parts = self.parts
        if not torch.is_grad_enabled():
            parts = max(parts, len(images) // 125)
        parts = min(parts, len(images) // 16) if images.device.type == "cpu" else 1
        if (parts < 2 and WORLD == 1) or self.stays_whole(images):
            return self.compute(images)
        if SUPPORT:
            from support.parallel import side_by_side

            parameters = self.model.parameters()
            return side_by_side(self.compute, parameters, images, max(1, parts), CORES)
        # The last part first: autograd then adds up gradients in the order in which support/ does
        outputs = [self.compute(part) for part in reversed(images.tensor_split(parts))]
        return torch.cat(outputs[::-1])

    def compute(self, images):
        if not self.bf16:
            return self.model(images)
        # Threads would share the cache of cast weights
        with torch.autocast(
            images.device.type, torch.bfloat16, enabled=self.training, cache_enabled=False
        ):
            return tree_map(torch.Tensor.float, self.model(images))

    def stays_whole(self, images) -> bool:
        """Whether parts would change what this batch gives; says once why."""
        # Parts give images no gradient; their threads would not see the caller's autocast
        if images.requires_grad or torch.is_autocast_enabled("cpu"):
            return True
        reason = "it has hooks, or another forward" if has_hooks(self.model) else self.tried(images)
        if reason and not self.told and RANK == 0:
            name = type(self.model).__name__
            print(f"{name}: its batches are computed whole: {reason}", file=sys.stderr)
            self.told = True
        return reason != ""

    def tried(self, images) -> str:
        """The result of `why_whole`; tried anew if a plain attribute of the model has changed."""
        modes, values = [torch.is_grad_enabled()], []
        for module in self.model.modules():
            modes.append(module.training)
            values += [
                each for each in vars(module).values() if isinstance(each, (int, float, str))
            ]
        reason, tried_with = self.reasons.get(tuple(modes), ("", None))
        if not reason and values != tried_with:
            reason = why_whole(self.model, images)
            self.reasons[tuple(modes)] = reason, values
        return reason


def check_bf16(model: nn.Module) -> None:
    """SystemExit with one line if the model's device cannot train it in bfloat16."""
    recurrent = any(type(layer) in (nn.LSTM, nn.GRU, nn.RNN) for layer in model.modules())
    device = next((p.device.type for p in model.parameters()), "cpu")
    supported = getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", None)  # missing on macOS
    if recurrent and (device != "cpu" or supported is None or not supported()):
        what = f"torch has no bfloat16 for recurrent layers on this {device}"
        raise SystemExit(f"--bf16: {what}; leave it out")


def has_hooks(model: nn.Module) -> bool:
    """Whether hooks, or a replaced forward, would see parts of a batch."""
    for module in model.modules():
        if "forward" in vars(module):
            return True
        if module._forward_hooks or module._forward_pre_hooks:
            return True
        if module._backward_hooks or module._backward_pre_hooks:
            return True
    return any(parameter._backward_hooks for parameter in model.parameters())


def why_whole(model: nn.Module, images: torch.Tensor) -> str:
    """Why batches cannot be computed in parts, found out on a copy; "" if they can.

    Random numbers stay as they were.
    """
    states = random_states(images.device)
    try:
        return effect_of_parts(copy.deepcopy(model), images[:64])  # enough to tell
    except Exception:  # a user's model can raise anything when it is copied or given half a batch
        return "it cannot be copied, or the outputs of two parts cannot be put together"
    finally:
        set_random_states(images.device, states)


def effect_of_parts(model: nn.Module, images: torch.Tensor) -> str:
    """What computing a batch in two parts changes; "" if nothing. Alters the model: pass a copy."""
    with torch.no_grad():
        for parameter in model.parameters():
            # Zeros in the last layer would hide what comes before it
            parameter.add_(0.01 * torch.randn_like(parameter))
    seen = set()
    for module in model.modules():  # what it keeps may be gone when forward ends
        module.register_forward_pre_hook(lambda *_: seen.add(attributes(model)))
    images = torch.rand_like(images)  # equal images would hide statistics of the batch
    batch = images.clone()
    before, drawn = contents(model), contents(random_states(images.device))
    whole = model(batch)
    # Not in halves: a model that mixes neighbours could leave those as they are
    parts = images.clone().tensor_split([min(13, len(images) // 2)])
    outputs = torch.cat([model(part) for part in parts])
    if whole.requires_grad:
        whole.sum().backward()  # it may keep something here, too
    if contents(random_states(images.device)) != drawn:
        return "it draws random numbers"
    if len(seen) > 1 or contents(model) != before:
        return "it keeps something from a batch"
    if not torch.equal(batch, images):
        return "it changes its images"
    size = max(1.0, whole.abs().max().item())
    near = dict(rtol=1e-4, atol=1e-5 * size, equal_nan=True)
    if len(whole) != len(images) or not torch.allclose(outputs, whole, **near):
        return "its outputs for an image depend on the others"
    return ""


def attributes(model: nn.Module) -> bytes:
    """What the modules hold besides parameters, buffers and submodules."""
    held = []
    for module in model.modules():
        held.append({name: value for name, value in vars(module).items() if name[0] != "_"})
    return contents(held)


def random_states(device: torch.device) -> list:
    """The states of Python's, NumPy's, torch's and the device's random numbers."""
    # As arrays: a tensor's pickle has its address
    states = [random.getstate(), np.random.get_state(), torch.get_rng_state().numpy()]
    if device.type != "cpu":
        states.append(torch.get_device_module(device).get_rng_state().numpy())
    return states


def set_random_states(device: torch.device, states: list) -> None:
    """Restore what `random_states` returned."""
    random.setstate(states[0])
    np.random.set_state(states[1])
    torch.set_rng_state(torch.from_numpy(states[2]))
    if device.type != "cpu":
        torch.get_device_module(device).set_rng_state(torch.from_numpy(states[3]))


class ByContent(pickle.Pickler):
    """Pickles what things hold; functions and classes, which can be local, as their id."""

    def persistent_id(self, thing):
        is_name = isinstance(thing, (type, types.FunctionType, types.BuiltinFunctionType))
        return id(thing) if is_name else None


def contents(thing) -> bytes:
    """All that a model or a list holds: equal bytes if nothing has changed."""
    buffer = io.BytesIO()
    ByContent(buffer).dump(thing)
    return buffer.getvalue()


class Run:
    """A run's records and files: `history`, a record per epoch; `net`, the model in parts.

    Within `with` torch uses one thread, the checkpoint is locked, and torchrun's processes are
    connected. `states` are further entries of the checkpoint. Raises SystemExit if a file does not
    fit or cannot be written.
    """

    def __init__(self, args, model, optimizer, train_loader, test_loader, **states):
        self.args = args
        self.model = model
        self.net = Parallel(model, args.parts, args.bf16)
        self.loaders = train_loader, test_loader
        self.states = {"model": model, "optimizer": optimizer, **states}
        self.states["order"] = train_loader.generator
        self.history = []
        self.classes = CLASSES[args.dataset]
        self.settings = settings(args)
        self.settings["parameters"] = sum(p.numel() for p in model.parameters())
        self.step = 0
        self.bar = None
        self.shows_bar = RANK == 0 and (sys.stderr.isatty() or "ipykernel" in sys.modules)
        self.progress = self.after_step if self.shows_bar or args.log_interval else None

    def __enter__(self):
        with contextlib.ExitStack() as stack:
            if SUPPORT:
                from support import run_files

                self.history = stack.enter_context(run_files.opened(self))
            self.epochs = range(len(self.history), self.args.epochs)
            print(self.first_line())
            stack.callback(torch.set_num_threads, torch.get_num_threads())
            torch.set_num_threads(1)  # threads that share a small product mostly wait
            self.leave = stack.pop_all().close
        self.start = time.perf_counter()
        return self

    def __exit__(self, *_):
        if self.bar is not None:  # interrupted
            self.bar.close()
        self.leave()

    def first_line(self) -> str:
        """What is trained, how, and on what."""
        args = self.args
        model = type(self.model).__name__
        if "cell" in args:
            model += f" {args.cell}"
        how = f"{args.optimizer} lr {args.lr:g}, batch {args.batch_size}"
        if WORLD > 1:
            how += f" over {WORLD} processes"
        if args.parts > 1:
            how += f" in {args.parts} parts"
        epochs = "1 epoch" if args.epochs == 1 else f"{args.epochs} epochs"
        images, test_images = (f"{len(loader.labels):,}" for loader in self.loaders)
        folder = args.data_dir.absolute()
        if not has_pictures(folder):
            folder /= DATASETS[args.dataset]
        if folder.is_relative_to(Path.cwd()):
            folder = folder.relative_to(Path.cwd())
        return (
            f"{args.recipe}: {model}, {self.settings['parameters']:,} parameters, {how}, {epochs}, "
            f"{args.device}, seed {args.seed}, {images} + {test_images} images of {folder}"
        )

    def after_step(self, total, correct, count) -> None:
        """The scripts' `progress`: move the bar, print a line every `--log-interval` steps."""
        steps = len(self.loaders[0])
        if self.bar is None:
            name = f"Epoch {len(self.history)}"
            self.bar = tqdm(
                total=steps, desc=name, leave=False, mininterval=1, disable=not self.shows_bar
            )
        self.step += 1
        if self.bar.update():  # true if it was redrawn
            self.bar.set_postfix_str(f"loss {total / count:.4f}, acc {correct / count:.4f}")
        if self.args.log_interval and self.step % self.args.log_interval == 0:
            self.bar.clear()
            print(self.line(total / count, correct / count))
        if self.step == steps:
            self.bar.close()
            self.bar = None
            self.step = 0

    def line(self, loss, acc) -> str:
        """The line for `--log-interval`, as in the `batch-first` tutorial."""
        epoch = len(self.history) + 1
        return f"[{epoch}/{self.args.epochs}] Loss: {loss:.6f}, Acc: {acc:.6f}"

    def end_epoch(self, train_loss, train_acc, valid_loss, valid_acc) -> None:
        """Record the epoch, save what the flags ask for, and print its line.

        Raises SystemExit with one line where a loss is not finite.
        """
        epoch = len(self.history)
        if not math.isfinite(train_loss + valid_loss):
            rate = self.args.lr
            raise SystemExit(f"epoch {epoch}: the loss is not finite; lower --lr (it is {rate:g})")
        record = {
            **self.settings,
            "epoch": epoch,
            "train_loss": train_loss,
            "train_acc": train_acc,
            "valid_loss": valid_loss,
            "valid_acc": valid_acc,
            "seconds": time.perf_counter() - self.start,
        }
        self.history.append(record)
        if SUPPORT:
            from support import run_files

            run_files.save_epoch(self)
        print(epoch_line(record))
        self.start = time.perf_counter()

    def finish(self, test) -> None:
        """Write `--save-model` and `--plot`.

        If nothing was trained, print the scores that the script's `test` gives.
        """
        if not self.epochs:
            valid_loss, valid_acc = test(self.net, self.loaders[1], nn.CrossEntropyLoss())
            print(f"Valid Loss: {valid_loss:.6f}, Valid Acc: {valid_acc:.6f}")
        if SUPPORT:
            from support import run_files

            run_files.finish(self)


def settings(args) -> dict:
    """What tells runs apart, as files keep it: numbers, strings and booleans only."""
    kept = {"device": str(args.device), "processes": WORLD}
    for name, value in vars(args).items():
        if isinstance(value, (int, float, str)) and name not in ("epochs", "log_interval"):
            kept[name] = value
    return kept


def epoch_line(record: dict) -> str:
    """The `time-major` tutorial's line per epoch, from a record of the history."""
    clock = time.strftime("%H:%M:%S", time.gmtime(record["seconds"]))
    line = (
        "Epoch {epoch}. Train Loss: {train_loss:.6f}, Train Acc: {train_acc:.6f}, "
        "Valid Loss: {valid_loss:.6f}, Valid Acc: {valid_acc:.6f}, Time {clock}"
    )
    return line.format(clock=clock, **record)


def between(least: float, most: float, kind: type = int):
    """An argparse type: a number from `least` to `most`."""

    def number(text: str):
        value = kind(text)
        if not least <= value <= most:
            raise argparse.ArgumentTypeError(f"{text!r} is not from {least} to {most}")
        return value

    return number


COUNT = between(1, 2**31 - 1)


class Parser(argparse.ArgumentParser):
    """Reports an error in one line; flags that were not given are absent from the result."""

    prefix = ""  # of error messages; support/flags.py sets it

    def __init__(self, script: str, doc: str):
        style = argparse.RawDescriptionHelpFormatter
        super().__init__(
            Path(script).name,
            description=doc,
            formatter_class=style,
            argument_default=argparse.SUPPRESS,
            allow_abbrev=False,
        )
        self.register("type", Path, lambda text: Path(os.path.expanduser(text)))  # ~/

    def error(self, message: str):
        self.exit(2, f"{self.prog}: {self.prefix}{message} (--help lists the flags)\n")


def parser(script: str, doc: str, optimizers=OPTIMIZERS) -> Parser:
    """A parser with the flags that all scripts share, for a script's `__file__` and `__doc__`."""
    p = Parser(script, doc)
    add = p.add_argument
    switch = argparse.BooleanOptionalAction
    natural = between(0, 2**31 - 1)
    rate = between(1e-38, 1e38, float)
    add("--epochs", type=natural, metavar="N", help="passes over the training images")
    add("--batch-size", type=COUNT, metavar="N", help="images per training step")
    add("--test-batch-size", type=COUNT, metavar="N", help="images per step of evaluation")
    add("--optimizer", choices=optimizers, help="from torch.optim")
    add("--lr", type=rate, metavar="RATE", help="learning rate")
    add("--seed", type=between(0, 2**63 - 1), metavar="S", help="random seed (default: 1)")
    add("--device", help="cpu, cuda, cuda:1, mps, xpu, or auto: any accelerator (default)")
    add("--dataset", choices=DATASETS, help="default: mnist; the others are downloaded once")
    add("--data-dir", type=Path, metavar="DIR", help="folder with MNIST/raw/, or train/ and test/")
    add("--hold-out", type=natural, metavar="N", help="test on the last N training images instead")
    add("--normalize", action=switch, help="pixels from -1 to 1 instead of 0 to 1")
    add("--bf16", action=switch, help="train in bfloat16")
    add(
        "--parts",
        type=COUNT,
        metavar="N",
        help="parts of a batch on the CPU (default: the recipe's, or one per core)",
    )
    add("--dry-run", action="store_true", help="train and test on one batch")
    add("--log-interval", type=natural, metavar="N", help="print a line every N steps; 0: never")
    add("--save-model", type=Path, metavar="FILE", help="write the trained state_dict")
    add("--load-model", type=Path, metavar="FILE", help="start from these weights")
    add("--checkpoint", type=Path, metavar="FILE", help="save after each epoch, resume from it")
    add("--log", type=Path, metavar="FILE", help="append one JSON object per epoch")
    add("--plot", type=Path, metavar="DIR", help="write figures to DIR")
    add("--predict", type=Path, nargs="+", metavar="IMAGE", help="name the digit in each picture")
    return p


def words(text: str) -> list[str]:
    """A command's words, split as a shell does; on Windows backslashes are kept."""
    if os.name == "nt":
        text = text.replace("\\", "\\\\")
    return shlex.split(text)


def parse(parser: Parser, argv, recipes: dict, model_flags=()) -> argparse.Namespace:
    """The settings: defaults < the recipe's < `--load-model`'s < the flags that were given.

    `argv` is a list or one string; None takes the command line's, or nothing in a notebook.
    `recipes` maps names to settings, or to a function of the given flags; the first is the default.
    `--load-model` decides `model_flags`. A bad flag raises SystemExit(2).
    """
    if argv is None:
        in_notebook = "ipykernel" in sys.modules and Path(sys.argv[0]).name != parser.prog
        argv = [] if in_notebook else sys.argv[1:]  # the kernel has flags of its own
    if isinstance(argv, str):
        argv = words(argv)
    given = vars(parser.parse_args([str(word) for word in argv]))
    if "data_dir" in given and has_pictures(given["data_dir"]):
        given["pictures"] = given["data_dir"].resolve().name  # recorded in place of --dataset
    saved = {}
    if SUPPORT:
        from support import flags

        if "load_model" in given:
            saved = flags.from_model_file(parser, given, recipes, model_flags)
    name = given.get("recipe") or saved.get("recipe") or next(iter(recipes))
    recipe = recipes[name]
    if callable(recipe):
        recipe = recipe(given)
    names = {"script": parser.prog, "recipe": name}
    args = argparse.Namespace(**{**DEFAULTS, **recipe, **saved, **given, **names})
    if args.device == "auto":
        args.device = torch.accelerator.current_accelerator(check_available=True) or "cpu"
    if SUPPORT:
        flags.check(parser, args, WORLD)
    else:
        check_alone(parser, args)
    args.device = torch.device(args.device)
    if args.dry_run:
        args.epochs = min(args.epochs, 1)
    most = args.batch_size // WORLD // 16 if args.device.type == "cpu" else 1
    args.parts = max(1, min(args.parts or CORES, most))
    return args


def check_alone(parser: Parser, args) -> None:
    """Refuse what needs support/, where it is not beside common.py."""
    needing = [name for name in [*FILES, "compile"] if vars(args).get(name)]
    if WORLD > 1:
        needing.append("nproc-per-node")
    if has_pictures(args.data_dir):
        needing.append("data-dir")
    if needing:
        flag = needing[0].replace("_", "-")
        parser.error(f"--{flag} needs the folder support/ beside common.py; copy it too")


def predict(args, model: nn.Module) -> tuple[nn.Module, list]:
    """Name the digits in the pictures of `--predict`; returns `(model, [])`, as training does."""
    from support.predict import classify

    classify(args, model, CLASSES[args.dataset])
    return model, []


def run(main, flag: str = "--checkpoint") -> None:
    """Run `main` as a program; a signal or a closed pipe ends it without a traceback."""

    def stop(number, _):
        raise KeyboardInterrupt(number)

    signal.signal(signal.SIGINT, stop)
    signal.signal(signal.SIGTERM, stop)
    if isinstance(sys.stdout, io.TextIOWrapper):  # IDLE has its own
        # Flush every line, also into a pipe; escape letters that the console lacks
        sys.stdout.reconfigure(line_buffering=True, errors="backslashreplace")
    if SUPPORT:
        from support.parallel import keep_freed_memory

        keep_freed_memory()
    try:
        main()
        sys.stdout.flush()
    except KeyboardInterrupt as error:
        kept = any(word.startswith(flag) for word in sys.argv)
        end = "the same command resumes" if kept else f"{flag} FILE would have kept it"
        print(f"interrupted; {end}", file=sys.stderr)
        sys.exit(128 + error.args[0])
    except BrokenPipeError:  # `| head`
        os._exit(141)  # sys.exit would flush once more
