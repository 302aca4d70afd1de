"""Model files as people have them: the settings in ours, other programs' forms, checkpoints."""

import re
import zipfile

import pytest
import torch
from conftest import ROOT, TUTORIALS, refused, train
from torch import nn

import lstm_mnist
import mlp_mnist
import modern_mnist
from support import saving

SIZE = ["--hidden", "6"]
MODELS = {  # how each is trained, and a flag that contradicts
    "last-hidden": (lstm_mnist, ["--recipe", "last-hidden", *SIZE], ["--recipe", "sgd"]),
    "sgd": (lstm_mnist, ["--recipe", "sgd", "--cell", "gru", *SIZE], ["--no-normalize"]),
    "time-major": (lstm_mnist, ["--recipe", "time-major", *SIZE, "--layers", "1"], ["--layers", "2"]),
    "batch-first": (lstm_mnist, [*SIZE, "--cell", "equations"], ["--cell", "lstm"]),
    "mlp": (mlp_mnist, ["--normalize"], ["--hold-out", "50"]),  # whose images it was trained on
    "modern": (modern_mnist, [*SIZE, "--lines", "7"], ["--lines", "2"]),
    "windows": (modern_mnist, [*SIZE, "--layers", "1", "--windows", "--lines", "1"], ["--no-windows"]),
    "committee": (modern_mnist, [*SIZE, "--layers", "1", "--members", "2"], ["--members", "3"]),
}


def end(capsys) -> str:
    out = capsys.readouterr().out
    return out[out.index("Test Loss: ") :]


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("flag", ["--save-model", "--checkpoint"])
def test_a_file_brings_its_settings_and_refuses_others(flag, name, tiny, tmp_path, capsys):
    script, flags, contradicting = MODELS[name]
    file, data = str(tmp_path / "file"), ["--data-dir", str(tiny)]
    script.main([*data, *flags, "--epochs", "1", flag, file])
    expected = end(capsys)
    script.main([*data, "--epochs", "0", "--load-model", file])
    assert end(capsys).split("Test Loss")[-1] == expected.split("Test Loss")[-1]
    script.main(["--load-model", file, "--predict", str(ROOT / "docs" / "seven.jpg")])
    assert capsys.readouterr().out.startswith(f"{ROOT / 'docs' / 'seven.jpg'}: ")
    status, line = refused(script.main, [*data, "--load-model", file, *contradicting], capsys)
    assert status == 2
    assert f"{file} was trained " in line
    assert line.count("; leave the flag out") == 1


def test_the_data_set_of_a_file_is_the_default_and_can_be_changed(tiny, tmp_path, capsys):
    file = tmp_path / "m.pth"
    (tmp_path / "FashionMNIST").symlink_to(tiny / "MNIST")
    train("mlp", tmp_path, "--dataset", "fashion-mnist", "--epochs", 1, "--save-model", file)
    predict = ["--load-model", str(file), "--predict", str(ROOT / "docs" / "seven.jpg")]
    _, line = refused(mlp_mnist.main, [*predict, "--dataset", "mnist"], capsys)
    assert "was trained with --dataset=fashion-mnist" in line
    mlp_mnist.main(predict)
    assert re.search(r"jpg: [A-Z]\w+.* \(0\.", capsys.readouterr().out)
    train("mlp", tiny, "--dataset", "mnist", "--epochs", 1, "--load-model", file)


@pytest.mark.parametrize("recipe", TUTORIALS)
@pytest.mark.parametrize("mmap", [False, True])
def test_the_tutorials_class_loads_the_file_as_if_it_were_bare(recipe, mmap, tiny, tmp_path, capsys):
    ours, _ = train(recipe, tiny, "--epochs", 0, "--save-model", tmp_path / "m.pth")
    assert saving.SETTINGS in zipfile.ZipFile(tmp_path / "m.pth").namelist()
    theirs = TUTORIALS[recipe]()
    theirs.load_state_dict(torch.load(tmp_path / "m.pth", mmap=mmap))
    assert all(torch.equal(a, b) for a, b in zip(ours.state_dict().values(), theirs.state_dict().values()))


