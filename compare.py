"""Several commands over several seeds: one table that says what differs and whether it could be luck, one picture.

python compare.py --seeds 5 "mlp_mnist.py --epochs 5" "lstm_mnist.py --recipe last-hidden --epochs 5"
python compare.py --seeds 5 --log runs.jsonl …       # keep the runs; the same command again runs only what is missing
python compare.py --log runs.jsonl --plot pictures   # without commands: the table of that log, and runs.png

Each command runs as it stands, in a process of its own, with --seed 1 to N. Each row is compared with the first, paired
by seed, with a 95 % confidence interval (Student's t): where that contains 0, no difference is shown. With several such
rows the intervals hold jointly (Bonferroni): of tables without any real difference at most 5 in 100 claim one.
"""

import argparse
import contextlib
import hashlib
import os
import re
import shlex
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

import common

from tqdm import tqdm

from support import saving

try:
    from support.tables import group, show, table
except ModuleNotFoundError as error:
    raise SystemExit(f"compare.py needs {error.name}: pip install -r requirements.txt") from None

OWN = {"--seed", "--log", "--checkpoint"}  # flags that compare.py sets itself
REFUSED = OWN | {"--save-model", "--plot", "--predict"}  # one run would replace another's files, or trains nothing


class Failed(Exception):
    """A run that failed, with its last line."""


def run(command: str, seed: int, log: Path, children: list) -> list[dict]:
    """Train one command with one seed in a process of its own; its records, which the log then has, too.

    Until it ends its epochs are kept in LOG.parts/, where a comparison that was killed resumes. Raises Failed.
    """
    words = shlex.split(command)
    words[0] = sys.executable if words[0] in ("python", "python3") else words[0]
    script = next((k for k, word in enumerate(words) if word.endswith(".py")), 0)
    if not Path(words[script]).exists():
        words[script] = str(Path(__file__).resolve().parent / words[script])
    if script == 0:
        words.insert(0, sys.executable)
    elif words[0] == "torchrun":
        if words[script - 1] != "--":
            words.insert(script, "--")  # otherwise torchrun takes --log for one of its own flags
        words[:1] = [sys.executable, "-m", "torch.distributed.run"]
    kept = log.with_name(f"{log.name}.parts") / hashlib.sha256(f"{command} {seed}".encode()).hexdigest()[:16]
    own = ["--seed", str(seed), "--checkpoint", f"{kept}.pt", "--log", f"{kept}.jsonl"]
    pipes = dict(stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, errors="replace")
    children.append(child := subprocess.Popen([*words, *own], **pipes))
    _, err = child.communicate()
    if child.returncode:
        err = re.split(r"^E\d{4} ", err, maxsplit=1, flags=re.MULTILINE)[0]  # what follows, and W, is torchrun's own
        lines = [line for line in err.strip().splitlines() if not re.match(r"W\d{4} ", line)]
        raise Failed((lines or [f"ended with status {child.returncode}"])[-1])
    if not (runs := saving.read_log(Path(f"{kept}.jsonl"))):
        raise Failed("trained nothing; give it at least one epoch")
    epochs = runs[-1]  # others are of a checkpoint that was removed
    saving.append(log, [{**record, "command": command} for record in epochs])
    for suffix in (".pt", ".jsonl"):
        Path(f"{kept}{suffix}").unlink()
    return epochs


def seeds(args) -> range:
    """The seeds that are asked for."""
    return range(args.first_seed, args.first_seed + args.seeds)


