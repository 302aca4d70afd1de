"""--plot and benchmarks/runs.py: the pictures are there, of the right data, and the comparison's table is right."""

import common

import fcntl
import io
import json
import os
import pty
import re
import struct
import sys
import termios

import numpy as np
import pytest
import torch
from conftest import ROOT, Fork, call
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


@pytest.fixture
def runs(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import runs

    return runs


def record(recipe, seed, epoch, accuracy, run):
    scores = dict(train_loss=1 - accuracy, train_acc=accuracy, valid_loss=1.1 - accuracy, valid_acc=accuracy)
    base = dict(script="lstm_mnist.py", recipe=recipe, cell="lstm", seed=seed, device="cpu", run=run)
    return {**base, "epoch": epoch, **scores, "seconds": 2.0 + epoch}


def test_comparison_of_runs(tmp_path, capsys, runs):
    accuracies = {("sgd", 1): [0.5, 0.9, 0.8], ("sgd", 2): [0.6, 0.7, 0.6], ("time-major", 1): [0.1, 0.2, 0.3]}
    records = [
        record(recipe, seed, epoch, accuracy, f"{recipe}{seed}")
        for (recipe, seed), values in accuracies.items()
        for epoch, accuracy in enumerate(values)
    ]
    lines = [json.dumps(r) for r in records]
    (tmp_path / "a.jsonl").write_text("\n".join([*lines[:4], '{"cut', "[1]"]) + "\n")
    (tmp_path / "b.jsonl").write_text("\n".join(lines[4:]) + "\n")
    runs.main([str(tmp_path / "a.jsonl"), str(tmp_path / "b.jsonl"), "--plot", str(tmp_path)])
    out, err = capsys.readouterr()
    rows = [line.split() for line in out.splitlines()]
    assert rows[0] == ["script", "recipe", "cell", "seed", "epochs", "best", "last", "s/epoch"]
    assert rows[1] == ["lstm_mnist.py", "sgd", "lstm", "1", "3", "90.00%", "80.00%", "3.00"]
    assert rows[2] == ["lstm_mnist.py", "sgd", "lstm", "2", "3", "70.00%", "60.00%", "3.00"]
    assert rows[3] == ["lstm_mnist.py", "time-major", "lstm", "1", "3", "30.00%", "30.00%", "3.00"]
    assert len(rows) == 4
    assert [line.split(":")[0] for line in err.splitlines()] == [f"{tmp_path / 'a.jsonl'}, line {k}" for k in (5, 6)]
    assert Image.open(tmp_path / "runs.png").size == (1100, 440)

    loss, accuracy = runs.compare(runs.read_runs([tmp_path / "a.jsonl", tmp_path / "b.jsonl"])).axes
    assert [line.get_label() for line in accuracy.lines] == ["sgd (mean of 2)", "time-major"]
    assert accuracy.lines[0].get_ydata() == pytest.approx([0.55, 0.8, 0.7])
    band = accuracy.collections[0].get_paths()[0].vertices
    assert band[:, 1].min() == pytest.approx(0.5)
    assert band[:, 1].max() == pytest.approx(0.9)
    assert (loss.get_xlabel(), loss.get_ylabel(), accuracy.get_ylabel()) == ("epoch", "valid loss", "valid accuracy")


def test_runs_with_other_settings_are_other_curves(runs):
    several = [[{**record("sgd", seed, 0, 0.5, f"{seed}{lr}"), "lr": lr}] for seed in (1, 2) for lr in (0.1, 0.01)]
    several.append([{**record("sgd", 1, 0, 0.5, "gru"), "cell": "gru", "lr": 0.1}])
    assert runs.names(several) == ["sgd, lr 0.1", "sgd, lr 0.01"] * 2 + ["sgd gru"]
    labels = [line.get_label() for line in runs.compare(several).axes[0].lines]
    assert labels == ["sgd, lr 0.1 (mean of 2)", "sgd, lr 0.01 (mean of 2)", "sgd gru"]


def test_plots_as_a_program_on_real_logs(tiny, tmp_path, capsys):
    log = tmp_path / "runs.jsonl"
    mlp_mnist.main(["--data-dir", str(tiny), "--epochs", "2", "--log", str(log)])
    lstm_mnist.main(["--data-dir", str(tiny), "--epochs", "1", "--log", str(log), "--cell", "gru"])
    run = call("benchmarks/runs.py", log, cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    assert [line.split()[1:5] for line in run.stdout.splitlines()[1:]] == [
        ["mlp", "-", "1", "2"],
        ["batch-first", "gru", "1", "1"],
    ]
    assert (tmp_path / "runs.png").exists()
    capsys.readouterr()


@pytest.mark.parametrize("content", [None, "", "no json\n", '{"epoch": 1}\n', b"\xff\xfe\x00"])
def test_what_is_no_log_gets_one_line(content, tmp_path, capsys, runs):
    log = tmp_path / "runs.jsonl"
    if content is not None:
        log.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(SystemExit) as end:
        runs.main([str(log)])
    assert str(log) in str(end.value.code)
    assert len(str(end.value.code).splitlines()) == 1
    capsys.readouterr()


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
