"""A data set of millions: what an image costs, and what memory the process needs, beside MNIST's 60,000.

python benchmarks/scale.py                             # 2 million images, mlp and last-hidden, in turn with 60,000
python benchmarks/scale.py --images 8100000            # MNIST8M's size: 6.4 GB on the disk and in memory

The set is made of MNIST's training images over and over, as an unpacked IDX file in the system's temporary folder.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from machine import COUNT, ROOT, machine
from speed import PROGRAMS, cell, write_part

GIB = 1 << 30


def run(name: str, folder: Path) -> tuple[float, float]:
    """Seconds of an epoch of the script in a fresh process, and the GiB that it needs at most."""
    with tempfile.TemporaryDirectory() as place:
        log = Path(place, "run.jsonl")
        flags = ["--epochs", "1", "--log-interval", "0", "--data-dir", str(folder), "--log", str(log)]
        process = subprocess.Popen([sys.executable, *PROGRAMS[name], *flags], cwd=ROOT, stdout=subprocess.DEVNULL)
        _, status, usage = os.wait4(process.pid, 0)
        if status:
            raise SystemExit(f"stopped: {name} failed")
        seconds = json.loads(log.read_text(encoding="utf-8"))["seconds"]
    return seconds, usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024) / GIB


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=COUNT, default=2_000_000, metavar="N", help="default: 2000000")
    parser.add_argument("--rounds", type=COUNT, default=3, metavar="N", help="default: 3")
    parser.add_argument("--recipe", nargs="+", choices=PROGRAMS, default=["mlp", "last-hidden"], help="one or several")
    args = parser.parse_args()
    counts = dict.fromkeys((60000, args.images))
    cost, memory = ({(name, n): [] for name in args.recipe for n in counts} for _ in range(2))
    with tempfile.TemporaryDirectory() as place:
        for n in counts:
            write_part(Path(place, str(n)), (n, None))
        for _ in range(args.rounds):
            for name, n in cost:
                seconds, most = run(name, Path(place, str(n)))
                cost[name, n].append(1e6 * seconds / (n + 10000 / 3))  # a test image costs a third of a training image
                memory[name, n].append(most)
    print("| recipe | images | microseconds per image | relative to 60,000 images | peak memory, GiB | data set, GiB |")
    print("| --- | --- | --- | --- | --- | --- |")
    for name, n in cost:
        ratio = statistics.median(cost[name, n]) / statistics.median(cost[name, 60000])
        size, most = 785 * (n + 10000) / GIB, max(memory[name, n])
        print(f"| {name} | {n:,} | {cell(cost[name, n])} | **{ratio:.2f}** | {most:.2f} | {size:.2f} |")
    print(f"\n{machine()}; n = {args.rounds}")


if __name__ == "__main__":
    main()
