"""Milliseconds per training step in one process and in two under torchrun.

python benchmarks/processes.py                         # the five recipes, one process and two, three rounds in turn
python benchmarks/processes.py --recipe sgd --batch-size 1024
"""

import argparse
import contextlib
import json
import os
import re
import statistics
import sys
import tempfile
import time
from pathlib import Path

from machine import COUNT, Enough, machine, run
from speed import PROGRAMS, RECIPES, cell, network, script_of, write_part

STEPS, WARM_UP = 300, 50


def sent() -> int:
    """Bytes that this machine has sent to itself; 0 where the system does not say."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/net/dev").read_text().splitlines():
            if line.strip().startswith("lo:"):
                return int(line.split()[9])
    return 0


def step(name: str, flags: list[str]) -> dict:
    """Seconds and bytes of a step of this process, or of torchrun's, while the script trains."""
    times, start = [], []

    def timed(batches):
        for batch in batches:
            start[:] = start or [sent()] * (len(times) == WARM_UP)
            times.append(time.perf_counter())
            if len(times) > WARM_UP + STEPS:
                raise Enough
            yield batch

    script, own = script_of(name)
    train = script.train
    script.train = lambda model, batches, *rest: train(model, timed(batches), *rest)
    with contextlib.suppress(Enough), contextlib.redirect_stdout(sys.stderr):
        script.main([*own, *flags, "--log-interval", "0", "--epochs", "1000000"])
    seconds = (times[-1] - times[WARM_UP]) / STEPS
    return {"seconds": seconds, "bytes": (sent() - start[0]) / STEPS}


def call(processes: int, *arguments) -> dict:
    """This program in one process, or in several under torchrun; what the first one measured."""
    command = [sys.executable, __file__, *map(str, arguments)]
    if processes > 1:
        command[1:1] = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes), "--"]
    with tempfile.TemporaryDirectory() as place:
        out = Path(place, "result.json")
        run([*command, "--out", str(out)])
        return json.loads(out.read_text())


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=COUNT, default=3, metavar="N", help="default: 3")
    parser.add_argument("--recipe", nargs="+", choices=PROGRAMS, default=list(PROGRAMS), help="one or several")
    parser.add_argument("--batch-size", type=COUNT, metavar="N", help="default: the recipe's")
    parser.add_argument("--measure", nargs="+", help=argparse.SUPPRESS)  # the program calls itself
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        name, *flags = args.measure
        flags = [re.sub(r"^[+]", "--", flag) for flag in flags]
        result = step(name, flags)
        if os.environ.get("RANK", "0") == "0":
            args.out.write_text(json.dumps(result))
        return

    with tempfile.TemporaryDirectory() as folder:
        write_part(Path(folder), (None, None))
        size = {name: args.batch_size or RECIPES[name]["batch_size"] for name in args.recipe}
        seconds = {(name, processes): [] for name in args.recipe for processes in (1, 2)}
        for turn in range(1, args.rounds + 1):
            for (name, processes), results in seconds.items():
                flags = ["--measure", name, "+data-dir", folder, "+batch-size", size[name]]
                result = call(processes, *flags)
                results.append((result["seconds"], result["bytes"]))
                print(f"round {turn}, {name}, {processes}: {1000 * result['seconds']:.2f} ms per step", file=sys.stderr)

    middle = {key: statistics.median(time for time, _ in results) for key, results in seconds.items()}
    print("| recipe | batch | parameters | ms per step, 1 process | 2 | speed-up, 1 → 2 | bytes sent per step |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for name in args.recipe:
        parameters = sum(p.numel() for p in network(name).parameters())
        one, two = (cell([1000 * time for time, _ in seconds[name, p]]) for p in (1, 2))
        amount = statistics.median(data for _, data in seconds[name, 2])
        ratio = middle[name, 1] / middle[name, 2]
        print(f"| {name} | {size[name]} | {parameters:,} | {one} | {two} | **{ratio:.2f}** | {amount:,.0f} |")
    print(f"\n{machine()}; n = {args.rounds}, medians (min to max) of the means of {STEPS} steps")


if __name__ == "__main__":
    main()
