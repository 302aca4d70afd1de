"""Model files as people have them: the settings in ours, other programs' forms, odd contents."""

import os
import re
import shutil
import zipfile

import pytest
import torch
from conftest import ROOT, TUTORIALS, call, link, refused, train
from torch import nn

import lstm_mnist
import mlp_mnist
import modern_mnist
from support import model_files

SEVEN = ROOT / "docs" / "seven.jpg"
MODELS = {  # how each is trained, and a flag that contradicts
    "last-hidden": (lstm_mnist, "--recipe last-hidden --hidden 6", "--recipe=time-major"),
    "sgd": (lstm_mnist, "--recipe sgd --cell gru --hidden 6", "--no-normalize"),
    "batch-first": (lstm_mnist, "--cell equations --hidden 6", "--cell=lstm"),
    "mlp": (mlp_mnist, "--normalize", "--hold-out=50"),  # whose images it was trained on
    "modern": (modern_mnist, "--hidden 6 --lines 6", "--lines=2"),
    "windows": (modern_mnist, "--hidden 6 --layers 1 --windows --lines 1", "--no-windows"),
}


def last_scores(capsys) -> str:
    return re.findall(r"Valid Loss: \S+ Valid Acc: [\d.]+", capsys.readouterr().out)[-1]


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("flag", ["--save-model", "--checkpoint"])
def test_a_file_brings_its_settings_and_refuses_others(flag, name, tiny, tmp_path, capsys):
    script, flags, contradicting = MODELS[name]
    file = str(tmp_path / "file")
    data = ["--data-dir", str(tiny)]
    script.main([*data, *flags.split(), "--epochs", "1", flag, file])
    expected = last_scores(capsys)
    script.main([*data, "--epochs", "0", "--load-model", file])
    assert last_scores(capsys) == expected
    script.main(["--load-model", file, "--predict", str(SEVEN)])
    assert capsys.readouterr().out.startswith(f"{SEVEN}: ")
    status, line = refused(script.main, [*data, "--load-model", file, contradicting], capsys)
    assert status == 2
    assert contradicting.split("=")[0] in line
    assert f"{file} was trained " in line
    assert line.count("; leave the flag out") == 1


def test_the_data_set_of_a_file_is_the_default_and_can_be_changed(tiny, tmp_path, capsys):
    file = tmp_path / "m.pth"
    link(tmp_path / "FashionMNIST", tiny / "MNIST")
    train("mlp", tmp_path, "--dataset", "fashion-mnist", "--epochs", 1, "--save-model", file)
    predict = ["--load-model", str(file), "--predict", str(SEVEN)]
    _, line = refused(mlp_mnist.main, [*predict, "--dataset", "mnist"], capsys)
    assert "was trained with --dataset=fashion-mnist" in line
    mlp_mnist.main(predict)
    assert re.search(r"jpg: [A-Z]\w+.* \(0\.", capsys.readouterr().out)
    train("mlp", tiny, "--dataset", "mnist", "--epochs", 1, "--load-model", file)


@pytest.mark.parametrize("recipe", TUTORIALS)
def test_the_tutorials_class_loads_the_file_as_if_it_were_bare(recipe, tiny, tmp_path, capsys):
    file = tmp_path / "m.pth"
    ours, _ = train(recipe, tiny, "--epochs", 0, "--save-model", file)
    theirs = TUTORIALS[recipe]()
    theirs.load_state_dict(torch.load(file, mmap=True))
    for a, b in zip(ours.state_dict().values(), theirs.state_dict().values()):
        assert torch.equal(a, b)


DAMAGED = [
    "[1]",
    "seven",
    '{"recipe": ["modern"]}',
    r'{"recipe": "\u001b[31m"}',  # a terminal's code for red
    r'{"dataset": "\u001b[31m"}',
    '{"normalize": "yes"}',
    '{"hidden": 100000}',
    '{"layers": 1e9}',
]


@pytest.mark.parametrize("settings", DAMAGED)
def test_damaged_settings_are_one_line_that_names_the_file(settings, tmp_path, capsys):
    file = tmp_path / "m.pth"
    model_files.save(file, {"weight": torch.ones(1)})
    with zipfile.ZipFile(file, "a") as archive:
        archive.writestr(model_files.SETTINGS, settings)
    _, line = refused(modern_mnist.main, ["--load-model", file], capsys)
    assert str(file) in line
    assert line.rstrip("\n").isprintable()


def test_a_setting_may_be_a_number_in_quotes(tmp_path, capsys):
    file = tmp_path / "m.pth"
    model_files.save(file, mlp_mnist.Net().state_dict(), {"hold_out": "5"})
    flags = ["--load-model", file, "--hold-out"]
    status, line = refused(mlp_mnist.main, [*flags, 6], capsys)
    assert status == 2
    assert line.startswith(f"mlp_mnist.py: --hold-out 6: {file} was trained on some")


def test_another_scripts_file_is_named_as_such(tiny, tmp_path, capsys):
    file = tmp_path / "m.pth"
    train("last-hidden", tiny, "--epochs", 0, "--save-model", file)
    status, line = refused(mlp_mnist.main, ["--load-model", file], capsys)
    assert status == 2
    assert f"{file} is a model of 'lstm_mnist.py', recipe 'last-hidden'; use that script" in line


