"""The scripts as a user calls them: what they print, log and save; where settings come from."""

import json
import re

import common

import pytest
import torch
from conftest import TUTORIALS, train, untimed
from torchvision.datasets import MNIST
from torchvision.transforms import ToTensor

import lstm_mnist
import mlp_mnist
from support import model_files


@pytest.mark.parametrize(
    ("recipe", "flags", "reached"),
    [
        ("mlp", "", 0.6),
        ("last-hidden", "--cell gru --hidden 32", 0.4),
        ("last-hidden", "--cell rnn --hidden 32", 0.4),
        ("last-hidden", "--cell equations --hidden 32", 0.4),
        ("time-major", "--cell lstm --hidden 32", 0.4),
    ],
)
def test_it_learns(recipe, flags, reached, tiny, capsys):
    """From 250 images, to an accuracy that only a program that learns reaches."""
    flags += " --optimizer Adam --lr 0.005 --batch-size 25 --epochs 20"
    _, history = train(recipe, tiny, *flags.split())
    assert history[0]["train_loss"] > 1.5
    assert history[19]["train_loss"] < 1.5
    assert history[19]["valid_acc"] > reached


SCORES = "Loss: N, Acc: N"
PER_EPOCH = "Epoch {0}. Train Loss: N, Train Acc: N, Valid Loss: N, Valid Acc: N, "
REPORT = [f"The test accuracy of  {digit} is :N" for digit in range(10)]


def two_epochs(*lines):
    """The lines of each of two epochs; {0} is its number, {1} the tutorials', from 1."""
    expected = []
    for epoch in (0, 1):
        expected += [line.format(epoch, epoch + 1) for line in (*lines, PER_EPOCH)]
    return expected


PRINTED = {  # flags, the model in the first line, and all other lines, with N for what is measured
    "batch-first": (
        ["--log-interval", 1],
        "BatchFirst lstm, 214,282 parameters, Adam lr 0.001, batch 100",
        two_epochs(
            "epoch {1}",
            "**********",
            *3 * [f"[{{1}}/2] {SCORES}"],
            f"Finish {{1}} epoch, {SCORES}",
            f"Test {SCORES}",
        ),
    ),
    "last-hidden": (
        ["--log-interval", 2],
        "LastHidden lstm, 24,714 parameters, Adam lr 0.001, batch 50",
        two_epochs("{0}-1: accuracy:N", "{0}-3: accuracy:N"),
    ),
    "mlp": (
        [],
        "Net, 269,322 parameters, SGD lr 0.01, batch 20",
        [
            *str(mlp_mnist.Net()).splitlines(),
            *two_epochs("epoch:{1} Training loss:N"),
            *["Test Loss: N", "", *REPORT, "", "Test Accuracy (Overall): N"],
        ],
    ),
    "sgd": ([], "BatchFirst lstm, 36,910 parameters, SGD lr 0.1, batch 64", two_epochs()),
    "time-major": (
        [],
        "TimeMajor lstm, 133,810 parameters, Adadelta lr 0.1, batch 64",
        two_epochs(),
    ),
    "modern": (
        [],
        "RowsAndColumns, 144,384 parameters, AdamW lr 0.01, batch 256",
        two_epochs(),
    ),
}


@pytest.mark.parametrize("recipe", PRINTED)
def test_each_recipe_prints_its_tutorials_lines_in_their_order(recipe, tiny, capsys):
    flags, model, expected = PRINTED[recipe]
    train(recipe, tiny, "--epochs", 2, "--parts", 1, *flags)
    out, err = capsys.readouterr()
    assert err == ""
    first, *lines = untimed(out).splitlines()
    how = f"2 epochs, cpu, seed 1, 250 + 110 images of {tiny / 'MNIST'}"
    assert first == f"{recipe}: {model}, {how}"
    # A percentage with its counts, or another score
    lines = [re.sub(r"[ \d]+%.*|\d+\.\d+(%.*)?", "N", line) for line in lines]
    assert lines == expected


def test_batch_firsts_lines_have_the_epochs_scores(tiny, capsys):
    """The running line's are of the images so far: at the end of an epoch its own."""
    _, (record,) = train("batch-first", tiny, "--epochs", 1, "--log-interval", 1)
    out = capsys.readouterr().out
    trained = "Loss: {train_loss:.6f}, Acc: {train_acc:.6f}\n".format(**record)
    first, _, last = re.findall(r"\[1/1\] (.*\n)", out)
    assert first != last
    assert last == trained
    assert f"\nFinish 1 epoch, {trained}" in out
    assert "\nTest Loss: {valid_loss:.6f}, Acc: {valid_acc:.6f}\n".format(**record) in out


def test_last_hiddens_line_is_of_the_first_test_batch(tiny, capsys):
    flags = ["--epochs", 1, "--log-interval", 5, "--test-batch-size", 40, "--lr", 0.01]
    model, _ = train("last-hidden", tiny, *flags)
    _, (images, labels) = common.read(tiny)
    answers = model(common.to_float(images[:40])).argmax(1)
    right = (answers == labels[:40]).sum().item()
    assert f"\n0-4: accuracy:{right / 40}\n" in capsys.readouterr().out


def test_mlps_training_loss_is_the_epochs(tiny, capsys):
    _, (record,) = train("mlp", tiny, "--epochs", 1)
    assert f"\nepoch:1 Training loss:{record['train_loss']:.6f}\n" in capsys.readouterr().out


