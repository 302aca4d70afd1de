"""Flags as people give them: misspelt, contradicting, with a model file that has settings of its own."""

import difflib
import os
import re

import torch

from support import SEVERAL, saving

# The settings that a model needs
MODEL = ["recipe", "cell", "hidden", "layers", "lines", "windows", "members", "normalize"]


def words(p, argv, recipes) -> list[str]:
    """The words of a command line, behind flags for the settings of its `--load-model` file.

    A flag that is unknown, or contradicts the file, ends in one line and status 2.
    """
    args, unknown = p.parse_known_args(argv)
    if unknown:
        name, flags = unknown[0].split("=")[0].replace("_", "-"), re.findall("--[a-z0-9-]+", p.format_usage())
        near = [flag for flag in flags if flag.startswith(name)] or difflib.get_close_matches(name, flags, 1, 0.7)
        p.error(f"there is no {unknown[0]}" + (f"; did you mean {' or '.join(near)}?" if near else ""))
    if not (path := args.load_model) or not path.exists():
        return argv
    _, settings = saving.read_model(path)
    recipe = settings.get("recipe", args.recipe)
    if recipe not in recipes:
        p.error(f"{path} is a model of {settings.get('script')}, recipe {recipe}; use that script")
    p.set_defaults(recipe=recipe)
    own = [saving.flag(name, settings[name]) for name in [*MODEL[1:], "dataset"] if name in settings and name in args]
    given = vars(p.parse_args([*own, *argv]))
    for name in [*MODEL, *["dataset"] * bool(args.predict)]:
        if name in settings and given.get(name) != settings[name]:
            now, was = saving.flag(name, given.get(name)), saving.flag(name, settings[name])
            p.error(f"{now}: {path} was trained with {was}; leave the flag out")
    if given["hold_out"] > settings.get("hold_out", given["hold_out"]) and given["dataset"] == settings.get("dataset"):
        p.error(f"--hold-out {given['hold_out']}: {path} was trained on some of those images; leave the flag out")
    return [*own, *argv]


def check(p, args) -> None:
    """Refuse flags that contradict each other and devices that are not there, with status 2 and one line.

    Where a flag names a file, or torchrun started several processes, `args.saving` becomes what then does the work.
    """
    named = {}
    for name in ("load_model", "save_model", "checkpoint", "log"):
        if path := getattr(args, name):
            flag, target = f"--{name.replace('_', '-')}", os.path.realpath(path)
            if args.predict and name != "load_model":
                p.error(f"--predict trains nothing: leave out {flag}")
            if named.setdefault(target, flag) != flag:
                p.error(f"{named[target]} and {flag} both name {path}; give each a file of its own")
    if args.predict and not args.load_model:
        p.error("--predict needs --load-model FILE, the trained model")
    if SEVERAL:
        from support import processes

        processes.check_flags(p, args)
    if named or args.plot or SEVERAL:
        args.saving = saving
    try:
        torch.ones(1, device=None if args.device == "auto" else args.device).item()
    except Exception:  # each kind of device has its own way to say that it is not there
        p.error(f"--device {args.device} is not available on this machine; use auto or cpu")
