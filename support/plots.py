"""What `--plot` draws: samples, curves, confusion, mistakes, predictions, a comparison."""

import io
import math
import statistics
import warnings

import torch
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

# Okabe and Ito's colours, distinguishable to the colour-blind; each has its own marker
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
    rows = math.ceil(len(images) / 10)
    figure = Figure(figsize=(13, 1.75 * rows), layout="constrained")
    grid = figure.subplots(rows, 10, squeeze=False).flat
    for axes, image, title in zip(grid, images.cpu(), titles):
        axes.imshow(image.numpy(), cmap="gray")
        axes.set_title(title, fontsize=11)
    for axes in figure.axes:
        axes.axis("off")
    return figure


def curves(history: list[dict]) -> Figure:
    """Loss and accuracy by epoch, training and validation, from the run's records."""
    figure = Figure(figsize=(9, 3.8), layout="constrained")
    loss_axes, acc_axes = figure.subplots(1, 2)
    epochs = [record["epoch"] for record in history]
    for axes, score in ((loss_axes, "loss"), (acc_axes, "acc")):
        for k, part in enumerate(("train", "valid")):
            values = [record[f"{part}_{score}"] for record in history]
            axes.plot(epochs, values, label=part, **style(k))
        axes.legend()
    by_epoch(loss_axes, "loss")
    by_epoch(acc_axes, "accuracy")
    return figure


def style(k: int) -> dict:
    """Colour and marker of line k."""
    return {
        "color": COLOURS[k % len(COLOURS)],
        "marker": MARKERS[k % len(MARKERS)],
        "markersize": 4,
    }


def by_epoch(axes, name: str) -> None:
    """Label axes whose x axis is the epoch."""
    axes.set(xlabel="epoch", ylabel=name)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)


def confusion(labels: torch.Tensor, answers: torch.Tensor, names: list[str]) -> Figure:
    """How often each label `(N,)` got each answer `(N,)`, shaded by its share of the row."""
    counts = torch.bincount(10 * labels + answers, minlength=100).view(10, 10)
    share = counts / counts.sum(1, keepdim=True).clamp(min=1)
    figure = Figure(figsize=(7, 6.4), layout="constrained")
    axes = figure.subplots()
    # The square root lets rare mistakes show
    shade = axes.imshow(share.sqrt().numpy(), cmap="Blues", vmin=0, vmax=1)
    for row, column in counts.nonzero().tolist():
        text = str(int(counts[row, column]))
        colour = "white" if share[row, column] > 0.3 else "black"
        axes.text(column, row, text, ha="center", va="center", color=colour, fontsize=9)
    axes.set(xlabel="answer", ylabel="label")
    longest = max(len(str(name)) for name in names)
    axes.set_xticks(range(10), names, rotation=45 if longest > 3 else 0)
    axes.set_yticks(range(10), names)
    bar = figure.colorbar(shade, ax=axes, label="share of the label's images", shrink=0.8)
    ticks = [0, 0.01, 0.1, 0.25, 0.5, 1]
    bar.set_ticks([tick**0.5 for tick in ticks], labels=[f"{tick:.0%}" for tick in ticks])
    return figure


def run(names, history, train_loader, test_loader, outputs, labels) -> dict[str, Figure]:
    """A run's pictures by file name: samples, curves, confusion, its most confident mistakes.

    `outputs` `(N, 10)` and `labels` `(N,)` are those of the test set.
    """
    titles = [names[label] for label in train_loader.labels[:20].tolist()]
    confidence, answers = outputs.softmax(1).max(1)
    figures = {
        "samples.png": digits(train_loader.images[:20], titles),
        "confusion.png": confusion(labels, answers, names),
    }
    if history:
        figures["curves.png"] = curves(history)
    wrong = (answers != labels).nonzero()[:, 0]
    surest_first = confidence[wrong].argsort(descending=True)
    wrong = wrong[surest_first][:20]
    if len(wrong):
        titles = []
        for k in wrong:
            words = f"{names[labels[k]]} read as {names[answers[k]]}"
            titles.append(f"{words}\n{confidence[k]:.3f}")
        images = test_loader.images[wrong.to(test_loader.images.device)]
        figures["mistakes.png"] = digits(images, titles)
    return figures


