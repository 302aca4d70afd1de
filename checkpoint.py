"""Model files and checkpoints: written whole or not at all, read without trust.

A model file is the bare state_dict and loads into the tutorial's own class. A checkpoint holds all that is needed to go
on: model, optimizer, random states, the run's settings and its epochs so far. Both are torch's zip files; the checksum
that a zip keeps of each entry is compared before anything is read, and nothing in them is ever executed.
"""

import contextlib
import io
import math
import os
import warnings
import zipfile
from pathlib import Path

import torch

PARTS = {"model", "optimizer", "random", "run", "history"}


def write(path: Path, data: bytes) -> None:
    """Replace a file's content whole or not at all: written beside it, synced, renamed over it.

    Raises SystemExit with one line where that fails; the old file is then untouched.
    """
    beside = path.with_name(f".{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(beside, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except OSError as error:
        raise SystemExit(f"{path}: cannot be written ({error.strerror}); what was there is untouched") from None
    finally:
        with contextlib.suppress(OSError):
            beside.unlink(missing_ok=True)
    if os.name == "posix":  # the new name itself outlives a power cut only when its folder is synced
        folder = os.open(path.parent, os.O_RDONLY)
        with contextlib.suppress(OSError):  # some network file systems refuse it; the file itself is synced
            os.fsync(folder)
        os.close(folder)


def read(path: Path):
    """What `torch.save` wrote to a file, on the CPU; weights only, so nothing is executed.

    Raises SystemExit with one line for a file that is missing, damaged or something else.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise SystemExit(f"{path}: cannot be read ({error.strerror}); name a file that --save-model wrote") from None
    with refusing(path, "it is damaged or was not written by torch.save; use another copy"):
        if data.startswith(b"PK"):
            with zipfile.ZipFile(io.BytesIO(data)) as file:
                wrong = file.testzip()
            if wrong:
                raise ValueError(f"the checksum of {wrong} is wrong")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's remarks on odd files; what is wrong with them is said in one line
            return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)


@contextlib.contextmanager
def refusing(path: Path, remedy: str):
    """Turn whatever a stranger's file raises into SystemExit with one line."""
    try:
        yield
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0][:150]
        raise SystemExit(f"{path}: {reason}; {remedy}") from None


def check_state(state, model: torch.nn.Module) -> None:
    """Raise ValueError unless `state` is a state_dict of just this model, float32 and finite."""
    expected = model.state_dict()
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        is_checkpoint = isinstance(state, dict) and state.keys() == PARTS
        raise ValueError("this is a checkpoint, give it as --checkpoint" if is_checkpoint else "holds no state_dict")
    for name in [*expected, *state]:
        if name not in state or name not in expected:
            raise ValueError(f"{name} is {'missing' if name in expected else 'unknown to this model'}")
        here, there = state[name], expected[name]
        if here.shape != there.shape:
            raise ValueError(f"{name} is {tuple(here.shape)}, this model's is {tuple(there.shape)}")
        if here.dtype != there.dtype or here.layout != there.layout:
            raise ValueError(f"{name} is {here.dtype}, {here.layout}, this model's is {there.dtype}, {there.layout}")
        if not here.isfinite().all():
            raise ValueError(f"{name} has values that are not finite")


def save(path: Path, content) -> None:
    """`torch.save`, whole or not at all."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    write(path, buffer.getvalue())


def load_model(path: Path, model: torch.nn.Module) -> None:
    """Load a state_dict into the model; SystemExit with one line where it does not fit."""
    state = read(path)
    with refusing(path, "give the --recipe and --cell it was trained with"):
        check_state(state, model)
        model.load_state_dict(state)


def save_checkpoint(path: Path, model, optimizer, generator: torch.Generator, run: dict, history: list[dict]) -> None:
    """Write all that `resume` needs to go on after the last epoch of `history`."""
    random = [torch.get_rng_state(), generator.get_state()]
    parts = dict(model=model.state_dict(), optimizer=optimizer.state_dict(), random=random, run=run, history=history)
    save(path, parts)


def resume(path: Path, run: dict, model, optimizer, generator: torch.Generator, epochs: int) -> tuple[dict, list]:
    """Bring everything to where the checkpoint left it, if there is one; return the run and its epochs so far.

    Raises SystemExit with one line for a file that is no checkpoint of this run; nothing is overwritten then.
    """
    if not os.path.lexists(path):
        return run, []
    saved = read(path)
    with refusing(path, "name another --checkpoint file"):
        if not isinstance(saved, dict) or saved.keys() != PARTS or not isinstance(saved["run"], dict):
            raise ValueError("this is no checkpoint")
        for name in run:  # in order: what was asked for (recipe, cell) before what follows from it (batch_size)
            if name not in ("run", "device") and saved["run"].get(name) != run[name]:
                raise ValueError(f"{name} was {saved['run'].get(name)}, now {run[name]}; give the same settings, or")
        check_state(saved["model"], model)
        steps = saved["optimizer"]["state"].values()
        shapes = [p.shape for p in model.parameters()]
        names = {frozenset(state) for state in steps}
        for shape, state in zip(shapes, steps):
            if len(names) > 1 or any(
                v.shape not in (shape, ()) or not v.isfinite().all() for v in state.values() if v is not None
            ):
                raise ValueError("the optimizer's state does not fit the model")
        if any(group.get("lr") != run["lr"] for group in saved["optimizer"]["param_groups"]):
            raise ValueError("the optimizer's lr is not the run's")
        done = [record["epoch"] for record in saved["history"]]
        if not done or done != list(range(len(done))):
            raise ValueError("its epochs are not 0, 1, 2, …")
        scores = ("train_loss", "train_acc", "valid_loss", "valid_acc", "seconds")
        if any(
            r["run"] != saved["run"]["run"] or not all(math.isfinite(r[s]) for s in scores) for r in saved["history"]
        ):
            raise ValueError("its epochs are not all of one run with finite scores")
        optimizer.load_state_dict(saved["optimizer"])
        generator.set_state(saved["random"][1])
        torch.set_rng_state(saved["random"][0])
        model.load_state_dict(saved["model"])
    print(f"{path}: {f'going on after epoch {done[-1]}' if len(done) < epochs else f'complete, {len(done)} epochs'}")
    return saved["run"], saved["history"]
