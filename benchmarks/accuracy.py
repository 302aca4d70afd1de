"""Every recipe at its tutorial's full length over n seeds, as a Markdown table.

python benchmarks/accuracy.py                          # seeds 1 to 10 of each of the five
python benchmarks/accuracy.py --seeds 3 --recipe sgd
python benchmarks/accuracy.py --runs runs.jsonl        # keep the runs; the same command again goes on where it was

A run is the script itself in a process of its own, such as `lstm_mnist.py --recipe sgd --seed 3`. With `--jobs 2` two
runs go side by side, with one thread each: the same programs, but their times are no measure of speed.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from machine import ROOT, machine

PRINTED = {  # recipe: epochs, what the tutorial prints, in percent
    "mlp": (30, "97.90"),
    "sgd": (30, "above 99.7"),
    "last-hidden": (3, "96.4 (first 1000 test images)"),
    "time-major": (10, "98.07"),
    "batch-first": (5, "98.17"),
}


def read(path: Path) -> dict:
    """The finished runs in a log: `{(recipe, seed): its records}`."""
    runs = {}
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        record = json.loads(line)
        if record["epoch"] == 0:
            runs[record["recipe"], record["seed"]] = []
        runs[record["recipe"], record["seed"]].append(record)
    return {key: records for key, records in runs.items() if len(records) == PRINTED[key[0]][0]}


def run(recipe: str, seed: int, log: Path, flags: list[str], jobs: int) -> None:
    """Train one recipe with one seed; its epochs go to `log` when it is complete."""
    script = ["mlp_mnist.py"] if recipe == "mlp" else ["lstm_mnist.py", "--recipe", recipe]
    with tempfile.TemporaryDirectory() as folder:
        part = Path(folder, "run.jsonl")
        command = [sys.executable, *script, "--seed", str(seed), "--log-interval", "0", "--log", str(part), *flags]
        env = {**os.environ, "OMP_NUM_THREADS": "1"} if jobs > 1 else None
        subprocess.run(command, cwd=ROOT, env=env, stdout=subprocess.DEVNULL, check=True)
        with open(log, "a", encoding="utf-8") as file:
            file.write(part.read_text(encoding="utf-8"))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=10, metavar="N", help="seeds 1 to N (default: 10)")
    parser.add_argument("--recipe", nargs="+", choices=PRINTED, default=list(PRINTED))
    parser.add_argument("--runs", type=Path, metavar="FILE", help="keep the runs' records here")
    parser.add_argument("--jobs", type=int, default=1, metavar="J", help="runs side by side (default: 1)")
    parser.add_argument("--bf16", action="store_true", help="pass on to the scripts")
    args = parser.parse_args()
    flags = ["--bf16"] if args.bf16 else []
    with tempfile.TemporaryDirectory() as folder:
        log = args.runs or Path(folder, "runs.jsonl")
        seeds = range(1, args.seeds + 1)
        missing = [(r, s) for s in seeds for r in args.recipe if (r, s) not in read(log)]
        with ThreadPoolExecutor(args.jobs) as pool:
            for recipe, seed in pool.map(lambda job: (*job, run(*job, log, flags, args.jobs))[:2], missing):
                print(f"{recipe} seed {seed}: {100 * read(log)[recipe, seed][-1]['valid_acc']:.2f}", file=sys.stderr)
        runs = read(log)
    print(f"{machine()}; n = {args.seeds} seeds; test accuracy in percent, after the last epoch\n")
    print(
        "| recipe | epochs | tutorial prints | mean | standard deviation | min | max | train loss | total time, min |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    for recipe in args.recipe:
        final = [100 * runs[recipe, seed][-1]["valid_acc"] for seed in seeds]
        minutes = sum(r["seconds"] for seed in seeds for r in runs[recipe, seed]) / 60
        loss = statistics.mean(runs[recipe, seed][-1]["train_loss"] for seed in seeds)
        spread = f"{statistics.stdev(final):.2f}" if len(final) > 1 else "-"
        epochs, printed = PRINTED[recipe]
        print(
            f"| {recipe} | {epochs} | {printed} | {statistics.mean(final):.2f} | {spread} "
            f"| {min(final):.2f} | {max(final):.2f} | {loss:.4f} | {minutes:.1f} |"
        )


if __name__ == "__main__":
    main()
