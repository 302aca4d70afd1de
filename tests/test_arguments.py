"""Bad arguments and files that cannot be written: one line that names the value or file, before anything is trained."""

import os
import shutil
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from conftest import ROOT, call

import lstm_mnist
import mlp_mnist
import modern_mnist
from support import files

MAINS = {"mlp": mlp_mnist.main, "lstm": lstm_mnist.main}
HUGE = "9" * 30


def refused(main, argv, capsys):
    """The exit status and the one line on stderr of a command that must end before its first epoch."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        main([str(word) for word in argv])
    out, err = capsys.readouterr()
    status = stop.value.code
    if isinstance(status, str):
        status, err = 1, f"{err}{status}\n"
    assert "Epoch" not in out
    assert len(err.splitlines()) == 1, err
    assert err.endswith("\n")
    return status, err[:-1]


NUMBERS = {
    "--epochs": ["-1", "0.5", "nan", "inf", HUGE, "five"],
    "--batch-size": ["-1", "0", "0.5", "nan", "inf", "2147483648", "ten"],
    "--hold-out": ["-1", "0.5", "ten"],
    "--test-batch-size": ["-1", "0", "2.5", "nan", "inf", HUGE, "0x10"],
    "--lr": ["-0.1", "0", "-0", "1e-999", "nan", "inf", "1e39", "0,1"],
    "--seed": ["-1", "1.5", "nan", "inf", str(2**63), "one"],
    "--log-interval": ["-1", "0.5", "nan", "inf", HUGE, "never"],
}
WORDS = [("--lr", "-inf"), ("--lr", ""), ("--epochs", ""), ("--device", ""), ("--device", "gpu"), ("--device", "cpu:x")]
ABSENT = ["cuda", "cuda:1", "cuda:99", "mps", "xpu", "meta"]


@pytest.mark.parametrize("script", MAINS)
@pytest.mark.parametrize(("flag", "value"), [(flag, v) for flag in NUMBERS for v in NUMBERS[flag]] + WORDS)
def test_bad_values(script, flag, value, tiny, capsys):
    status, line = refused(MAINS[script], ["--data-dir", tiny, f"{flag}={value}"], capsys)
    assert status == 2
    assert f"argument {flag}: " in line
    assert repr(value) in line


def test_the_root_is_a_folder(tiny, capsys):
    argv = ["--data-dir", tiny, "--checkpoint", "/"]
    assert refused(mlp_mnist.main, argv, capsys) == (1, "/: is a folder; name a file in it")


@pytest.mark.parametrize("script", MAINS)
@pytest.mark.parametrize("value", ABSENT)
def test_devices_that_are_not_there(script, value, tiny, capsys):
    if torch.accelerator.is_available():
        pytest.skip("there is an accelerator")
    status, line = refused(MAINS[script], ["--data-dir", tiny, "--device", value], capsys)
    assert status == 2
    assert "argument --device: " in line
    assert repr(value) in line


@pytest.mark.parametrize(
    ("argv", "named"),
    [
        (["--recipe", "mlp"], "'mlp'"),
        (["--recipe", "sgd", "SGD"], "'SGD'"),
        (["--recipe"], "--recipe"),
        (["--cell", "LSTM"], "'LSTM'"),
        (["--cell", ""], "''"),
        (["--recipe", "all", "--save-model", "m.pth"], "--save-model"),
        (["--recipe", "all", "--load-model", "m.pth"], "--load-model"),
        (["--recipe", "sgd", "time-major", "--checkpoint", "c.pth"], "--checkpoint"),
        (["--recipe", "all", "--load-model", "m.pth", "--predict", "7.png"], "--predict"),
    ],
)
def test_bad_arguments_of_lstm(argv, named, tiny, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    status, line = refused(lstm_mnist.main, ["--data-dir", tiny, *argv], capsys)
    assert status == 2
    assert named in line
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("--smoothing", "1.5"),
        ("--smoothing", "-0.1"),
        ("--distortion", "nan"),
        ("--distortion", "-1"),
        ("--average", "0.5"),
        ("--average", "-1"),
        ("--lines", "3"),
        ("--lines", "0"),
        ("--hidden", "0"),
    ],
)
def test_bad_values_of_modern(flag, value, tiny, capsys):
    status, line = refused(modern_mnist.main, ["--data-dir", tiny, f"{flag}={value}"], capsys)
    assert status == 2
    assert f"argument {flag}: " in line
    assert value in line


@pytest.mark.parametrize("script", MAINS)
@pytest.mark.parametrize(
    ("argv", "named"),
    [
        (["--predict", "7.png"], "--load-model"),
        (["--load-model", "m.pth", "--predict"], "--predict"),
        (["--epoch", "1"], "--epoch"),
        (["--verbose"], "--verbose"),
        (["7.png"], "7.png"),
        (["--epochs"], "--epochs"),
        (["two\nlines"], "lines"),
    ],
)
def test_bad_arguments(script, argv, named, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    status, line = refused(MAINS[script], argv, capsys)
    assert status == 2
    assert named in line
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("script", MAINS)
@pytest.mark.parametrize(
    "flags", [("--save-model", "--checkpoint"), ("--save-model", "--log"), ("--log", "--checkpoint")]
)
def test_one_file_for_two_purposes(script, flags, tiny, tmp_path, capsys):
    """The one would be written over the other."""
    argv = [word for flag in flags for word in (flag, tmp_path / "x")]
    status, line = refused(MAINS[script], ["--data-dir", tiny, "--epochs", "1", *argv], capsys)
    assert status == 2
    assert all(flag in line for flag in flags)
    assert list(tmp_path.iterdir()) == []


FILES = ["--save-model", "--checkpoint", "--log"]
PATHS = [
    *[(flag, where) for flag in FILES for where in ("folder", "text.txt/x", "text.txt/a/x", "/dev/null", "/dev/full")],
    *[("--plot", where) for where in ("text.txt", "text.txt/deep", "/dev/null")],
    *[("--data-dir", where) for where in ("text.txt", "text.txt/deep", "/dev/null")],
    *[("--load-model", where) for where in ("missing.pth", "folder", "text.txt", "text.txt/x", "missing/x")],
    *[(flag, "x" * 300) for flag in [*FILES, "--plot", "--data-dir", "--load-model"]],
]  # fmt: skip


@pytest.mark.parametrize("script", MAINS)
@pytest.mark.parametrize(("flag", "where"), PATHS)
def test_bad_files(script, flag, where, tiny, tmp_path, capsys):
    (tmp_path / "folder").mkdir()
    (tmp_path / "text.txt").write_text("text")
    before = sorted(tmp_path.rglob("*"))
    file = tmp_path / where
    status, line = refused(MAINS[script], ["--data-dir", tiny, "--epochs", "1", flag, file], capsys)
    assert status == 1
    assert str(file) in line
    assert sorted(tmp_path.rglob("*")) == before
    assert (tmp_path / "text.txt").read_text() == "text"


def test_pictures_need_an_existing_model_too(tmp_path, capsys):
    file = tmp_path / "missing.pth"
    status, line = refused(mlp_mnist.main, ["--load-model", file, "--predict", "7.png"], capsys)
    assert status == 1
    assert str(file) in line


@pytest.mark.parametrize("script", MAINS)
def test_missing_folders_are_made_for_all_four(script, tiny, tmp_path):
    files = {flag: tmp_path / flag[2:] / "deep" / "x" for flag in [*FILES, "--plot"]}
    flags = [str(word) for pair in files.items() for word in pair]
    MAINS[script](["--data-dir", str(tiny), "--epochs", "1", *flags])
    assert all(files[flag].is_file() for flag in FILES)
    assert (files["--plot"] / "curves.png").is_file()
    assert not list(tmp_path.rglob(".*"))


@pytest.mark.parametrize("flag", FILES)
def test_the_trial_keeps_what_is_there(flag, tmp_path):
    file = tmp_path / "x"
    file.write_bytes(b"there before")
    files.check_writable(file, appended=flag == "--log")
    assert file.read_bytes() == b"there before"
    assert list(tmp_path.iterdir()) == [file]


def test_a_dozen_as_processes(tiny, tmp_path):
    (tmp_path / "text.txt").write_text("text")
    no_data = tmp_path / "bare"
    shutil.copytree(tiny, no_data)
    (no_data / "MNIST" / "raw" / "t10k-labels-idx1-ubyte").write_bytes(b"")
    cases = [
        ("mlp_mnist.py", ["--epochs", "-1"], 2, "'-1'"),
        ("mlp_mnist.py", ["--lr", "nan"], 2, "'nan'"),
        ("mlp_mnist.py", ["--predict", "7.png"], 2, "--load-model"),
        ("mlp_mnist.py", ["--load-model", "missing.pth"], 1, "missing.pth"),
        ("mlp_mnist.py", ["--plot", "text.txt"], 1, "text.txt"),
        ("mlp_mnist.py", ["--data-dir", no_data], 1, "t10k-labels-idx1-ubyte"),
        ("lstm_mnist.py", ["--recipe", "mlp"], 2, "'mlp'"),
        ("lstm_mnist.py", ["--device", "gpu"], 2, "'gpu'"),
        ("lstm_mnist.py", ["--recipe", "all", "--save-model", "m.pth"], 2, "--save-model"),
        ("lstm_mnist.py", ["--checkpoint", "text.txt"], 1, "text.txt"),
        ("lstm_mnist.py", ["--save-model", "/dev/null"], 1, "/dev/null"),
        ("lstm_mnist.py", ["--data-dir", "text.txt"], 1, "text.txt"),
    ]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        ends = list(pool.map(lambda case: call(case[0], "--data-dir", tiny, *case[1], cwd=tmp_path), cases))
    for (_, argv, status, named), end in zip(cases, ends):
        assert end.returncode == status, (argv, end.stderr)
        assert len(end.stderr.splitlines()) == 1, (argv, end.stderr)
        assert named in end.stderr, argv
        assert "Epoch" not in end.stdout, argv
    assert (tmp_path / "text.txt").read_text() == "text"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bare", "text.txt"]


def test_help_names_every_flag(capsys):
    with pytest.raises(SystemExit) as stop:
        lstm_mnist.main(["--help"])
    text = capsys.readouterr().out
    assert stop.value.code == 0
    assert all(flag in text for flag in [*NUMBERS, *FILES, "--plot", "--data-dir", "--load-model", "--predict"])
    assert str(ROOT) not in text
