"""Faults injected: full disks, files from strangers, broken data, losses that explode, pipes and signals."""

import common

import contextlib
import errno
import io
import os
import pickle
import random
import shutil
import signal
import stat
import subprocess
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import filelock
import pytest
import torch
import torch.nn.functional as F
from conftest import Fork, write_idx
from test_arguments import MAINS, refused
from torchvision.datasets import MNIST

import lstm_mnist
import mlp_mnist
from support import checkpoint, files, records

RAW = common.DATA_DIR / "MNIST" / "raw"
FLAGS = ["--save-model", "--checkpoint", "--log", "--plot"]


# --- disks


@pytest.fixture
def mount(tmp_path):
    """A function that mounts something in a new folder, or skips the test where that is not allowed."""
    folders = []

    def mount(*options) -> Path:
        folder = tmp_path / f"mount{len(folders)}"
        folder.mkdir()
        system("mount", *options, folder)
        folders.append(folder)
        return folder

    yield mount
    for folder in folders:
        system("umount", folder)


def system(*command):
    if shutil.which(command[0]) is None:
        pytest.skip(f"there is no {command[0]} here")
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"{command[0]} is not allowed here: {done.stderr.strip()}")


def fill(folder: Path) -> None:
    """Write until the disk is full."""
    with open(folder / "filler", "wb", buffering=0) as file:
        for size in (1 << 16, 1):
            with contextlib.suppress(OSError):
                while file.write(bytes(size)):
                    pass


def flags_of(flag, folder):
    """The flag's words, and the files that it writes."""
    names = ["samples.png", "curves.png", "confusion.png", "mistakes.png"] if flag == "--plot" else ["file"]
    return [flag, folder if flag == "--plot" else folder / "file"], [folder / name for name in names]


@pytest.mark.parametrize("flag", FLAGS)
def test_a_small_disk_is_found_before_training(flag, mount, tiny, capsys):
    disk = mount("-t", "tmpfs", "-o", "size=64k", "tmpfs")
    words, _ = flags_of(flag, disk)
    status, line = refused(mlp_mnist.main, ["--data-dir", tiny, "--epochs", "1", *words], capsys)
    assert status == 1
    assert str(disk) in line
    assert os.strerror(errno.ENOSPC) in line
    assert list(disk.iterdir()) == []


@pytest.mark.parametrize("flag", FLAGS)
def test_a_read_only_disk_is_found_before_training(flag, mount, tiny, capsys):
    disk = mount("-t", "tmpfs", "-o", "size=4m", "tmpfs")
    system("mount", "-o", "remount,ro", disk)
    words, _ = flags_of(flag, disk)
    status, line = refused(mlp_mnist.main, ["--data-dir", tiny, "--epochs", "1", *words], capsys)
    assert status == 1
    assert str(disk) in line
    assert os.strerror(errno.EROFS) in line


@pytest.mark.parametrize("flag", FLAGS)
def test_a_disk_that_fills_up_while_training(flag, mount, tiny, monkeypatch, capsys):
    """Whatever stood there stays, whole; nothing half-written is left beside it."""
    disk = mount("-t", "tmpfs", "-o", "size=2m", "tmpfs")
    words, files = flags_of(flag, disk)
    argv = [str(word) for word in ("--data-dir", tiny, "--epochs", "1", *words)]
    mlp_mnist.main(argv)
    if flag == "--checkpoint":  # the same command would find itself complete
        argv[argv.index("--epochs") + 1] = "2"
    if flag == "--log":  # to the end of a page: the next byte needs another
        files[0].write_bytes(b"\n" * (1 << 16))
    before = {file: file.read_bytes() for file in files}
    capsys.readouterr()
    end_epoch = common.Run.end_epoch
    monkeypatch.setattr(common.Run, "end_epoch", lambda *words: fill(disk) or end_epoch(*words))
    with pytest.raises(SystemExit) as stop:
        mlp_mnist.main([*argv, "--batch-size", "20"])
    assert capsys.readouterr().err == ""
    assert str(disk) in stop.value.code
    assert len(stop.value.code.splitlines()) == 1
    assert {file: file.read_bytes() for file in disk.iterdir() if file.name != "filler"} == before


@pytest.mark.parametrize("call", ["open", "fsync", "replace"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EACCES, errno.EDQUOT])
def test_a_write_that_fails_leaves_the_old_file(call, code, tmp_path, monkeypatch):
    file = tmp_path / "m.pth"
    checkpoint.save(file, {"a": torch.ones(3)})
    before = file.read_bytes()

    def fail(*_):
        raise OSError(code, os.strerror(code))

    if call == "open":
        monkeypatch.setattr(files, "open", fail, raising=False)
    else:
        monkeypatch.setattr(os, call, fail)
    with pytest.raises(SystemExit, match=r"m\.pth: cannot be written") as stop:
        checkpoint.save(file, {"a": torch.zeros(3)})
    assert os.strerror(code) in stop.value.code
    assert file.read_bytes() == before
    assert list(tmp_path.iterdir()) == [file]


