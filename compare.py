"""Several commands over several seeds: one table that says what differs and whether it could be luck, one picture.

python compare.py --seeds 5 "mlp_mnist.py --epochs 5" "lstm_mnist.py --recipe last-hidden --epochs 5"
python compare.py --seeds 5 --log runs.jsonl …       # keep the runs; the same command again runs only what is missing
python compare.py --log runs.jsonl --plot pictures   # without commands: the table of that log, and runs.png

Each command runs as it stands, in a process of its own, with --seed 1 to N. Each row is compared with the first, paired
by seed, with a 95 % confidence interval (Student's t): where that contains 0, no difference is shown.
"""

import common

import argparse
import contextlib
import hashlib
import os
import re
import shlex
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor, as_completed, wait
from pathlib import Path
from types import SimpleNamespace

from tqdm import tqdm

from support import exits, files, flags, records
from support.checkpoint import SCORES
from support.records import read
from support.tables import group, show, table

PICTURE = "runs.png"  # what --plot draws


class Failed(Exception):
    """A run that failed, with its last line."""


def run(command: str, seed: int, log: Path, parts: Path, threads: int, children: set) -> list[dict]:
    """Train one command with one seed in a process of its own; its records, which the log then has, too.

    Until it ends its epochs are kept in the folder `parts`, where a comparison that was killed resumes. Raises Failed.
    """
    words = shlex.split(command)
    script = next((k for k, word in enumerate(words) if word.endswith(".py")), None)
    if script is not None and not Path(words[script]).exists():
        words[script] = str(Path(__file__).resolve().parent / words[script])
    if script == 0:
        words.insert(0, sys.executable)
    elif words[0] == "torchrun" and script:
        words.insert(script, "--")  # otherwise torchrun takes --log for one of its own flags
        words[:1] = [sys.executable, "-m", "torch.distributed.run"]
    kept = parts / hashlib.sha256(os.fsencode(f"{command} {seed}")).hexdigest()[:16]
    own = ["--seed", str(seed), "--checkpoint", f"{kept}.pt", "--log", f"{kept}.jsonl"]
    env = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    if not Path(f"{kept}.pt").exists():
        Path(f"{kept}.jsonl").unlink(missing_ok=True)  # of a checkpoint that was removed: this is another run
    try:
        pipes = dict(stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, errors="replace")
        child = subprocess.Popen([*words, *own], env=env, **pipes)
    except OSError as error:
        raise Failed(f"{words[0]}: {error.strerror}") from None
    children.add(child)
    _, err = child.communicate()
    children.discard(child)
    if child.returncode:
        said = re.split(r"^E\d{4} ", err, maxsplit=1, flags=re.MULTILINE)[0]  # what follows, and W, is torchrun's own
        lines = [line for line in said.strip().splitlines() if not re.match(r"W\d{4} ", line)]
        last = (lines or [f"ended with status {child.returncode}"])[-1]
        raise Failed(last.replace("another --checkpoint file", f"remove {kept}.pt to start anew"))
    try:
        (epochs,) = read(Path(f"{kept}.jsonl"))
    except (SystemExit, ValueError):
        raise Failed("trained nothing; name one of the scripts, with at least one epoch") from None
    records.append(log, [{**record, "command": command} for record in epochs])
    for file in (f"{kept}.pt", f"{kept}.jsonl"):
        Path(file).unlink()
    return epochs


