"""Checks of the flags: contradictions among them, and with a model file's settings."""

from pathlib import Path

import torch

from support import files, model_files

# What a run writes into --plot's folder
PICTURES = ("samples.png", "curves.png", "confusion.png", "mistakes.png", "steps.png")


def from_model_file(parser, given: dict, recipes: dict, model_flags) -> dict:
    """The settings that `--load-model` brings: those its model needs, and its data set.

    Ends in one line and status 2 if they are out of range or a given flag contradicts them.
    """
    path = given["load_model"]
    _, settings = model_files.read_model(path)
    recipe = settings.get("recipe", next(iter(recipes)))
    if recipe not in list(recipes):  # a damaged file's can have no hash
        what = f"{path} is a model of {settings.get('script')!r}, recipe {recipe!r}"
        parser.error(f"{what}; use that script")
    needed = [*model_flags, "normalize"]
    known = [name for name in [*needed, "dataset", "hold_out"] if name in settings]
    parser.prefix = f"{path}: "  # the parser checks types and ranges
    saved = vars(parser.parse_args([model_files.flag(name, settings[name]) for name in known]))
    parser.prefix = ""
    if "predict" in given:
        needed.append("dataset")
    for name in needed:
        if name in given and name in saved and given[name] != saved[name]:
            was, now = model_files.flag(name, saved[name]), model_files.flag(name, given[name])
            parser.error(f"{now}: {path} was trained with {was}; leave the flag out")
    held_out = saved.pop("hold_out", None)
    its_data = saved.get("dataset"), settings.get("pictures")
    our_data = given.get("dataset", saved.get("dataset")), given.get("pictures")
    if held_out is not None and our_data == its_data and given.get("hold_out", 0) > held_out:
        what = f"{path} was trained on some of those images"
        parser.error(f"--hold-out {given['hold_out']}: {what}; leave the flag out")
    return saved


def written(args) -> list[tuple[str, Path]]:
    """The files that a command writes, each with its flag."""
    pairs = [("--save-model", args.save_model), ("--checkpoint", args.checkpoint)]
    pairs.append(("--log", args.log))
    if args.plot:
        names = ["predictions.png"] if args.predict else PICTURES
        pairs += [("--plot", args.plot / name) for name in names]
    return [(flag, path) for flag, path in pairs if path]


def check(parser, args, world: int) -> None:
    """Refuse contradicting flags and missing devices, in one line with status 2."""
    read = []
    if args.load_model:
        read.append(("--load-model", args.load_model))
    if args.predict:
        if not args.load_model:
            parser.error("--predict needs --load-model FILE, the trained model")
        for flag, _ in written(args):
            if flag != "--plot":
                parser.error(f"--predict trains nothing: leave out {flag}")
        read += [("--predict", path) for path in args.predict]
    if problem := files.conflict(written(args), read):
        parser.error(problem)
    if vars(args).get("compile") and (args.parts or 1) > 1:
        parser.error("--compile needs whole batches: leave out --parts")
    if world > 1:
        from support import processes

        processes.check_flags(parser, args)
    try:
        torch.ones(1, device=args.device).item()
    except Exception:  # each kind of device raises its own kind of error
        remedy = "use another, such as cpu"
        parser.error(f"--device {args.device} does not work on this machine; {remedy}")
    if args.plot:
        check_drawing()


def check_drawing() -> None:
    """See that matplotlib works; SystemExit with one line if not."""
    try:
        from support import plots  # noqa: F401
    except ImportError as error:
        reason = " ".join(str(error).split())
        raise SystemExit(f"--plot: {reason}; install matplotlib, or leave it out") from None
