"""Flags that are each right and contradict each other."""

import contextlib
import glob
import os
from pathlib import Path

from support import files

READ = {"--data-dir", "--predict", "--load-model"}  # these alone may share a file


def contradiction(runs: list, processes: int) -> str | None:
    """What is wrong with the flags of these runs, one per recipe, in so many processes, in one line; else None."""
    args = runs[0]
    for name in ("compile", "predict"):
        if processes > 1 and getattr(args, name, None):
            return f"--{name} works in a single process only; omit it under torchrun"
    if processes > 1 and args.device.index is not None:
        return f"--device {args.device} is one device; under torchrun each process takes its own: use --device cuda"
    if args.predict and not args.load_model:
        return "--predict needs --load-model FILE, the trained model"
    if args.predict and (args.save_model or args.checkpoint or args.log):
        return "--predict trains nothing: leave out --save-model, --checkpoint and --log"
    if len(runs) > 1 and (args.save_model or args.load_model or args.checkpoint):
        return "--save-model, --load-model, --checkpoint (which compare.py sets) and --predict take a single --recipe"
    folders = [run.plot for run in runs if run.plot]
    data = glob.glob("*/raw/*-ubyte*", root_dir=args.data_dir)
    named = {"--data-dir": [args.data_dir / file for file in data], "--predict": args.predict or []}
    named["--plot"] = folders + [folder / name for folder in folders for name in files.PICTURES]
    for name in ("load_model", "save_model", "checkpoint", "log"):
        named[f"--{name.replace('_', '-')}"] = list(filter(None, [getattr(args, name)]))
    with contextlib.suppress(ValueError):  # the root has no name; it is refused where it is used
        named["--checkpoint"] += [files.lock_of(path) for path in named["--checkpoint"]]
    return clash(named, folders)


def clash(named: dict, folders: list[Path]) -> str | None:
    """What is wrong where two flags name the same file, or one a file in the other's, in one line; else None.

    `named` is `{flag: paths}`; files may lie in the `folders` among them.
    """
    flags, roots = {}, {Path(os.path.realpath(folder)) for folder in folders}
    for flag, paths in named.items():
        for path in paths:
            with contextlib.suppress(OSError, ValueError):  # what is wrong with a name is said where it is used
                # a hard link is the same file, too
                file = os.stat(path)[1:3] if os.path.exists(path) else files.real(path)
                other = flags.setdefault(file, flag)
                if other != flag and not {other, flag} <= READ:
                    return f"{other} and {flag} both name {files.shown(path)}; give each a file of its own"
    for file, flag in flags.items():
        for folder in file.parents if isinstance(file, Path) else ():
            if (other := flags.get(folder, flag)) != flag and folder not in roots:
                return f"{other} names {files.shown(folder)} and {flag} a file in it; give each a file of its own"
    return None
