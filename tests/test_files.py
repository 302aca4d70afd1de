"""Files of two runs at once, of other kinds, names and modes; what a checkpoint compares."""

import json
import os
import shutil
import stat
import threading
from concurrent.futures import ThreadPoolExecutor, wait

import pytest
import torch
from conftest import Fork, call
from test_arguments import MAINS, refused
from test_continue import same

import lstm_mnist
import mlp_mnist
from support import files, records

FILES = ["--save-model", "--checkpoint", "--log"]


# two runs at once


def test_a_second_run_on_a_checkpoint_is_refused(small, tmp_path):
    kept, log = tmp_path / "c.pt", tmp_path / "l.jsonl"
    command = ["mlp_mnist.py", "--data-dir", small, "--epochs", 5, "--checkpoint", kept, "--log", log]
    first = Fork(*command)
    assert first.stdout.readline().startswith("mlp: ")
    second = call(*command)
    out, err = first.communicate()
    assert (first.returncode, err) == (0, "")
    assert second.returncode == 1
    assert second.stderr.startswith(f"{kept}: another run is using it")
    assert len(second.stderr.splitlines()) == 1
    assert [json.loads(line)["epoch"] for line in log.read_text().splitlines()] == [0, 1, 2, 3, 4]
    assert sorted(file.name for file in tmp_path.iterdir()) == ["c.pt", "l.jsonl"]
    assert "complete, 5 epochs" in call(*command).stdout


def test_a_lock_dies_with_its_process(small, tmp_path):
    kept = tmp_path / "c.pt"
    command = ["mlp_mnist.py", "--data-dir", small, "--checkpoint", kept]
    first = Fork(*command)
    while not kept.exists():
        assert first.process.is_alive()
    first.process.kill()
    first.wait()
    (tmp_path / ".c.pt.0123abcd.part").write_bytes(b"left by a kill")
    others = [".c.pt.original.part", ".c.pt.other.0123abcd.part"]
    for name in others:
        (tmp_path / name).write_bytes(b"of another file")
    done = len(torch.load(kept, weights_only=True)["history"])
    assert "resuming after epoch" in call(*command, "--epochs", done + 1).stdout
    assert sorted(file.name for file in tmp_path.iterdir()) == [*others, "c.pt"]


def test_many_writers_and_a_reader(tmp_path):
    """Each writes a file of its own size; a reader sees one of them whole, at any moment."""
    file, stop, seen = tmp_path / "m", threading.Event(), []
    file.write_bytes(b"\0" * 5000)

    def write(k):
        for _ in range(25):
            files.write(file, bytes([k]) * (5000 + k))

    def read():
        while not stop.is_set():
            seen.append(file.read_bytes())

    with ThreadPoolExecutor(5) as pool:
        reader, writers = pool.submit(read), [pool.submit(write, k) for k in range(1, 5)]
        wait(writers)
        stop.set()
    for each in (reader, *writers):
        each.result()
    assert len(seen) > 0
    assert all(data == data[:1] * (5000 + data[0]) for data in seen)
    assert list(tmp_path.iterdir()) == [file]


def test_a_cut_last_line_of_a_log_stays_a_line_of_its_own(tmp_path):
    log = tmp_path / "l.jsonl"
    log.write_text('{"epoch": 0}\n{"epo')
    records.append(log, [{"epoch": 1}])
    records.append(log, [{"epoch": 2}])
    assert log.read_text().splitlines() == ['{"epoch": 0}', '{"epo', '{"epoch": 1}', '{"epoch": 2}']


# links, modes, other kinds


@pytest.mark.parametrize("flag", FILES)
def test_a_link_is_written_through_and_a_mode_kept(flag, tiny, tmp_path, capsys):
    (tmp_path / "big").mkdir()
    target, link = tmp_path / "big" / "x", tmp_path / "x"
    link.symlink_to(target)
    flags = ["--data-dir", str(tiny), flag, str(link)]
    mlp_mnist.main([*flags, "--epochs", "1"])
    assert link.is_symlink()
    size = target.stat().st_size
    target.chmod(0o600)
    mlp_mnist.main([*flags, "--epochs", "2"])
    assert link.is_symlink()
    assert stat.S_IMODE(target.stat().st_mode) == 0o600
    assert target.stat().st_size >= size
    assert os.listdir(tmp_path / "big") == ["x"]
    capsys.readouterr()