@pytest.mark.parametrize(
    "settings", ["[1]", "seven", '{"recipe": "x"}', '{"hidden": -5}', '{"cell": "x"}', '{"hidden": "a"}']
)
def test_settings_that_make_no_sense_end_in_one_line(settings, tiny, tmp_path, capsys):
    saving.save(tmp_path / "m.pth", lstm_mnist.BatchFirst(28, 128, 2, 10).state_dict())
    lstm_mnist.main(["--data-dir", str(tiny), "--epochs", "0", "--load-model", str(tmp_path / "m.pth")])
    with zipfile.ZipFile(tmp_path / "m.pth", "a") as file:
        file.writestr(saving.SETTINGS, settings)
    refused(lstm_mnist.main, ["--data-dir", tiny, "--load-model", tmp_path / "m.pth"], capsys)


def test_another_scripts_file_is_named_as_such(tiny, tmp_path, capsys):
    train("last-hidden", tiny, "--epochs", 0, "--save-model", tmp_path / "m.pth")
    status, line = refused(mlp_mnist.main, ["--load-model", tmp_path / "m.pth"], capsys)
    assert status == 2
    assert "is a model of lstm_mnist.py, recipe last-hidden; use that script" in line


def prefixed(*prefixes):
    return lambda state: {f"{''.join(prefixes)}{name}": each for name, each in state.items()}


def of_type(kind):
    return lambda state: {name: each.to(kind) for name, each in state.items()}


FORMS = {
    "state_dict": lambda state: {"state_dict": state},
    "with an epoch": lambda state: {"model_state_dict": state, "epoch": 3, "optimizer_state_dict": {"state": {}}},
    "Lightning": lambda state: {"state_dict": prefixed("model.")(state), "epoch": 2, "loops": {"a": {}}},
    "DataParallel": prefixed("module."),
    "torch.compile": prefixed("_orig_mod."),
    "both": prefixed("module.", "_orig_mod."),
    "both the other way round": prefixed("_orig_mod.", "module."),
    "float16": of_type(torch.float16),
    "bfloat16": of_type(torch.bfloat16),
    "float64": of_type(torch.float64),
}


@pytest.mark.parametrize("name", FORMS)
def test_a_foreign_form_loads(name, tiny, tmp_path, capsys):
    torch.manual_seed(5)
    state = lstm_mnist.LastHidden(28, 64, 1, 10).state_dict()
    torch.save(FORMS[name](state), tmp_path / "m.pth")
    model, _ = train("last-hidden", tiny, "--epochs", 0, "--load-model", tmp_path / "m.pth")
    assert capsys.readouterr().err.count(": does not say how it was trained; the flags have to fit") == 1
    for key, each in model.state_dict().items():
        torch.testing.assert_close(each, state[key], rtol=0.01, atol=0.001)


def test_a_model_that_calls_a_layer_model_keeps_its_names(tmp_path):
    model = nn.ModuleDict({"model": nn.Linear(3, 2)})
    torch.save(model.state_dict(), tmp_path / "m.pth")
    saving.load_model(tmp_path / "m.pth", nn.ModuleDict({"model": nn.Linear(3, 2)}))


def test_another_networks_file_is_one_line(tiny, tmp_path, capsys):
    for model, expected in (
        (lstm_mnist.BatchFirst(28, 9, 2, 10), "size mismatch for lstm.weight_ih_l0: "),
        (lstm_mnist.LastHidden(28, 9, 1, 10), 'Missing key(s) in state_dict: "lstm.weight_ih_l0", '),
    ):
        torch.save(model.state_dict(), tmp_path / "m.pth")
        _, line = refused(lstm_mnist.main, ["--data-dir", tiny, "--load-model", tmp_path / "m.pth"], capsys)
        assert expected in line
        assert line.endswith("; use the script and the flags that it was trained with\n")
