"""Model files: a state_dict that the tutorial's own class loads; its zip has the settings, too.

Files are validated on load, and nothing in them is executed.
"""

import io
import json
import sys
import warnings
import zipfile
import zlib
from pathlib import Path

import torch
from torch.nn.modules.utils import consume_prefix_in_state_dict_if_present

from support import files

SETTINGS = "archive/settings.json"  # within torch's own folder of the zip; torch.load ignores it
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
REMEDY = "give a file that torch.save(model.state_dict(), FILE) wrote"


def save(path: Path, content, settings: dict | None = None) -> None:
    """`torch.save`, atomically; settings, if given, become an entry of its zip."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    if settings:
        with zipfile.ZipFile(buffer, "a") as file:
            file.writestr(
                zipfile.ZipInfo(SETTINGS), json.dumps(settings)
            )  # undated, as torch's entries
    files.write(path, buffer.getvalue())


def read(path: Path, remedy: str):
    """What `torch.save` wrote, on the CPU; weights only, so that nothing is executed.

    Raises SystemExit if the file is missing, damaged or something else.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise SystemExit(f"{path}: cannot be read ({error.strerror}); {remedy}") from None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about odd files, which are refused in one line
            if data.startswith(b"PK") and zipfile.ZipFile(io.BytesIO(data)).testzip():
                raise ValueError("a checksum is wrong")  # which torch.load does not look at
            return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception:  # strange bytes can raise anything in the decoder
        reason = "is damaged, or holds something other than weights, such as a whole model"
        raise SystemExit(f"{path}: {reason}; {remedy}") from None


def check(path: Path) -> None:
    """See that a file is a model file, or empty or new; SystemExit with one line if not."""
    if path.exists() and path.stat().st_size > 0 and not zipfile.is_zipfile(path):
        raise SystemExit(f"{path}: is not a model file; name a new one")


def read_model(path: Path) -> tuple[dict, dict]:
    """A model file's state_dict and settings; a file from elsewhere has none: {}.

    The state_dict may be the only one in a dictionary, as in a checkpoint.
    """
    saved = read(path, REMEDY)
    settings = {}
    if isinstance(saved, dict) and saved.keys() == {"state", "settings", "history"}:
        saved, settings = saved["state"], saved["settings"]
    elif zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as file:
            if SETTINGS in file.namelist():
                settings = decoded(file.read(SETTINGS))
    if not isinstance(settings, dict):
        raise SystemExit(f"{path}: its settings are damaged; {REMEDY}")
    found = [saved] if is_state_dict(saved) else []
    if not found and isinstance(saved, dict):
        found = [entry for entry in saved.values() if is_state_dict(entry)]
    if len(found) != 1:
        raise SystemExit(f"{path}: has {len(found)} state_dicts; {REMEDY}")
    found[0].pop("n_averaged", None)  # the counter of torch's AveragedModel
    return found[0], settings


def decoded(text: bytes):
    """The settings in a model file; None if they are damaged."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def is_state_dict(content) -> bool:
    """Whether this is a non-empty dictionary of tensors by name."""
    if not isinstance(content, dict) or not content:
        return False
    for name, value in content.items():
        if not isinstance(name, str) or not isinstance(value, torch.Tensor):
            return False
    return True


def is_finite(state: dict) -> bool:
    """Whether all values of a state_dict are finite."""
    return all(tensor.isfinite().all() for tensor in state.values())


def flag(name: str, value) -> str:
    """A setting as it is given on the command line."""
    name = name.replace("_", "-")
    if isinstance(value, bool):
        return f"--{name}" if value else f"--no-{name}"
    return f"--{name}={value}"


def load(path: Path, model: torch.nn.Module) -> int:
    """Load a model file; returns its checksum. SystemExit with one line if it does not fit.

    Strips the prefixes that DistributedDataParallel, torch.compile, Lightning and others put
    before names.
    """
    state, settings = read_model(path)
    own = model.state_dict()
    for prefix in 2 * ("module.", "_orig_mod.", "model."):  # twice: nested in any order
        if not state.keys() & own.keys():
            consume_prefix_in_state_dict_if_present(state, prefix)
    if problem := misfit(state, own):
        remedy = "use the script and flags that it was trained with, or rename its entries"
        raise SystemExit(f"{path}: {problem}; {remedy}")
    model.load_state_dict(state)
    if not settings:
        what = "does not say how it was trained; the flags have to fit, --normalize too"
        print(f"{path}: {what}", file=sys.stderr)
    return zlib.crc32(path.read_bytes())


def misfit(state: dict, own: dict) -> str:
    """Why a state_dict does not fit a model's `own`; "" if it does."""
    missing = [name for name in own if name not in state]
    strange = [name for name in state if name not in own]
    if missing or strange:
        return f"has {listed(strange)} where the model has {listed(missing)}"
    for name, tensor in state.items():
        if tensor.layout != torch.strided or tensor.is_nested or tensor.is_meta:
            return f"{name} is not an ordinary tensor"
        if tensor.shape != own[name].shape:
            shapes = f"{tuple(tensor.shape)}, in the model {tuple(own[name].shape)}"
            return f"the shape of {name} is {shapes}"
        if tensor.dtype != own[name].dtype and tensor.dtype not in FLOATS:
            return f"{name} holds {tensor.dtype}"
    return "" if is_finite(state) else "has values that are not finite"


def listed(names: list[str]) -> str:
    """The first eight names, in one line."""
    words = [repr(name) for name in names[:8]]  # repr: they can hold a terminal's codes
    if len(names) > 8:
        words.append(f"{len(names) - 8} more")
    return ", ".join(words) or "nothing"
