"""Files of a run: damaged, hostile, of other runs, cut short by a full disk or a kill."""

import contextlib
import gzip
import io
import json
import os
import pickle
import random
import re
import shutil
import stat
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import common

import pytest
import torch
from conftest import Fork, call, link, refused, train
from torch import nn
from torchvision import datasets

import lstm_mnist
import mlp_mnist
from support import checkpoints, log
from support.files import replace


def assert_same(a, b):
    """Two files hold the same state_dict, to the last bit."""
    torch.testing.assert_close(torch.load(a), torch.load(b), rtol=0, atol=0)


def epochs_of(path: Path) -> list[int]:
    return [json.loads(line)["epoch"] for line in path.read_text().splitlines()]


def weights(**changes):
    return {**mlp_mnist.Net().state_dict(), **changes}


def saved(content, **options) -> bytes:
    """What `torch.save` writes."""
    buffer = io.BytesIO()
    torch.save(content, buffer, **options)
    return buffer.getvalue()


MODEL = saved(weights())
STRANGERS = {
    "empty": b"",
    "a text": b"weights: 1, 2, 3\n",
    "cut short": MODEL[:-100],
    "a bit wrong": MODEL[:9000] + bytes([MODEL[9000] ^ 4]) + MODEL[9001:],
    "a list": saved([1, 2, 3]),
    "a whole module": saved(mlp_mnist.Net()),
    "two models": saved({"generator": weights(), "discriminator": weights()}),
}


@pytest.mark.parametrize("name", STRANGERS)
@pytest.mark.parametrize("flag", ["--load-model", "--checkpoint"])
def test_a_file_of_another_kind_is_refused_and_stays(flag, name, tiny, tmp_path, recwarn, capsys):
    file = tmp_path / "file"
    file.write_bytes(STRANGERS[name])
    status, line = refused(mlp_mnist.main, ["--data-dir", tiny, flag, file], capsys)
    assert status == 1
    assert re.match(f"{re.escape(str(file))}: .+; (give|name) ", line)  # what, and the remedy
    assert file.read_bytes() == STRANGERS[name]
    assert list(tmp_path.iterdir()) == [file]
    assert [str(warning.message) for warning in recwarn] == []  # each would be a line more


class Command:
    """A pickle that makes a folder when it is loaded."""

    def __reduce__(self):
        return os.mkdir, ("made",)


HOSTILE = {
    "a pickle": pickle.dumps(Command()),
    "the old format": saved(Command(), _use_new_zipfile_serialization=False),
    "in a state_dict": saved(weights(x=Command())),
    "in a checkpoint": saved({"state": {}, "settings": Command(), "history": []}),
}


@pytest.mark.parametrize("how", HOSTILE)
@pytest.mark.parametrize("flag", ["--load-model", "--checkpoint"])
def test_a_pickle_that_runs_a_command_does_not_run_it(
    flag, how, tiny, tmp_path, monkeypatch, recwarn, capsys
):
    monkeypatch.chdir(tmp_path)
    Path("file").write_bytes(HOSTILE[how])
    status, line = refused(mlp_mnist.main, ["--data-dir", tiny, flag, "file"], capsys)
    assert status == 1
    assert line.startswith("file: ")
    assert os.listdir() == ["file"]
    assert [str(warning.message) for warning in recwarn] == []
    with contextlib.suppress(RuntimeError):  # a plain pickle is no file of torch's
        torch.load("file", weights_only=False)
    assert Path("made").exists()  # it would run, if it were trusted


@pytest.mark.parametrize(
    "change",
    [
        lambda content: content.pop("history"),
        lambda content: content["state"].pop("order"),
        lambda content: content["state"].update(model=nn.LSTM(3, 4).state_dict()),
        lambda content: content["state"]["model"]["fc3.bias"].fill_(torch.nan),
        lambda content: content["state"].update(random=torch.zeros(9, dtype=torch.uint8)),
    ],
)
def test_a_checkpoint_that_lacks_something_is_refused_and_stays(change, tiny, tmp_path, capsys):
    kept = tmp_path / "c.pt"
    train("mlp", tiny, "--checkpoint", kept, "--epochs", 1)
    content = torch.load(kept)
    change(content)
    torch.save(content, kept)
    before = kept.read_bytes()
    flags = ["--data-dir", tiny, "--checkpoint", kept, "--epochs", 2]
    status, line = refused(mlp_mnist.main, flags, capsys)
    assert status == 1
    assert str(kept) in line
    assert kept.read_bytes() == before


