"""What the measurements share: fresh processes, sides in turn, parts of MNIST, steps, tables."""

import argparse
import contextlib
import importlib
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import common  # noqa: E402

import torch  # noqa: E402

import lstm_mnist  # noqa: E402
import mlp_mnist  # noqa: E402

RECIPES = {"mlp": {"normalize": False, **mlp_mnist.RECIPE}, **lstm_mnist.RECIPES}
PROGRAMS = {"mlp": ["mlp_mnist.py"]}
for name in lstm_mnist.RECIPES:
    PROGRAMS[name] = ["lstm_mnist.py", "--recipe", name]


def parser(doc: str, flag: str, n: int, recipes=tuple(RECIPES)) -> argparse.ArgumentParser:
    """A parser with a flag for how often to measure, `n` by default, and --recipe."""
    style = argparse.RawDescriptionHelpFormatter
    p = argparse.ArgumentParser(description=doc, formatter_class=style)
    p.add_argument(flag, type=common.COUNT, default=n, metavar="N", help=f"default: {n}")
    if recipes:
        help = "one or several"
        p.add_argument("--recipe", nargs="+", choices=RECIPES, default=recipes, help=help)
    return p


def run(command: list) -> str:
    """What a program prints; SystemExit with the end of its errors where it fails."""
    command = [str(word) for word in command]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{done.stderr[-2000:]}\nthis failed: {' '.join(command)}")
    return done.stdout


def last_line(command: list):
    """What the JSON of the last line that a program prints says."""
    return json.loads(run(command).splitlines()[-1])


def apart(function, *arguments, launcher=()):
    """What a function of a benchmark returns in a process of its own."""
    module = Path(function.__code__.co_filename).stem
    words = [module, function.__name__, json.dumps(arguments)]
    return last_line([sys.executable, *launcher, __file__, *words])


def in_turn(rounds: int, measure, sides: list[tuple], *more) -> dict:
    """What `measure(*side, *more)` gives: `{side: {name: [value of each round]}}`.

    In a round the sides take turns, so that a slow hour slows all of them.
    """
    results = {side: {} for side in sides}
    for turn in range(1, rounds + 1):
        for side in sides:
            result = measure(*side, *more)
            print(f"round {turn} of {rounds}: {side}: {result}", file=sys.stderr)
            for name, value in result.items():
                results[side].setdefault(name, []).append(value)
    return results


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


class Enough(Exception):
    """As much as is measured."""


def timed(batches, steps: list, enough):
    """The batches; `steps` gets the end and the seconds of each step, getting its batch included.

    Raises Enough once `enough(steps)`.
    """
    start = time.perf_counter()
    for batch in batches:
        yield batch
        end = time.perf_counter()
        steps.append((end, end - start))
        start = end
        if enough(steps):
            raise Enough


def steps_of_script(name: str, flags: list, enough) -> list:
    """The `timed` steps of a recipe's script in this process."""
    from support.parallel import keep_freed_memory

    script = mlp_mnist if name == "mlp" else lstm_mnist
    steps, train = [], script.train

    def timed_train(model, loader, *rest):
        return train(model, timed(loader, steps, enough), *rest)

    script.train = timed_train
    keep_freed_memory()  # as a program does
    with contextlib.suppress(Enough):
        script.main([*PROGRAMS[name][1:], *flags, "--log-interval", "0", "--epochs", "1000000"])
    return steps


def compared(commands, seeds: int, log: Path, *flags: str) -> list[dict]:
    """compare.py's rows for these commands, without the table that it prints."""
    import compare  # here: it brings scipy, which no process that is measured should load

    argv = [*commands, "--seeds", str(seeds), "--log", str(log), *flags]
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        rows = compare.main(argv)
    if [row["seeds"] for row in rows] != [seeds] * len(commands):
        raise SystemExit(f"{log}: has runs of other versions; name another --log")
    return rows


def cell(values: list[float]) -> str:
    """Median and, where there are several, the range."""
    middle = f"{statistics.median(values):.2f}"
    return f"{middle} ({min(values):.2f} to {max(values):.2f})" if len(values) > 1 else middle


def spread(values: list[float]) -> str:
    """Mean, and where there are several, standard deviation and range."""
    mean = f"{statistics.mean(values):.2f}"
    if len(values) == 1:
        return mean
    return f"{mean} ± {statistics.stdev(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def table(head: list, rows: list[list]) -> None:
    """Print a Markdown table."""
    for row in (head, ["---"] * len(head), *rows):
        print(f"| {' | '.join(map(str, row))} |")


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


if __name__ == "__main__":  # as `apart` calls it
    module, function, arguments = sys.argv[1:]
    result = getattr(importlib.import_module(module), function)(*json.loads(arguments))
    if common.RANK == 0:
        print(json.dumps(result))
