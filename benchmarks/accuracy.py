"""Each recipe's accuracy at its tutorial's full length, ten seeds; about an hour on two cores.

python benchmarks/accuracy.py                          # seeds 1 to 10 of each of the five
python benchmarks/accuracy.py --seeds 3 --recipe sgd
python benchmarks/accuracy.py --log runs.jsonl         # keep the runs; run only what is missing

A run is the script itself in a process of its own, such as `lstm_mnist.py --recipe sgd --seed 3`.
"""

import tempfile
from pathlib import Path

import measuring

PRINTED = {  # by the tutorials, in percent
    "mlp": "97.90",
    "batch-first": "98.17",
    "sgd": "above 99.7",
    "last-hidden": "96.4 (first 1000 test images)",
    "time-major": "98.07",
}


def main():
    parser = measuring.parser(__doc__, "--seeds", 10)
    parser.add_argument("--log", type=Path, metavar="FILE", help="keep the runs' records here")
    parser.add_argument("--bf16", action="store_true", help="pass on to the scripts")
    args = parser.parse_args()
    flags = ["--log-interval", "0"]
    if args.bf16:
        flags.append("--bf16")
    commands = [" ".join([*measuring.PROGRAMS[name], *flags]) for name in args.recipe]
    with tempfile.TemporaryDirectory() as folder:
        log = args.log or Path(folder, "runs.jsonl")
        accuracies = measuring.compared(commands, args.seeds, log)
        losses = measuring.compared(commands, args.seeds, log, "--metric", "train_loss")
    rows = []
    for name, accuracy, loss in zip(args.recipe, accuracies, losses):
        spread = "-" if accuracy["sd"] is None else f"{accuracy['sd']:.2f}"
        row = [name, accuracy["epochs"], PRINTED[name], f"{accuracy['mean']:.2f}", spread]
        row += [f"{accuracy['min']:.2f}", f"{accuracy['max']:.2f}", f"{loss['mean']:.4f}"]
        rows.append(row)
    head = ["recipe", "epochs", "tutorial prints", "mean", "standard deviation", "min", "max"]
    measuring.table([*head, "train loss"], rows)
    what = "test accuracy in percent, after the last epoch"
    print(f"\n{measuring.machine()}; n = {args.seeds} seeds; {what}")


if __name__ == "__main__":
    main()
