"""Several commands over several seeds: one table that says what differs, or could be luck.

python compare.py --seeds 5 "mlp_mnist.py --epochs 5" "lstm_mnist.py --epochs 5"
python compare.py --seeds 5 --log runs.jsonl …       # keep the runs; run only what is missing
python compare.py --log runs.jsonl --plot pictures   # the table of that log, and runs.png

Each command runs as it stands, in a process of its own, with --seed 1 to N. Each row is compared
with the first, paired by seed, with a 95 % confidence interval (Student's t). An interval that
contains 0 shows no difference. With more than two rows the intervals hold jointly (Bonferroni): if
nothing really differs, at most 5 tables in 100 claim that something does.
"""

import argparse
import contextlib
import hashlib
import os
import re
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

import common  # before tqdm: it says in one line which package is missing

from tqdm import tqdm

from support import files, flags, log

try:
    from support.tables import group, show, table
except ModuleNotFoundError as error:
    raise SystemExit(f"compare.py needs {error.name}: pip install -r requirements.txt") from None

OWN = {"--seed", "--log", "--checkpoint"}  # flags that compare.py sets itself
REFUSED = OWN | {"--save-model", "--plot", "--predict"}  # one run would replace another's files


class Failed(Exception):
    """A run failed; the message is its last line."""


def started_as(command: str) -> tuple[list[str], dict[str, str]]:
    """The words and environment to start a command; scripts are also looked for beside this one."""
    words = common.words(command)
    environment = dict(os.environ)
    while re.match(r"\w+=", words[0]):  # as in a shell: OMP_NUM_THREADS=1 python …
        name, value = words.pop(0).split("=", 1)
        environment[name] = value
        if not words:
            raise Failed("starts nothing; name a script")
    script = next((k for k, word in enumerate(words) if word.endswith(".py")), None)
    if script is not None and not Path(words[script]).exists():
        words[script] = str(Path(__file__).resolve().parent / words[script])
    if words[0] in ("python", "python3"):
        words[0] = sys.executable
    elif words[0] == "torchrun":
        if script is not None and words[script - 1] != "--":
            words.insert(script, "--")  # otherwise torchrun takes --log for one of its own flags
        words[:1] = [sys.executable, "-m", "torch.distributed.run"]
    elif script == 0:
        words.insert(0, sys.executable)
    return words, environment


def run(command: str, seed: int, path: Path, children: list) -> list[dict]:
    """Train one command with one seed in its own process; returns its records, after logging them.

    Until it ends its epochs are kept in LOG.parts/, where a comparison that was killed resumes.
    Raises Failed.
    """
    words, environment = started_as(command)
    checkpoint, kept_log = kept(command, seed, path)
    own = ["--seed", str(seed), "--checkpoint", str(checkpoint), "--log", str(kept_log)]
    try:
        child = subprocess.Popen(
            [*words, *own],
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
        )
    except OSError as error:
        raise Failed(f"{words[0]}: {error.strerror}") from None
    children.append(child)
    _, err = child.communicate()
    if child.returncode:
        raise Failed(last_line(err) or f"ended with status {child.returncode}")
    runs = log.read(kept_log)
    if not runs:
        raise Failed("trained nothing; give it at least one epoch")
    epochs = runs[-1]  # earlier ones belong to a checkpoint that has been removed
    log.append(path, [{**record, "command": command} for record in epochs])
    checkpoint.unlink(missing_ok=True)
    kept_log.unlink()
    return epochs


def kept(command: str, seed: int, path: Path) -> tuple[Path, Path]:
    """Where a run's checkpoint and log are until it ends."""
    name = hashlib.sha256(f"{command} {seed}".encode()).hexdigest()[:16]
    folder = path.with_name(f"{path.name}.parts")
    return folder / f"{name}.pt", folder / f"{name}.jsonl"


def last_line(err: str) -> str:
    """The last line of a run's stderr that is not torchrun's, which begin with W or E."""
    err = re.split(r"^E\d{4} ", err, maxsplit=1, flags=re.MULTILINE)[0]
    lines = [line for line in err.strip().splitlines() if not re.match(r"W\d{4} ", line)]
    return lines[-1] if lines else ""


def seeds(args) -> range:
    """The seeds to run."""
    return range(args.first_seed, args.first_seed + args.seeds)


