"""Model files and checkpoints: written atomically, validated on load, nothing in them ever executed.

A model file is the bare state_dict and loads into the tutorial's own class. A checkpoint holds all that is needed to
resume: model, optimizer, averaged weights, random states, the run's settings and its epochs so far. Both are torch's
zip files; the checksum that a zip keeps of each entry is compared before anything is read.
"""

import contextlib
import copy
import hashlib
import io
import math
import pickle
import re
import sys
import warnings
import zipfile
from pathlib import Path

import torch

from support import files

PARTS = {"model", "optimizer", "random", "run", "history"}
SCORES = {  # of an epoch: what a reader calls it, and the factor to the unit in that name
    "train_loss": ("training loss", 1),
    "train_acc": ("training accuracy, %", 100),
    "valid_loss": ("test loss", 1),
    "valid_acc": ("test accuracy, %", 100),
    "seconds": ("s per epoch", 1),
}


def fingerprint(*loaders) -> str:
    """A hash of the images and labels in the loaders: a run on other data is another run."""
    digest = hashlib.sha256()
    for loader in loaders:
        digest.update(loader.images.cpu().numpy())
        digest.update(loader.labels.cpu().numpy())
    return digest.hexdigest()[:12]


@contextlib.contextmanager
def one_line(path: Path, remedy: str):
    """Turn whatever a bad file raises into SystemExit with one line."""
    try:
        yield
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0].split(". ")[0][:150]
        reason += " is missing" if isinstance(error, KeyError) else ""
        raise SystemExit(f"{path}: {reason}; {remedy}") from None


def read(path: Path) -> tuple[object, str]:
    """What `torch.save` wrote to a file, on the CPU, and the file's hash; weights only, so nothing is executed.

    Raises SystemExit with one line for a file that is missing, damaged or something else.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise SystemExit(f"{path}: cannot be read ({error.strerror}); name a file that a script here wrote") from None
    with one_line(path, "it is damaged or was not written by torch.save; use another copy"):
        if data.startswith(b"PK"):
            with zipfile.ZipFile(io.BytesIO(data)) as file:
                if wrong := file.testzip():
                    raise ValueError(f"the checksum of {wrong} is wrong")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about odd files: what is wrong with them is said in one line
            try:
                content = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
            except pickle.UnpicklingError as error:
                if kind := re.search(r"GLOBAL ([\w.]+)", str(error)):
                    remedy = "only tensors are loaded: save model.state_dict() instead"
                    raise SystemExit(f"{path}: contains {kind[1]}; {remedy}") from None
                raise
    if not data.startswith(b"PK"):
        print(f"{path}: is in torch's old format, without checksums: damage may go unnoticed", file=sys.stderr)
    return content, hashlib.sha256(data).hexdigest()[:12]


def check(saved, expected, name: str) -> None:
    """Raise ValueError with the place of the first difference, unless `saved` could stand where `expected` does.

    Keys, types and plain values must be equal; of tensors the shape, type and layout, and all their values finite.
    """
    if isinstance(expected, dict):
        if not isinstance(saved, dict):
            raise ValueError(f"its {name} is not a dictionary")
        for key in [*expected, *saved]:
            if key not in saved or key not in expected:
                raise ValueError(f"{key} is {'missing' if key in expected else 'unknown here'}")
            check(saved[key], expected[key], key)
    elif isinstance(expected, torch.Tensor):
        is_, due = (
            f"{tuple(t.shape)}, {t.dtype}, {t.layout}, {t.device}" if isinstance(t, torch.Tensor) else f"{t!r}"[:40]
            for t in (saved, expected.cpu())
        )
        if isinstance(saved, torch.Tensor) and saved.shape != expected.shape:
            is_, due = tuple(saved.shape), tuple(expected.shape)
        if is_ != due:
            raise ValueError(f"{name} is {is_}, this model's is {due}")
        if not saved.isfinite().all():
            raise ValueError(f"{name} has values that are not finite")
    elif isinstance(expected, list):
        if not isinstance(saved, list) or len(saved) != len(expected):
            raise ValueError(f"its {name} is not a list of {len(expected)}")
        for one, other in zip(saved, expected):
            check(one, other, name)
    elif type(saved) is not type(expected) or saved != expected:
        raise ValueError(f"{name} was {str(saved)[:40]}, now {str(expected)[:40]}")


def save(path: Path, content) -> None:
    """`torch.save`, atomically."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    files.write(path, buffer.getvalue())