def steps(images, answers, columns: bool, accuracy: list[float], names) -> Figure:
    """What an LSTM knows after each step: for images `(n, 28, 28)` of ten classes, and on average.

    `answers` `(28, n, 10)` are the probabilities of the classes after each step, which is a row of
    the image, or a column. `accuracy` is that of all test images after each step.
    """
    figure = Figure(figsize=(11, 9 if columns else 6), layout="constrained")
    above, below = figure.subfigures(2, 1, height_ratios=[3, 1] if columns else [2, 1])
    if columns:  # a digit's probabilities below it
        grid = above.subplots(4, 5, height_ratios=[28, 20] * 2)
        pairs = [*zip(grid[0], grid[1]), *zip(grid[2], grid[3])]
    else:  # beside it
        grid = above.subplots(2, 10, width_ratios=[28, 20] * 5)
        pairs = [*zip(grid[0, ::2], grid[0, 1::2]), *zip(grid[1, ::2], grid[1, 1::2])]
    for axes in grid.flat:
        axes.axis("off")
    for k, (picture, heat) in enumerate(pairs[: len(images)]):
        picture.imshow(images[k].numpy(), cmap="gray")
        by_step(heat, answers[:, k], columns, names)
    axes = below.subplots()
    axes.plot(range(1, 29), [100 * each for each in accuracy], **style(0))
    what = "columns" if columns else "rows"
    axes.set(xlabel=f"{what} read", ylabel="test accuracy, %", ylim=(0, 100))
    axes.grid(alpha=0.3)
    return figure


def by_step(axes, probabilities: torch.Tensor, columns: bool, names) -> None:
    """Draw the probabilities `(28, 10)` after each step: a step a line, or for columns a column."""
    axes.axis("on")
    shades = probabilities.T if columns else probabilities
    aspect = 2 if columns else 0.5  # each class takes two pixels of the image
    axes.imshow(shades.numpy(), cmap="Blues", vmin=0, vmax=1, aspect=aspect)
    if columns:
        axes.set_xticks([])
        axes.set_yticks(range(10), names, fontsize=6)
    else:
        axes.set_xticks(range(10), names, fontsize=6)
        axes.set_yticks([])


def predictions(answers: list[tuple], names: list[str], of_steps: list, columns: bool) -> Figure:
    """Pictures `(name, image (28, 28), probabilities (10,))` as the model saw them, at most 50.

    `of_steps` are each picture's probabilities `(28, 10)` after each step, if the model has any.
    """
    answers = answers[:50]
    figure = Figure(figsize=(7.5, 1.9 * len(answers)), layout="constrained")
    ratios = [1, 3, 1] if of_steps else [1, 3]
    grid = figure.subplots(len(answers), len(ratios), squeeze=False, width_ratios=ratios)
    for axes, probabilities in zip(grid[:, -1], of_steps):
        by_step(axes, probabilities, columns, names)
    for (picture, bars, *_), (name, image, probability) in zip(grid, answers):
        name = name.encode(errors="replace").decode()  # matplotlib wants whole letters
        title = name if len(name) < 26 else f"…{name[-24:]}"
        picture.imshow(image.numpy(), cmap="gray")
        picture.axis("off")
        picture.set_title(title, fontsize=9, parse_math=False)
        bars.bar(range(10), probability.numpy(), color=COLOURS[0])
        bars.set(ylim=(0, 1), ylabel="probability")
        bars.set_xticks(range(10), names)
    return figure


def comparison(groups: dict[str, list], metric: str, label: str, factor: float) -> Figure:
    """A metric by epoch and by seconds: each group's mean, in a band from lowest to highest run.

    `groups` is `{name: [run, …]}`, a run a list of records; `label` names the metric, which is
    multiplied by `factor`.
    """
    figure = Figure(figsize=(12.5, 4.8), layout="constrained")
    by_epoch_axes, by_time = figure.subplots(1, 2, sharey=True)
    for k, (name, runs) in enumerate(groups.items()):
        means, least, most, seconds = [], [], [], []
        elapsed = 0.0
        for records in zip(*runs):  # epoch by epoch
            values = [factor * record[metric] for record in records]
            means.append(statistics.mean(values))
            least.append(min(values))
            most.append(max(values))
            elapsed += statistics.mean(record["seconds"] for record in records)
            seconds.append(elapsed)
        short = name if len(name) < 60 else f"{name[:58]}…"
        text = short.replace("$", r"\$")  # no formula
        for axes, x in ((by_epoch_axes, range(len(means))), (by_time, seconds)):
            axes.plot(x, means, label=text, **style(k))
            axes.fill_between(x, least, most, color=style(k)["color"], alpha=0.15, linewidth=0)
    by_epoch(by_epoch_axes, label)
    by_time.set(xlabel="seconds of training and evaluation")
    by_time.grid(alpha=0.3)
    by_time.legend()
    return figure
