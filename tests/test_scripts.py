"""The scripts as a user calls them: what they print, log and save."""

import contextlib
import fcntl
import json
import os
import pty
import re
import struct
import subprocess
import sys
import termios

import common

import pytest
import torch
from conftest import ROOT, TUTORIALS, Fork, call, has_bf16_lstm, train
from torchvision import transforms
from torchvision.datasets import MNIST

import lstm_mnist
import mlp_mnist
import modern_mnist

LINES = {  # what each recipe prints in its first epoch above the line per epoch, with N for a number
    "batch-first": [
        "epoch 1",
        "*" * 10,
        "[1/2] Loss: N, Acc: N",
        "Finish 1 epoch, Loss: N, Acc: N",
        "Test Loss: N, Acc: N",
    ],
    "sgd": [],
    "last-hidden": ["0-1: accuracy:N", "0-3: accuracy:N"],
    "time-major": [],
    "mlp": ["epoch:1 Training loss:N"],
    "modern": [],
}
PER_EPOCH = "Epoch {}. Train Loss: N, Train Acc: N, Valid Loss: N, Valid Acc: N, Time 00:00:00"


def untimed(text):
    """The lines of an output without what the clock decides."""
    return [re.sub(r", Time .*", "", line) for line in text.splitlines()]


@pytest.mark.parametrize(("recipe", "least"), [("mlp", 0.6), ("batch-first", 0.4), ("last-hidden", 0.4)])
def test_it_learns(recipe, least, tiny, capsys):
    """From 250 images, to an accuracy that only a program that learns reaches."""
    smaller = [] if recipe == "mlp" else ["--hidden", 32]
    _, history = train(recipe, tiny, "--optimizer", "Adam", "--lr", 0.01, "--epochs", 12, *smaller)
    assert [record["epoch"] for record in history] == list(range(12))
    assert history[-1]["train_loss"] < 1.5 < history[0]["train_loss"]
    assert history[-1]["train_acc"] > 0.5 > history[0]["train_acc"]
    assert history[-1]["valid_acc"] > least


@pytest.mark.parametrize("recipe", LINES)
def test_each_recipe_prints_its_tutorials_lines_in_their_order(recipe, tiny, capsys):
    flags = ["--log-interval", 2] if recipe in ("batch-first", "last-hidden") else []
    _, history = train(recipe, tiny, "--epochs", 2, *flags)
    out, err = capsys.readouterr()
    assert err == ""
    if recipe == "mlp":  # its tutorial prints the model before anything else
        assert f"\n{mlp_mnist.Net()}\n" in out
        out = out.replace(f"{mlp_mnist.Net()}\n", "")
    how = r"(\w+ )+lr [\d.]+, batch \d+( in \d+ parts)?, 2 epochs, cpu, seed 1, 250 \+ 110 images of .*MNIST"
    assert re.fullmatch(rf"{recipe}: \w+( lstm)?, [\d,]+ parameters, {how}", out.splitlines()[0])
    lines = [re.sub(r"\d+\.\d+", "N", line) for line in out.splitlines()]
    end = lines.index(PER_EPOCH.format(0))
    assert lines[1:end] == LINES[recipe]
    assert lines.index(PER_EPOCH.format(1)) == 2 * end  # as many lines again
    assert lines[2 * end + 1 : 2 * end + 3] == ["Test Loss: N", ""]
    digits = [rf"The test accuracy of  {k} is : +\d+% \( ?\d+/ ?\d+\)\n" for k in range(10)]
    assert re.search("".join(digits) + r"\nTest Accuracy \(Overall\): \d+\.\d\d% \(\d+/110\)\n$", out)
    scores = {name: f"{value:.6f}" for name, value in history[0].items() if name[:5] in ("train", "valid")}
    if recipe == "mlp":
        assert f"epoch:1 Training loss:{scores['train_loss']}\n" in out
    if recipe == "batch-first":
        assert "Finish 1 epoch, Loss: {train_loss}, Acc: {train_acc}\n".format(**scores) in out
        assert "Test Loss: {valid_loss}, Acc: {valid_acc}\n".format(**scores) in out


def test_running_line_is_of_the_images_so_far(tiny, capsys):
    """At the end of an epoch it equals the epoch's own figures."""
    _, (record,) = train("batch-first", tiny, "--epochs", 1, "--log-interval", 1)
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("[1/1]")]
    assert lines[-1] == f"[1/1] Loss: {record['train_loss']:.6f}, Acc: {record['train_acc']:.6f}"
    assert len(set(lines)) == 3