def test_a_new_file_has_the_usual_mode(tmp_path):
    usual = tmp_path / "usual"
    usual.touch()
    files.write(tmp_path / "new", b"x")
    assert (tmp_path / "new").stat().st_mode == usual.stat().st_mode


@pytest.mark.parametrize("flag", FILES)
def test_devices_pipes_and_loops_are_refused(flag, tiny, tmp_path, capsys):
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "device").symlink_to("/dev/null")
    (tmp_path / "stdout").symlink_to("/proc/self/fd/1")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for name in ("fifo", "device", "loop"):
        status, line = refused(mlp_mnist.main, ["--data-dir", tiny, flag, tmp_path / name], capsys)
        assert status == 1
        assert str(tmp_path / name) in line
    run = call("mlp_mnist.py", "--data-dir", tiny, flag, tmp_path / "stdout")
    assert (run.returncode, len(run.stderr.splitlines())) == (1, 1)
    assert (tmp_path / "stdout").is_symlink()
    assert os.path.lexists("/dev/null")
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)


needs_a_user = pytest.mark.skipif(os.geteuid() == 0, reason="root may read and write everything")


@needs_a_user
def test_a_folder_that_cannot_be_read_will_do(tiny, tmp_path, capsys):
    folder = tmp_path / "f"
    folder.mkdir()
    folder.chmod(0o300)
    mlp_mnist.main(["--data-dir", str(tiny), "--epochs", "1", "--save-model", str(folder / "m.pth")])
    folder.chmod(0o700)
    assert os.listdir(folder) == ["m.pth"]
    capsys.readouterr()


@needs_a_user
def test_a_log_in_a_folder_that_cannot_be_written_will_do(tiny, tmp_path, capsys):
    folder = tmp_path / "f"
    folder.mkdir()
    (folder / "l.jsonl").touch()
    folder.chmod(0o500)
    mlp_mnist.main(["--data-dir", str(tiny), "--epochs", "1", "--log", str(folder / "l.jsonl")])
    folder.chmod(0o700)
    assert len((folder / "l.jsonl").read_text().splitlines()) == 1
    capsys.readouterr()


@needs_a_user
def test_a_folder_that_cannot_be_written_is_found_before_training(tiny, tmp_path, capsys):
    (tmp_path / "f").mkdir(mode=0o500)
    status, line = refused(mlp_mnist.main, ["--data-dir", tiny, "--checkpoint", tmp_path / "f" / "c.pt"], capsys)
    assert status == 1
    assert os.strerror(13) in line


# one file for two purposes


