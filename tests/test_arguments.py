"""Bad flags and paths that cannot be written: one line that names them, before anything is trained or written."""

import os
import sys

import pytest
from conftest import refused

import lstm_mnist
import mlp_mnist
import modern_mnist
import support

MAINS = {"mlp": mlp_mnist.main, "lstm": lstm_mnist.main, "modern": modern_mnist.main}
BAD = [
    ("mlp", "--epochs=-1", "--epochs"),
    ("mlp", "--batch-size=0", "--batch-size"),
    ("lstm", "--test-batch-size=2.5", "--test-batch-size"),
    ("lstm", "--hold-out=-1", "--hold-out"),
    ("mlp", "--lr=nan", "--lr"),
    ("mlp", "--seed=-1", "--seed"),
    ("lstm", "--log-interval=-1", "--log-interval"),
    ("mlp", "--device=gpu", "--device gpu"),
    ("modern", "--device=cuda:99", "--device cuda:99"),
    ("lstm", "--recipe=mlp", "'mlp'"),
    ("lstm", "--recipe sgd time-major", "time-major"),
    ("lstm", "--hidden=0", "--hidden"),
    ("modern", "--lines=3", "--lines"),
    ("modern", "--smoothing=-0.1", "--smoothing"),
    ("modern", "--smoothing=1.5", "--smoothing"),
    ("modern", "--windows --lines 2", "--lines"),
    ("mlp", "--epoch 1", "there is no --epoch; did you mean --epochs?"),
    ("mlp", "--batch_size=20", "did you mean --batch-size?"),
    ("lstm", "--hidden-size 3", "did you mean --hidden?"),
    ("mlp", "--data x", "did you mean --dataset or --data-dir?"),
    ("mlp", "--resume m.pth", "there is no --resume (--help"),
    ("lstm", "7.png", "there is no 7.png (--help"),
    ("mlp", "--compile --optimizer Adam", "--compile trains with SGD, not with Adam"),
    ("mlp", "--predict 7.png", "--load-model"),
    ("mlp", "--load-model m.pth --predict 7.png --log l.jsonl", "--log"),
    ("mlp", "--save-model x --checkpoint x", "--save-model and --checkpoint"),
    ("lstm", "--log link --checkpoint folder/../x", "--checkpoint and --log"),
    ("modern", "--load-model x --save-model ./x", "--load-model and --save-model"),
]


@pytest.mark.parametrize(("script", "flags", "named"), BAD)
def test_bad_flags(script, flags, named, tiny, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    os.symlink("x", "link")
    status, line = refused(MAINS[script], ["--data-dir", tiny, "--plot", "deep", *flags.split()], capsys)
    assert status == 2
    assert named in line
    assert os.listdir() == ["link"]


WRITTEN = ["--save-model", "--checkpoint", "--log"]
PATHS = [
    *[(flag, path) for flag in WRITTEN for path in ("folder", "text.txt/x", "/dev/null", "/sys/x", "x" * 300)],
    ("--log", "text.txt"),  # which is not one
    ("--load-model", "~no-such-user/m.pth"),
    *[("--plot", path) for path in ("text.txt", "text.txt/x", "taken", "/sys/x")],
    *[("--load-model", path) for path in ("missing.pth", "folder", "text.txt")],
]


@pytest.mark.parametrize(("flag", "path"), PATHS, ids=[f"{flag} {path[:11]}" for flag, path in PATHS])
def test_bad_paths(flag, path, tiny, tmp_path, monkeypatch, capsys):
    """Not even root can make a file in /sys."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "taken" / "curves.png").mkdir(parents=True)
    (tmp_path / "text.txt").write_text("text")
    before = sorted(tmp_path.rglob("*"))
    status, line = refused(MAINS["mlp"], ["--data-dir", tiny, flag, path], capsys)
    assert status == 1
    assert path in line
    assert sorted(tmp_path.rglob("*")) == before
    assert (tmp_path / "text.txt").read_text() == "text"


def test_a_drawing_library_that_cannot_be_imported_is_found_before_training(tiny, tmp_path, monkeypatch, capsys):
    monkeypatch.delattr(support, "plots", raising=False)
    monkeypatch.setitem(sys.modules, "support.plots", None)
    status, line = refused(MAINS["mlp"], ["--data-dir", tiny, "--plot", tmp_path / "p"], capsys)
    assert status == 1
    assert line.startswith("--plot: ")
    assert list(tmp_path.iterdir()) == []


def test_missing_folders_are_made_and_the_home_folder_is_found_in_every_path(tiny, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").symlink_to(tiny)
    MAINS["mlp"](["--data-dir=~/data", "--epochs=1", *[f"{flag}=~/{flag[2:]}/deep/x" for flag in [*WRITTEN, "--plot"]]])
    assert all((tmp_path / flag[2:] / "deep" / "x").is_file() for flag in WRITTEN)
    MAINS["mlp"](["--load-model=~/save-model/deep/x", "--predict", "~/plot/deep/x/samples.png"])
    assert sorted(os.listdir()) == ["checkpoint", "data", "log", "plot", "save-model"]
    assert list(tmp_path.rglob(".*")) == []