def test_running_line_of_last_hidden_is_of_the_first_test_batch(tiny, capsys):
    flags = ["--epochs", 1, "--log-interval", 5, "--test-batch-size", 40, "--lr", 0.01]
    model, (record,) = train("last-hidden", tiny, *flags)
    images, labels = common.read(tiny)[1]
    answers = model(common.to_float(images[:40])).argmax(1)
    assert f"\n0-4: accuracy:{(answers == labels[:40]).sum().item() / 40}\n" in capsys.readouterr().out


def test_dry_run_on_the_committed_data_from_another_folder(tmp_path):
    end = call("lstm_mnist.py", "--dry-run", cwd=tmp_path)
    assert (end.returncode, end.stderr) == (0, "")
    assert len(re.findall("^Epoch", end.stdout, re.MULTILINE)) == 1
    assert end.stdout.endswith("/100)\n")  # one batch
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("recipe", ["mlp", "last-hidden", "modern"])
def test_seed_decides_weights_and_order(recipe, tiny, tmp_path, capsys):
    network = ["--hidden", 8, "--layers", 1, "--lines", 4] if recipe == "modern" else []
    for flags in (["--epochs", 0, "--save-model"], ["--epochs", 1, "--load-model"]):
        outputs = []
        for seed in (7, 7, 8):
            train(recipe, tiny, *network, "--seed", seed, *flags, tmp_path / "m.pth")
            outputs.append(untimed(capsys.readouterr().out)[1:])
        assert outputs[0] == outputs[1] != outputs[2]


@pytest.mark.parametrize("recipe", TUTORIALS)
def test_saved_model_scores_the_same_here_and_in_the_tutorials_class(recipe, tiny, tmp_path, capsys):
    file = tmp_path / "rnn.pth"
    train(recipe, tiny, "--epochs", 1, "--save-model", file)
    trained = capsys.readouterr().out
    train(recipe, tiny, "--epochs", 0, "--load-model", file)
    end = trained[trained.rindex("Test Loss") :]
    assert capsys.readouterr().out.endswith(end)
    theirs = TUTORIALS[recipe]()
    theirs.load_state_dict(torch.load(file, weights_only=True), strict=True)
    steps = [transforms.ToTensor()] + [transforms.Normalize([0.5], [0.5])] * (recipe in ("sgd", "time-major"))
    images, labels = zip(*MNIST(tiny, train=False, transform=transforms.Compose(steps)))
    right = (theirs(torch.stack(images)).argmax(1) == torch.tensor(labels)).sum().item()
    assert f"({right}/110)" in end


@pytest.mark.parametrize("cell", ["gru", "rnn", "equations"])
def test_cells_train_save_and_load(cell, tiny, tmp_path, capsys):
    flags = ["--cell", cell, "--hidden", 16]
    _, history = train("last-hidden", tiny, *flags, "--epochs", 3, "--lr", 0.01, "--save-model", tmp_path / "m.pth")
    trained = capsys.readouterr().out
    assert f"LastHidden {cell}, " in trained
    assert history[2]["train_loss"] < history[0]["train_loss"]
    train("last-hidden", tiny, *flags, "--epochs", 0, "--load-model", tmp_path / "m.pth")
    assert capsys.readouterr().out.endswith(trained[trained.index("Test Loss") :])


def test_log_and_model_file_are_what_main_returns(tiny, tmp_path, capsys):
    log, file = tmp_path / "log.jsonl", tmp_path / "m.pth"
    flags = ["--epochs", 2, "--log", log, "--save-model", file, "--hidden", 7, "--layers", 3]
    results = [train("last-hidden", tiny, *flags) for _ in range(2)]
    records = [json.loads(line) for line in log.read_text().splitlines()]
    assert records == results[0][1] + results[1][1]
    assert [r["epoch"] for r in records] == [0, 1, 0, 1]
    assert len({r["run"] for r in records}) == 2
    settings = dict(script="lstm_mnist.py", recipe="last-hidden", cell="lstm", hidden=7, layers=3, seed=1, device="cpu")
    settings |= dict(optimizer="Adam", lr=0.001, batch_size=50, dataset="mnist", hold_out=0, bf16=False)
    assert all(settings.items() <= r.items() for r in records)
    lines = re.findall(r"Valid Loss: ([\d.]+), Valid Acc: ([\d.]+)", capsys.readouterr().out)
    assert lines == [(f"{r['valid_loss']:.6f}", f"{r['valid_acc']:.6f}") for r in records]
    assert all(0 < r["seconds"] < 60 and 0 <= r["train_acc"] <= 1 and r["train_loss"] > 0 for r in records)
    model, _ = results[1]
    assert (model.rnn.hidden_size, model.rnn.num_layers, model.out.in_features) == (7, 3, 7)
    saved = torch.load(file, weights_only=True)
    assert all(torch.equal(value, saved.pop(name)) for name, value in model.state_dict().items())
    assert saved == {}


