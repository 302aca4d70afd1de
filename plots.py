"""Pictures only: digits, curves, confusion, mistakes, and the comparison of runs.

python plots.py runs.jsonl [more.jsonl …]            # a table of the runs that --log wrote, and runs.png
python plots.py runs.jsonl --plot pictures           # runs.png goes into that folder
"""

import argparse
import io
import json
import statistics
import sys
from pathlib import Path

import torch
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

import checkpoint

# Okabe and Ito's colours, which colour-blind people tell apart; each comes with a marker of its own
COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#F0E442"]
MARKERS = "osD^vPX*"


def save(figure: Figure, file: Path) -> None:
    """Write a figure as PNG, whole or not at all; SystemExit with one line where that fails."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=100)
    checkpoint.write(file, buffer.getvalue())


def digits(images: torch.Tensor, titles: list[str], columns: int = 10) -> Figure:
    """Images `(n, 28, 28)` in rows, each under its title."""
    rows = -(-len(images) // columns)
    figure = Figure(figsize=(1.3 * columns, 1.75 * rows), layout="constrained")
    for axes, image, title in zip(figure.subplots(rows, columns, squeeze=False).flat, images.cpu(), titles):
        axes.imshow(image.numpy(), cmap="gray")
        axes.set_title(title, fontsize=11)
    for axes in figure.axes:
        axes.axis("off")
    return figure


def curves(history: list[dict]) -> Figure:
    """Loss and accuracy by epoch, training and validation, from the run's records."""
    figure = Figure(figsize=(9, 3.8), layout="constrained")
    for axes, key, name in zip(figure.subplots(1, 2), ("loss", "acc"), ("loss", "accuracy")):
        for part, colour, marker in zip(("train", "valid"), COLOURS, MARKERS):
            values = [r[f"{part}_{key}"] for r in history]
            axes.plot([r["epoch"] for r in history], values, color=colour, marker=marker, markersize=4, label=part)
        decorate(axes, name)
        axes.legend()
    return figure


def decorate(axes, name: str) -> None:
    axes.set(xlabel="epoch", ylabel=name)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)


def confusion(label: torch.Tensor, answer: torch.Tensor) -> Figure:
    """How often each digit `(N,)` got each answer `(N,)`: 10 × 10 counts, shaded by their share of the row."""
    counts = torch.bincount(10 * label + answer, minlength=100).view(10, 10)
    share = counts / counts.sum(1, keepdim=True).clamp(min=1)
    figure = Figure(figsize=(7, 6.4), layout="constrained")
    axes = figure.subplots()
    shade = axes.imshow(share.sqrt().numpy(), cmap="Blues", vmin=0, vmax=1)  # the root lets rare mistakes show
    for row in range(10):
        for column in range(10):
            if counts[row, column]:
                colour = "white" if share[row, column] > 0.3 else "black"
                text = str(counts[row, column].item())
                axes.text(column, row, text, ha="center", va="center", color=colour, fontsize=9)
    axes.set(xlabel="answer", ylabel="label", xticks=range(10), yticks=range(10))
    bar = figure.colorbar(shade, ax=axes, label="share of the label's images", shrink=0.8)
    ticks = [0, 0.01, 0.1, 0.25, 0.5, 1]
    bar.set_ticks([t**0.5 for t in ticks], labels=[f"{t:.0%}" for t in ticks])
    return figure


def run(folder: Path, train_loader, test_loader, history: list[dict], valid) -> None:
    """Write a trained run's pictures: samples, curves, confusion, mistakes.

    `valid` is `[(outputs (B, 10), labels (B,)), …]` over the test loader. Without an epoch there are no curves.
    """
    output, label = (torch.cat(part).cpu() for part in zip(*valid))
    probability = output.float().softmax(1)
    sure, answer = probability.max(1)
    labels = [str(k) for k in train_loader.labels[:20].tolist()]
    save(digits(train_loader.images[:20, 0], labels), folder / "samples.png")  # 003's picture
    if history:
        save(curves(history), folder / "curves.png")
    save(confusion(label, answer), folder / "confusion.png")
    wrong = (answer != label).nonzero()[:, 0]
    wrong = wrong[sure[wrong].argsort(descending=True)][:20]
    titles = [f"{label[k]} read as {answer[k]}\n{sure[k]:.3f}" for k in wrong]
    if titles:
        save(digits(test_loader.images[wrong, 0], titles), folder / "mistakes.png")


def predictions(folder: Path, answers) -> None:
    """Write predictions.png: each picture `(path, image (28, 28), probabilities (10,))` as the model saw it."""
    if not answers:
        return
    figure = Figure(figsize=(7.5, 1.9 * len(answers)), layout="constrained")
    grid = figure.subplots(len(answers), 2, squeeze=False, width_ratios=[1, 3])
    for (picture, bars), (path, image, probability) in zip(grid, answers):
        picture.imshow(image.numpy(), cmap="gray")
        picture.axis("off")
        picture.set_title(path.name if len(path.name) < 26 else f"…{path.name[-24:]}", fontsize=9)
        bars.bar(range(10), probability.numpy(), color=COLOURS[0])
        bars.set(xticks=range(10), ylim=(0, 1), ylabel="probability")
    grid[-1, 1].set_xlabel("digit")
    save(figure, folder / "predictions.png")


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
                print(f"{file}, line {number}: no record of an epoch, left out", file=sys.stderr)
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
        decorate(axes, title)
    axes.legend(loc="lower right")
    return figure


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", type=Path, nargs="+", metavar="runs.jsonl", help="what --log wrote")
    parser.add_argument("--plot", type=Path, default=Path(), metavar="DIR", help="where runs.png goes (default: here)")
    args = parser.parse_args(argv)
    runs = read_runs(args.files)
    if not runs:
        raise SystemExit(f"{args.files[0]}: holds no run; make one with --log {args.files[0]}")
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
