"""What two lines of support/parallel.py bring and cost: glibc keeps what is freed (mallopt).

python benchmarks/set_up.py                            # three rounds of the two larger LSTMs
python benchmarks/set_up.py --preload /usr/lib/x86_64-linux-gnu/libtcmalloc_minimal.so.4     # another allocator beside

Each measurement is the script itself in a fresh process, with those lines or without them: six epochs of 6000 images,
of which the first does not count. Page faults and memory are the process's own. POSIX only.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from machine import COUNT, ROOT, machine
from speed import cell, common, lstm_mnist, write_part

from support import parallel

EPOCHS = 6


def run(name: str, folder: str, as_it_is: bool) -> dict:
    """Seconds of the middle epoch, page faults per epoch and peak MiB of this process, with mallopt or without."""
    if not as_it_is:
        parallel.ctypes = None  # as with another C library
    faults, end_epoch = [], common.end_epoch

    def counting(*args):
        faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
        end_epoch(*args)

    common.end_epoch = counting
    flags = ["--epochs", str(EPOCHS), "--log-interval", "0", "--device", "cpu", "--data-dir", folder]
    _, history = lstm_mnist.main(["--recipe", name, *flags])
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 << 20 if sys.platform == "darwin" else 1 << 10)
    each = (faults[-1] - faults[0]) / (EPOCHS - 1)
    return {"seconds": statistics.median(r["seconds"] for r in history[1:]), "faults": each, "memory": memory}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=COUNT, default=3, metavar="N", help="default: 3")
    parser.add_argument("--recipe", nargs="+", choices=lstm_mnist.RECIPES, default=["time-major", "batch-first"])
    parser.add_argument("--preload", metavar="LIBRARY", help="also this allocator, in mallopt's place")
    parser.add_argument("--folder", help=argparse.SUPPRESS)  # the program calls itself
    parser.add_argument("--as-it-is", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.folder:
        print(json.dumps(run(args.recipe[0], args.folder, args.as_it_is)))
        return

    variants = ["as it is", "without mallopt", *([Path(args.preload).name] if args.preload else [])]
    results = {(recipe, variant): [] for recipe in args.recipe for variant in variants}
    with tempfile.TemporaryDirectory() as folder:
        write_part(Path(folder))
        for _ in range(args.rounds):
            for recipe, variant in results:
                env = {**os.environ, "LD_PRELOAD": args.preload} if variant in variants[2:] else None
                own = ["--recipe", recipe, "--folder", folder, *["--as-it-is"] * (variant == "as it is")]
                command = [sys.executable, __file__, *own]
                # stderr passes through: there the system's loader says when it cannot preload the library
                done = subprocess.run(command, cwd=ROOT, env=env, stdout=subprocess.PIPE, text=True, check=True)
                results[recipe, variant].append(json.loads(done.stdout.splitlines()[-1]))

    heads = ["recipe", "set-up", "time / as it is", "seconds", "page faults per epoch", "memory at most, MiB"]
    print(f"| {' | '.join(heads)} |\n|{' --- |' * len(heads)}")
    for (recipe, variant), found in results.items():
        middle = {key: statistics.median(result[key] for result in found) for key in found[0]}
        base = statistics.median(result["seconds"] for result in results[recipe, "as it is"])
        row = [recipe, variant, f"**{middle['seconds'] / base:.2f}**", cell([result["seconds"] for result in found])]
        print(f"| {' | '.join(row)} | {middle['faults']:.0f} | {middle['memory']:.0f} |")
    print(f"\n{machine()}; n = {args.rounds} processes, medians, (min to max)")


if __name__ == "__main__":
    main()
