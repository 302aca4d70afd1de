"""The runs in logs beside each other: a table, and loss and accuracy by epoch.

python benchmarks/runs.py runs.jsonl [more.jsonl …]            # a table of the runs that --log wrote, and runs.png
python benchmarks/runs.py runs.jsonl --plot pictures           # runs.png goes into that folder
"""

import argparse
import json
import statistics
import sys
from pathlib import Path

from machine import ROOT
from matplotlib.figure import Figure

sys.path.insert(0, str(ROOT))

from support.plots import COLOURS, MARKERS, by_epoch, save  # noqa: E402


def read_runs(files: list[Path]) -> list[list[dict]]:
    """The runs in logs, each a list of its epochs' records; what is no record is named on stderr and left out."""
    needed = {"script", "recipe", "seed", "epoch", "train_loss", "train_acc", "valid_loss", "valid_acc", "seconds"}
    runs = {}
    for file in files:
        try:
            lines = file.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise SystemExit(f"{file}: cannot be read ({error}); name a file that --log wrote") from None
        for number, line in enumerate(lines, 1):
            try:
                record = json.loads(line)
                if not needed <= record.keys():
                    raise ValueError
            except (ValueError, AttributeError):
                print(f"{file}, line {number}: not the record of an epoch, left out", file=sys.stderr)
                continue
            runs.setdefault((record.get("run"), record["script"], record["recipe"], record["seed"]), []).append(record)
    return list(runs.values())


def names(runs: list[list[dict]]) -> list[str]:
    """What tells each run from the others, its seed aside: the recipe, the cell, and settings that differ."""
    bases = []
    for first, *_ in runs:
        cell = first.get("cell", "lstm")
        bases.append(first["recipe"] if cell == "lstm" else f"{first['recipe']} {cell}")
    labels = []
    for base, (first, *_) in zip(bases, runs):
        kin = [other[0] for name, other in zip(bases, runs) if name == base]
        differing = [key for key in ("lr", "batch_size", "bf16") if len({other.get(key) for other in kin}) > 1]
        labels.append(", ".join([base, *(f"{key} {first.get(key)}" for key in differing)]))
    return labels


def compare(runs: list[list[dict]]) -> Figure:
    """Validation loss and accuracy by epoch; where seeds repeat, their mean in a band from least to most."""
    groups = {}
    for label, records in zip(names(runs), runs):
        groups.setdefault(label, []).append(records)
    figure = Figure(figsize=(11, 4.4), layout="constrained")
    for axes, key, title in zip(figure.subplots(1, 2), ("valid_loss", "valid_acc"), ("valid loss", "valid accuracy")):
        for k, (label, group) in enumerate(groups.items()):
            values = {}
            for record in (r for records in group for r in records):
                values.setdefault(record["epoch"], []).append(record[key])
            epochs = sorted(values)
            colour, marker = COLOURS[k % len(COLOURS)], MARKERS[k % len(MARKERS)]
            label = label if len(group) == 1 else f"{label} (mean of {len(group)})"
            means = [statistics.mean(values[e]) for e in epochs]
            axes.plot(epochs, means, color=colour, marker=marker, markersize=4, label=label)
            low, high = ([least(values[e]) for e in epochs] for least in (min, max))
            axes.fill_between(epochs, low, high, color=colour, alpha=0.2, linewidth=0)
        by_epoch(axes, title)
    axes.legend(loc="lower right")
    return figure


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", type=Path, nargs="+", metavar="runs.jsonl", help="what --log wrote")
    parser.add_argument("--plot", type=Path, default=Path(), metavar="DIR", help="where runs.png goes (default: here)")
    args = parser.parse_args(argv)
    runs = read_runs(args.files)
    if not runs:
        raise SystemExit(f"{args.files[0]}: has no run in it; make one with --log {args.files[0]}")
    print(f"{'script':<13} {'recipe':<11} {'cell':<9} {'seed':>4} {'epochs':>6} {'best':>7} {'last':>7} {'s/epoch':>8}")
    for records in runs:
        first, accuracies = records[0], [100 * r["valid_acc"] for r in records]
        seconds = statistics.median(r["seconds"] for r in records)
        print(
            f"{first['script']:<13} {first['recipe']:<11} {first.get('cell', '-'):<9} {first['seed']:>4} "
            f"{len(records):>6} {max(accuracies):>6.2f}% {accuracies[-1]:>6.2f}% {seconds:>8.2f}"
        )
    save(compare(runs), args.plot / "runs.png")


if __name__ == "__main__":
    main()
