"""What `--plot` draws: samples, curves, confusion, mistakes, predictions, a comparison."""

import io
import itertools
import statistics
import warnings

import torch
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

# Okabe and Ito's colours, which colour-blind people tell apart; each comes with a marker of its own
COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999"]
MARKERS = "osD^vPX*"


def png(figure: Figure) -> bytes:
    """A figure as a PNG file's content."""
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # letters that the font lacks
        figure.savefig(buffer, format="png", dpi=100)
    return buffer.getvalue()


def digits(images: torch.Tensor, titles: list[str]) -> Figure:
    """Images `(n, 28, 28)` in rows of ten, each under its title."""
    rows = -(-len(images) // 10)
    figure = Figure(figsize=(13, 1.75 * rows), layout="constrained")
    for axes, image, title in zip(figure.subplots(rows, 10, squeeze=False).flat, images.cpu(), titles):
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
        by_epoch(axes, name)
        axes.legend()
    return figure


def by_epoch(axes, name: str) -> None:
    """Label axes that show something by epoch."""
    axes.set(xlabel="epoch", ylabel=name)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)


def confusion(labels: torch.Tensor, answers: torch.Tensor, names=range(10)) -> Figure:
    """How often each class `(N,)` got each answer `(N,)`: 10 × 10 counts, shaded by their share of the row."""
    counts = torch.bincount(10 * labels + answers, minlength=100).view(10, 10)
    share = counts / counts.sum(1, keepdim=True).clamp(min=1)
    figure = Figure(figsize=(7, 6.4), layout="constrained")
    axes = figure.subplots()
    shade = axes.imshow(share.sqrt().numpy(), cmap="Blues", vmin=0, vmax=1)  # the root lets rare mistakes show
    for row, column in counts.nonzero().tolist():
        colour = "white" if share[row, column] > 0.3 else "black"
        axes.text(column, row, str(counts[row, column].item()), ha="center", va="center", color=colour, fontsize=9)
    axes.set(xlabel="answer", ylabel="label")
    axes.set_xticks(range(10), names, rotation=0 if max(len(str(name)) for name in names) < 4 else 45)
    axes.set_yticks(range(10), names)
    bar = figure.colorbar(shade, ax=axes, label="share of the label's images", shrink=0.8)
    ticks = [0, 0.01, 0.1, 0.25, 0.5, 1]
    bar.set_ticks([t**0.5 for t in ticks], labels=[f"{t:.0%}" for t in ticks])
    return figure


def run(names: list[str], history: list, train_loader, test_loader, outputs, labels) -> dict[str, Figure]:
    """A run's pictures by file name: samples, curves, confusion, the most confident mistakes, where there are any.

    `outputs` `(N, 10)` and `labels` `(N,)` are those of the test set.
    """
    sure, answers = outputs.softmax(1).max(1)
    wrong = (answers != labels).nonzero()[:, 0]
    wrong = wrong[sure[wrong].argsort(descending=True)][:20]
    titles = [f"{names[labels[k]]} read as {names[answers[k]]}\n{sure[k]:.3f}" for k in wrong]
    pictures = {
        "samples.png": digits(train_loader.images[:20], [names[k] for k in train_loader.labels[:20].tolist()]),
        "curves.png": curves(history) if history else None,
        "confusion.png": confusion(labels, answers, names),
        "mistakes.png": digits(test_loader.images[wrong.to(test_loader.images.device)], titles) if titles else None,
    }
    return {name: figure for name, figure in pictures.items() if figure}


def predictions(answers: list[tuple], names: list[str]) -> Figure:
    """Pictures `(name, image (28, 28), probabilities (10,))` as the model saw them, at most 50."""
    figure = Figure(figsize=(7.5, 1.9 * len(answers[:50])), layout="constrained")
    grid = figure.subplots(len(answers[:50]), 2, squeeze=False, width_ratios=[1, 3])
    for (picture, bars), (name, image, probability) in zip(grid, answers):
        picture.imshow(image.numpy(), cmap="gray")
        picture.axis("off")
        picture.set_title(name if len(name) < 26 else f"…{name[-24:]}", fontsize=9, parse_math=False)
        bars.bar(range(10), probability.numpy(), color=COLOURS[0])
        bars.set(ylim=(0, 1), ylabel="probability")
        bars.set_xticks(range(10), names)
    return figure


def comparison(groups: dict[str, list], metric: str, label: str, factor: float) -> Figure:
    """A metric by epoch and by seconds of training: each group's mean over its runs, in a band from least to most.

    `groups` is `{name: [run, …]}`, a run a list of records; `label` says what the metric is, times `factor`.
    """
    figure = Figure(figsize=(12.5, 4.8), layout="constrained")
    by_epoch_axes, by_time = figure.subplots(1, 2, sharey=True)
    for k, (name, runs) in enumerate(groups.items()):
        look = dict(color=COLOURS[k % len(COLOURS)], marker=MARKERS[k % len(MARKERS)], markersize=4)
        columns = [[run[epoch] for run in runs if len(run) > epoch] for epoch in range(max(map(len, runs)))]
        values = [[factor * r[metric] for r in column] for column in columns]
        means = [statistics.mean(column) for column in values]
        seconds = list(itertools.accumulate(statistics.mean(r["seconds"] for r in column) for column in columns))
        text = (name if len(name) < 60 else f"{name[:58]}…").replace("$", r"\$")
        for axes, x in ((by_epoch_axes, range(len(columns))), (by_time, seconds)):
            axes.plot(x, means, label=text, **look)
            axes.fill_between(x, [*map(min, values)], [*map(max, values)], color=look["color"], alpha=0.15, linewidth=0)
    by_epoch(by_epoch_axes, label)
    by_time.set(xlabel="seconds of training and evaluation")
    by_time.grid(alpha=0.3)
    by_time.legend()
    return figure
