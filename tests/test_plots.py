"""--plot: the pictures are there, of the right data; the progress bar."""

import common

import fcntl
import io
import os
import pty
import re
import struct
import sys
import termios
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import Fork, call
from PIL import Image
from tqdm import tqdm

import lstm_mnist
import mlp_mnist
from support import plots


@pytest.mark.parametrize(("main", "recipe"), [(mlp_mnist.main, []), (lstm_mnist.main, ["--recipe", "sgd"])])
def test_plot_writes_four_pictures(main, recipe, tiny, tmp_path, capsys):
    folder = tmp_path / "new" / "pictures"
    main([*recipe, "--data-dir", str(tiny), "--epochs", "2", "--plot", str(folder)])
    names = ["confusion.png", "curves.png", "mistakes.png", "samples.png"]
    assert sorted(f.name for f in folder.iterdir()) == names
    for name in names:
        pixels = np.asarray(Image.open(folder / name).convert("L"))
        assert min(pixels.shape) > 200
        assert pixels.std() > 10  # not an empty sheet
    capsys.readouterr()


def test_no_picture_of_an_earlier_run_stays(tiny, tmp_path):
    for name in ("curves.png", "mistakes.png", "runs.png"):
        (tmp_path / name).write_bytes(b"an earlier run's")
    train, test = (SimpleNamespace(images=images, labels=labels) for images, labels in common.read(tiny))
    run = SimpleNamespace(args=SimpleNamespace(plot=tmp_path), history=[], train_loader=train, test_loader=test)
    plots.run(run, [(torch.eye(10)[test.labels], test.labels)], common.CLASSES["mnist"])  # all right, and no epoch
    assert sorted(f.name for f in tmp_path.iterdir()) == ["confusion.png", "runs.png", "samples.png"]


def test_plotting_changes_no_number(tiny, tmp_path, capsys):
    outs = []
    for flags in ([], ["--plot", str(tmp_path)]):
        mlp_mnist.main(["--data-dir", str(tiny), "--epochs", "2", *flags])
        outs.append(re.sub(r"Time \S+", "", capsys.readouterr().out))
    assert outs[0] == outs[1]


def test_samples_are_twenty_digits_in_two_rows_under_their_labels(digits):
    images, labels = digits[0]
    figure = plots.digits(images[:20], [str(k) for k in labels[:20].tolist()])
    assert len(figure.axes) == 20
    assert [axes.get_title() for axes in figure.axes] == [str(k) for k in labels[:20].tolist()]
    assert {axes.get_subplotspec().rowspan.start for axes in figure.axes} == {0, 1}
    assert all(np.array_equal(a.images[0].get_array(), i) for a, i in zip(figure.axes, images))


def test_confusion_shows_the_counts():
    label = torch.tensor([3] * 5 + [7] * 2 + [0])
    answer = torch.tensor([3, 3, 3, 5, 3, 7, 1, 0])
    axes = plots.confusion(label, answer).axes[0]
    counts = {(round(t.get_position()[1]), round(t.get_position()[0])): int(t.get_text()) for t in axes.texts}
    assert counts == {(3, 3): 4, (3, 5): 1, (7, 7): 1, (7, 1): 1, (0, 0): 1}
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("answer", "label")


@pytest.mark.parametrize("script", ["mlp_mnist.py", "lstm_mnist.py"])
def test_progress_bar_shows_on_a_terminal_only(script, tiny):
    command = [script, "--data-dir", tiny, "--epochs", 1, "--log-interval", 2]
    quiet = call(*command)
    assert quiet.stderr == ""
    terminal, end = pty.openpty()
    fcntl.ioctl(end, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))
    process = Fork(*command, stderr=end)  # closes the end
    out = process.stdout.read()
    shown = b""
    try:
        while part := os.read(terminal, 4096):
            shown += part
    except OSError:  # the other side is closed
        pass
    assert process.wait() == 0
    assert b"Epoch 0" in shown
    assert re.sub(r"Time \S+", "", out) == re.sub(r"Time \S+", "", quiet.stdout)


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize(("main", "size"), [(mlp_mnist.main, 2), (lstm_mnist.main, 9)])
def test_progress_bar_has_the_loss_and_accuracy_so_far(main, size, tiny, monkeypatch, capsys):
    """Drawn at every step here; in a run once a second."""
    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setattr(common, "tqdm", lambda **look: tqdm(**{**look, "mininterval": 0, "miniters": 1, "ncols": 90}))
    flags = ["--data-dir", str(tiny), "--epochs", "1", "--batch-size", str(size)]
    _, history = main([*flags, "--log-interval", "7"])
    shown = re.findall(r"\| (\d+)/\d+ \[[^\r]*, loss (\d\.\d{4}), acc (\d\.\d{4})\]", sys.stderr.getvalue())
    assert len(shown) > 3
    assert shown[-1][1:] == (f"{history[0]['train_loss']:.4f}", f"{history[0]['train_acc']:.4f}")
    with_bar = capsys.readouterr().out
    monkeypatch.undo()
    main([*flags, "--log-interval", "7"])
    assert re.sub(r"Time \S+", "", capsys.readouterr().out) == re.sub(r"Time \S+", "", with_bar)
