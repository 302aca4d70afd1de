"""Milliseconds per training step, alone and beside other work: the tutorial's own way, ours, and two of ours at once.

python benchmarks/busy.py                              # the five recipes, three rounds of 4 seconds each
python benchmarks/busy.py --recipe sgd --rounds 5

"Beside" means beside processes that each keep one core busy. In each round the sides take turns, each in a fresh
process, whose first second does not count. A step is a training step of the loop, getting its batch included.
"""

import argparse
import contextlib
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from machine import COUNT, ROOT, Enough, machine
from speed import TUTORIALS, as_written, common, script_of, write_part

BUSY = [sys.executable, "-c", "while True: pass"]
MOMENTS = [("alone", 0, 1), ("beside 1", 1, 1), ("beside 2", 2, 1), ("two at once", 0, 2)]  # name, busy, runs measured
WARM_UP = 1.0


def timed(batches, times: list, end: float):
    """The batches; `times` gets the seconds between asking for one and asking for the next."""
    last = time.perf_counter()
    for batch in batches:
        yield batch
        now = time.perf_counter()
        times.append((now, now - last))
        last = now
        if now > end:
            raise Enough


def measure(side: str, name: str, folder: Path, seconds: float) -> dict:
    """Mean, median and longest step of this process, in milliseconds."""
    times, start = [], time.perf_counter()
    with contextlib.suppress(Enough):
        if side == "tutorial":
            train, _, loader = as_written(name, folder)
            start = time.perf_counter()
            while True:
                train(timed(loader, times, start + WARM_UP + seconds))
        script, flags = script_of(name)
        train = script.train
        script.train = lambda model, batches, *rest: train(
            model, timed(batches, times, start + WARM_UP + seconds), *rest
        )
        start = time.perf_counter()
        with contextlib.redirect_stdout(sys.stderr):
            script.main([*flags, "--data-dir", str(folder), "--log-interval", "0", "--epochs", "1000000"])
    steps = [1000 * step for now, step in times if now > start + WARM_UP]
    return {"mean": statistics.mean(steps), "median": statistics.median(steps), "longest": max(steps)}


def at_once(side: str, name: str, folder: str, seconds: float, busy: int, runs: int) -> list[dict]:
    """`measure` in `runs` fresh processes at once, beside `busy` others."""
    own = ["--side", side, "--recipe", name, "--folder", folder, "--seconds", str(seconds)]
    others = [subprocess.Popen(BUSY) for _ in range(busy)]
    try:
        pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        processes = [subprocess.Popen([sys.executable, __file__, *own], cwd=ROOT, **pipes) for _ in range(runs)]
        ends = [(process, *process.communicate()) for process in processes]
    finally:
        for other in others:
            other.kill()
    for process, _, err in ends:
        if process.returncode:
            raise SystemExit(f"{err[-2000:]}\nstopped: {side} of {name} failed")
    return [json.loads(out.splitlines()[-1]) for _, out, _ in ends]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=COUNT, default=3, metavar="N", help="default: 3")
    parser.add_argument("--seconds", type=common.at_least(0.1, float), default=4.0, metavar="S", help="default: 4")
    parser.add_argument("--recipe", nargs="+", choices=TUTORIALS, default=list(TUTORIALS), help="one or several")
    parser.add_argument("--side", choices=("tutorial", "ours"), help=argparse.SUPPRESS)  # the program calls itself
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.side:
        print(json.dumps(measure(args.side, args.recipe[0], Path(args.folder), args.seconds)))
        return

    columns = [
        (side, *moment) for side in ("tutorial", "ours") for moment in MOMENTS if side == "ours" or moment[2] == 1
    ]
    steps = {(name, side, moment): [] for name in args.recipe for side, moment, *_ in columns}
    with tempfile.TemporaryDirectory() as folder:
        write_part(Path(folder), (None, None))
        for turn in range(1, args.rounds + 1):
            for name in args.recipe:
                for side, moment, busy, runs in columns:
                    results = at_once(side, name, folder, args.seconds, busy, runs)
                    steps[name, side, moment] += results
                    means = ", ".join(f"{result['mean']:.1f}" for result in results)
                    print(f"round {turn}, {name}, {side}, {moment}: {means} ms per step", file=sys.stderr)

    heads = [f"{side}, {moment}" for side, moment, *_ in columns]
    heads += ["ours, beside 1 / alone", "beside 1, tutorial / ours", "ours, two at once / alone"]
    for row in (["recipe", *heads], ["---"] * (len(heads) + 1)):
        print(f"| {' | '.join(row)} |")
    for name in args.recipe:
        middle = {
            key[1:]: statistics.median(r["mean"] for r in results) for key, results in steps.items() if key[0] == name
        }
        row = [name]
        for side, moment, *_ in columns:
            results = steps[name, side, moment]
            means, median = [r["mean"] for r in results], statistics.median(r["median"] for r in results)
            span = f"({min(means):.1f} to {max(means):.1f})"
            row.append(f"{middle[side, moment]:.1f} {span} / {median:.1f} / {max(r['longest'] for r in results):.0f}")
        alone, beside, two = (middle["ours", moment] for moment in ("alone", "beside 1", "two at once"))
        ratios = beside / alone, middle["tutorial", "beside 1"] / beside, two / alone
        print(f"| {' | '.join([*row, *(f'**{ratio:.2f}**' for ratio in ratios)])} |")
    print(f"\n{machine()}")
    print(f"n = {args.rounds} times {args.seconds:g} s; milliseconds per step, mean (min to max) / median / longest")


if __name__ == "__main__":
    main()
