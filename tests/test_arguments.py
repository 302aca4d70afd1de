"""Bad flags and paths: one line that names them, before anything is trained or written."""

import os
import shutil
import sys

import common

import pytest
import torch
from conftest import ROOT, link, refused, train

import lstm_mnist
import mlp_mnist
import modern_mnist
import support

SCRIPTS = {"mlp": mlp_mnist, "lstm": lstm_mnist, "modern": modern_mnist}
BAD = {
    "mlp --epochs=-1": "--epochs: '-1' is not from 0 to ",
    "mlp --batch-size=0": "--batch-size",
    "lstm --test-batch-size=2.5": "--test-batch-size",
    "mlp --lr=nan": "--lr",
    "mlp --seed=-1": "--seed",
    "mlp --device=gpu": "--device gpu",
    "modern --device=cuda:99": "--device cuda:99",
    "lstm --recipe=mlp": "'mlp'",
    "lstm --recipe sgd time-major": "time-major",
    "lstm --hidden=100000": "--hidden",
    "lstm --layers=1e9": "--layers",
    "modern --hidden=2147483647": "--hidden",
    "modern --lines=5": "--lines",
    "modern --smoothing=1.5": "--smoothing",
    "modern --windows --lines 2": "needs --lines 1",
    "mlp --epoch 1": "unrecognized arguments: --epoch 1",
    "lstm 7.png": "unrecognized arguments: 7.png",
    "mlp --compile --optimizer Adam": "--compile trains with plain SGD only, without Adam",
    "mlp --predict 7.png": "--load-model",
    "mlp --load-model m.pth --predict 7.png --log l.jsonl": "--log",
    "mlp --save-model x --checkpoint x": "--save-model and --checkpoint both name x",
    "lstm --log link --checkpoint folder/../x": "--checkpoint and --log both name link",
    "modern --load-model m.pth --save-model ./m.pth": "--load-model and --save-model both",
    "mlp --plot p --save-model p/curves.png": "--save-model and --plot both name p/curves.png",
    "mlp --load-model m.pth --predict p/predictions.png --plot p": "--predict and --plot both",
    "mlp --save-model out --plot out": "--save-model out and --plot out/samples.png: one is in",
    "mlp --log out --plot out": "--log out and --plot out/samples.png: one is in",
    "mlp --save-model runs --checkpoint runs/c": "--save-model runs and --checkpoint runs/c: ",
}


@pytest.mark.parametrize("command", BAD)
def test_bad_flags(command, tiny, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    os.symlink("x", "link")
    torch.save({"weight": torch.ones(1)}, "m.pth")
    script, *flags = command.split()
    flags = ["--data-dir", tiny, "--plot", "deep", *flags]
    status, line = refused(SCRIPTS[script].main, flags, capsys)
    assert status == 2
    assert BAD[command] in line
    assert sorted(os.listdir()) == ["link", "m.pth"]


WRITTEN = ["--save-model", "--checkpoint", "--log"]
PATHS = [
    "--log text.txt",  # which is not one
    "--save-model text.txt",
    "--load-model ~no-such-user/m.pth",
    "--load-model missing.pth",
    "--load-model folder",
    "--plot text.txt",
    "--plot text.txt/x",
    "--plot taken",
    "--checkpoint " + "x" * 255,  # its lock has a longer name
]
for flag in WRITTEN:
    for path in ("folder", "text.txt/x", "x" * 256):
        PATHS.append(f"{flag} {path}")
if os.path.exists("/sys"):  # where not even root can make a file
    PATHS += [f"{flag} /sys/x" for flag in [*WRITTEN, "--plot"]]
    PATHS += [f"{flag} /dev/null" for flag in WRITTEN]


@pytest.mark.parametrize("words", PATHS)
def test_bad_paths(words, tiny, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "taken" / "curves.png").mkdir(parents=True)
    (tmp_path / "text.txt").write_text("text")
    before = sorted(tmp_path.rglob("*"))
    flag, path = words.split()
    status, line = refused(mlp_mnist.main, ["--data-dir", tiny, flag, path], capsys)
    assert status == 1
    assert path in line
    assert sorted(tmp_path.rglob("*")) == before
    assert (tmp_path / "text.txt").read_text() == "text"


def test_an_accelerator_that_this_torch_cannot_use_is_one_line(monkeypatch, capsys):
    """Such as a graphics card that is too old for it, which is found all the same."""
    found = torch.device("cuda", 99)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available: found)
    status, line = refused(mlp_mnist.main, [], capsys)
    assert (status, "--device cuda:99 does not work" in line) == (2, True)


@pytest.mark.parametrize(
    ("flag", "path", "closed"),
    [("--load-model", "folder/m.pth", "folder"), ("--checkpoint", "c.pt", ".c.pt.lock")],
)
def test_what_is_another_users_is_one_line(flag, path, closed, tiny, tmp_path, capsys):
    (tmp_path / "folder").mkdir()
    (tmp_path / ".c.pt.lock").touch()
    (tmp_path / closed).chmod(0)
    if os.access(tmp_path / closed, os.R_OK):
        pytest.skip("root may open everything")
    status, line = refused(mlp_mnist.main, ["--data-dir", tiny, flag, tmp_path / path], capsys)
    assert status == 1
    assert line.startswith(f"{tmp_path / closed}")
    assert "Permission denied" in line


@pytest.mark.parametrize(
    ("flag", "length"), [("--save-model", 255), ("--checkpoint", 242), ("--log", 255)]
)
def test_a_long_name_is_written(flag, length, tiny, tmp_path, capsys):
    """Where the name of the new file beside it was longer, a run failed after its first epoch."""
    train("mlp", tiny, "--epochs", 1, flag, tmp_path / ("x" * length))
    assert os.listdir(tmp_path) == ["x" * length]


def test_a_drawing_library_that_cannot_be_imported_is_found_before_training(
    tiny, tmp_path, monkeypatch, capsys
):
    monkeypatch.delattr(support, "plots", raising=False)
    monkeypatch.setitem(sys.modules, "support.plots", None)
    flags = ["--data-dir", tiny, "--plot", tmp_path / "p"]
    status, line = refused(mlp_mnist.main, flags, capsys)
    assert status == 1
    assert line.startswith("--plot: ")
    assert list(tmp_path.iterdir()) == []


def test_missing_folders_are_made_and_the_home_folder_is_found_in_every_path(
    tiny, tmp_path, monkeypatch, capsys
):
    for name in ("HOME", "USERPROFILE"):
        monkeypatch.setenv(name, str(tmp_path))
    monkeypatch.chdir(tmp_path)
    link(tmp_path / "data", tiny)
    paths = [f"{flag}=~/{flag[2:]}/deep/x" for flag in [*WRITTEN, "--plot"]]
    mlp_mnist.main(["--data-dir=~/data", "--epochs=1", *paths])
    for flag in WRITTEN:
        assert (tmp_path / flag[2:] / "deep" / "x").is_file()
    shutil.copy(ROOT / "docs" / "seven.jpg", tmp_path)
    mlp_mnist.main(["--load-model", "~/save-model/deep/x", "--predict", "~/seven.jpg"])
    assert list(tmp_path.rglob(".*")) == []


def test_on_windows_backslashes_belong_to_paths(monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(os, "name", "nt")
        words = common.words(r"x.py --load-model C:\models\mlp.pth")
    assert words == ["x.py", "--load-model", r"C:\models\mlp.pth"]
