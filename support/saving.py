"""Model files, checkpoints, pictures and the log: written atomically, validated on load, nothing in them executed.

A model file is the bare state_dict and loads into the tutorial's own class; its zip also has the run's settings. A
checkpoint holds all that is needed to resume: the states of what the script trains with, its settings and its epochs.
"""

import contextlib
import errno
import glob
import io
import json
import os
import pickle
import stat
import sys
import tempfile
import textwrap
import uuid
import warnings
import zipfile
import zlib
from pathlib import Path

import filelock
import torch
from torch.nn.modules.utils import consume_prefix_in_state_dict_if_present
from torch.utils._pytree import tree_leaves

from support import SEVERAL

SCORES = {  # of an epoch: what a reader calls it, and the factor to the unit in that name
    "train_loss": ("training loss", 1),
    "train_acc": ("training accuracy, %", 100),
    "valid_loss": ("test loss", 1),
    "valid_acc": ("test accuracy, %", 100),
    "seconds": ("s per epoch", 1),
}
CHECKPOINT = {"state", "settings", "history"}  # what a checkpoint has
SETTINGS = "archive/settings.json"  # within torch's own folder of the zip, where torch.load ignores it
FIRST = ["script", "recipe", "dry_run", "total_epochs"]  # the settings that others follow from


@contextlib.contextmanager
def opened(args, state: dict, loaders):
    """Bring `state` to where `--load-model` or `--checkpoint` have the run start; yields the history until then.

    Meanwhile the checkpoint is this run's alone, and torchrun's processes are connected. Raises SystemExit with one
    line where a file does not fit, or one that the flags name cannot be written.
    """
    args.settings |= {"run": uuid.uuid4().hex[:12], "load_model": None, "data": fingerprint(loaders)}
    for path in filter(None, (args.save_model, args.checkpoint, args.log)):
        check_writable(path)
    if args.log and args.log.exists() and args.log.read_bytes()[:1] not in (b"", b"{"):
        raise SystemExit(f"{args.log}: is not a log; name a new file, or one that --log wrote")
    if args.plot:
        check_plot(args.plot)
    with contextlib.ExitStack() as stack:
        history = []
        if args.load_model:
            args.settings["load_model"] = load_model(args.load_model, state["model"])
        if args.checkpoint:
            stack.enter_context(locked(args.checkpoint))
            history = resume(args, state) if args.checkpoint.exists() else []
        if SEVERAL:
            from support import processes

            stack.enter_context(processes.group(args))
            saved, history = processes.from_rank_0([snapshot(state), history])
            restore(state, saved)
        yield history


def fingerprint(loaders) -> int:
    """A checksum of the loaders' images and labels: a run on other data is another run."""
    crc = 0
    for data in (data for loader in loaders for data in (loader.images, loader.labels)):
        crc = zlib.crc32(data.cpu().numpy(), crc)
    return crc


@contextlib.contextmanager
def one_line(path, remedy: str):
    """Turn whatever a bad file raises into SystemExit with one line."""
    try:
        yield
    except Exception as error:
        reason = " ".join(str(error).split()).split(". ")[0] or type(error).__name__
        raise SystemExit(f"{path}: {textwrap.shorten(reason, 200, placeholder=' …')}; {remedy}") from None


def read(path: Path, remedy: str):
    """What `torch.save` wrote to a file, on the CPU; weights only, so nothing is executed.

    Raises SystemExit with one line for a file that is missing, damaged, something else, or not finite.
    """
    with one_line(path, remedy), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about odd files: what is wrong with them is said in that line
        data = path.read_bytes()
        try:
            if data.startswith(b"PK") and (damaged := zipfile.ZipFile(io.BytesIO(data)).testzip()):
                raise ValueError(f"the checksum of {damaged} is wrong")  # which torch.load does not look at
            content = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
        except (EOFError, RuntimeError, pickle.UnpicklingError, zipfile.BadZipFile):
            raise ValueError("is damaged, or holds something other than weights") from None
        if not all(x.isfinite().all() for x in tree_leaves(content) if isinstance(x, torch.Tensor)):
            raise ValueError("it has values that are not finite")
    return content