def test_a_disk_that_cannot_sync_folders_is_good_enough(tmp_path, monkeypatch):
    """Some network file systems refuse it (EINVAL); the file stands all the same."""
    fsync = os.fsync

    def files_only(number):
        if stat.S_ISDIR(os.fstat(number).st_mode):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        fsync(number)

    monkeypatch.setattr(os, "fsync", files_only)
    checkpoint.save(tmp_path / "m.pth", {"a": torch.ones(3)})
    assert torch.load(tmp_path / "m.pth", weights_only=True)["a"].tolist() == [1, 1, 1]


def test_a_log_is_appended_whole_or_not_at_all(tmp_path, monkeypatch):
    file = tmp_path / "runs.jsonl"
    records.append(file, [{"epoch": 0}])
    write = os.write
    monkeypatch.setattr(os, "write", lambda number, data: write(number, data[:5]))  # a disk with five bytes left
    with pytest.raises(OSError, match="runs.jsonl"):
        records.append(file, [{"epoch": 1}])
    monkeypatch.undo()
    assert file.read_text() == '{"epoch": 0}\n'


# --- files from strangers


def small_model():
    torch.manual_seed(3)
    return lstm_mnist.LastHidden(28, 8, 1, 10)


RUN = dict(script="lstm_mnist.py", recipe="last-hidden", cell="lstm", seed=1, device="cpu", lr=0.01, run="abc")
RUN |= dict(processes=1, parts=1, bf16=False)


def fresh(model=None, seed=1):
    """As much of a `common.Run` as a checkpoint keeps, before its first epoch."""
    model = model or lstm_mnist.LastHidden(28, 8, 1, 10)
    optimizer = common.optimizer(model, SimpleNamespace(optimizer="Adam", lr=0.01))
    loader = SimpleNamespace(generator=torch.Generator().manual_seed(seed))
    run = SimpleNamespace(model=model, optimizer=optimizer, train_loader=loader, settings=RUN, history=[])
    return SimpleNamespace(**vars(run), scheduler=None, average=None, args=SimpleNamespace(epochs=9))


def trained(epochs=2):
    """The same after a few steps."""
    run = fresh(small_model(), seed=9)
    for _ in range(epochs):
        F.cross_entropy(run.model(torch.rand(5, 1, 28, 28)), torch.arange(5)).backward()
        run.optimizer.step()
    scores = dict(train_loss=2.0, train_acc=0.1, valid_loss=2.5, valid_acc=0.2, seconds=1.5)
    run.history = [{**RUN, "epoch": k, **scores} for k in range(epochs)]
    return run


def same(a, b) -> bool:
    """Equal to the last bit, whatever of dicts, lists, tensors and numbers they are made of."""
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and a == b


def copy(state):
    return {name: value.clone() for name, value in state.items()}


def one_line(stop, path):
    line = stop.value.code
    assert isinstance(line, str)
    assert str(path) in line
    assert len(line.splitlines()) == 1, line
    return line


class Command:
    """A pickle that makes a folder when it is loaded."""

    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


def put(content, **how):
    return lambda path: torch.save(content() if callable(content) else content, path, **how)


def changed(name, change):
    """The small model's state_dict with one entry changed."""

    def content():
        state = small_model().state_dict()
        state[name] = change(state[name])
        return state

    return put(content)


def put_checkpoint(path):
    checkpoint.save(path, checkpoint.state(trained()))


def cut(path):
    torch.save(small_model().state_dict(), path)
    path.write_bytes(path.read_bytes()[:-100])


STRANGERS = {
    "empty": lambda path: path.write_bytes(b""),
    "text": lambda path: path.write_text("loss 0.1\nloss 0.2\n"),
    "zeros": lambda path: path.write_bytes(bytes(5000)),
    "noise": lambda path: path.write_bytes(random.Random(1).randbytes(5000)),
    "noise in a zip's clothes": lambda path: path.write_bytes(b"PK\3\4" + random.Random(2).randbytes(5000)),
    "truncated": cut,
    "folder": lambda path: path.mkdir(),
    "the mlp": put(lambda: mlp_mnist.Net().state_dict()),
    "another recipe": put(lambda: lstm_mnist.BatchFirst(28, 8, 1, 10).state_dict()),
    "another cell": put(lambda: lstm_mnist.LastHidden(28, 8, 1, 10, torch.nn.GRU).state_dict()),
    "more layers": put(lambda: lstm_mnist.LastHidden(28, 8, 2, 10).state_dict()),
    "another width": put(lambda: lstm_mnist.LastHidden(28, 9, 1, 10).state_dict()),
    "a list": put([1, 2, 3]),
    "a tensor": put(torch.ones(3)),
    "a number": put(3),
    "none": put(None),
    "an empty dict": put({}),
    "a dict of numbers": put({"rnn.weight_ih_l0": 3}),
    "numbered entries": put({1: torch.ones(1)}),
    "a whole module": put(small_model),
    "wrong shape": changed("out.weight", lambda w: w.T.contiguous()),
    "a scalar": changed("out.bias", lambda b: b[0]),
    "float64": changed("out.weight", torch.Tensor.double),
    "bfloat16": changed("out.weight", torch.Tensor.bfloat16),
    "int32": changed("out.weight", torch.Tensor.int),
    "complex": changed("out.weight", lambda w: w.to(torch.complex64)),
    "sparse": changed("out.weight", torch.Tensor.to_sparse),
    "on no device": changed("out.weight", lambda w: w.to("meta")),
    "a list within": changed("out.bias", torch.Tensor.tolist),
    "nan": changed("out.weight", lambda w: w.index_fill(0, torch.tensor([1]), float("nan"))),
    "inf": changed("rnn.bias_hh_l0", lambda b: b + float("inf")),
}


