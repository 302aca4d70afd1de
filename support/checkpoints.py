"""Checkpoints: the training state, the settings and the epochs of a run."""

import torch
from torch.utils._pytree import tree_map_only

from support import log, model_files

TYPES = {"state": dict, "settings": dict, "history": list}  # what a checkpoint has
FIRST = ("script", "recipe", "dry_run", "total_epochs")  # settings that decide others: named first


def save(run) -> None:
    """Replace the run's checkpoint with one of all epochs so far."""
    content = {"state": snapshot(run), "settings": run.settings, "history": run.history}
    model_files.save(run.args.checkpoint, content)


def snapshot(run) -> dict:
    """The state of everything that the run trains with, and of torch's random numbers."""
    state = {"random": torch.get_rng_state()}
    device = run.args.device
    if device.type != "cpu":
        random_of = torch.get_device_module(device)  # such as torch.cuda
        state[f"random {device.type}"] = random_of.get_rng_state(*which(device))
    for name, each in run.states.items():
        is_generator = isinstance(each, torch.Generator)
        state[name] = each.get_state() if is_generator else each.state_dict()
    return state


def restore(run, state: dict) -> None:
    """Restore a `snapshot`; ValueError names the entry that does not fit."""
    device = run.args.device
    name = "random"  # for the message
    try:
        torch.set_rng_state(state[name])
        if f"random {device.type}" in state:  # absent if the run was on another kind of device
            name = f"random {device.type}"
            torch.get_device_module(device).set_rng_state(state[name], *which(device))
        for name, each in run.states.items():
            if isinstance(each, torch.Generator):
                each.set_state(state[name])
            else:
                each.load_state_dict(state[name])
    except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError):
        raise ValueError(f"its entry {name!r} is missing or does not fit") from None


def which(device: torch.device) -> list:
    """The device as an argument for its random numbers; there is only one of Apple's."""
    return [] if device.type == "mps" else [device]


def resume(run) -> list[dict]:
    """Load the run's checkpoint, if there is one; returns its history.

    Raises SystemExit if it is not one of this run; nothing is overwritten then.
    """
    path = run.args.checkpoint
    if not path.exists():
        return []
    remedy = "name another --checkpoint file, or remove this one to start anew"
    saved = model_files.read(path, remedy)
    if not isinstance(saved, dict) or {k: type(v) for k, v in saved.items()} != TYPES:
        raise SystemExit(f"{path}: is not a checkpoint of this version; {remedy}")
    history = saved["history"]
    if problem := difference(saved["settings"], run.settings):
        raise SystemExit(f"{path}: {problem}")
    done, wanted = len(history), run.args.epochs
    if done > wanted:
        raise SystemExit(f"{path}: has more epochs ({done}) than --epochs {wanted}; {remedy}")
    try:
        restore(run, saved["state"])
    except ValueError as error:
        raise SystemExit(f"{path}: {error}; {remedy}") from None
    if not model_files.is_finite(run.model.state_dict()):
        raise SystemExit(f"{path}: has values that are not finite; {remedy}")
    run.settings["run"] = saved["settings"].get("run")
    how = "complete" if done == wanted else "resuming"
    how += f" after epoch {done - 1}"
    print(f"{path}: {how}")
    if run.args.log:
        log.complete(run.args.log, history)
    return history


def difference(was: dict, now: dict) -> str:
    """The first setting that differs, and what to do; "" if the run may go on."""
    may_differ = {"run", "device", "processes", "pictures"}
    if was.get("device") != now["device"] or was.get("processes") != now["processes"]:
        may_differ |= {"parts", "bf16"}  # their defaults depend on the machine
    names = sorted({*was, *now} - may_differ - {"data"})
    for name in (*FIRST, *names, "data"):  # data last: the others explain it
        if was.get(name) != now.get(name):
            break
    else:
        return ""
    if name == "data":
        return "has other images or labels; use the same, or another --checkpoint file"
    change = f"{name} was {was.get(name)}, now {now.get(name)}"
    if name in ("parts", "bf16"):
        return f"{change}; add {model_files.flag(name, was.get(name))}"
    return f"{change}; use the same settings, or another --checkpoint file"


def share(run, history: list[dict]) -> list[dict]:
    """Give all of torchrun's processes rank 0's state; returns its history."""
    from support import processes

    # On the CPU; a GPU's tensors would be unpacked on rank 0's GPU by every process
    own = tree_map_only(torch.Tensor, torch.Tensor.cpu, snapshot(run))
    state, history = processes.from_rank_0([own, history])
    restore(run, state)
    return history