def test_a_checkpoint_of_other_settings_data_or_start(tiny, small, tmp_path, capsys):
    kept, model = tmp_path / "c.pt", tmp_path / "m.pth"
    train("last-hidden", tiny, "--checkpoint", kept, "--epochs", 1, "--save-model", model)
    flags = ["--recipe", "last-hidden", "--data-dir", tiny, "--checkpoint", kept, "--epochs", 2]
    before = kept.read_bytes()
    for argv, named in (
        (["--seed", 2], "seed was 1, now 2"),
        (["--lr", 0.002], "lr was 0.001, now 0.002"),
        (["--recipe", "sgd"], "recipe was last-hidden, now sgd"),
        (["--cell", "gru"], "cell was lstm, now gru"),
        (["--data-dir", small], "has other images or labels"),
        (["--load-model", model], "load_model was None, now "),
        (["--epochs", 0], "has more epochs (1) than --epochs 0"),
    ):
        status, line = refused(lstm_mnist.main, [*flags, *argv], capsys)
        assert status == 1
        assert line.startswith(f"{kept}: {named}")
    assert kept.read_bytes() == before
    assert sorted(tmp_path.iterdir()) == [kept, model]


def test_a_checkpoint_of_a_machine_with_other_cores_names_the_flag_to_add(
    tiny, tmp_path, monkeypatch, capsys
):
    kept = tmp_path / "c.pt"
    flags = ["--recipe", "last-hidden", "--data-dir", tiny, "--checkpoint", kept, "--epochs"]
    monkeypatch.setattr(common, "CORES", 2)
    lstm_mnist.main([*flags, 1])
    monkeypatch.setattr(common, "CORES", 3)
    _, line = refused(lstm_mnist.main, [*flags, 2], capsys)
    assert line == f"{kept}: parts was 2, now 3; add --parts=2\n"
    _, history = lstm_mnist.main([*flags, 2, "--parts=2"])
    assert len(history) == 2