@pytest.mark.parametrize("name", [*STRANGERS, "a checkpoint"])
def test_model_files_from_strangers(name, tmp_path, recwarn):
    file = tmp_path / "m.pth"
    {**STRANGERS, "a checkpoint": put_checkpoint}[name](file)
    model = small_model()
    before = copy(model.state_dict())
    with pytest.raises(SystemExit) as stop:
        checkpoint.load_model(file, model)
    said = one_line(stop, file)
    assert ("checkpoint" in said) == (name == "a checkpoint")
    assert ". " not in said  # the first sentence of torch's page of advice is enough
    assert ("contains lstm_mnist.LastHidden; only tensors" in said) == (name == "a whole module")
    assert [str(warning.message) for warning in recwarn] == []  # each would be a line more on stderr
    assert same(copy(model.state_dict()), before)


@pytest.mark.parametrize("name", [*STRANGERS, "a model file"])
def test_checkpoints_from_strangers(name, tmp_path, recwarn):
    """A file that is no checkpoint is refused, and above all not written over."""
    file = tmp_path / "c.pth"
    {**STRANGERS, "a model file": put(lambda: small_model().state_dict())}[name](file)
    content = None if file.is_dir() else file.read_bytes()
    run = fresh()
    before = copy(run.model.state_dict())
    with pytest.raises(SystemExit) as stop:
        checkpoint.resume(file, run)
    one_line(stop, file)
    assert [str(warning.message) for warning in recwarn] == []  # each would be a line more on stderr
    assert same(copy(run.model.state_dict()), before)
    assert file.is_dir() or file.read_bytes() == content


def without(mapping, key):
    return {k: v for k, v in mapping.items() if k != key}


def group(change):
    """A change of the optimizer's only group of settings."""

    def apply(parts):
        parts["optimizer"]["param_groups"][0] = change(parts["optimizer"]["param_groups"][0])

    return apply


def momentum(change):
    def apply(parts):
        parts["optimizer"]["state"][0]["exp_avg"] = change(parts["optimizer"]["state"][0]["exp_avg"])

    return apply


DOCTORED = {
    "no model": lambda parts: parts.pop("model"),
    "one part more": lambda parts: parts.update(more=1),
    "a run that is none": lambda parts: parts.update(run=[1]),
    "a run without its device": lambda parts: parts.update(run=without(parts["run"], "device")),
    "a run without its name": lambda parts: parts.update(run=without(parts["run"], "run")),
    "weights of another shape": lambda parts: parts["model"].update({"out.bias": torch.ones(3)}),
    "weights that are nan": lambda parts: parts["model"]["out.bias"].fill_(float("nan")),
    "no optimizer": lambda parts: parts.update(optimizer=None),
    "no learning rate": group(lambda g: without(g, "lr")),
    "another learning rate": group(lambda g: {**g, "lr": 7.0}),
    "a learning rate in words": group(lambda g: {**g, "lr": "high"}),
    "no groups": lambda parts: parts["optimizer"].update(param_groups=[]),
    "momentum of another shape": momentum(lambda m: m[:1]),
    "momentum that is nan": momentum(lambda m: m * float("nan")),
    "momentum in words": momentum(lambda m: "much"),
    "momentum of one parameter missing": lambda parts: parts["optimizer"]["state"].pop(0),
    "no momentum": lambda parts: parts["optimizer"]["state"][0].pop("exp_avg"),
    "momentum that is a list": lambda parts: parts["optimizer"]["state"].update({0: [1]}),
    "no random states": lambda parts: parts.update(random=[]),
    "random states cut short": lambda parts: parts.update(random=[state[:9] for state in parts["random"]]),
    "no epochs": lambda parts: parts.update(history=[]),
    "an epoch missing": lambda parts: parts["history"].pop(0),
    "epochs that are none": lambda parts: parts.update(history=[1, 2]),
    "epochs without scores": lambda parts: parts.update(history=[without(r, "valid_acc") for r in parts["history"]]),
    "epochs without a run": lambda parts: parts.update(history=[without(r, "run") for r in parts["history"]]),
    "a score in words": lambda parts: parts["history"][0].update(valid_acc="good"),
    "a score that is nan": lambda parts: parts["history"][0].update(train_loss=float("nan")),
}