def prefixed(*prefixes):
    return lambda state: {f"{''.join(prefixes)}{name}": each for name, each in state.items()}


def of_type(kind):
    return lambda state: {name: each.to(kind) for name, each in state.items()}


FORMS = {
    "state_dict": lambda state: {"state_dict": state},
    "with an epoch": lambda state: {"model_state_dict": state, "epoch": 3, "optimizer": {"a": {}}},
    "Lightning": lambda state: {"state_dict": prefixed("model.")(state), "loops": {"a": {}}},
    "DataParallel": prefixed("module."),
    "torch.compile": prefixed("_orig_mod."),
    "both": prefixed("_orig_mod.", "module."),
    "AveragedModel": lambda state: {"n_averaged": torch.tensor(3), **FORMS["DataParallel"](state)},
    "float16": of_type(torch.float16),
    "float64": of_type(torch.float64),
}


@pytest.mark.parametrize("name", FORMS)
def test_a_foreign_form_loads(name, tiny, tmp_path, capsys):
    torch.manual_seed(5)
    file = tmp_path / "m.pth"
    state = lstm_mnist.LastHidden(28, 64, 1, 10).state_dict()
    torch.save(FORMS[name](state), file)
    model, _ = train("last-hidden", tiny, "--epochs", 0, "--load-model", file)
    what = "does not say how it was trained; the flags have to fit, --normalize too"
    assert capsys.readouterr().err == f"{file}: {what}\n"
    for key, each in model.state_dict().items():
        torch.testing.assert_close(each, state[key], rtol=0.01, atol=0.001)


def test_a_model_that_calls_a_layer_model_keeps_its_names(tmp_path):
    model = nn.ModuleDict({"model": nn.Linear(3, 2)})
    torch.save(model.state_dict(), tmp_path / "m.pth")
    model_files.load(tmp_path / "m.pth", nn.ModuleDict({"model": nn.Linear(3, 2)}))


ODD = {  # what is wrong with a model file, and what is said of it
    "fc3.bias holds torch.int64": {"fc3.bias": torch.ones(10).long()},
    "fc3.bias holds torch.complex64": {"fc3.bias": torch.ones(10) * 1j},
    "fc3.bias holds torch.float8_e5m2": {"fc3.bias": torch.ones(10).to(torch.float8_e5m2)},
    "fc3.bias is not an ordinary tensor": {"fc3.bias": torch.ones(10).to_sparse()},
    "the shape of fc3.bias is (9,), in the model (10,)": {"fc3.bias": torch.ones(9)},
    "has values that are not finite": {"fc3.bias": torch.full([10], torch.nan)},
    "has 'fc.bias' where the model has nothing": {"fc.bias": torch.ones(10)},
    "has 0 state_dicts": {3: torch.ones(10)},
}


@pytest.mark.parametrize("problem", ODD)
def test_what_is_wrong_with_a_model_file_is_said_in_one_line(problem, tiny, tmp_path, capsys):
    file = tmp_path / "m.pth"
    torch.save(mlp_mnist.Net().state_dict() | ODD[problem], file)
    status, line = refused(mlp_mnist.main, ["--data-dir", tiny, "--load-model", file], capsys)
    assert status == 1
    assert line.startswith(f"{file}: {problem}")


def test_a_file_with_other_names_is_answered_with_both(tiny, tmp_path, capsys):
    file = tmp_path / "m.pth"
    state = lstm_mnist.BatchFirst(28, 128, 2, 10).state_dict()
    state["fc.weight"] = state.pop("classifier.weight")
    torch.save(state, file)
    _, line = refused(lstm_mnist.main, ["--data-dir", tiny, "--load-model", file], capsys)
    assert "has 'fc.weight' where the model has 'classifier.weight'" in line


def test_a_small_file_of_a_huge_tensor_is_refused_without_its_memory(tmp_path):
    """Looking for values that are not finite first took gigabytes."""
    file = tmp_path / "m.pth"
    torch.save({"weight": torch.zeros(1).expand(400_000_000), "bias": torch.ones(2)}, file)
    resource = pytest.importorskip("resource")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(SystemExit, match=r"the shape of weight is \(400000000,\), in the model"):
        model_files.load(file, nn.Linear(3, 2))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < 2 * before


def test_a_picture_whose_name_is_not_utf_8_is_answered(tiny, tmp_path, capsys):
    model = tmp_path / "m.pth"
    train("mlp", tiny, "--epochs", 0, "--save-model", model)
    picture = shutil.copy(SEVEN, tmp_path / os.fsdecode(b"\xff.jpg"))
    flags = ["--load-model", model, "--predict", picture, "--plot", tmp_path / "plot"]
    end = call("mlp_mnist.py", *flags)
    assert (end.returncode, end.stderr) == (0, "")
    assert rf"{tmp_path}/\udcff.jpg: " in end.stdout
    assert os.listdir(tmp_path / "plot") == ["predictions.png"]
