"""Files that a run reads and writes: damaged, hostile, of other runs, cut off by a full disk or a kill."""

import contextlib
import gzip
import json
import os
import pickle
import random
import re
import resource
import shutil
import stat
import time
import zipfile
from pathlib import Path

import common

import pytest
import torch
from conftest import Fork, call, refused, train, write_idx
from torch import nn
from torchvision import datasets

import lstm_mnist
import mlp_mnist
from support import saving


def same(a, b) -> bool:
    """Whether two files hold the same state_dict, to the last bit."""
    a, b = (torch.load(file, weights_only=True) for file in (a, b))
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def epochs_of(log: Path) -> list[int]:
    return [json.loads(line)["epoch"] for line in log.read_text().splitlines()]


def weights(**changes):
    return {**mlp_mnist.Net().state_dict(), **changes}


class Command:
    """A pickle that makes a folder when it is loaded."""

    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


def torch_file(content):
    return lambda path: torch.save(content, path)


def changed(change):
    """A model file of which the bytes are changed."""

    def write(path):
        torch.save(weights(), path)
        path.write_bytes(change(path.read_bytes()))

    return write


STRANGERS = {
    "empty": Path.touch,
    "a web page": lambda path: path.write_text("<!DOCTYPE html><html></html>"),
    "an HDF5 file": lambda path: path.write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(100)),
    "another zip file": lambda path: zipfile.ZipFile(path, "w").writestr("config.json", "{}"),
    "cut short": changed(lambda data: data[:-100]),
    "a bit wrong": changed(lambda data: data[: (k := len(data) // 2)] + bytes([data[k] ^ 4]) + data[k + 1 :]),
    "another network": torch_file(lstm_mnist.LastHidden(28, 8, 1, 10).state_dict()),
    "another shape": torch_file(weights(**{"fc3.bias": torch.ones(9)})),
    "a list": torch_file([1, 2, 3]),
    "a whole module": torch_file(mlp_mnist.Net()),
    "two models": torch_file({"generator": weights(), "discriminator": weights()}),
    "nan": torch_file(weights(**{"fc3.bias": torch.full([10], torch.nan)})),
}


@pytest.mark.parametrize("name", STRANGERS)
@pytest.mark.parametrize("flag", ["--load-model", "--checkpoint"])
def test_a_file_of_another_kind_is_refused_and_stays(flag, name, tiny, tmp_path, recwarn, capsys):
    file = tmp_path / "file"
    STRANGERS[name](file)
    before = file.read_bytes()
    status, line = refused(mlp_mnist.main, ["--data-dir", tiny, flag, file], capsys)
    assert status == 1
    assert re.match(f"{re.escape(str(file))}: .+; (give|name|use) ", line)  # what, and the remedy
    assert file.read_bytes() == before
    assert list(tmp_path.iterdir()) == [file]
    assert [str(warning.message) for warning in recwarn] == []  # each would be a line more on stderr


@pytest.mark.parametrize("how", ["pickle", "zip", "old format", "in a state_dict", "in a checkpoint"])
def test_a_pickle_that_runs_a_command_does_not_run_it(how, tiny, tmp_path, recwarn, capsys):
    file, marker = tmp_path / "file", tmp_path / "marker"
    command = Command(marker)
    if how == "pickle":
        file.write_bytes(pickle.dumps(command))
    else:
        content = {"in a state_dict": weights(**{"fc3.bias": command}), "in a checkpoint": {"settings": command}}
        torch.save(content.get(how, command), file, _use_new_zipfile_serialization=how != "old format")
    for flag in ("--load-model", "--checkpoint"):
        status, line = refused(mlp_mnist.main, ["--data-dir", tiny, flag, file], capsys)
        assert status == 1
        assert str(file) in line
    assert not marker.exists()
    assert [str(warning.message) for warning in recwarn] == []
    with contextlib.suppress(TypeError):  # it would run, if it were trusted
        pickle.loads(file.read_bytes()) if how == "pickle" else torch.load(file, weights_only=False)
    assert marker.exists()


@pytest.mark.parametrize(
    "change",
    [
        lambda content: content.pop("history"),
        lambda content: content["state"].pop("order"),
        lambda content: content["state"].update(model=nn.LSTM(3, 4).state_dict()),
        lambda content: content["state"]["model"]["fc3.bias"].fill_(float("nan")),
        lambda content: content["state"].update(random=torch.zeros(9, dtype=torch.uint8)),
    ],
    ids=range(5),
)
def test_a_checkpoint_that_lacks_something_is_refused_and_stays(change, tiny, tmp_path, capsys):
    kept = tmp_path / "c.pt"
    flags = ["--data-dir", str(tiny), "--checkpoint", str(kept)]
    mlp_mnist.main([*flags, "--epochs", "1"])
    content = torch.load(kept, weights_only=True)
    change(content)
    torch.save(content, kept)
    before = kept.read_bytes()
    status, line = refused(mlp_mnist.main, [*flags, "--epochs", "2"], capsys)
    assert status == 1
    assert str(kept) in line
    assert kept.read_bytes() == before


def test_a_checkpoint_of_other_settings_data_or_start(tiny, small, tmp_path, capsys):
    kept, model = tmp_path / "c.pt", tmp_path / "m.pth"
    flags = ["--recipe", "last-hidden", "--data-dir", tiny, "--checkpoint", kept]
    train("last-hidden", tiny, *flags[4:], "--epochs", 1, "--save-model", model)
    before = kept.read_bytes()
    for argv, named in (
        (["--seed", 2], "seed was 1, now 2"),
        (["--lr", 0.002], "lr was 0.001, now 0.002"),
        (["--batch-size", 51], "batch_size was 50, now 51"),
        (["--recipe", "sgd"], "recipe was last-hidden, now sgd"),
        (["--cell", "gru"], "cell was lstm, now gru"),
        (["--data-dir", small], "other images or labels"),
        (["--hold-out", 50], "hold_out was 0, now 50"),
        (["--load-model", model], "load_model was None, now "),
    ):
        status, line = refused(lstm_mnist.main, [*flags, "--epochs", 2, *argv], capsys)
        assert status == 1
        assert str(kept) in line
        assert named in line
    assert kept.read_bytes() == before


def test_a_checkpoint_of_a_machine_with_other_cores_names_the_flag_to_add(tiny, tmp_path, monkeypatch, capsys):
    flags = ["--recipe", "last-hidden", "--data-dir", tiny, "--checkpoint", tmp_path / "c.pt", "--epochs"]
    monkeypatch.setattr(common, "CORES", 2)
    lstm_mnist.main([*flags, 1])
    monkeypatch.setattr(common, "CORES", 3)
    _, line = refused(lstm_mnist.main, [*flags, 2], capsys)
    assert line == f"{tmp_path / 'c.pt'}: parts was 2, now 3; add --parts=2\n"
    _, history = lstm_mnist.main([*flags, 2, "--parts=2"])
    assert len(history) == 2


@pytest.mark.parametrize("recipe", ["mlp", "last-hidden"])
def test_a_run_in_two_goes_ends_as_the_one_in_one(recipe, tiny, tmp_path, capsys):
    torch.save(weights(), tmp_path / "start.pth")
    start = ["--load-model", tmp_path / "start.pth"] if recipe == "mlp" else []

    def go(epochs, *flags):
        train(recipe, tiny, "--epochs", epochs, "--log-interval", 0, *start, *flags)
        out = re.sub(r", Time .*", "", capsys.readouterr().out)
        return re.findall(r"Epoch .*", out), out[out.index("Test Loss") :], out

    model, kept, log = (tmp_path / name for name in ("m.pth", "c.pt", "log.jsonl"))
    files = ["--checkpoint", kept, "--log", log, "--save-model", model]
    lines, end, _ = go(4, "--save-model", tmp_path / "whole.pth")
    first, _, _ = go(2, *files)
    assert not same(model, tmp_path / "whole.pth")
    second, last, out = go(4, *files)
    assert f"{kept}: resuming after epoch 1\n" in out
    assert (first + second, last) == (lines, end)
    assert same(model, tmp_path / "whole.pth")
    before = kept.read_bytes()
    for fewer in (4, 3):
        none, last, out = go(fewer, *files)
        assert f"{kept}: complete, 4 epochs\n" in out
        assert (none, last) == ([], end)
    assert kept.read_bytes() == before
    assert epochs_of(log) == [0, 1, 2, 3]
    assert len({json.loads(line)["run"] for line in log.read_text().splitlines()}) == 1


@pytest.mark.parametrize("cut", [0, 30], ids=["between two lines", "within a line"])
def test_a_log_that_a_kill_left_short_is_completed(cut, tiny, tmp_path, capsys):
    kept, log = tmp_path / "c.pt", tmp_path / "log.jsonl"
    train("mlp", tiny, "--epochs", 3, "--checkpoint", kept, "--log", log)
    lines = log.read_text().splitlines(keepends=True)
    log.write_text("".join(lines[: 3 if cut else 2])[: -cut or None])
    train("mlp", tiny, "--epochs", 4, "--checkpoint", kept, "--log", log)
    assert len(log.read_text().splitlines()) == (5 if cut else 4)
    assert set(lines) < set(log.read_text().splitlines(keepends=True))
    ((records),) = saving.read_log(log)
    assert [r["epoch"] for r in records] == [0, 1, 2, 3]
    assert len(capsys.readouterr().err.splitlines()) == (2 if cut else 0)  # names the line that is none


@pytest.mark.parametrize("kills", [4, pytest.param(100, marks=pytest.mark.slow)])
def test_kill_9_at_any_time_loses_nothing_and_a_second_run_is_refused(kills, tiny, tmp_path, capsys):
    """Half of them while a checkpoint is being written; what is left of that goes, and nothing else."""
    others = [".c.pt.more.1.part", ".d.pt.1.part", "c.pt.1.part"]
    for name in others:
        (tmp_path / name).touch()
    dice, in_write, kept, log = random.Random(1), 0, tmp_path / "c.pt", tmp_path / "log.jsonl"
    flags, files = ["--data-dir", tiny, "--seed", 5], ["--checkpoint", kept, "--log", log]
    for k in range(kills):
        process = Fork("mlp_mnist.py", *flags, *files, "--epochs", 200 * kills)
        while not process.stdout.readline().startswith("Epoch"):
            assert process.returncode is None
        status, line = refused(mlp_mnist.main, [*flags, *files], capsys)
        assert (status, line.startswith(f"{kept}: another run")) == (1, True)
        time.sleep(dice.random() / 10)
        while k % 2 and not list(tmp_path.glob(".c.pt.[0-9]*.part")):
            assert process.process.is_alive()
        process.process.kill()
        process.wait()
        in_write += bool(list(tmp_path.glob(".c.pt.[0-9]*.part")))
    assert in_write > 0
    goal = len(torch.load(kept, weights_only=True)["history"]) + 1
    end = call("mlp_mnist.py", *flags, *files, "--epochs", goal, "--save-model", tmp_path / "killed.pth")
    assert (end.returncode, end.stderr) == (0, "")
    call("mlp_mnist.py", *flags, "--epochs", goal, "--save-model", tmp_path / "whole.pth")
    assert same(tmp_path / "killed.pth", tmp_path / "whole.pth")
    assert epochs_of(log) == list(range(goal))
    left = {file.name for file in tmp_path.iterdir()}
    assert left == {*others, "c.pt", "killed.pth", "log.jsonl", "whole.pth"}


@contextlib.contextmanager
def full_disk(size: int):
    """No file can become larger than this; what is written beyond fails as on a full disk, halfway."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.parametrize(
    ("flag", "room"), [("--save-model", 4000), ("--checkpoint", 4000), ("--log", 0), ("--log", 100)]
)
def test_a_disk_that_fills_up_while_training_leaves_what_was_there(flag, room, tiny, tmp_path, capsys):
    file = tmp_path / "x"
    train("mlp", tiny, "--epochs", 1, flag, file)
    before = file.read_bytes()
    with full_disk(room + len(before) * (flag == "--log")), pytest.raises(SystemExit) as stop:
        train("mlp", tiny, "--epochs", 1 + (flag == "--checkpoint"), flag, file)
    assert str(file) in stop.value.code
    assert len(stop.value.code.splitlines()) == 1
    assert file.read_bytes() == before
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize("flag", ["--save-model", "--checkpoint", "--log"])
def test_a_link_is_written_through_and_a_mode_kept(flag, tiny, tmp_path, capsys):
    target, link = tmp_path / "disk" / "x", tmp_path / "x"
    link.symlink_to(target)
    train("mlp", tiny, "--epochs", 1, flag, link)
    (usual := tmp_path / "usual").touch()
    assert target.stat().st_mode == usual.stat().st_mode
    target.chmod(0o600)
    before = target.read_bytes()
    train("mlp", tiny, "--epochs", 2, flag, link)
    assert link.is_symlink()
    assert stat.S_IMODE(target.stat().st_mode) == 0o600
    assert target.read_bytes() != before
    assert os.listdir(target.parent) == ["x"]


@pytest.mark.parametrize("part", ["train", "test"])
def test_a_loss_that_explodes_ends_in_one_line_and_the_last_good_checkpoint_stays(
    part, tiny, tmp_path, monkeypatch, capsys
):
    files = [tmp_path / name for name in ("c.pth", "log.jsonl")]
    flags = ["--data-dir", tiny, "--checkpoint", files[0], "--log", files[1], "--save-model", tmp_path / "m.pth"]
    status, line = refused(mlp_mnist.main, [*flags, "--lr", "1e38"], capsys)
    assert (status, bool(re.match(r"epoch 0: .*not finite.*--lr", line)), [*tmp_path.iterdir()]) == (1, True, [])
    train("mlp", *flags[1:-2], "--epochs", 1)
    before = [file.read_bytes() for file in files]
    right = getattr(mlp_mnist, part)
    monkeypatch.setattr(mlp_mnist, part, lambda *data: (float("nan"), right(*data)[1]))
    status, line = refused(mlp_mnist.main, [*flags, "--epochs", 3], capsys)
    assert (status, line.startswith("epoch 1: ")) == (1, True)
    assert [file.read_bytes() for file in files] == before


IMAGES, LABELS, TEST_IMAGES, TEST_LABELS = (
    f"{part}-{kind}-ubyte" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1")
)


def edit(change):
    return lambda file: file.write_bytes(change(file.read_bytes()))


def array(*size):
    return lambda file: write_idx(file, torch.zeros(size))


BROKEN = {
    "missing labels": (TEST_LABELS, Path.unlink),
    "empty": (TEST_LABELS, edit(lambda data: b"")),
    "cut short": (TEST_IMAGES, edit(lambda data: data[:-7])),
    "too long": (LABELS, edit(lambda data: data + b"\0")),
    "a text": (LABELS, edit(lambda data: b"seven, two, one, nought\n")),
    "a folder": (LABELS, lambda file: [file.unlink(), file.mkdir()]),
    "images of another size": (IMAGES, array(250, 27, 28)),
    "no images": (IMAGES, array(0, 28, 28)),
    "no labels": (TEST_LABELS, array(0)),
    "another set's labels": (LABELS, lambda file: shutil.copy(file.with_name(TEST_LABELS), file)),
    "an archive cut short": (IMAGES, edit(lambda data: gzip.compress(data)[:-9])),
    "a label 17": (TEST_LABELS, edit(lambda data: data[:20] + bytes([17]) + data[21:])),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_data_file_is_named_and_nothing_is_written_over(name, tiny, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(datasets, "MNIST", None)  # what would download
    raw = shutil.copytree(tiny, tmp_path / "data") / "MNIST" / "raw"
    broken, damage = BROKEN[name]
    damage(raw / broken)
    before = {file: file.read_bytes() for file in raw.iterdir() if file.is_file()}
    status, line = refused(mlp_mnist.main, ["--data-dir", tmp_path / "data"], capsys)
    assert status == 1
    assert str(raw / broken) in line
    assert "; put " in line  # the remedy
    assert {file: file.read_bytes() for file in raw.iterdir() if file.is_file()} == before