def read_model(path: Path) -> tuple[dict, dict]:
    """A model file's state_dict and the settings that it was trained with; of a foreign file these are {}.

    The state_dict may be an entry of a dictionary; of a checkpoint it is the average's, if there is one. Raises
    SystemExit with one line for a file without a state_dict.
    """
    remedy = "give a file that torch.save(model.state_dict(), FILE) wrote"
    saved, settings = read(path, remedy), {}
    with one_line(path, remedy):
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as file:
                settings = json.loads(file.read(SETTINGS)) if SETTINGS in file.namelist() else {}
        if isinstance(saved, dict) and saved.keys() == CHECKPOINT:
            saved, settings = saved["state"], saved["settings"]
        settings = {name: value for name, value in settings.items() if isinstance(value, (str, int, float))}
        entries = {"": saved, **saved} if isinstance(saved, dict) else {}
        tensors = {
            name: each
            for name, each in entries.items()
            if isinstance(each, dict) and each and all(isinstance(x, torch.Tensor) for x in each.values())
        }
        tensors = {"average": tensors["average"]} if "average" in tensors else tensors
        if len(tensors) != 1:
            raise ValueError(f"has {' and '.join(tensors) or f'a {type(saved).__name__}'}, not one state_dict")
    (state,) = tensors.values()
    state.pop("n_averaged", None)
    return state, settings


def flag(name: str, value) -> str:
    """A setting as a flag."""
    word = f"--{'no-' * (value is False)}{name.replace('_', '-')}"
    return word if isinstance(value, bool) else f"{word}={value}"


def load_model(path: Path, model: torch.nn.Module) -> int:
    """Load a model file and return its checksum; SystemExit with one line if it does not fit.

    The prefixes that DistributedDataParallel, torch.compile, Lightning and the like give to names are taken off.
    """
    state, settings = read_model(path)
    names = model.state_dict().keys()
    for prefix in 2 * ("module.", "_orig_mod.", "model."):
        if not state.keys() & names:
            consume_prefix_in_state_dict_if_present(state, prefix)
    with one_line(path, "use the script and the flags that it was trained with"):
        model.load_state_dict(state)
    if not settings:
        print(f"{path}: does not say how it was trained; the flags have to fit, --normalize too", file=sys.stderr)
    return zlib.crc32(path.read_bytes())


def snapshot(state: dict) -> dict:
    """The state of everything that a run trains with, and of torch's random numbers."""
    own = {n: x.get_state() if isinstance(x, torch.Generator) else x.state_dict() for n, x in state.items()}
    return {**own, "random": torch.get_rng_state()}


def restore(state: dict, saved: dict) -> None:
    """Bring everything that a run trains with to a `snapshot`."""
    for name, each in state.items():
        (each.set_state if isinstance(each, torch.Generator) else each.load_state_dict)(saved[name])
    torch.set_rng_state(saved["random"])


def resume(args, state: dict) -> list[dict]:
    """Bring the run to where its checkpoint left it; returns its history.

    Raises SystemExit with one line for a file that is not a checkpoint of this run; nothing is overwritten then.
    """
    saved = read(args.checkpoint, "name another --checkpoint file, or remove this one to start anew")
    with one_line(args.checkpoint, "use the same settings, or another --checkpoint file"):
        if not isinstance(saved, dict) or saved.keys() != CHECKPOINT:
            raise ValueError("is not a checkpoint of this version (--load-model takes model files)")
        settings, history, own = saved["settings"], saved["history"], args.settings
        moved = any(settings[name] != own[name] for name in ("device", "processes"))  # where these defaults differ
        free = {"run", "device", "processes"} | ({"parts", "bf16"} if moved else set())
        for name in sorted({*settings, *own} - free, key=lambda name: (name == "data", name not in FIRST, name)):
            if (was := settings.get(name)) != (now := own.get(name)):
                if name in ("parts", "bf16"):  # their defaults are the machine's
                    raise SystemExit(f"{args.checkpoint}: {name} was {was}, now {now}; add {flag(name, was)}")
                raise ValueError("has other images or labels" if name == "data" else f"{name} was {was}, now {now}")
        restore(state, saved["state"])
    own["run"], done = settings["run"], len(history)
    how = f"resuming after epoch {done - 1}" if done < args.epochs else f"complete, {done} epochs"
    print(f"{args.checkpoint}: {how}", flush=True)
    if args.log:  # a kill may have come between checkpoint and log
        logged = [r["epoch"] for run in read_log(args.log) for r in run if r["run"] == own["run"]]
        append(args.log, [r for r in history if r["epoch"] not in logged])
    return history


def save_epoch(args, state: dict, history: list[dict]) -> None:
    """Keep the epoch that the history ends with: first in the checkpoint, then in the log."""
    if args.checkpoint:
        save(args.checkpoint, {"state": snapshot(state), "settings": args.settings, "history": history})
    if args.log:
        append(args.log, history[-1:])


