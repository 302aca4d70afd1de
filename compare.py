"""Several commands over several seeds: one table that says what differs and whether it is luck, one picture.

python compare.py --seeds 5 "mlp_mnist.py --epochs 5" "lstm_mnist.py --recipe last-hidden --epochs 5"
python compare.py --seeds 5 --log runs.jsonl …       # keep the runs; the same again runs only what is missing
python compare.py --log runs.jsonl --plot pictures   # no command: what that log holds, and runs.png

Each command runs as it stands, in a process of its own, with --seed 1 to N. Each row is compared with the first, paired
by seed, with a 95 % confidence interval (Student's t): where that contains 0, no difference is shown.
"""

import common

import argparse
import contextlib
import csv
import hashlib
import io
import json
import math
import os
import re
import shlex
import statistics
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from types import SimpleNamespace

from scipy.stats import ttest_rel
from tqdm import tqdm

from support import exits, files, records
from support.checkpoint import SCORES

NOT_SETTINGS = {"run", "seed", "epoch", "parameters", "command", *SCORES}


def read(log: Path) -> list[list[dict]]:
    """The runs in a log, each a list of its epochs' records; what is not a record is named on stderr and left out.

    Raises SystemExit with one line for a file that cannot be read.
    """
    try:
        lines = log.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise SystemExit(f"{log}: cannot be read ({error}); name a file that --log wrote") from None
    runs, odd = {}, []
    for number, line in enumerate(lines, 1):
        try:
            record = json.loads(line)
            if not is_record(record):
                raise ValueError
        except (ValueError, RecursionError):
            odd.append(number)
        else:
            runs.setdefault(run_of(record), {}).setdefault(record["epoch"], record)  # the same epoch twice is one
    if odd:
        few = ", ".join(map(str, odd[:5])) + (" …" if len(odd) > 5 else "")
        print(f"{log}: skipped what is not an epoch's record: line {few}", file=sys.stderr)
    return [[epochs[k] for k in sorted(epochs)] for epochs in runs.values()]


def is_record(record) -> bool:
    """Whether it is what `--log` writes: names, whole numbers, finite scores, plain settings."""
    return (
        isinstance(record, dict)
        and all(type(record.get(name)) is str for name in ("script", "recipe"))
        and all(type(record.get(name)) is int for name in ("seed", "epoch"))
        and all(type(record.get(name)) in (int, float) and math.isfinite(record[name]) for name in SCORES)
        and all(value is None or isinstance(value, (str, int, float)) for value in record.values())
    )


def run_of(record: dict) -> tuple:
    """What the epochs of one run have in common."""
    return record.get("run"), record["script"], record["recipe"], record["seed"]


def group(runs: list[list[dict]]) -> dict[str, list[list[dict]]]:
    """The runs by settings and command, as `{name: runs}`; a name says what differs between them, nothing else."""
    groups = {}
    for run in runs:
        settings = {name: value for name, value in run[-1].items() if name not in NOT_SETTINGS} | {"epochs": len(run)}
        command = run[-1].get("command")  # two copies of a script can differ in more than their settings
        groups.setdefault((json.dumps(settings, sort_keys=True), command), (settings, []))[1].append(run)
    every = [settings for settings, _ in groups.values()]
    names = list(dict.fromkeys(name for settings in every for name in settings))
    differing = [name for name in names if len({json.dumps(settings.get(name)) for settings in every}) > 1]
    labels = []
    for settings, _ in groups.values():
        # a recipe decides most of its settings: of two recipes only those are named that not all of their runs share
        words = [settings["recipe"]]
        for name in differing:
            kin = {json.dumps(other.get(name)) for other in every if other["recipe"] == settings["recipe"]}
            if name != "recipe" and len(kin) > 1:
                words.append(f"{name.replace('_', ' ')} {settings.get(name)}")
        if "recipe" not in differing and len(words) > 1:
            words = words[1:]
        labels.append(", ".join(words))
    twice = {label for label in labels if labels.count(label) > 1}
    labels = [f"{label}: {command}" if label in twice else label for label, (_, command) in zip(labels, groups)]
    return {label: members for label, (_, members) in zip(labels, groups.values())}