def test_any_two_flags_that_name_one_file_are_refused(tiny, tmp_path, capsys):
    model, folder = tmp_path / "m.pth", tmp_path / "p"
    torch.save(mlp_mnist.Net().state_dict(), model)
    (tmp_path / "link").symlink_to(model)
    (tmp_path / "hard").hardlink_to(model)
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    data = tiny / "MNIST" / "raw" / "t10k-labels-idx1-ubyte"
    before = model.read_bytes(), data.read_bytes()
    for argv in (
        ["--load-model", model, "--log", model],
        ["--load-model", model, "--save-model", tmp_path / "link"],
        ["--load-model", model, "--checkpoint", tmp_path / "hard"],
        ["--load-model", model, "--predict", tmp_path / "loop", folder / "curves.png", "--plot", folder],
        ["--load-model", model, "--predict", folder / "predictions.png", "--plot", folder],
        ["--log", folder / "curves.png", "--plot", folder],
        ["--log", data, "--epochs", "1"],
    ):
        status, line = refused(mlp_mnist.main, ["--data-dir", tiny, *argv], capsys)
        assert status == 2
        assert "both name" in line
    assert (model.read_bytes(), data.read_bytes()) == before


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--save-model", "a", "--plot", "a"], "both name"),
        (["--save-model", "a", "--checkpoint", "a/c.pt"], "--save-model names {a} and --checkpoint a file in it"),
        (["--log", ".c.pt.lock", "--checkpoint", "c.pt"], "both name"),
        (["--log", "a/curves.png/l", "--plot", "a"], "--plot names {a}/curves.png and --log a file in it"),
        (["--log", "a", "--plot", "a/b"], "--log names {a} and --plot a file in it"),
        (["--recipe", "sgd", "last-hidden", "--log", "a/sgd/curves.png", "--plot", "a"], "both name"),
    ],
)
def test_a_folder_for_one_flag_is_not_a_file_for_another(argv, words, tiny, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    status, line = refused(lstm_mnist.main, ["--data-dir", tiny, "--epochs", "1", *argv], capsys)
    assert status == 2
    assert words.format(a="a") in line or words.format(a=tmp_path / "a") in line
    assert list(tmp_path.iterdir()) == []


def test_files_beside_the_data_sets_own_are_not_refused(tiny, tmp_path, capsys):
    """Nor are flags that only read, whatever they name."""
    shutil.copytree(tiny, tmp_path / "d")
    for _ in range(2):
        mlp_mnist.main(["--data-dir", str(tmp_path / "d"), "--epochs", "1", "--log", str(tmp_path / "d/MNIST/raw/log")])
    labels = str(tmp_path / "d/MNIST/raw/t10k-labels-idx1-ubyte")
    status, line = refused(
        mlp_mnist.main, ["--data-dir", tmp_path / "d", "--load-model", labels, "--epochs", "0"], capsys
    )
    assert status == 1
    assert "torch.save" in line


def test_model_and_log_may_lie_beside_the_pictures(tiny, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    files = ["--save-model", "a/m.pth", "--log", "a/l.jsonl", "--plot", "a"]
    mlp_mnist.main(["--data-dir", str(tiny), "--epochs", "1", *files])
    assert {"m.pth", "l.jsonl", "curves.png"} < {file.name for file in (tmp_path / "a").iterdir()}
    capsys.readouterr()


# what a checkpoint compares


def test_a_checkpoint_belongs_to_its_data_and_start(small, tiny, tmp_path, capsys):
    kept, model = tmp_path / "c.pt", tmp_path / "m.pth"
    flags = ["--epochs", "1", "--checkpoint", kept]
    mlp_mnist.main([str(word) for word in ["--data-dir", tiny, *flags, "--save-model", model]])
    before = kept.read_bytes()
    for argv, named in (
        (["--data-dir", small], "data was "),
        (["--data-dir", tiny, "--load-model", model], "load_model was None"),
        (["--data-dir", tiny, "--load-model", model, "--epochs", "0"], "load_model was None"),
        (["--data-dir", tiny, "--compile"], "compile was False, now True"),
        (["--data-dir", tiny, "--optimizer", "Adam"], "optimizer was SGD, now Adam"),
    ):
        status, line = refused(mlp_mnist.main, [*flags, *argv], capsys)
        assert status == 1
        assert str(kept) in line
        assert named in line
    assert kept.read_bytes() == before


def test_a_run_from_a_model_file_resumes_with_the_same_file(tiny, tmp_path, capsys):
    start, kept = tmp_path / "m.pth", tmp_path / "c.pt"
    torch.manual_seed(7)
    torch.save(mlp_mnist.Net().state_dict(), start)
    flags = ["--data-dir", str(tiny), "--load-model", str(start)]
    mlp_mnist.main([*flags, "--epochs", "2", "--save-model", str(tmp_path / "whole")])
    mlp_mnist.main([*flags, "--epochs", "1", "--checkpoint", str(kept)])
    mlp_mnist.main([*flags, "--epochs", "2", "--checkpoint", str(kept), "--save-model", str(tmp_path / "resumed")])
    assert same(tmp_path / "whole", tmp_path / "resumed")
    assert "resuming after epoch 0" in capsys.readouterr().out


def doctor(change):
    def apply(parts):
        parts["optimizer"]["param_groups"][0].update(change)

    return apply


DOCTORED = {
    "uphill": doctor({"maximize": True}),
    "momentum": doctor({"momentum": 0.9}),
    "momentum in words": doctor({"momentum": "x"}),
    "a setting too many": doctor({"more": 1}),
    "a rate that is an integer": doctor({"lr": 0}),
    "parameters in another order": doctor({"params": [1, 0, 2, 3, 4, 5]}),
    "state where there is none": lambda parts: parts["optimizer"]["state"].update({0: {"step": torch.ones(())}}),
    "a tensor as a score": lambda parts: parts["history"][0].update(train_loss=torch.ones(())),
    "tensors as a score": lambda parts: parts["history"][0].update(train_loss=torch.ones(3)),
    "a tensor as an epoch": lambda parts: parts["history"][0].update(epoch=torch.zeros((), dtype=torch.long)),
    "a tensor as the rate": lambda parts: parts["run"].update(lr=torch.tensor(0.01)),
    "tensors as the rate": lambda parts: parts["run"].update(lr=torch.ones(2)),
    "a tensor as the seed of an epoch": lambda parts: parts["history"][0].update(seed=torch.tensor(1)),
    "a number as the run": lambda parts: parts["run"].update(run=5),
    "history that is a number": lambda parts: parts.update(history=3),
    "history that is a dictionary": lambda parts: parts.update(history={0: 1}),
    "a random state of floats": lambda parts: parts.update(random=[s.float() for s in parts["random"]]),
}


@pytest.mark.parametrize("name", DOCTORED)
def test_doctored_checkpoints_in_a_whole_run(name, tiny, tmp_path, capsys):
    kept = tmp_path / "c.pt"
    flags = ["--data-dir", str(tiny), "--checkpoint", str(kept)]
    mlp_mnist.main([*flags, "--epochs", "1"])
    parts = torch.load(kept, weights_only=True)
    DOCTORED[name](parts)
    torch.save(parts, kept)
    before = kept.read_bytes()
    status, line = refused(mlp_mnist.main, [*flags, "--epochs", "2"], capsys)
    assert status == 1
    assert str(kept) in line
    assert kept.read_bytes() == before


def test_the_optimizers_own_groups_pass(tiny, tmp_path):
    """All five, in all their settings: what was just written is what `resume` expects."""
    for name in ("SGD", "Adam", "AdamW", "Adadelta", "RMSprop"):
        for main in MAINS.values():
            kept = tmp_path / f"{name}-{main.__module__}"
            flags = ["--data-dir", str(tiny), "--optimizer", name, "--checkpoint", str(kept)]
            main([*flags, "--epochs", "1"])
            _, history = main([*flags, "--epochs", "2"])
            assert len(history) == 2


# pictures


def test_plots_of_several_recipes_go_into_folders_of_their_own(tiny, tmp_path, capsys):
    lstm_mnist.main(
        ["--recipe", "sgd", "last-hidden", "--data-dir", str(tiny), "--epochs", "1", "--plot", str(tmp_path)]
    )
    assert sorted(folder.name for folder in tmp_path.iterdir()) == ["last-hidden", "sgd"]
    assert all((tmp_path / name / "curves.png").exists() for name in ("last-hidden", "sgd"))
    capsys.readouterr()


@pytest.mark.parametrize("name", files.PICTURES)
def test_a_picture_that_cannot_be_written_is_found_before_training(name, tiny, tmp_path, capsys):
    (tmp_path / name).mkdir()
    status, line = refused(mlp_mnist.main, ["--data-dir", tiny, "--epochs", "1", "--plot", tmp_path], capsys)
    assert status == 1
    assert str(tmp_path / name) in line


def test_a_matplotlib_that_cannot_be_imported_is_found_before_training(tiny, tmp_path):
    run = call("mlp_mnist.py", "--data-dir", tiny, "--plot", tmp_path, env={"MPLBACKEND": "nonsense"})
    assert run.returncode == 1
    assert len(run.stderr.splitlines()) == 1
    assert run.stderr.startswith("--plot: matplotlib cannot be imported")
    assert "Epoch" not in run.stdout
