"""Milliseconds per training step in one process and in several under torchrun, and where more would stop helping.

python benchmarks/processes.py                         # the five recipes, one process and two, three rounds in turn
python benchmarks/processes.py --recipe sgd --batch-size 1024

The second table is computed: a step of p processes takes t(b / p) + 2 (p - 1) (2 a + 4 (P + 10 b) / (p B)) seconds, the
time of a share of the batch of b and of ring all-reduces of its 10 b outputs and P gradients, in float32. t is
measured here, in one process with one part and one thread; a, the seconds of a message, and B, bytes a second, are
measured here for gloo between two processes and assumed for the other networks.
"""

import argparse
import contextlib
import json
import math
import os
import re
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch
import torch.distributed as dist
from machine import COUNT, Enough, machine, run
from speed import PROGRAMS, RECIPES, cell, network, script_of, write_part

STEPS, WARM_UP = 300, 50
NETWORKS = {"10 Gbit/s Ethernet": (30e-6, 1.25e9), "NVLink": (5e-6, 450e9)}  # a and B, assumed


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


def all_reduce(numbers: int) -> dict:
    """Seconds of an all-reduce of float32 numbers between torchrun's processes."""
    dist.init_process_group("gloo")
    data, times = torch.zeros(numbers), []
    for _ in range(STEPS):
        start = time.perf_counter()
        dist.all_reduce(data)
        times.append(time.perf_counter() - start)
    dist.destroy_process_group()
    return {"seconds": statistics.median(times[WARM_UP:])}


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
        result = all_reduce(int(name)) if name.isdigit() else step(name, flags)
        if os.environ.get("RANK", "0") == "0":
            args.out.write_text(json.dumps(result))
        return

    with tempfile.TemporaryDirectory() as folder:
        write_part(Path(folder), (None, None))
        size = {name: args.batch_size or RECIPES[name]["batch_size"] for name in args.recipe}
        shares = {name: [n >> k for k in range(int(math.log2(n)) + 1)] for name, n in size.items()}
        seconds = {}  # by recipe and number of processes, or by recipe and "a share of n"
        reduce = {1: [], 1 << 22: []}
        for turn in range(1, args.rounds + 1):
            for numbers, times in reduce.items():
                times.append(call(2, "--measure", numbers)["seconds"])
            for name in args.recipe:
                base = ["--measure", name, "+data-dir", folder, "+batch-size"]
                runs = [(p, p, [size[name]]) for p in (1, 2)]
                runs += [(f"{n}", 1, [n, *(["+parts", 1] if name != "mlp" else [])]) for n in shares[name]]
                for key, processes, flags in runs:
                    result = call(processes, *base, *flags)
                    seconds.setdefault((name, key), []).append((result["seconds"], result["bytes"]))
                    print(f"round {turn}, {name}, {key}: {1000 * result['seconds']:.2f} ms per step", file=sys.stderr)

    middle = {key: statistics.median(time for time, _ in results) for key, results in seconds.items()}
    print("| recipe | batch | parameters | ms per step, 1 process | 2 | speed-up, 1 → 2 | bytes sent per step |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    parameters = {}
    for name in args.recipe:
        parameters[name] = sum(p.numel() for p in network(name).parameters())
        one, two = (cell([1000 * time for time, _ in seconds[name, p]]) for p in (1, 2))
        amount = statistics.median(data for _, data in seconds[name, 2])
        ratio = middle[name, 1] / middle[name, 2]
        print(f"| {name} | {size[name]} | {parameters[name]:,} | {one} | {two} | **{ratio:.2f}** | {amount:,.0f} |")
    small, large = (statistics.median(times) for times in reduce.values())
    networks = {"gloo, loopback": (small / 2, 4 * (1 << 22) / max(large - small, 1e-9)), **NETWORKS}
    print("\n| recipe | network | best number of processes (computed) | ms per step there | of one process's |")
    print("| --- | --- | --- | --- | --- |")
    for name in args.recipe:
        for link, (message, rate) in networks.items():
            times = {}
            for n in shares[name]:
                p = size[name] // n
                numbers = parameters[name] + 10 * size[name]
                ring = 2 * (p - 1) * (2 * message + 4 * numbers / (p * rate))
                times[p] = middle[name, f"{n}"] + ring
            best = min(times, key=times.get)
            print(f"| {name} | {link} | {best} | {1000 * times[best]:.2f} | {times[best] / times[1]:.2f} |")
    print(f"\n{machine()}; n = {args.rounds}, medians (min to max) of the means of {STEPS} steps")
    for link, (message, rate) in networks.items():
        how = "assumed" if link in NETWORKS else "measured"
        print(f"{link}: {1e6 * message:.0f} microseconds per message, {rate / 1e9:.2f} GB/s ({how})")


if __name__ == "__main__":
    main()