def train(args, log: Path) -> bool:
    """Run what the log does not have yet, seed by seed; whether all of it went well."""
    have = {(epochs[0].get("command"), epochs[0]["seed"]) for epochs in read(log)}
    seeds = range(args.first_seed, args.first_seed + args.seeds)
    commands = dict.fromkeys(args.commands)
    missing = [(command, seed) for seed in seeds for command in commands if (command, seed) not in have]
    children, well, threads = set(), True, max(1, common.CORES // args.jobs)
    parts = log.with_name(f"{log.name}.parts")  # runs that are not finished
    parts.mkdir(exist_ok=True)
    pool, jobs = ThreadPoolExecutor(args.jobs), {}
    try:
        for job in missing:
            jobs[pool.submit(run, *job, log, parts, threads, children)] = job
        with tqdm(total=len(jobs), leave=False, disable=None) as bar:
            for done in as_completed(jobs):
                command, seed = jobs[done]
                try:
                    epochs = done.result()
                    figure = f"{100 * epochs[-1]['valid_acc']:.2f} % in {sum(r['seconds'] for r in epochs):.1f} s"
                except Failed as error:
                    well, figure = False, f"failed: {error}"
                bar.clear()
                print(f"{command}, seed {seed}: {figure}", file=sys.stderr, flush=True)
                bar.update()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        ended = set()
        while running := [job for job in jobs if job.running()]:
            for child in children - ended:  # each once, also one that is starting only now
                child.terminate()
                ended.add(child)
            wait(running, timeout=1)
        with contextlib.suppress(OSError):
            parts.rmdir()  # unless something is left to resume
    return well


def main(argv=None) -> list[dict]:
    """Run and compare; returns the table's rows, each a dictionary."""
    parser = common.Parser(
        prog="compare.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    count, add = common.number(int, 1), parser.add_argument
    add("commands", nargs="*", metavar="COMMAND", help='such as "mlp_mnist.py --epochs 5"')
    add("--seeds", type=count, default=5, metavar="N", help="default: 5")
    add("--first-seed", type=common.number(int, 0), default=1, metavar="S", help="default: 1")
    add("--jobs", type=count, default=1, metavar="J", help="runs side by side, sharing the cores (default: 1)")
    add("--log", type=Path, metavar="FILE", help="keep the runs there (default: a new temporary file)")
    add("--metric", choices=SCORES, default="valid_acc", help="default: valid_acc, the test accuracy")
    add("--best", action="store_true", help="each run's best epoch instead of its last")
    add("--format", choices=("text", "markdown", "csv", "json"), default="text", help="default: text")
    add("--plot", type=Path, metavar="DIR", help="write runs.png there")
    args = parser.parse_intermixed_args(argv)
    if not args.commands and not args.log:
        parser.error('name a command, such as "mlp_mnist.py --epochs 5", or a log with --log FILE')
    for command in args.commands:
        try:
            words = {word.split("=")[0] for word in shlex.split(command)}
        except ValueError as error:
            parser.error(f"{command}: cannot be split into words ({error})")
        if not words:
            parser.error("a command is empty; leave it out")
        if taken := {"--seed", "--log", "--checkpoint"} & words:
            parser.error(f"{command}: leave out {', '.join(sorted(taken))}; compare.py sets that itself")
        if "--predict" in words:
            parser.error(f"{command}: leave out --predict, which trains nothing")
        if taken := {"--save-model", "--plot"} & words:
            parser.error(f"{command}: leave out {', '.join(sorted(taken))}; one run would replace another's files")
    if args.log and args.plot and (wrong := flags.clash({"--log": [args.log], "--plot": [args.plot / PICTURE]}, [])):
        parser.error(wrong)
    try:
        log = args.log or Path(tempfile.mkdtemp(prefix="compare-"), "runs.jsonl")
    except OSError:
        raise SystemExit("no temporary folder can be written; name a log with --log FILE") from None
    resume = "rerun the same command" if args.log else f"rerun with --log {log}"
    with exits.clean(SimpleNamespace(checkpoint=log, resume=resume)):
        if args.plot:
            files.check_plot(args.plot, [PICTURE])
        if not args.commands:
            return report(args, log)
        files.check_writable(log, appended=True)
        with files.lock(log):
            print(f"saving the runs to {log}", file=sys.stderr)
            log.touch()
            try:
                well = train(args, log)
            finally:
                rows = report(args, log)
                print(f"the runs are in {log}", file=sys.stderr)
    if not well:
        raise SystemExit(1)
    return rows


def report(args, log: Path) -> list[dict]:
    """Print the table of what the log has of the commands, or of all that it has, and draw it."""
    runs = read(log)
    if args.commands:
        seeds = range(args.first_seed, args.first_seed + args.seeds)
        runs = [epochs for epochs in runs if epochs[0].get("command") in args.commands and epochs[0]["seed"] in seeds]
        runs.sort(key=lambda epochs: args.commands.index(epochs[0]["command"]))
    if not runs:
        if args.commands:
            return []  # why has been said
        raise SystemExit(f"{log}: contains no runs; name commands to run, too")
    groups, what = group(runs), SCORES[args.metric][0]
    if all(run[-1].get("hold_out") for run in runs):
        what = what.replace("test", "held-out")
    rows = table(groups, args.metric, args.best)
    print(show(rows, args.format, args.metric, args.best, what), flush=True)
    if args.plot:
        from support import plots

        plots.save(plots.comparison(groups, args.metric, what), args.plot / PICTURE)
    return rows


if __name__ == "__main__":
    main()