def run_missing(args, path: Path) -> bool:
    """Run what the log lacks, seed by seed; returns whether everything succeeded."""
    have = {(epochs[0].get("command"), epochs[0]["seed"]) for epochs in log.read(path)}
    wanted = []
    for seed in seeds(args):
        wanted += [(command, seed) for command in dict.fromkeys(args.commands)]
    missing = [job for job in wanted if job not in have]
    print(f"{len(wanted) - len(missing)} of {len(wanted)} runs are in {path}", file=sys.stderr)
    children, all_succeeded = [], True
    pool = ThreadPoolExecutor(args.jobs)
    try:
        for job in missing:
            checkpoint, _ = kept(*job, path)
            checkpoint.parent.mkdir(exist_ok=True)
            with files.locked(checkpoint, -1):  # wait for what a killed comparison left
                pass
        jobs = {pool.submit(run, *job, path, children): job for job in missing}
        for done in tqdm(as_completed(jobs), total=len(jobs), leave=False, disable=None):
            command, seed = jobs[done]
            try:
                epochs = done.result()
                seconds = sum(record["seconds"] for record in epochs)
                outcome = f"{100 * epochs[-1]['valid_acc']:.2f} % in {seconds:.1f} s"
            except Failed as error:
                all_succeeded = False
                outcome = f"failed: {error}"
            tqdm.write(f"{command}, seed {seed}: {outcome}", file=sys.stderr)
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        for child in children:
            child.terminate()
        with contextlib.suppress(OSError):
            path.with_name(f"{path.name}.parts").rmdir()  # unless something is left to resume
    return all_succeeded


def parse(argv) -> argparse.Namespace:
    """The flags and commands; SystemExit(2) with one line if they make no sense."""
    parser = common.Parser(__file__, __doc__)
    add = parser.add_argument
    first = common.between(0, 2**31 - 1)
    metric = "default: valid_acc, the test accuracy"
    forms = ("text", "markdown", "json")
    example = '"mlp_mnist.py --epochs 5"'
    add("commands", nargs="*", default=[], metavar="COMMAND", help=f"such as {example}")
    add("--seeds", type=common.COUNT, default=5, metavar="N", help="default: 5")
    add("--first-seed", type=first, default=1, metavar="S", help="default: 1")
    add("--jobs", type=common.COUNT, default=1, metavar="J", help="side by side (default: 1)")
    add("--log", type=Path, default=None, metavar="FILE", help="keep the runs there")
    add("--metric", choices=log.SCORES, default="valid_acc", help=metric)
    add("--format", choices=forms, default="text", help="default: text")
    add("--plot", type=Path, default=None, metavar="DIR", help="write runs.png there")
    args, unknown = parser.parse_known_intermixed_args(argv)
    if unknown:
        what = f"there is no {unknown[0]}; put a command and its flags in quotes"
        parser.error(f"{what}: {example}")
    if not args.commands and not args.log:
        parser.error(f"name a command, such as {example}, or a log with --log FILE")
    for command in args.commands:
        try:
            names = {word.split("=")[0] for word in common.words(command)}
        except ValueError as error:
            parser.error(f"{command}: {error}")
        if not names:
            parser.error("a command is empty; leave it out")
        if taken := REFUSED & names:
            parser.error(f"{command}: leave out {', '.join(sorted(taken))}")
    if args.log and args.plot:
        written = [("--log", args.log), ("--plot", args.plot / "runs.png")]
        if problem := files.conflict(written, []):
            parser.error(problem)
    return args


def main(argv=None) -> list[dict]:
    """Run and compare; returns the table's rows. Raises SystemExit(1) where a run failed."""
    args = parse(argv)
    path = args.log or Path(tempfile.mkdtemp(prefix="compare-"), "runs.jsonl")
    if args.plot:
        flags.check_drawing()
        files.check_writable(args.plot / "runs.png")
    if not args.commands:
        return report(args, path)
    files.check_writable(path)
    log.check(path)
    with files.locked(path):  # another comparison would add a run twice
        try:
            all_succeeded = run_missing(args, path)
        finally:
            rows = report(args, path)
    if not all_succeeded:
        raise SystemExit(1)
    return rows


def report(args, path: Path) -> list[dict]:
    """Print the table of the commands' runs, or of all runs in the log, and draw it."""
    runs = log.read(path)
    if args.commands:
        asked = []
        for epochs in runs:
            if epochs[0].get("command") in args.commands and epochs[0]["seed"] in seeds(args):
                asked.append(epochs)
        runs = sorted(asked, key=lambda epochs: args.commands.index(epochs[0]["command"]))
    if not runs and not args.commands:
        raise SystemExit(f"{path}: contains no runs; name a file that --log wrote, or commands")
    if not runs:
        return []
    groups = group(runs)
    what, factor = log.SCORES[args.metric]
    if all(epochs[-1].get("hold_out") for epochs in runs):
        what = what.replace("test", "held-out")
    rows = table(groups, args.metric)
    print(show(rows, args.format, args.metric, what))
    if args.plot:
        from support import plots

        figure = plots.comparison(groups, args.metric, what, factor)
        files.write(args.plot / "runs.png", plots.png(figure))
    return rows


if __name__ == "__main__":
    common.run(main, "--log")
