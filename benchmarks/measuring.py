"""What the measurements share: fresh processes, sides in turn, parts of MNIST, tables."""

import argparse
import collections
import contextlib
import json
import platform
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
sys.path.insert(0, str(ROOT))

import common  # noqa: E402

import torch  # noqa: E402

import lstm_mnist  # noqa: E402
import mlp_mnist  # noqa: E402
from support import files  # noqa: E402

RECIPES = {"mlp": {"normalize": False, **mlp_mnist.RECIPE}, **lstm_mnist.RECIPES}
PROGRAMS = {"mlp": ["mlp_mnist.py"]}
for name in lstm_mnist.RECIPES:
    PROGRAMS[name] = ["lstm_mnist.py", "--recipe", name]


def parser(doc: str, flag: str, n: int, recipes=tuple(RECIPES)) -> argparse.ArgumentParser:
    """A parser with a flag for how often to measure, `n` by default, and --recipe."""
    style = argparse.RawDescriptionHelpFormatter
    p = argparse.ArgumentParser(description=doc, formatter_class=style)
    p.add_argument(flag, type=common.COUNT, default=n, metavar="N", help=f"default: {n}")
    p.add_argument("--results", type=into, metavar="DIR", help="keep the records there instead")
    if recipes:
        p.add_argument("--recipe", nargs="+", choices=RECIPES, default=recipes)
    return p


def into(folder: str) -> None:
    """Keep records in this folder."""
    global RESULTS
    RESULTS = Path(folder)


def run(command: list) -> str:
    """What a program prints; SystemExit with the end of its errors where it fails."""
    command = [str(word) for word in command]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{done.stderr[-2000:]}\nthis failed: {' '.join(command)}")
    return done.stdout


def epochs_of(words: list, *launcher) -> list[dict]:
    """What a program logs, a record per epoch; `launcher`: words before its own, as torchrun's."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "run.jsonl")
        run([sys.executable, *launcher, *words, "--log", file])
        return lines(file)


def keep(name: str, records: list[dict], *keys: str) -> None:
    """Keep records in results/NAME.jsonl, with the machine, versions, day and commit.

    They take the place of this machine's records with the same values of `keys`.
    """
    command = ["git", "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout.strip()
    about = {"machine": machine(), "date": time.strftime("%Y-%m-%d"), "commit": commit}
    records = [record | about for record in records]

    def identity(record):
        return [record[key] for key in (*keys, "machine")]

    gone = [identity(record) for record in records]
    others = [record for record in everything(name) if identity(record) not in gone]
    RESULTS.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(record) + "\n" for record in others + records)
    files.write(RESULTS / f"{name}.jsonl", text.encode())


def everything(name: str) -> list[dict]:
    """The records in results/NAME.jsonl."""
    file = RESULTS / f"{name}.jsonl"
    return lines(file) if file.exists() else []


def lines(file: Path) -> list[dict]:
    """The objects in a file of JSON lines."""
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def kept(name: str) -> list[dict]:
    """The records in results/NAME.jsonl of the machine that the last one is of."""
    records = everything(name)
    return [record for record in records if record["machine"] == records[-1]["machine"]]


def whole_run(command: str, seed: int, *flags) -> None:
    """Keep the last scores of a program's run with that seed, and the seconds of all its epochs."""
    records = epochs_of([*shlex.split(command), "--seed", seed, *flags])
    record = {"command": command, "seed": seed, "epochs": len(records)}
    for name in ("parameters", "valid_acc", "valid_loss", "train_loss"):
        record[name] = records[-1].get(name)
    record["seconds"] = round(sum(each["seconds"] for each in records), 3)
    keep("runs", [record], "command", "seed")


def runs(commands: list[str], seeds: int) -> None:
    """`whole_run` of each command and seed; what is kept of this machine is not run again."""
    for seed in range(1, seeds + 1):  # in turn, so that a slow hour slows all of them
        for command in commands:
            if not run_of(command, seed):
                whole_run(command, seed)
                print(f"{command}, seed {seed}: done", file=sys.stderr)