def train(args, log: Path) -> bool:
    """Run what the log does not have yet, seed by seed; whether all of it went well."""
    have = {(epochs[0].get("command"), epochs[0]["seed"]) for epochs in saving.read_log(log)}
    wanted = [(command, seed) for seed in seeds(args) for command in dict.fromkeys(args.commands)]
    missing = [job for job in wanted if job not in have]
    print(f"{len(wanted) - len(missing)} of {len(wanted)} runs are in {log}", file=sys.stderr)
    children, well = [], True
    pool = ThreadPoolExecutor(args.jobs)
    try:
        jobs = {pool.submit(run, *job, log, children): job for job in missing}
        for done in tqdm(as_completed(jobs), total=len(jobs), leave=False, disable=None):
            command, seed = jobs[done]
            try:
                epochs = done.result()
                figure = f"{100 * epochs[-1]['valid_acc']:.2f} % in {sum(r['seconds'] for r in epochs):.1f} s"
            except Failed as error:
                well, figure = False, f"failed: {error}"
            tqdm.write(f"{command}, seed {seed}: {figure}", file=sys.stderr)
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        for child in children:
            child.terminate()
        with contextlib.suppress(OSError):
            log.with_name(f"{log.name}.parts").rmdir()  # unless something is left to resume
    return well


def main(argv=None) -> list[dict]:
    """Run and compare; returns the table's rows, each a dictionary. Raises SystemExit(1) where a run failed."""
    style = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("compare.py", description=__doc__, formatter_class=style, allow_abbrev=False)
    parser.error = lambda message: parser.exit(2, f"compare.py: {message} (--help lists the flags)\n")
    parser.register("type", Path, lambda text: Path(os.path.expanduser(text)))
    add, count = parser.add_argument, common.at_least(1)
    add("commands", nargs="*", metavar="COMMAND", help='such as "mlp_mnist.py --epochs 5"')
    add("--seeds", type=count, default=5, metavar="N", help="default: 5")
    add("--first-seed", type=common.at_least(0), default=1, metavar="S", help="default: 1")
    add("--jobs", type=count, default=1, metavar="J", help="runs side by side (default: 1)")
    add("--log", type=Path, metavar="FILE", help="keep the runs there (default: a new temporary file)")
    add("--metric", choices=saving.SCORES, default="valid_acc", help="default: valid_acc, the test accuracy")
    add("--format", choices=("text", "markdown", "json"), default="text", help="default: text")
    add("--plot", type=Path, metavar="DIR", help="write runs.png there")
    args, unknown = parser.parse_known_intermixed_args(argv)
    if unknown:
        parser.error(f'there is no {unknown[0]}; put a command and its flags in quotes: "mlp_mnist.py --epochs 5"')
    if not args.commands and not args.log:
        parser.error('name a command, such as "mlp_mnist.py --epochs 5", or a log with --log FILE')
    for command in args.commands:
        try:
            words = {word.split("=")[0] for word in shlex.split(command)}
        except ValueError as error:
            parser.error(f"{command}: {error}")
        if not words:
            parser.error("a command is empty; leave it out")
        if taken := REFUSED & words:
            parser.error(f"{command}: leave out {', '.join(sorted(taken))}")
    log = args.log or Path(tempfile.mkdtemp(prefix="compare-"), "runs.jsonl")
    if args.plot:
        saving.check_plot(args.plot)
    if args.commands:
        saving.check_writable(log)
    try:
        well = train(args, log) if args.commands else True
    finally:
        rows = report(args, log)
    if not well:
        raise SystemExit(1)
    return rows


def report(args, log: Path) -> list[dict]:
    """Print the table of what the log has of the commands, or of all that it has, and draw it."""
    runs = saving.read_log(log)
    if args.commands:
        own = seeds(args)
        runs = [epochs for epochs in runs if epochs[0].get("command") in args.commands and epochs[0]["seed"] in own]
        runs.sort(key=lambda epochs: args.commands.index(epochs[0]["command"]))
    if not runs and not args.commands:
        raise SystemExit(f"{log}: contains no runs; name a file that --log wrote, or commands")
    if not runs:
        return []
    groups, what = group(runs), saving.SCORES[args.metric][0]
    if all(run[-1].get("hold_out") for run in runs):
        what = what.replace("test", "held-out")
    rows = table(groups, args.metric)
    print(show(rows, args.format, args.metric, what), flush=True)
    if args.plot:
        from support import plots

        figure = plots.comparison(groups, args.metric, what, saving.SCORES[args.metric][1])
        saving.write(args.plot / "runs.png", plots.png(figure))
    return rows


if __name__ == "__main__":
    common.run(main, "--log")