@pytest.mark.parametrize("name", DOCTORED)
def test_doctored_checkpoints(name, tmp_path):
    """Whole zip files with right checksums whose content would go wrong later, in a step, a log or a picture."""
    file = tmp_path / "c.pth"
    put_checkpoint(file)
    parts = torch.load(file, weights_only=True)
    checkpoint.resume(file, fresh())  # as it is, it is taken
    DOCTORED[name](parts)
    torch.save(parts, file)
    content = file.read_bytes()
    run = fresh()
    before = copy(run.model.state_dict())
    with pytest.raises(SystemExit) as stop:
        checkpoint.resume(file, run)
    one_line(stop, file)
    assert same(copy(run.model.state_dict()), before)
    assert file.read_bytes() == content


@pytest.mark.parametrize("how", ["pickle", "zip", "legacy", "in a state_dict", "in a checkpoint"])
def test_a_pickle_that_runs_a_command_does_not_run_it(how, tmp_path, recwarn):
    file, marker = tmp_path / "x.pth", tmp_path / "marker"
    command = Command(marker)
    if how == "pickle":
        file.write_bytes(pickle.dumps(command))
    elif how == "in a state_dict":
        torch.save({**small_model().state_dict(), "out.bias": command}, file)
    elif how == "in a checkpoint":
        torch.save({**dict.fromkeys(checkpoint.PARTS), "run": command}, file)
    else:
        torch.save(command, file, _use_new_zipfile_serialization=how == "zip")
    with pytest.raises(SystemExit) as stop:
        checkpoint.load_model(file, fresh().model)
    one_line(stop, file)
    with pytest.raises(SystemExit) as stop:
        checkpoint.resume(file, fresh())
    one_line(stop, file)
    assert not marker.exists()
    assert [str(warning.message) for warning in recwarn] == []  # each would be a line more on stderr
    if how == "pickle":  # it would run, if it were trusted
        pickle.loads(file.read_bytes())
    else:
        torch.load(file, weights_only=False)
    assert marker.exists()


def test_a_model_file_in_torchs_older_format_loads_with_a_word(tmp_path, capsys):
    file = tmp_path / "m.pth"
    state = copy(small_model().state_dict())
    torch.save(state, file, _use_new_zipfile_serialization=False)
    model = fresh().model
    assert not same(copy(model.state_dict()), state)
    checkpoint.load_model(file, model)
    assert same(copy(model.state_dict()), state)
    err = capsys.readouterr().err
    assert err.startswith(f"{file}: is in torch's old format, without checksums")
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize("script", MAINS)
def test_a_wrong_file_in_a_whole_run(script, tiny, tmp_path, capsys):
    """A model file where a checkpoint is due, and the reverse; both stay as they are."""
    main, model, kept = MAINS[script], tmp_path / "m.pth", tmp_path / "c.pth"
    flags = ["--data-dir", str(tiny), "--epochs", "1"]
    main([*flags, "--save-model", str(model), "--checkpoint", str(kept)])
    before = model.read_bytes(), kept.read_bytes()
    for flag, file in (("--checkpoint", model), ("--load-model", kept)):
        status, line = refused(main, [*flags, flag, file], capsys)
        assert status == 1
        assert str(file) in line
    other = MAINS["mlp" if script == "lstm" else "lstm"]
    for flag, file in (("--checkpoint", kept), ("--load-model", model)):
        status, line = refused(other, [*flags, flag, file], capsys)
        assert status == 1
        assert str(file) in line
    assert (model.read_bytes(), kept.read_bytes()) == before