def run_of(command: str, seed: int) -> dict | None:
    """The record of this command and seed on this machine, if there is one."""
    wanted = command, seed, machine()
    for record in everything("runs"):
        if (record["command"], record["seed"], record["machine"]) == wanted:
            return record
    return None


def in_turn(name: str, rounds: int, measure, sides: list[tuple], *more) -> None:
    """Keep what `measure(*side, *more)` gives, instead of what was kept of these sides.

    In a round the sides take turns, so that a slow hour slows all of them.
    """
    results = []
    for turn in range(1, rounds + 1):
        for side in sides:
            result = measure(*side, *more)
            print(f"round {turn} of {rounds}: {side}: {result}", file=sys.stderr)
            results.append({"side": list(side), **result})
    keep(name, results, "side")


def by_side(name: str) -> dict[tuple, list[float]]:
    """What `in_turn` has kept: the seconds of each round, by side."""
    results = {}
    for record in kept(name):
        results.setdefault(tuple(record["side"]), []).append(record["seconds"])
    return results


def by_name(file: str, names, *sides: str) -> str:
    """A row per name: seconds of each side, and the ratio of the last two."""
    results = by_side(file)
    rows = []
    for name in names:  # in their own order; one that is measured again comes last in the file
        if (name, sides[0]) in results:
            seconds = [results[name, side] for side in sides]
            above, below = map(statistics.median, seconds[-2:])
            rows.append([name, *map(cell, seconds), f"**{above / below:.2f}**"])
    ratio = f"{sides[-2]} / {sides[-1]}"
    return table(["seconds per epoch", *sides, ratio], rows, kept(file))


@contextlib.contextmanager
def part_of_mnist(train: int | None = None, test: int | None = None):
    """A folder with the first images of each set, or all, unpacked: torchvision reads no others."""
    with tempfile.TemporaryDirectory() as folder:
        raw = Path(folder, "MNIST", "raw")
        raw.mkdir(parents=True)
        sets = common.read(common.DEFAULTS["data_dir"])
        for (images, labels), part, count in zip(sets, ("train", "t10k"), (train, test)):
            write_idx(raw / f"{part}-images-idx3-ubyte", images[:count])
            write_idx(raw / f"{part}-labels-idx1-ubyte", labels[:count].byte())
        yield folder


def write_idx(file: Path, data: torch.Tensor) -> None:
    """A tensor of bytes as an IDX file."""
    sizes = b"".join(n.to_bytes(4, "big") for n in data.shape)
    file.write_bytes(bytes([0, 0, 8, data.dim()]) + sizes + data.numpy().tobytes())


def cell(values: list[float]) -> str:
    """Median and, where there are several, the range."""
    middle = f"{statistics.median(values):.2f}"
    return f"{middle} ({min(values):.2f}–{max(values):.2f})" if len(values) > 1 else middle


def spread(values: list[float]) -> str:
    """Mean, and where there are several, standard deviation and range."""
    mean = f"{statistics.mean(values):.2f}"
    if len(values) == 1:
        return mean
    return f"{mean} ± {statistics.stdev(values):.2f} ({min(values):.2f}–{max(values):.2f})"


def table(head: list, rows: list[list], records: list[dict]) -> str:
    """A Markdown table; below it where, when and how often its records, if any, were measured."""
    text = []
    for row in (head, *rows):
        text.append(f"| {' | '.join(map(str, row))} |\n")
    text.insert(1, f"|{'---|' * len(head)}\n")
    if not records:
        return "".join(text)
    about = sorted({record["machine"] for record in records})
    about += sorted({record["date"] for record in records})
    sides = collections.Counter(str(record["side"]) for record in records if "side" in record)
    if sides:
        about.append(f"n = {min(sides.values())}, medians (min–max)")
    return f"{''.join(text)}\n{'; '.join(about)}.\n"


def machine() -> str:
    """CPU model and cores (or the GPU), torch and Python, as one phrase."""
    place = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                place = line.split(":", 1)[1].strip()
    place += f", {common.CORES} cores, {torch.backends.cpu.get_cpu_capability()}"
    if torch.cuda.is_available():
        place = torch.cuda.get_device_name()
    return f"{place}; torch {torch.__version__}, Python {platform.python_version()}"
