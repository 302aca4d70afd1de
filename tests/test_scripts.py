"""The scripts as a user calls them: what they print, log and save."""

import json
import re
import subprocess
import sys

import common

import pytest
import torch
from conftest import ROOT, TUTORIALS, call, has_bf16_lstm, train, untimed
from torchvision import transforms
from torchvision.datasets import MNIST

import mlp_mnist

SCORES = "Loss: N, Acc: N"
LINES = {  # what each recipe prints in its first epoch above the line per epoch, with N for a number
    "batch-first": ["epoch 1", "*" * 10, *3 * [f"[1/2] {SCORES}"], f"Finish 1 epoch, {SCORES}", f"Test {SCORES}"],
    "last-hidden": ["0-1: accuracy:N", "0-3: accuracy:N"],
    "mlp": ["epoch:1 Training loss:N"],
    **{name: [] for name in ("sgd", "time-major", "modern")},
}
PER_EPOCH = "Epoch {}. Train Loss: N, Train Acc: N, Valid Loss: N, Valid Acc: N, Time 00:00:00"
LEARNERS = [("mlp", ""), *[("last-hidden", cell) for cell in ("gru", "rnn", "equations")], ("time-major", "lstm")]


@pytest.mark.parametrize(("recipe", "cell"), LEARNERS)
def test_it_learns(recipe, cell, tiny, capsys):
    """From 250 images, to an accuracy that only a program that learns reaches."""
    flags = ["--optimizer", "Adam", "--lr", 0.005, "--batch-size", 25, "--epochs", 20]
    _, history = train(recipe, tiny, *flags, *(["--cell", cell, "--hidden", 32] if cell else []))
    assert re.match(rf"{recipe}: \w+ ?{cell}, ", capsys.readouterr().out)
    assert [record["epoch"] for record in history] == list(range(20))
    assert history[-1]["train_loss"] < 1.5 < history[0]["train_loss"]
    assert history[-1]["train_acc"] > 0.5 > history[0]["train_acc"]
    assert history[-1]["valid_acc"] > (0.6 if recipe == "mlp" else 0.4)


@pytest.mark.parametrize("recipe", LINES)
def test_each_recipe_prints_its_tutorials_lines_in_their_order(recipe, tiny, capsys):
    flags = {
        "batch-first": ["--log-interval", 1],
        "last-hidden": ["--log-interval", 2, "--batch-size", 63, "--test-batch-size", 40, "--lr", 0.01],
    }
    model, history = train(recipe, tiny, "--epochs", 2, *flags.get(recipe, []))
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
        running = re.findall(r"\[1/2\] .*", out)  # of the images so far: at the end of an epoch its own figures
        assert running[-1] == "[1/2] Loss: {train_loss}, Acc: {train_acc}".format(**scores)
        assert len(set(running)) == 3
    if recipe == "last-hidden":  # the running line is of the first test batch
        images, labels = common.read(tiny)[1]
        answers = model(common.to_float(images[:40])).argmax(1)
        assert f"\n1-3: accuracy:{(answers == labels[:40]).sum().item() / 40}\n" in out


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
            outputs.append(untimed(capsys.readouterr().out).splitlines()[1:])
        assert outputs[0] == outputs[1] != outputs[2]


@pytest.mark.parametrize("recipe", TUTORIALS)
def test_a_saved_model_scores_the_same_in_the_tutorials_class(recipe, tiny, tmp_path, capsys):
    """On torchvision's own data; test_model_files has it loaded here again."""
    train(recipe, tiny, "--epochs", 1, "--save-model", tmp_path / "m.pth")
    theirs = TUTORIALS[recipe]()
    theirs.load_state_dict(torch.load(tmp_path / "m.pth", weights_only=True), strict=True)
    steps = [transforms.ToTensor()] + [transforms.Normalize([0.5], [0.5])] * (recipe in ("sgd", "time-major"))
    images, labels = zip(*MNIST(tiny, train=False, transform=transforms.Compose(steps)))
    right = (theirs(torch.stack(images)).argmax(1) == torch.tensor(labels)).sum().item()
    assert f"({right}/110)" in capsys.readouterr().out


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


@pytest.mark.parametrize("optimizer", common.OPTIMIZERS)
def test_any_optimizer_trains_at_the_rate_given_and_resumes(optimizer, tiny, tmp_path, capsys):
    flags = [tiny, "--optimizer", optimizer, "--lr", 0.01, "--checkpoint", tmp_path / "c.pt"]
    train("mlp", *flags, "--epochs", 1)
    _, resumed = train("mlp", *flags, "--epochs", 3)
    out = capsys.readouterr().out
    assert (out.count(f", {optimizer} lr 0.01, "), out.count("resuming after epoch 0\n")) == (2, 1)
    _, whole = train("mlp", *flags[:-2], "--epochs", 3)
    assert [r["train_loss"] for r in whole] == [r["train_loss"] for r in resumed]
    assert {(r["optimizer"], r["lr"]) for r in whole} == {(optimizer, 0.01)}
    assert whole[2]["train_loss"] < whole[0]["train_loss"]


def test_code_is_formatted_and_linted():
    for command in (["check"], ["format", "--check"]):
        ruff = subprocess.run([sys.executable, "-m", "ruff", *command, "."], cwd=ROOT, capture_output=True, text=True)
        assert ruff.returncode == 0, ruff.stdout + ruff.stderr