@pytest.mark.parametrize(
    ("argv", "named"),
    [
        (["--seed", "2"], "seed was 1, now 2"),
        (["--lr", "0.002"], "lr was 0.001, now 0.002"),
        (["--batch-size", "51"], "batch_size was 50, now 51"),
        (["--test-batch-size", "51"], "test_batch_size was 1000, now 51"),
        (["--recipe", "sgd"], "recipe was last-hidden, now sgd"),
        (["--recipe", "batch-first"], "recipe was last-hidden, now batch-first"),
        (["--cell", "gru"], "cell was lstm, now gru"),
        (["--cell", "equations"], "cell was lstm, now equations"),
        (["--bf16"], "bf16 was False, now True"),
        (["--dry-run"], "dry_run was False, now True"),
    ],
)
def test_a_checkpoint_of_other_settings(argv, named, tiny, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(common, "use_bfloat16", lambda *_: None)  # some CPUs would refuse --bf16
    file = tmp_path / "c.pth"
    flags = ["--data-dir", str(tiny), "--recipe", "last-hidden", "--checkpoint", str(file)]
    lstm_mnist.main([*flags, "--epochs", "1"])
    before = file.read_bytes()
    status, line = refused(lstm_mnist.main, [*flags, "--epochs", "2", *argv], capsys)
    assert status == 1
    assert str(file) in line
    assert named in line
    assert file.read_bytes() == before


def damaged(data, seed, kind):
    """The file with one bit to a few bytes changed, or cut short; never the same as before."""
    dice = random.Random(seed)
    wrong = bytearray(data)
    if kind == "rough" and dice.random() < 0.5:
        return bytes(wrong[: dice.randrange(len(wrong))])
    for place in dice.sample(range(len(wrong)), 1 if kind == "flip" else dice.randint(2, 9)):
        wrong[place] ^= dice.randint(1, 255)
    return bytes(wrong)


def attempt(function, *words):
    """The line that it ends in, or None, and what it returns."""
    try:
        return None, function(*words)
    except SystemExit as stop:
        return stop.code, None


@pytest.mark.parametrize("kind", ["flip", "rough"])
def test_fuzzed_model_files_are_refused_or_right(kind, tmp_path):
    file = tmp_path / "m.pth"
    saved = copy(small_model().state_dict())
    checkpoint.save(file, saved)
    data = file.read_bytes()
    model = fresh().model
    blank, refusals = copy(model.state_dict()), 0
    for seed in range(500):
        file.write_bytes(damaged(data, seed, kind))
        model.load_state_dict(blank)
        line, _ = attempt(checkpoint.load_model, file, model)
        assert same(copy(model.state_dict()), blank if line else saved), seed
        if line:
            refusals += 1
            assert str(file) in line, seed
            assert len(line.splitlines()) == 1, seed
    assert refusals > 250


@pytest.mark.parametrize("kind", ["flip", "rough"])
def test_fuzzed_checkpoints_are_refused_or_right(kind, tmp_path):
    file = tmp_path / "c.pth"
    put_checkpoint(file)
    data = file.read_bytes()
    run = trained()
    random_state = torch.load(file, weights_only=True)["random"][0]
    refusals = 0
    for seed in range(500):
        file.write_bytes(damaged(data, seed, kind))
        other = fresh()
        blank = copy(other.model.state_dict())
        line, _ = attempt(checkpoint.resume, file, other)
        if line:
            refusals += 1
            assert str(file) in line, seed
            assert len(line.splitlines()) == 1, seed
            assert same(copy(other.model.state_dict()), blank), seed
        else:
            assert same((other.settings, other.history), (RUN, run.history)), seed
            assert same(copy(other.model.state_dict()), copy(run.model.state_dict())), seed
            assert same(other.optimizer.state_dict(), run.optimizer.state_dict()), seed
            random_states = [loader.generator.get_state() for loader in (other.train_loader, run.train_loader)]
            assert same(*random_states), seed
            assert same(torch.get_rng_state(), random_state), seed
    assert refusals > 250
    assert refusals < 500 or kind == "rough"


# --- data


IMAGES, LABELS, TEST_IMAGES, TEST_LABELS = (archive.removesuffix(".gz") for archive, _ in MNIST.resources)


@pytest.fixture
def offline(monkeypatch):
    """No network; the addresses that were asked for."""
    asked = []

    def refuse(request, *_, **__):
        asked.append(request.full_url)
        raise urllib.error.URLError("no network in this test")

    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    return asked


def archives(root: Path) -> Path:
    """A data folder as a fresh clone has it: the four archives (links to them), nothing unpacked."""
    raw = root / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for archive, _ in MNIST.resources:
        (raw / archive).symlink_to(RAW / archive)
    return root


def contents(root):
    return {p: p.read_bytes() for p in root.rglob("*") if p.is_file() and p.name != ".lock"}


def edit(name, change):
    return lambda raw: (raw / name).write_bytes(change((raw / name).read_bytes()))


def remove(name):
    return lambda raw: (raw / name).unlink()


def label(value):
    return lambda data: data[:20] + bytes([value]) + data[21:]


BROKEN = {
    **{f"{name} missing": (remove(name), name) for name in (IMAGES, LABELS, TEST_IMAGES, TEST_LABELS)},
    **{f"{name} cut": (edit(name, lambda d: d[:-7]), name) for name in (IMAGES, LABELS, TEST_IMAGES, TEST_LABELS)},
    **{f"{name} empty": (edit(name, lambda d: b""), name) for name in (IMAGES, TEST_LABELS)},
    "only a header": (edit(IMAGES, lambda d: d[:9]), IMAGES),
    "too long": (edit(TEST_IMAGES, lambda d: d + b"\0"), TEST_IMAGES),
    "a text": (edit(LABELS, lambda d: b"seven, two, one, nought\n"), LABELS),
    "wrong magic": (edit(IMAGES, lambda d: b"\1\2" + d[2:]), IMAGES),
    "another type": (edit(IMAGES, lambda d: d[:2] + b"\x0d" + d[3:]), IMAGES),
    "sizes that do not fit": (edit(IMAGES, lambda d: d[:4] + b"\0\1\0\0" + d[8:]), IMAGES),
    "sizes of nine figures": (edit(IMAGES, lambda d: d[:4] + b"\x7f\xff\xff\xff" * 3 + d[16:]), IMAGES),
    "sizes with a sign": (edit(IMAGES, lambda d: b"\0\0\x08\2" + b"\xff" * 8 + b"\0"), IMAGES),
    "a folder": (lambda raw: [(raw / LABELS).unlink(), (raw / LABELS).mkdir()], LABELS),
    "pictures of another size": (lambda raw: write_idx(raw / IMAGES, torch.zeros(250, 27, 28)), IMAGES),
    "pictures in rows": (lambda raw: write_idx(raw / IMAGES, torch.zeros(250, 784)), IMAGES),
    "pictures in colour": (lambda raw: write_idx(raw / TEST_IMAGES, torch.zeros(110, 28, 28, 3)), TEST_IMAGES),
    "labels in columns": (lambda raw: write_idx(raw / LABELS, torch.zeros(250, 1)), LABELS),
    "no pictures": (lambda raw: write_idx(raw / IMAGES, torch.zeros(0, 28, 28)), IMAGES),
    "pictures of nothing": (edit(IMAGES, lambda d: d[:16] + bytes(len(d) - 16)), IMAGES),
    "pictures all alike": (edit(TEST_IMAGES, lambda d: d[:16] + d[16:800] * 110), TEST_IMAGES),
    "a label 17": (edit(LABELS, label(17)), LABELS),
    "a test label 255": (edit(TEST_LABELS, label(255)), TEST_LABELS),
    "fewer labels": (lambda raw: write_idx(raw / LABELS, torch.zeros(249)), LABELS),
    "no labels": (lambda raw: write_idx(raw / TEST_LABELS, torch.zeros(0)), TEST_LABELS),
    "the test set's labels": (lambda raw: shutil.copy(raw / TEST_LABELS, raw / LABELS), LABELS),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_files_are_named_and_left_alone(name, tiny, tmp_path, offline, capsys):
    root = shutil.copytree(tiny, tmp_path / "data")
    damage, named = BROKEN[name]
    damage(root / "MNIST" / "raw")
    before = contents(root)
    status, line = refused(mlp_mnist.main, ["--data-dir", root, "--epochs", "1"], capsys)
    assert status == 1
    assert str(root / "MNIST" / "raw" / named) in line
    assert contents(root) == before
    assert offline == []


def test_an_empty_folder_without_a_network(tmp_path, offline, capsys):
    status, line = refused(mlp_mnist.main, ["--data-dir", tmp_path, "--epochs", "1"], capsys)
    assert status == 1
    assert str(tmp_path / "MNIST" / "raw") in line
    assert f"{IMAGES}.gz" in line
    assert offline


@pytest.mark.parametrize("damage", ["cut", "empty", "another"])
@pytest.mark.parametrize("archive", [archive for archive, _ in MNIST.resources])
def test_a_broken_archive_is_named_and_left_alone(archive, damage, tmp_path, offline, capsys):
    raw = archives(tmp_path) / "MNIST" / "raw"
    other = RAW / MNIST.resources[1 if archive.startswith("t10k") else 3][0]
    data = {"cut": (RAW / archive).read_bytes()[:-9], "empty": b"", "another": other.read_bytes()}[damage]
    (raw / archive).unlink()
    (raw / archive).write_bytes(data)
    status, line = refused(mlp_mnist.main, ["--data-dir", tmp_path, "--epochs", "1"], capsys)
    assert status == 1
    assert str(raw / archive) in line
    assert line.endswith(", or remove it to download it") is (damage != "another")
    assert (raw / archive).read_bytes() == data
    assert offline == []


@pytest.mark.parametrize(
    "damage", [remove(IMAGES), edit(IMAGES, lambda d: d[:999]), edit(TEST_LABELS, lambda d: b"")], ids=range(3)
)
def test_what_a_kill_left_half_unpacked_is_read_from_the_archive(damage, tmp_path, offline, digits, unpacked, capsys):
    raw = archives(tmp_path) / "MNIST" / "raw"
    for name in (IMAGES, LABELS, TEST_IMAGES, TEST_LABELS):
        shutil.copy(unpacked / "MNIST" / "raw" / name, raw / name)
    damage(raw)
    before = contents(raw)
    assert same(common.read(tmp_path), digits)
    assert contents(raw) == before
    assert offline == []
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("state", ["whole", "one missing", "one cut"])
def test_images_of_ones_own_are_never_written_over(state, tiny, tmp_path, offline):
    """Nor taken for the official ones where their archives lie beside them: one of the two must go."""
    raw = archives(tmp_path) / "MNIST" / "raw"
    for name in (IMAGES, LABELS, TEST_IMAGES, TEST_LABELS):
        shutil.copy(tiny / "MNIST" / "raw" / name, raw / name)
    if state == "one missing":
        (raw / TEST_LABELS).unlink()
    elif state == "one cut":
        (raw / TEST_LABELS).write_bytes(b"\0\0")
    before = contents(tmp_path)
    with pytest.raises(SystemExit) as stop:
        common.read(tmp_path)
    assert f"differs from {IMAGES}.gz beside it" in one_line(stop, raw / IMAGES)
    assert contents(tmp_path) == before
    for archive, _ in MNIST.resources:
        (raw / archive).unlink()
    if state == "whole":
        assert [len(labels) for _, labels in common.read(tmp_path)] == [250, 110]


@pytest.mark.parametrize(
    "damage", [lambda d: d[:16] + bytes(len(d) - 16), lambda d: d[:99] + b"!" + d[100:]], ids=range(2)
)
def test_an_unpacked_file_that_differs_from_its_archive_is_refused(damage, unpacked, tmp_path):
    raw = archives(tmp_path) / "MNIST" / "raw"
    (raw / TEST_IMAGES).write_bytes(damage((unpacked / "MNIST" / "raw" / TEST_IMAGES).read_bytes()))
    with pytest.raises(SystemExit) as stop:
        common.read(tmp_path)
    assert f"differs from {TEST_IMAGES}.gz beside it" in one_line(stop, raw / TEST_IMAGES)


@pytest.mark.parametrize("code", [errno.EACCES, errno.EROFS, errno.EPERM])
@pytest.mark.parametrize("state", ["unpacked", "packed", "broken", "bare"])
def test_a_folder_that_cannot_be_written(code, state, tiny, tmp_path, offline, monkeypatch, digits):
    def refuse(*_, **__):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(filelock, "FileLock", refuse)
    root = tiny if state == "unpacked" else archives(tmp_path)
    raw = root / "MNIST" / "raw"
    if state in ("broken", "bare"):
        (raw / f"{LABELS}.gz").unlink()
    if state == "broken":
        (raw / f"{LABELS}.gz").write_bytes(b"\x1f\x8b")
    before = contents(root)
    if state in ("broken", "bare"):
        with pytest.raises(SystemExit) as stop:
            common.read(root)
        line = one_line(stop, raw / f"{LABELS}.gz")
        assert state == "broken" or os.strerror(code) in line
    elif state == "packed":
        assert same(common.read(root), digits)
    else:
        assert [len(labels) for _, labels in common.read(root)] == [250, 110]
    assert contents(root) == before
    assert offline == []


@pytest.mark.parametrize("state", ["packed", "half"])
def test_a_folder_mounted_read_only(state, mount, tmp_path, offline, digits):
    root = archives(tmp_path / "data")
    if state == "half":
        (root / "MNIST" / "raw" / IMAGES).write_bytes(bytes(99))
    folder = mount("--bind", root)
    system("mount", "-o", "remount,ro,bind", folder)
    with pytest.raises(OSError, match="Read-only"):
        (folder / "x").touch()
    assert same(common.read(folder), digits)
    assert offline == []


def test_a_disk_too_small_for_the_unpacked_files(mount, offline, digits):
    disk = mount("-t", "tmpfs", "-o", "size=20m", "tmpfs")
    archives(disk)
    assert same(common.read(disk), digits)
    assert offline == []


class Mirror:
    """The archives as a server would give them, and what was asked for."""

    def __init__(self, monkeypatch, change=lambda data: data):
        self.asked = []

        def answer(request, *_, **__):
            name = request.full_url.rsplit("/", 1)[1]
            data = change((RAW / name).read_bytes())
            response = urllib.request.addinfourl(io.BytesIO(data), {}, request.full_url)
            response.length = len(data)
            self.asked += [] if request.get_method() == "HEAD" else [name]
            return response

        monkeypatch.setattr(urllib.request, "urlopen", answer)


@pytest.mark.parametrize("there", [[], [IMAGES, TEST_LABELS]])
def test_missing_archives_are_downloaded(there, tmp_path, monkeypatch, digits):
    raw = archives(tmp_path) / "MNIST" / "raw"
    missing = [name for name in (IMAGES, LABELS, TEST_IMAGES, TEST_LABELS) if name not in there]
    for name in missing:
        (raw / f"{name}.gz").unlink()
    mirror = Mirror(monkeypatch)
    assert same(common.read(tmp_path), digits)
    assert list(dict.fromkeys(mirror.asked)) == [f"{name}.gz" for name in missing]
    asked = len(mirror.asked)
    assert sorted(f.name for f in raw.iterdir() if f.name != ".lock") == sorted(a for a, _ in MNIST.resources)
    assert same(common.read(tmp_path), digits)
    assert len(mirror.asked) == asked


def test_a_damaged_download_is_not_kept(tmp_path, monkeypatch):
    Mirror(monkeypatch, change=lambda data: data[:-1])
    with pytest.raises(SystemExit) as stop:
        common.read(tmp_path)
    one_line(stop, tmp_path / "MNIST" / "raw" / f"{IMAGES}.gz")
    assert not (tmp_path / "MNIST" / "raw" / f"{IMAGES}.gz").exists()


def test_four_first_runs_at_once(tmp_path, digits):
    root = archives(tmp_path)
    with ThreadPoolExecutor(4) as pool:
        assert all(same(sets, digits) for sets in pool.map(lambda _: common.read(root), range(4)))
    assert sorted(file.name for file in (root / "MNIST" / "raw").iterdir()) == sorted(a for a, _ in MNIST.resources)


@pytest.mark.slow
def test_four_first_processes_at_once_twenty_times(tmp_path, capsys):
    mlp_mnist.main(["--dry-run"])
    expected = capsys.readouterr().out.split("Time")[0]
    for k in range(20):
        root = archives(tmp_path / str(k))
        four = [Fork("mlp_mnist.py", "--dry-run", "--data-dir", root) for _ in range(4)]
        ends = [process.communicate() for process in four]
        assert [err for _, err in ends] == [""] * 4
        assert [out.split("Time")[0] for out, _ in ends] == [expected] * 4


# --- numbers


@pytest.mark.parametrize(
    ("script", "argv"),
    [
        ("mlp", ["--lr", "1e30"]),
        ("mlp", ["--lr", "1e38"]),
        ("mlp", ["--lr", "1e30", "--bf16"]),
        ("lstm", ["--recipe", "sgd", "--lr", "1e38"]),
        ("lstm", ["--recipe", "batch-first", "--lr", "1e38"]),
    ],
)
def test_a_loss_that_explodes_ends_in_one_line(script, argv, tiny, tmp_path, capsys):
    files = {"--save-model": tmp_path / "m.pth", "--checkpoint": tmp_path / "c.pth", "--log": tmp_path / "r.jsonl"}
    flags = [word for pair in files.items() for word in pair]
    status, line = refused(MAINS[script], ["--data-dir", tiny, "--epochs", "3", *argv, *flags], capsys)
    assert status == 1
    assert "epoch 0, step " in line
    assert "not finite" in line
    assert "--lr" in line
    assert [file for file in files.values() if file.exists() and file.read_bytes()] == []


@pytest.mark.parametrize("script", MAINS)
@pytest.mark.parametrize("part", ["train", "valid"])
def test_the_last_good_checkpoint_is_kept(script, part, tiny, tmp_path, monkeypatch, capsys):
    kept, log = tmp_path / "c.pth", tmp_path / "r.jsonl"
    flags = ["--data-dir", tiny, "--checkpoint", kept, "--log", log]
    MAINS[script]([str(word) for word in [*flags, "--epochs", "1"]])
    before = kept.read_bytes(), log.read_bytes()
    score, calls = common.score, []

    def explode(seen):
        calls.append(seen)
        loss, accuracy = score(seen)
        return (float("nan") if len(calls) == (1 if part == "train" else 2) else loss), accuracy

    monkeypatch.setattr(common, "score", explode)
    status, line = refused(MAINS[script], [*flags, "--epochs", "3"], capsys)
    assert status == 1
    assert "epoch 1, step " in line
    assert "--lr" in line
    assert (kept.read_bytes(), log.read_bytes()) == before


def test_the_step_named_is_the_first_that_is_not_finite():
    good, bad = torch.zeros(4, 10), torch.full((4, 10), float("nan"))
    label = torch.zeros(4, dtype=torch.long)
    seen = [(output, label) for output in (good, good, bad, good, bad)]
    run = SimpleNamespace(history=[None] * 6, start=0.0, trained=seen, train_loader=seen, score=common.score)
    run.args = SimpleNamespace(lr=0.5, batch_size=4)
    with pytest.raises(SystemExit, match=r"^epoch 6, step 3: .*--lr"):
        common.Run.end_epoch(run, [(good, label)])


# --- signals


@pytest.mark.parametrize(("number", "status", "script"), [("SIGINT", 130, "mlp"), ("SIGTERM", 143, "lstm")])
def test_signals_end_in_one_line_and_the_checkpoint_goes_on(number, status, script, tiny, tmp_path, capsys):
    kept = tmp_path / "c.pth"
    process = Fork(f"{script}_mnist.py", "--epochs", 500, "--data-dir", tiny, "--checkpoint", kept)
    for line in process.stdout:
        if line.startswith("Epoch 0"):  # what is shown is kept
            break
    process.send_signal(getattr(signal, number))
    _, err = process.communicate()
    assert process.returncode == status, err
    assert len(err.splitlines()) == 1, err
    assert str(kept) in err
    assert list(tmp_path.iterdir()) == [kept]
    done = len(torch.load(kept, weights_only=True)["history"])
    MAINS[script](["--data-dir", str(tiny), "--epochs", str(done + 1), "--checkpoint", str(kept)])
    out = capsys.readouterr().out
    assert f"{kept}: resuming after epoch {done - 1}\n" in out
    assert [line.split(".")[0] for line in out.splitlines() if line.startswith("Epoch")] == [f"Epoch {done}"]
