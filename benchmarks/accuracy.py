"""Every recipe at its tutorial's full length over n seeds, as a Markdown table, beside what the tutorial prints.

python benchmarks/accuracy.py                          # seeds 1 to 10 of each of the five
python benchmarks/accuracy.py --seeds 3 --recipe sgd
python benchmarks/accuracy.py --log runs.jsonl         # keep the runs; the same command again runs only what is missing

A run is the script itself in a process of its own, such as `lstm_mnist.py --recipe sgd --seed 3`: a call of compare.py.
"""

import argparse
import tempfile
from pathlib import Path

from machine import COUNT, compared, machine
from speed import PROGRAMS

PRINTED = {  # by the tutorials, in percent
    "mlp": "97.90",
    "batch-first": "98.17",
    "sgd": "above 99.7",
    "last-hidden": "96.4 (first 1000 test images)",
    "time-major": "98.07",
}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=COUNT, default=10, metavar="N", help="seeds 1 to N (default: 10)")
    parser.add_argument("--recipe", nargs="+", choices=PRINTED, default=list(PRINTED))
    parser.add_argument("--log", type=Path, metavar="FILE", help="keep the runs' records here")
    parser.add_argument("--jobs", type=COUNT, default=1, metavar="J", help="runs side by side (default: 1)")
    parser.add_argument("--bf16", action="store_true", help="pass on to the scripts")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        log = args.log or Path(folder, "runs.jsonl")
        rows = []
        for recipe in args.recipe:
            command = " ".join([*PROGRAMS[recipe], "--log-interval 0", *(["--bf16"] if args.bf16 else [])])
            both = (["--jobs", str(args.jobs), "--metric", metric] for metric in ("valid_acc", "train_loss"))
            rows.append([compared([command], args.seeds, log, *flags) for flags in both])
            if [row["seeds"] for row in rows[-1][0]] != [args.seeds]:
                raise SystemExit(f"{log}: some of the runs are missing or of other versions; name another --log")
    print("| recipe | epochs | tutorial prints | mean | standard deviation | min | max | train loss |")
    print("|---|---|---|---|---|---|---|---|")
    for recipe, ((accuracy,), (loss,)) in zip(args.recipe, rows):
        spread = "-" if accuracy["sd"] is None else f"{accuracy['sd']:.2f}"
        figures = [f"{accuracy['mean']:.2f}", spread, f"{accuracy['min']:.2f}", f"{accuracy['max']:.2f}"]
        print(f"| {recipe} | {accuracy['epochs']} | {PRINTED[recipe]} | {' | '.join(figures)} | {loss['mean']:.4f} |")
    print(f"\n{machine()}; n = {args.seeds} seeds; test accuracy in percent, after the last epoch")


if __name__ == "__main__":
    main()