@pytest.mark.parametrize("recipe", ["mlp", "last-hidden"])
def test_bf16_trains_otherwise_and_about_as_well(recipe, tiny, tmp_path, capsys):
    if recipe != "mlp" and not has_bf16_lstm():
        pytest.skip("this CPU has no LSTM in bfloat16")
    file, losses = tmp_path / "m.pth", []
    for flag in ("--no-bf16", "--bf16"):
        _, history = train(recipe, tiny, "--epochs", 4, "--lr", 0.01, "--save-model", file, flag)
        losses.append(history[-1]["train_loss"])
        assert history[0]["bf16"] is (flag == "--bf16")
    assert losses[0] != losses[1]
    assert losses[0] == pytest.approx(losses[1], rel=0.05)
    assert {value.dtype for value in torch.load(file, weights_only=True).values()} == {torch.float32}


def test_a_terminal_has_a_bar_and_a_pipe_the_results_alone(tiny):
    command = ["lstm_mnist.py", "--data-dir", tiny, "--epochs", 2, "--log-interval", 2]
    terminal, end = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("4H", 24, 80, 0, 0))
    process, shown = Fork(*command, stderr=end), b""
    with contextlib.suppress(OSError):  # when the process has closed its end
        while part := os.read(terminal, 1000):
            shown += part
    os.close(terminal)
    out, _ = process.communicate()
    assert b"Epoch 0:   0%" in shown
    assert b"Epoch 1:   0%" in shown
    assert re.search(rb"\r +\r+$", shown)  # removed at the end
    piped = call(*command)
    assert (process.returncode, piped.returncode, piped.stderr) == (0, 0, "")
    assert untimed(out) == untimed(piped.stdout)


@pytest.mark.parametrize("optimizer", common.OPTIMIZERS)
def test_any_optimizer_trains_at_the_rate_given_and_resumes(optimizer, tiny, tmp_path, capsys):
    flags = [tiny, "--optimizer", optimizer, "--lr", 0.01, "--checkpoint", tmp_path / "c.pt"]
    train("mlp", *flags, "--epochs", 1)
    _, resumed = train("mlp", *flags, "--epochs", 3)
    assert capsys.readouterr().out.count(f", {optimizer} lr 0.01, ") == 2
    _, whole = train("mlp", *flags[:-2], "--epochs", 3)
    assert [r["train_loss"] for r in whole] == [r["train_loss"] for r in resumed]
    assert {(r["optimizer"], r["lr"]) for r in whole} == {(optimizer, 0.01)}
    assert whole[2]["train_loss"] < whole[0]["train_loss"]


def test_every_entry_of_a_recipe_has_a_flag(capsys):
    own = {"recipe", "model", "opening", "running", "closing", "parts"}  # what makes it that tutorial's; mlp has one
    modern = [modern_mnist.RECIPE, *modern_mnist.LENGTHS.values()]
    recipes = {mlp_mnist: [mlp_mnist.RECIPE], lstm_mnist: lstm_mnist.RECIPES.values(), modern_mnist: modern}
    for script, tables in recipes.items():
        with pytest.raises(SystemExit):
            script.main(["--help"])
        flags = set(re.findall(r"--([a-z0-9-]+)", capsys.readouterr().out))
        assert {name.replace("_", "-") for table in tables for name in {*table} - own} <= flags


def test_code_is_formatted_and_linted():
    for command in (["check"], ["format", "--check"]):
        ruff = subprocess.run([sys.executable, "-m", "ruff", *command, "."], cwd=ROOT, capture_output=True, text=True)
        assert ruff.returncode == 0, ruff.stdout + ruff.stderr
