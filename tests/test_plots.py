"""--plot: the pictures are there, of the right data; the progress bar."""

import io
import re
import sys
from collections import Counter

import common

import numpy as np
import torch
from conftest import untimed
from PIL import Image
from torch.nn.functional import one_hot
from tqdm import tqdm

import mlp_mnist
from support import plots


def test_plot_writes_four_pictures_and_changes_no_number(tiny, tmp_path, capsys):
    flags = ["--data-dir", str(tiny), "--epochs", "2"]
    mlp_mnist.main(flags)
    plain = untimed(capsys.readouterr().out)
    folder = tmp_path / "new" / "pictures"
    mlp_mnist.main([*flags, "--plot", str(folder)])
    assert untimed(capsys.readouterr().out) == plain
    names = ["confusion.png", "curves.png", "mistakes.png", "samples.png"]
    assert sorted(file.name for file in folder.iterdir()) == names
    for name in names:
        pixels = np.asarray(Image.open(folder / name).convert("L"))
        assert min(pixels.shape) > 200
        assert pixels.std() > 10  # not an empty sheet


NAMES = [*"abcdefghij"]
SCORES = ["epoch", "train_loss", "valid_loss", "train_acc", "valid_acc"]


def drawn(tiny, *scores):
    """A run's, whose first thirty answers are one too high, each surer than the one before it."""
    loaders = [common.Loader(*part, 50) for part in common.read(tiny)]
    labels = loaders[1].labels
    outputs = one_hot(labels, 10).float()
    outputs[:30] = one_hot((labels[:30] + 1) % 10, 10) * torch.linspace(1, 4, 30)[:, None]
    history = [dict(zip(SCORES, values)) for values in scores]
    return plots.run(NAMES, history, *loaders, outputs, labels)


def test_samples_are_the_first_twenty_training_images(tiny):
    (images, labels), _ = common.read(tiny)
    grid = drawn(tiny)["samples.png"].axes
    assert [axes.get_title() for axes in grid] == [NAMES[label] for label in labels[:20]]
    for axes, image in zip(grid, images):
        assert np.array_equal(axes.images[0].get_array(), image)


def test_curves_are_the_historys(tiny):
    figure = drawn(tiny, range(5), range(1, 6))["curves.png"]
    lines = [list(line.get_ydata()) for axes in figure.axes for line in axes.lines]
    assert lines == [[1, 2], [2, 3], [3, 4], [4, 5]]


def test_without_training_there_are_no_curves(tiny):
    assert "curves.png" not in drawn(tiny)  # those of training stay


def test_confusion_counts_answers_by_label(tiny):
    labels = common.read(tiny)[1][1].tolist()
    counts = Counter(zip(labels[30:], labels[30:]))
    counts.update(((label + 1) % 10, label) for label in labels[:30])
    texts = drawn(tiny)["confusion.png"].axes[0].texts
    assert {text.get_position(): int(text.get_text()) for text in texts} == counts


def test_mistakes_are_the_surest_first(tiny):
    _, (images, labels) = common.read(tiny)
    grid = drawn(tiny)["mistakes.png"].axes
    assert len(grid) == 20
    assert np.array_equal(grid[0].images[0].get_array(), images[29])
    right, answer = NAMES[labels[29]], NAMES[labels[29] + 1]
    assert grid[0].get_title() == f"{right} read as {answer}\n0.858"  # e⁴ of e⁴ + 9


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_terminal_has_a_bar_and_a_pipe_the_results_alone(tiny, monkeypatch, capsys):
    """The bar has the scores so far."""
    flags = ["--data-dir", str(tiny), "--epochs", "2", "--log-interval", "7"]
    mlp_mnist.main(flags)
    piped, err = capsys.readouterr()
    assert err == ""
    look = dict(mininterval=0, miniters=1, ncols=90)
    monkeypatch.setattr(common, "tqdm", lambda **options: tqdm(**{**options, **look}))
    monkeypatch.setattr(sys, "stderr", Terminal())
    _, records = mlp_mnist.main(flags)
    shown = sys.stderr.getvalue()
    assert untimed(capsys.readouterr().out) == untimed(piped)
    for epoch, record in enumerate(records):
        bars = re.findall(rf"\rEpoch {epoch}: [^\r]*, loss ([\d.]+), acc ([\d.]+)\]", shown)
        assert len(bars) > 3
        assert bars[-1] == (f"{record['train_loss']:.4f}", f"{record['train_acc']:.4f}")
    assert re.search(r"\r +\r+$", shown)  # removed at the end