def value(run: list[dict], metric: str, best: bool) -> float:
    """A run's metric: of its last epoch, or of its best one; accuracies in percent."""
    values = [record[metric] * SCORES[metric][1] for record in run]
    return (max(values) if metric.endswith("acc") else min(values)) if best else values[-1]


def table(groups: dict, metric: str, best: bool) -> list[dict]:
    """A row per group, a dictionary, each compared with the first."""
    rows, first = [], None
    for name, runs in groups.items():
        by_seed = {run[0]["seed"]: value(run, metric, best) for run in runs}
        first = first or by_seed
        values, seeds = list(by_seed.values()), [seed for seed in by_seed if seed in first]
        row = {"name": name, "seeds": len(values), "parameters": runs[0][-1].get("parameters"), "epochs": len(runs[0])}
        row |= {"mean": statistics.mean(values), "sd": statistics.stdev(values) if len(values) > 1 else None}
        row |= {"min": min(values), "max": max(values), "difference": None, "low": None, "high": None, "verdict": ""}
        if by_seed is not first and seeds:
            pairs = [by_seed[seed] for seed in seeds], [first[seed] for seed in seeds]
            differences = [a - b for a, b in zip(*pairs)]
            row["difference"] = statistics.mean(differences)
            if len(seeds) == 1:
                row["verdict"] = "n = 1: no interval"
            elif len(set(differences)) == 1:  # the t statistic would divide by 0
                row |= {"low": differences[0], "high": differences[0]}
            else:
                interval = ttest_rel(*pairs).confidence_interval(0.95)
                row |= {"low": float(interval.low), "high": float(interval.high)}
            if row["low"] is not None and row["low"] <= 0 <= row["high"]:
                row["verdict"] = "no difference shown"
        elif by_seed is not first:
            row["verdict"] = "no seed in common"
        row["seconds"] = statistics.median(record["seconds"] for run in runs for record in run)
        rows.append(row)
    return rows


def cells(row: dict, metric: str) -> list[str]:
    """A row as a reader wants it."""
    digits = 2 if metric.endswith("acc") or metric == "seconds" else 4
    span = f"({row['min']:.{digits}f} to {row['max']:.{digits}f})"
    spread = "" if row["sd"] is None else f" ± {row['sd']:.{digits}f} {span}"
    difference = "" if row["difference"] is None else f"{row['difference']:+.{digits}f}"
    if row["low"] is not None:
        difference += f" ({row['low']:+.{digits}f} to {row['high']:+.{digits}f})"
    parameters = "" if row["parameters"] is None else f"{row['parameters']:,}"
    middle = [str(row["seeds"]), parameters, str(row["epochs"]), f"{row['mean']:.{digits}f}{spread}"]
    return [row["name"], *middle, ", ".join(filter(None, [difference, row["verdict"]])), f"{row['seconds']:.2f}"]