def load_model(path: Path, model: torch.nn.Module) -> str:
    """Load a state_dict into the model and return the file's hash; SystemExit with one line where it does not fit."""
    state, digest = read(path)
    with one_line(path, "use the flags that it was trained with"):
        if isinstance(state, dict) and state.keys() >= PARTS:
            raise SystemExit(f"{path}: is a checkpoint; give it as --checkpoint")
        check(state, dict(model.state_dict()), "state_dict")
        model.load_state_dict(state)
    return digest


def state(run) -> dict:
    """All that a `common.Run` needs to go on after its last epoch."""
    random = [torch.get_rng_state(), run.train_loader.generator.get_state()]
    kept = dict(model=run.model.state_dict(), optimizer=run.optimizer.state_dict(), random=random)
    if run.average:
        kept["average"] = run.average.state_dict()
    return {**kept, "run": run.settings, "history": run.history}


def restore(run, saved: dict) -> None:
    """Bring a `common.Run` to a `state`."""
    run.optimizer.load_state_dict(saved["optimizer"])
    run.train_loader.generator.set_state(saved["random"][1])
    torch.set_rng_state(saved["random"][0])
    run.model.load_state_dict(saved["model"])
    if run.average:
        run.average.load_state_dict(saved["average"])
    run.settings, run.history = saved["run"], saved["history"]
    catch_up(run, len(run.history))


def catch_up(run, epochs: int) -> None:
    """Set the learning rate to what the run's scheduler, if it has one, gives after so many epochs."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that optimizer.step() has not been called: an earlier process called it
        for _ in range(run.scheduler.last_epoch, epochs * len(run.train_loader)) if run.scheduler else ():
            run.scheduler.step()


def resume(path: Path, run) -> None:
    """Bring a `common.Run` to where the checkpoint left it.

    Raises SystemExit with one line for a file that is not a checkpoint of this run; nothing is overwritten then.
    """
    saved, _ = read(path)
    with one_line(path, "use the same settings, or another --checkpoint file"):
        if not isinstance(saved, dict) or saved.keys() != state(run).keys() or not isinstance(saved["run"], dict):
            raise ValueError("is not a checkpoint")
        history, settings = saved["history"], saved["run"]

        def free(record, *names):  # what a resumed run may change
            return {name: type(run.settings[name])(record[name]) for name in names if name in run.settings}

        moved = ["device", "processes"]
        for name, on_it in (("device", ["parts", "bf16"]), ("processes", ["parts"])):  # their defaults depend on it
            moved += on_it if settings[name] != run.settings[name] else []
        moved += ["bf16"] if len(history) >= run.args.epochs else []  # nothing is left to train
        own = {"run": str(settings["run"]), **free(settings, *moved)}
        check(settings, {**run.settings, **own}, "run")  # first what was asked for, then what follows from it
        check(saved["model"], dict(run.model.state_dict()), "model")
        if run.average:
            check(saved["average"], dict(run.average.state_dict()), "average")
        catch_up(run, len(history))
        probe = copy.deepcopy(run.optimizer)  # after a step it has all that an optimizer keeps
        for parameter in probe.param_groups[0]["params"]:
            parameter.grad = torch.zeros_like(parameter)
        probe.step()
        check(saved["optimizer"], probe.state_dict(), "optimizer")
        changing = ["device", "processes", "parts", "bf16"]
        for epoch, record in enumerate(history):
            scores = {name: record[name] for name in SCORES}
            if not all(type(value) is float and math.isfinite(value) for value in scores.values()):
                raise ValueError("its scores are not finite numbers")
            own = free(record, *changing)
            check(record, {**settings, **own, "epoch": epoch, **scores}, "history")
        if not history:
            raise ValueError("it has no epoch")
        restore(run, {**saved, "run": {**run.settings, "run": settings["run"]}})