def test_mlps_report_counts_class_by_class(capsys):
    labels = torch.tensor([0] * 100 + [9] * 3)
    images = labels.clone()
    images[0] = 5
    images[102] = 2
    net = torch.nn.Linear(1, 1)  # its device decides
    net.forward = lambda images: torch.nn.functional.one_hot(images, 10).float()
    loader = list(zip(images.split(40), labels.split(40)))
    mlp_mnist.report(net, loader, torch.nn.CrossEntropyLoss(), common.CLASSES["mnist"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[2] == "The test accuracy of  0 is : 99% (99/100)"
    assert lines[3] == "The test accuracy of  1 is : None ( 0/ 0)"
    assert lines[11] == "The test accuracy of  9 is : 66% ( 2/ 3)"
    assert lines[13] == "Test Accuracy (Overall): 98.06% (101/103)"


@pytest.mark.parametrize("recipe", ["mlp", "last-hidden", "modern"])
def test_a_run_that_trains_nothing_prints_the_models_scores(recipe, tiny, tmp_path, capsys):
    file = tmp_path / "m.pth"
    _, (record,) = train(recipe, tiny, "--epochs", 1, "--save-model", file)
    train(recipe, tiny, "--epochs", 0, "--load-model", file)
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == "Valid Loss: {valid_loss:.6f}, Valid Acc: {valid_acc:.6f}".format(**record)


TRAINED = ["--epochs", 1, "--batch-size", 64, "--load-model", "m.pth"]


@pytest.mark.parametrize("flags", [["--epochs", 0], TRAINED])
@pytest.mark.parametrize("recipe", ["mlp", "last-hidden", "modern"])
def test_the_seed_decides_weights_and_order(recipe, flags, tiny, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    train(recipe, tiny, "--epochs", 0, "--save-model", "m.pth")
    outputs = []
    for seed in (7, 7, 8):
        capsys.readouterr()
        train(recipe, tiny, "--seed", seed, *flags)
        outputs.append(untimed(capsys.readouterr().out).splitlines()[1:])
    assert outputs[0] == outputs[1]
    assert outputs[0] != outputs[2]


MIDDLES = {"mlp": 0, "batch-first": 0, "last-hidden": 0, "sgd": 0.5, "time-major": 0.5}


@pytest.mark.parametrize(("recipe", "middle"), MIDDLES.items())
def test_a_saved_model_scores_the_same_in_the_tutorials_class(
    recipe, middle, tiny, tmp_path, capsys
):
    """On torchvision's own data; a middle of 0.5 is Normalize([0.5], [0.5])."""
    _, (record,) = train(recipe, tiny, "--epochs", 1, "--save-model", tmp_path / "m.pth")
    theirs = TUTORIALS[recipe]()
    theirs.load_state_dict(torch.load(tmp_path / "m.pth", weights_only=True), strict=True)
    images, labels = zip(*MNIST(tiny, train=False, transform=ToTensor()))
    answers = theirs((torch.stack(images) - middle) / (1 - middle)).argmax(1)
    right = (answers == torch.tensor(labels)).sum().item()
    assert record["valid_acc"] == pytest.approx(right / 110)


def test_the_log_has_what_main_returns(tiny, tmp_path, capsys):
    log = tmp_path / "log.jsonl"
    flags = ["--epochs", 2, "--log", log, "--hidden", 7]
    _, first = train("last-hidden", tiny, *flags)
    _, second = train("last-hidden", tiny, *flags)
    records = [json.loads(line) for line in log.read_text().splitlines()]
    assert records == first + second
    assert [record["epoch"] for record in records] == [0, 1, 0, 1]
    assert records[0]["run"] != records[2]["run"]
    settings = dict(script="lstm_mnist.py", recipe="last-hidden", cell="lstm", hidden=7)
    settings |= dict(seed=1, device="cpu", optimizer="Adam", lr=0.001)
    assert settings.items() <= records[0].items()


@pytest.mark.parametrize("optimizer", common.OPTIMIZERS)
def test_any_optimizer_trains_and_resumes(optimizer, tiny, tmp_path, capsys):
    flags = ["--optimizer", optimizer, "--lr", 0.01]
    kept = ["--checkpoint", tmp_path / "c.pt"]
    train("mlp", tiny, *flags, *kept, "--epochs", 1)
    _, resumed = train("mlp", tiny, *flags, *kept, "--epochs", 3)
    _, whole = train("mlp", tiny, *flags, "--epochs", 3)
    losses = [record["train_loss"] for record in whole]
    assert [record["train_loss"] for record in resumed] == losses
    assert losses[2] < losses[0]


def settings(*flags):
    """What lstm_mnist.py trains with."""
    recipes, model_flags = lstm_mnist.RECIPES, lstm_mnist.MODEL_FLAGS
    return common.parse(lstm_mnist.flags(), [*flags, "--device=cpu"], recipes, model_flags)


@pytest.fixture
def model_file(tmp_path):
    """The flag for a file of other settings than its recipe's."""
    file = tmp_path / "m.pth"
    state = lstm_mnist.BatchFirst(28, 7, 2, 10).state_dict()
    saved = dict(recipe="sgd", hidden=7, normalize=False, dataset="kmnist", lr=0.5)
    model_files.save(file, state, saved)
    return f"--load-model={file}"


def test_a_recipe_is_stronger_than_the_defaults():
    assert settings("--recipe=sgd").log_interval == 0
    assert settings("--recipe=batch-first").log_interval == 300


def test_a_model_file_is_stronger_than_the_recipe(model_file):
    args = settings(model_file)
    assert (args.recipe, args.hidden, args.normalize) == ("sgd", 7, False)
    assert args.dataset == "kmnist"
    assert args.lr == 0.1  # which the model does not need


def test_a_given_flag_is_stronger_than_the_model_file(model_file):
    args = settings(model_file, "--dataset=mnist", "--lr=0.2")
    assert (args.dataset, args.lr, args.hidden) == ("mnist", 0.2, 7)