def show(rows: list[dict], form: str, metric: str, best: bool, what: str) -> str:
    """The table as text, Markdown, CSV or JSON; `what` it shows is a metric in words."""
    if form == "json":
        return json.dumps(rows, indent=1)
    if form == "csv":
        out = io.StringIO()
        writer = csv.DictWriter(out, rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        return out.getvalue().rstrip()
    what += ", best epoch" if best else ""
    lines = [["", "seeds", "parameters", "epochs", f"{what}: mean ± sd (min to max)"]]
    lines[0] += ["difference from the first row (95 %)", "s per epoch"]
    lines += [cells(row, metric) for row in rows]
    if form == "markdown":
        lines.insert(1, ["---"] * len(lines[0]))
        text = [f"| {' | '.join(line)} |" for line in lines]
    else:
        widths = [max(map(len, column)) for column in zip(*lines)]
        text = ["  ".join(word.ljust(width) for word, width in zip(line, widths)).rstrip() for line in lines]
    if best and metric.startswith("valid"):
        text += ["", "The best epoch was picked on the images that it is tested on: these figures are optimistic."]
    return "\n".join(text)


class Failed(Exception):
    """A run that failed, with its last line."""


def run(command: str, seed: int, log: Path, threads: int, children: set) -> list[dict]:
    """Train one command with one seed in a process of its own; its records, which the log then has, too.

    Until it ends its epochs are kept beside the log, so that a comparison that was killed resumes there. Raises Failed.
    """
    words = shlex.split(command)
    script = next((k for k, word in enumerate(words) if word.endswith(".py")), None)
    if script is not None and not Path(words[script]).exists():
        words[script] = str(Path(__file__).resolve().with_name(words[script]))
    if script == 0:
        words.insert(0, sys.executable)
    elif words[0] == "torchrun" and script:
        words.insert(script, "--")  # otherwise torchrun takes --log for one of its own flags
        words[:1] = [sys.executable, "-m", "torch.distributed.run"]
    kept = parts(log) / hashlib.sha256(f"{command} {seed}".encode()).hexdigest()[:16]
    own = ["--seed", str(seed), "--checkpoint", f"{kept}.pt", "--log", f"{kept}.jsonl"]
    env = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    try:
        child = subprocess.Popen([*words, *own], env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    except OSError as error:
        raise Failed(f"{words[0]}: {error.strerror}") from None
    children.add(child)
    _, err = child.communicate()
    children.discard(child)
    if child.returncode:
        said = re.split(r"^E\d{4} ", err, maxsplit=1, flags=re.MULTILINE)[0]  # what follows, and W, is torchrun's own
        lines = [line for line in said.strip().splitlines() if not re.match(r"W\d{4} ", line)]
        raise Failed((lines or [f"ended with status {child.returncode}"])[-1])
    try:
        (epochs,) = read(Path(f"{kept}.jsonl"))
    except (SystemExit, ValueError):
        raise Failed("trained nothing; name one of the scripts, with at least one epoch") from None
    records.append(log, [{**record, "command": command} for record in epochs])
    for file in (f"{kept}.pt", f"{kept}.jsonl"):
        Path(file).unlink()
    return epochs


def parts(log: Path) -> Path:
    """The folder beside a log in which runs that are not finished are kept."""
    return log.with_name(f"{log.name}.parts")


def train(args, log: Path) -> bool:
    """Run what the log does not have yet, seed by seed; whether all of it went well."""
    have = {(epochs[0].get("command"), epochs[0]["seed"]) for epochs in read(log)}
    seeds = range(args.first_seed, args.first_seed + args.seeds)
    wanted = [(command, seed) for seed in seeds for command in dict.fromkeys(args.commands)]
    children, well, threads = set(), True, max(1, common.CORES // args.jobs)
    parts(log).mkdir(exist_ok=True)
    pool = ThreadPoolExecutor(args.jobs)
    jobs = {pool.submit(run, *job, log, threads, children): job for job in wanted if job not in have}
    try:
        with tqdm(total=len(jobs), leave=False, disable=not (sys.stderr and sys.stderr.isatty())) as bar:
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
        for child in list(children):
            child.terminate()
        pool.shutdown()
        with contextlib.suppress(OSError):
            parts(log).rmdir()  # unless something is left to resume
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
    add("--format", choices=("text", "markdown", "csv", "json"), default="text")
    add("--plot", type=Path, metavar="DIR", help="write runs.png there")
    args = parser.parse_args(argv)
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
    log = args.log or Path(tempfile.mkstemp(prefix="compare-", suffix=".jsonl")[1])
    resume = "rerun the same command" if args.log else f"rerun with --log {log}"
    with exits.clean(SimpleNamespace(checkpoint=log, resume=resume)):
        if args.plot:
            files.check_plot(args.plot, ["runs.png"])
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

        plots.save(plots.comparison(groups, args.metric, what), args.plot / "runs.png")
    return rows


if __name__ == "__main__":
    main()
