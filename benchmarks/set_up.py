"""What two lines of common.session bring and cost: keeping freed memory (mallopt) and flushing denormals.

python benchmarks/set_up.py                            # three rounds of the two larger LSTMs
python benchmarks/set_up.py --preload /usr/lib/x86_64-linux-gnu/libtcmalloc_minimal.so.4     # another allocator beside

Each measurement is the script itself in a fresh process, with the line in question made to do nothing: six epochs of
6000 images, of which the first does not count. Page faults and memory are the process's own. POSIX only.
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

VARIANTS = {  # what is left out of the set-up
    "as it is": (),
    "without mallopt": ("mallopt",),
    "without flushing": ("flushing",),
    "without both": ("mallopt", "flushing"),
}
EPOCHS = 6


def run(name: str, left_out: list[str], folder: str) -> dict:
    """Seconds of the middle epoch, page faults per epoch and peak MiB of this process without parts of the set-up."""
    if "mallopt" in left_out:
        common.keep_freed_memory = lambda: None
    if "flushing" in left_out:
        common.torch.set_flush_denormal = lambda mode: None
    faults, end_epoch = [], common.Run.end_epoch

    def counting(*args):
        faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
        return end_epoch(*args)

    common.Run.end_epoch = counting
    log = Path(folder, "run.jsonl")
    flags = ["--epochs", str(EPOCHS), "--log-interval", "0", "--device", "cpu", "--data-dir", folder, "--log", str(log)]
    lstm_mnist.main(["--recipe", name, *flags])
    seconds = [json.loads(line)["seconds"] for line in log.read_text(encoding="utf-8").splitlines()]
    log.unlink()
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 << 20 if sys.platform == "darwin" else 1 << 10)
    each = (faults[-1] - faults[0]) / (EPOCHS - 1)
    return {"seconds": statistics.median(seconds[1:]), "faults": each, "memory": memory}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=COUNT, default=3, metavar="N", help="default: 3")
    parser.add_argument("--recipe", nargs="+", choices=lstm_mnist.RECIPES, default=["time-major", "batch-first"])
    parser.add_argument("--preload", metavar="LIBRARY", help="also this allocator, in mallopt's place")
    parser.add_argument("--left-out", nargs="*", help=argparse.SUPPRESS)  # the program calls itself
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.folder:
        print(json.dumps(run(args.recipe[0], args.left_out, args.folder)))
        return

    variants = VARIANTS | ({Path(args.preload).name: ("mallopt",)} if args.preload else {})
    results = {(recipe, variant): [] for recipe in args.recipe for variant in variants}
    with tempfile.TemporaryDirectory() as folder:
        write_part(Path(folder))
        for _ in range(args.rounds):
            for recipe, variant in results:
                env = {**os.environ, "LD_PRELOAD": args.preload} if variant not in VARIANTS else None
                own = ["--recipe", recipe, "--folder", folder, "--left-out", *variants[variant]]
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