def save_results(args, model, history, *tested) -> None:
    """Write the model and the pictures; `tested` are the two loaders, the test set's outputs and its labels."""
    if args.save_model:
        save(args.save_model, model.state_dict(), {k: value for k, value in args.settings.items() if k != "run"})
    if args.plot:
        from support import plots

        for name, figure in plots.run(args.classes, history, *tested).items():
            write(args.plot / name, plots.png(figure))


def save(path: Path, content, settings: dict | None = None) -> None:
    """`torch.save`, atomically; with settings, if given, as an entry of their own in its zip."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    if settings:
        with zipfile.ZipFile(buffer, "a") as file:
            file.writestr(zipfile.ZipInfo(SETTINGS), json.dumps(settings))  # without a date, as torch's entries
    write(path, buffer.getvalue())


def write(path: Path, data: bytes) -> None:
    """Replace a file's content atomically: written beside it, synced, renamed over it. Links and its mode stay.

    Raises SystemExit with one line where that fails; the old file is then untouched.
    """
    target = Path(os.path.realpath(path))
    new = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        with open(new, "wb") as file:
            file.write(data)
            os.fsync(file.fileno())
        if target.exists():
            new.chmod(stat.S_IMODE(target.stat().st_mode))
        os.replace(new, target)
    except OSError as error:
        raise SystemExit(f"{path}: cannot be written ({error.strerror}); what was there is untouched") from None
    finally:
        new.unlink(missing_ok=True)


def check_writable(path: Path) -> None:
    """Make the file's folder and see that the file can be written there; SystemExit with one line if not.

    Training can take hours; a path that cannot be written is better found before it.
    """
    target = Path(os.path.realpath(path))
    try:
        if target.exists() and not target.is_file():
            raise SystemExit(f"{path}: is not a file; name another")
        target.parent.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=target.parent).close()
        if target.exists():
            open(target, "ab").close()
    except OSError as error:
        raise SystemExit(f"{path}: cannot be written ({error.strerror}); choose a path that can be") from None


def check_plot(folder: Path) -> None:
    """See that pictures can be drawn and written; SystemExit with one line if not."""
    with one_line("--plot", "install matplotlib, or leave it out"):
        from support import plots  # noqa: F401
    check_writable(folder / "curves.png")


@contextlib.contextmanager
def locked(path: Path):
    """Keep a file to this process; SystemExit with one line where another run has it. A kill frees it.

    Two runs on one checkpoint would each take the other's epochs for their own.
    """
    target = Path(os.path.realpath(path))
    name = target.with_name(f".{target.name}.lock")
    try:
        with filelock.FileLock(name, timeout=0):
            for left in target.parent.glob(f".{glob.escape(target.name)}.[0-9]*.part"):  # by a kill
                left.unlink()
            try:
                yield
            finally:
                name.unlink(missing_ok=True)
    except filelock.Timeout:
        raise SystemExit(f"{path}: another run is using it; wait for it, or name another") from None


def append(log: Path, records: list[dict]) -> None:
    """Append records to a log, one JSON object per line; a last line that was cut short stays a line of its own.

    Raises SystemExit with one line where that fails.
    """
    try:
        with open(log, "a+b", buffering=0) as file:
            end = file.seek(0, os.SEEK_END)
            file.seek(max(0, end - 1))
            cut = file.read(1) not in (b"", b"\n")
            data = b"\n" * cut + "".join(json.dumps(r) + "\n" for r in records).encode()
            if file.write(data) < len(data):  # a full disk takes the beginning
                file.truncate(end)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    except OSError as error:
        raise SystemExit(f"{log}: cannot be written ({error.strerror})") from None


def read_log(path: Path) -> list[list[dict]]:
    """The runs in a log, each a list of its epochs' records; what is not a record is named on stderr and left out.

    Raises SystemExit with one line for a file that cannot be read.
    """
    runs, odd = {}, []
    with one_line(path, "name a file that --log wrote"):
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []
    for number, line in enumerate(lines, 1):
        try:
            record = json.loads(line)
            record |= {name: float(record[name]) for name in SCORES}
            run = runs.setdefault((record["run"], record["script"], record["recipe"], record["seed"]), {})
            run.setdefault(record["epoch"], record)  # the same epoch twice is one
        except (ValueError, TypeError, KeyError):
            odd.append(str(number))
    if odd:
        print(f"{path}: skipped what is not an epoch's record: line {', '.join(odd[:9])}", file=sys.stderr)
    return [[epochs[k] for k in sorted(epochs)] for epochs in runs.values() if epochs]
