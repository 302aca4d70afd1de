"""--plot: the pictures are there, of the right data; the progress bar."""

import io
import re
import sys
from collections import Counter

import common

import numpy as np
import pytest
import torch
from conftest import untimed
from PIL import Image
from tqdm import tqdm

import lstm_mnist
import mlp_mnist
from support import plots


def test_plot_writes_four_pictures_and_changes_no_number(tiny, tmp_path, capsys):
    folder, outs = tmp_path / "new" / "pictures", []
    for flags in ([], ["--plot", str(folder)]):
        mlp_mnist.main(["--data-dir", str(tiny), "--epochs", "2", *flags])
        outs.append(untimed(capsys.readouterr().out))
    assert outs[0] == outs[1]
    names = ["confusion.png", "curves.png", "mistakes.png", "samples.png"]
    assert sorted(f.name for f in folder.iterdir()) == names
    for name in names:
        pixels = np.asarray(Image.open(folder / name).convert("L"))
        assert min(pixels.shape) > 200
        assert pixels.std() > 10  # not an empty sheet
    mlp_mnist.main(["--data-dir", str(tiny), "--epochs", "0", *flags])
    assert sorted(f.name for f in folder.iterdir()) == names  # the curves of training stay


def test_pictures_are_of_the_runs_data(tiny):
    (images, labels), (test_images, test_labels) = common.read(tiny)
    loaders = common.Loader(images, labels, 50), common.Loader(test_images, test_labels, 50)
    sure = torch.arange(30).div(10).add(1)  # the last of thirty wrong answers is the surest
    outputs = torch.nn.functional.one_hot(test_labels, 10).float()
    outputs[:30] = torch.nn.functional.one_hot((test_labels[:30] + 1) % 10, 10) * sure[:, None]
    history = [{"epoch": k, "train_loss": 1 - k, "valid_loss": k, "train_acc": 0.5, "valid_acc": k / 2} for k in (0, 1)]
    figures = plots.run([*"abcdefghij"], history, *loaders, outputs, test_labels)
    samples, curves, mistakes = (figures[f"{name}.png"].axes for name in ("samples", "curves", "mistakes"))
    assert [axes.get_title() for axes in samples] == ["abcdefghij"[k] for k in labels[:20]]
    assert {axes.get_subplotspec().rowspan.start for axes in samples} == {0, 1}
    assert all(np.array_equal(axes.images[0].get_array(), image) for axes, image in zip(samples, images))
    assert [[*line.get_ydata()] for axes in curves for line in axes.lines] == [[1, 0], [0, 1], [0.5, 0.5], [0, 0.5]]
    cells = {t.get_position(): int(t.get_text()) for t in figures["confusion.png"].axes[0].texts}  # (answer, label)
    wrong = [((y + 1) % 10, y) for y in test_labels[:30].tolist()]
    assert cells == Counter(wrong + [(y, y) for y in test_labels[30:].tolist()])
    assert len(mistakes) == 20
    assert np.array_equal(mistakes[0].images[0].get_array(), test_images[29])
    right, wrong = ("abcdefghij"[(test_labels[29] + k) % 10] for k in (0, 1))
    assert mistakes[0].get_title() == f"{right} read as {wrong}\n{outputs[29].softmax(0).max():.3f}"


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize(("main", "size"), [(mlp_mnist.main, 2), (lstm_mnist.main, 9)])
def test_a_terminal_has_a_bar_with_the_scores_so_far_and_a_pipe_the_results_alone(
    main, size, tiny, monkeypatch, capsys
):
    flags = ["--data-dir", str(tiny), "--epochs", "2", "--batch-size", str(size), "--log-interval", "7"]
    main(flags)
    piped, err = capsys.readouterr()
    assert err == ""
    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setattr(common, "tqdm", lambda **look: tqdm(**{**look, "mininterval": 0, "miniters": 1, "ncols": 90}))
    _, records = main(flags)
    assert untimed(capsys.readouterr().out) == untimed(piped)
    shown = sys.stderr.getvalue()
    for epoch, record in enumerate(records):
        bars = re.findall(rf"\rEpoch {epoch}: [^\r]*, loss (\d\.\d{{4}}), acc (\d\.\d{{4}})\]", shown)
        assert len(bars) > 3
        assert bars[-1] == (f"{record['train_loss']:.4f}", f"{record['train_acc']:.4f}")
    assert re.search(r"\r +\r+$", shown)  # removed at the end