@pytest.mark.parametrize(
    ("recipe", "start"), [("mlp", ["--load-model", "start.pth"]), ("last-hidden", [])]
)
def test_a_run_in_two_goes_ends_as_the_one_in_one(
    recipe, start, tiny, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    torch.save(weights(), "start.pth")

    def go(epochs, *flags):
        train(recipe, tiny, "--epochs", epochs, *start, *flags)
        out = capsys.readouterr().out
        return re.findall(r"Epoch .*Valid Acc: \S+", out), out

    files = ["--checkpoint", "c.pt", "--log", "log.jsonl", "--save-model", "m.pth"]
    whole, _ = go(4, "--save-model", "whole.pth")
    first, _ = go(2, *files)
    second, out = go(4, *files)
    assert "c.pt: resuming after epoch 1\n" in out
    assert first + second == whole
    assert_same("m.pth", "whole.pth")
    before = Path("c.pt").read_bytes()
    third, out = go(4, *files)
    assert "c.pt: complete after epoch 3\n" in out
    assert third == []
    assert_same("m.pth", "whole.pth")
    assert Path("c.pt").read_bytes() == before
    assert epochs_of(Path("log.jsonl")) == [0, 1, 2, 3]
    assert len(log.read(Path("log.jsonl"))) == 1


def test_what_is_no_number_string_or_truth_value_is_no_setting(tiny, tmp_path, monkeypatch):
    """A function in a recipe, or a path among a script's flags, once could not be saved."""
    monkeypatch.setitem(mlp_mnist.RECIPE, "activation", torch.relu)
    parser = mlp_mnist.flags()
    parser.add_argument("--notes", type=Path)
    monkeypatch.setattr(mlp_mnist, "flags", lambda: parser)
    model, records = tmp_path / "m.pth", tmp_path / "log.jsonl"
    flags = ["--notes", "x", "--save-model", model, "--log", records]
    flags += ["--checkpoint", tmp_path / "c.pt", "--epochs"]
    train("mlp", tiny, *flags, 1)
    _, history = train("mlp", tiny, *flags, 2)
    assert {"lr", "activation", "notes"} & history[0].keys() == {"lr"}
    assert epochs_of(records) == [0, 1]
    train("mlp", tiny, "--load-model", model, "--epochs", 0)


def test_infinite_moments_of_an_optimizer_do_not_keep_a_run_from_its_checkpoint(tiny, tmp_path):
    """Adam goes on with them; the line of a loss that is not finite comes when the loss is not."""
    flags = ["--optimizer", "Adam", "--lr", 3e9, "--checkpoint", tmp_path / "c.pt", "--epochs"]
    train("mlp", tiny, *flags, 1)
    moments = torch.load(tmp_path / "c.pt")["state"]["optimizer"]["state"][0]
    assert moments["exp_avg_sq"].isinf().any()
    _, history = train("mlp", tiny, *flags, 2)
    assert len(history) == 2


def test_an_accelerators_random_numbers_are_in_the_checkpoint(monkeypatch):
    """As those of a model with dropout; torch.cuda is imitated."""
    received = []

    def set_rng_state(state, device):
        received.append((state, device))

    device = torch.device("cuda:1")
    cuda = SimpleNamespace(get_rng_state=lambda device: device.index, set_rng_state=set_rng_state)
    monkeypatch.setattr(torch, "get_device_module", lambda _: cuda)
    run = SimpleNamespace(args=SimpleNamespace(device=device), states={})
    checkpoints.restore(run, checkpoints.snapshot(run))
    assert received == [(1, device)]


def test_a_lock_that_cannot_be_removed_while_it_is_open_is_no_error(tiny, tmp_path, monkeypatch):
    """As on Windows."""
    unlink = Path.unlink

    def as_on_windows(path, missing_ok=False):
        if path.suffix == ".lock":
            raise PermissionError
        unlink(path, missing_ok)

    monkeypatch.setattr(Path, "unlink", as_on_windows)
    _, history = train("mlp", tiny, "--epochs", 1, "--checkpoint", tmp_path / "c.pt")
    assert len(history) == 1


@pytest.mark.parametrize(("whole", "cut"), [(2, 0), (3, 30)])
def test_a_log_that_a_kill_left_short_is_completed(whole, cut, tiny, tmp_path, capsys):
    """Between two lines, or within one."""
    kept, path = tmp_path / "c.pt", tmp_path / "log.jsonl"
    train("mlp", tiny, "--epochs", 3, "--checkpoint", kept, "--log", path)
    before = path.read_text().splitlines(keepends=True)
    text = "".join(before[:whole])
    path.write_text(text[: len(text) - cut])
    train("mlp", tiny, "--epochs", 4, "--checkpoint", kept, "--log", path)
    assert set(before) < set(path.read_text().splitlines(keepends=True))
    (records,) = log.read(path)
    assert [record["epoch"] for record in records] == [0, 1, 2, 3]


def parts_in(folder: Path) -> list[Path]:
    """Files that a kill has left while they were being written."""
    return list(folder.glob(".*.part"))


@pytest.mark.parametrize("kills", [4, pytest.param(100, marks=pytest.mark.slow)])
def test_kill_9_at_any_time_loses_nothing_and_a_second_run_is_refused(
    kills, tiny, tmp_path, capsys
):
    """Half of them while a checkpoint is being written."""
    dice = random.Random(1)
    kept, records = tmp_path / "c.pt", tmp_path / "log.jsonl"
    flags = ["--data-dir", tiny, "--seed", 5]
    files = ["--checkpoint", kept, "--log", records]
    for k in range(kills):
        before = parts_in(tmp_path)
        process = Fork("mlp_mnist.py", *flags, *files, "--epochs", 200 * kills)
        while not process.stdout.readline().startswith("Epoch"):
            assert process.returncode is None
        status, line = refused(mlp_mnist.main, [*flags, *files], capsys)
        assert status == 1
        assert line.startswith(f"{kept}: another run is using it")
        time.sleep(dice.random() / 10)
        if k % 2:
            while parts_in(tmp_path) == before:
                assert process.poll() is None
        process.kill()
        process.wait()
    assert parts_in(tmp_path) != []
    goal = len(torch.load(kept)["history"]) + 1
    flags += ["--epochs", goal, "--save-model"]
    end = call("mlp_mnist.py", *flags, tmp_path / "killed.pth", *files)
    assert (end.returncode, end.stderr) == (0, "")
    call("mlp_mnist.py", *flags, tmp_path / "whole.pth")
    assert_same(tmp_path / "killed.pth", tmp_path / "whole.pth")
    assert epochs_of(records) == list(range(goal))


@contextlib.contextmanager
def full_disk(size: int):
    """No file can become larger than this; what is written beyond fails as on a full disk."""
    resource = pytest.importorskip("resource")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_log_on_a_full_disk_keeps_its_lines_and_the_next_begins_anew(tiny, tmp_path, capsys):
    file = tmp_path / "x"
    train("mlp", tiny, "--epochs", 1, "--log", file)
    before = file.read_bytes()
    one_line = r"x: cannot be written .+\Z"
    with full_disk(len(before) + 100), pytest.raises(SystemExit, match=one_line):
        train("mlp", tiny, "--epochs", 1, "--log", file)
    assert file.read_bytes().startswith(before)
    train("mlp", tiny, "--epochs", 1, "--log", file)
    assert len(log.read(file)) == 2


@pytest.mark.parametrize("flag", ["--save-model", "--checkpoint"])
def test_a_disk_that_fills_up_while_training_leaves_what_was_there(flag, tiny, tmp_path, capsys):
    file = tmp_path / "x"
    train("mlp", tiny, "--epochs", 1, flag, file)
    before = file.read_bytes()
    one_line = r"x: cannot be written .+\Z"
    with full_disk(len(before) - 4000), pytest.raises(SystemExit, match=one_line):
        train("mlp", tiny, "--epochs", 2, flag, file)
    assert file.read_bytes() == before
    assert list(tmp_path.iterdir()) == [file]


def test_on_windows_a_rename_waits_for_a_virus_scanner(tmp_path, monkeypatch):
    """It holds a new file for a moment, in which a rename is refused."""
    new, target = tmp_path / "new", tmp_path / "target"
    new.write_text("new")
    target.write_text("old")
    rename, refusals = os.replace, [PermissionError(), PermissionError()]

    def scanned(*paths):
        if refusals:
            raise refusals.pop()
        rename(*paths)

    monkeypatch.setattr(os, "replace", scanned)
    monkeypatch.setattr(sys, "platform", "win32")
    replace(new, target)
    assert target.read_text() == "new"


@pytest.mark.parametrize("flag", ["--save-model", "--checkpoint", "--log"])
def test_a_link_is_written_through_and_a_mode_kept(flag, tiny, tmp_path):
    target, file = tmp_path / "disk" / "x", tmp_path / "x"
    link(file, target)
    train("mlp", tiny, "--epochs", 1, flag, file)
    usual = tmp_path / "usual"
    usual.touch()
    assert target.stat().st_mode == usual.stat().st_mode
    target.chmod(0o600)
    before = target.read_bytes()
    train("mlp", tiny, "--epochs", 2, flag, file)
    assert file.is_symlink()
    assert stat.S_IMODE(target.stat().st_mode) == 0o600
    assert target.read_bytes() != before
    assert os.listdir(target.parent) == ["x"]


def test_a_loss_that_explodes_is_one_line_and_leaves_nothing(tiny, tmp_path, capsys):
    flags = ["--data-dir", tiny, "--save-model", tmp_path / "m.pth", "--lr", 1e38]
    flags += ["--checkpoint", tmp_path / "c.pt", "--log", tmp_path / "log.jsonl"]
    status, line = refused(mlp_mnist.main, flags, capsys)
    assert status == 1
    assert line == "epoch 0: the loss is not finite; lower --lr (it is 1e+38)\n"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("part", ["train", "test"])
def test_the_last_good_checkpoint_stays(part, tiny, tmp_path, monkeypatch, capsys):
    files = [tmp_path / name for name in ("c.pt", "log.jsonl")]
    flags = ["--checkpoint", files[0], "--log", files[1], "--epochs"]
    train("mlp", tiny, *flags, 1)
    before = [file.read_bytes() for file in files]
    monkeypatch.setattr(mlp_mnist, part, lambda *_: (torch.inf, 0.1))
    _, line = refused(mlp_mnist.main, ["--data-dir", tiny, *flags, 3], capsys)
    assert line.startswith("epoch 1: ")
    assert [file.read_bytes() for file in files] == before


BROKEN = {
    "empty": lambda data: b"",
    "cut short": lambda data: data[:-7],
    "too long": lambda data: data + b"\0",
    "a text": lambda data: b"seven, two, one, nought\n",
    "of nothing": lambda data: data[:4] + bytes(4 * data[3]),
    "an archive cut short": lambda data: gzip.compress(data)[:-9],
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_data_file_is_named_and_stays(name, tiny, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(datasets, "MNIST", None)  # what would download
    shutil.copytree(tiny, tmp_path, dirs_exist_ok=True)
    file = tmp_path / "MNIST" / "raw" / "train-labels-idx1-ubyte"
    broken = BROKEN[name](file.read_bytes())
    file.write_bytes(broken)
    status, line = refused(mlp_mnist.main, ["--data-dir", tmp_path], capsys)
    assert status == 1
    assert line.startswith(f"{file}: ")
    assert line.endswith("; put the set's own file there\n")
    assert file.read_bytes() == broken
