"""What people take from here: two files, a pasted model and loop, `main` in a notebook."""

import common

import ast
import contextlib
import copy
import io
import pickle
import re
import shutil
import signal
import subprocess
import sys
import threading

import nbformat
import pytest
import torch
from conftest import ROOT, call, start
from nbclient import NotebookClient
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import lstm_mnist
import mlp_mnist
import modern_mnist

SCRIPTS = ["lstm_mnist.py", "mlp_mnist.py", "modern_mnist.py"]
RECIPES = lstm_mnist.RECIPES | mlp_mnist.RECIPES


def without_time(text):
    """An output without what the clock decides."""
    return re.sub(r"(, Time \S+| +\d+\.\d\d$)", "", text, flags=re.M)


@pytest.fixture
def copied(tmp_path):
    """A folder with the scripts and common.py, and nothing else."""
    for name in [*SCRIPTS, "common.py"]:
        shutil.copy(ROOT / name, tmp_path)
    return tmp_path


@pytest.mark.parametrize("script", [*SCRIPTS[::2], pytest.param(SCRIPTS[1], marks=pytest.mark.slow)])
def test_a_script_and_common_train_as_in_the_checkout(script, tiny, copied):
    for other in SCRIPTS:
        if other != script:
            (copied / other).unlink()
    flags = ["--data-dir", tiny, "--epochs", "2", *(["--recipe", "all"] if script == "lstm_mnist.py" else [])]
    here = call(script, *flags)
    there = start(copied / script, *flags, cwd=copied)
    out, err = there.communicate()
    assert (there.returncode, err) == (0, "")
    assert without_time(out) == without_time(here.stdout)
    assert out.count("Epoch 1. Train Loss") == (4 if script == "lstm_mnist.py" else 1)


NEEDING = ["--save-model", "--load-model", "--checkpoint", "--log", "--plot", "--predict", "--compile"]
EACH = """
import sys, lstm_mnist, mlp_mnist, modern_mnist
for main in lstm_mnist.main, modern_mnist.main, mlp_mnist.main:
    for flag in sys.argv[1:]:
        try:
            main([flag, *(["x"] if flag != "--compile" else [])])
        except SystemExit as stop:
            print(stop.code)
"""


def test_an_import_that_fails_inside_support_is_not_a_missing_folder(copied):
    (copied / "support").mkdir()
    (copied / "support" / "__init__.py").write_text("import nothing_of_this_name\n")
    run = subprocess.run([sys.executable, copied / "mlp_mnist.py", "--help"], capture_output=True, text=True)
    assert run.returncode == 1
    assert run.stderr.endswith("ModuleNotFoundError: No module named 'nothing_of_this_name'\n")


def test_flags_that_need_support_say_so(copied):
    run = subprocess.run([sys.executable, "-c", EACH, *NEEDING], cwd=copied, capture_output=True, text=True)
    assert run.stdout.split() == ["2"] * 21, run.stderr
    lines = run.stderr.splitlines()
    assert len(lines) == 21
    for flag, line in zip(2 * [*NEEDING[:-1], None] + NEEDING, lines):
        assert flag is None or f"{flag} needs the folder support/ beside common.py" in line
    assert sorted(f.name for f in copied.iterdir() if f.name != "__pycache__") == ["common.py", *SCRIPTS]


def pasted(script, *names):
    """The classes and functions of these names from a script's text, run with torch alone."""
    body = ast.parse((ROOT / script).read_text(encoding="utf-8")).body
    parts = [node for node in body if getattr(node, "name", None) in names]
    assert [node.name for node in parts] == list(names)
    namespace = {"torch": torch, "nn": nn}
    exec(compile(ast.Module(parts, []), script, "exec"), namespace)
    return [namespace[name] for name in names]


@pytest.mark.parametrize("name", RECIPES)
def test_a_pasted_model_and_loop_train_with_torch_alone(name, small):
    """On a plain DataLoader, with the recipe's own optimizer."""
    recipe = RECIPES[name]
    script, kind = ("mlp_mnist.py", "Net") if name == "mlp" else ("lstm_mnist.py", recipe["model"].__name__)
    Model, train, test = pasted(script, kind, "train", "test")
    torch.manual_seed(1)
    model = Model() if name == "mlp" else Model(28, recipe["hidden"], recipe["layers"], 10)
    (images, labels), (test_images, test_labels) = common.read(small)
    loader = DataLoader(TensorDataset(images[:2000, None] / 255, labels[:2000]), recipe["batch_size"], shuffle=True)
    test_loader = DataLoader(TensorDataset(test_images[:, None] / 255, test_labels), recipe["test_batch_size"])
    criterion, optimizer = nn.CrossEntropyLoss(), getattr(torch.optim, recipe["optimizer"])(model.parameters(), 0.01)
    losses = [common.score(train(model, loader, criterion, optimizer))[0] for _ in range(2)]
    assert losses[1] < losses[0]
    tested = test(model, test_loader)
    assert sum(len(labels) for _, labels in tested) == 1010
    assert not any(outputs.requires_grad for outputs, _ in tested)
    assert common.score(tested)[0] == pytest.approx(
        nn.functional.cross_entropy(model(test_images[:, None] / 255), test_labels).item(), rel=1e-4
    )


def test_main_in_a_notebook(tiny, tmp_path):
    """In a real kernel, whose stdout is not a file: twice the same, and nothing of the kernel's is changed."""
    cells = f"""
import signal, sys, torch
sys.path.insert(0, {str(ROOT)!r})
import mlp_mnist, lstm_mnist
def state():
    return [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)], torch.get_num_threads(), sys.stdout
before = state()
---
flags = ["--data-dir", {str(tiny)!r}, "--epochs", "2"]
model, history = mlp_mnist.main(flags)
model, again = mlp_mnist.main(flags)
assert [r["valid_loss"] for r in history] == [r["valid_loss"] for r in again]
assert isinstance(model, mlp_mnist.Net)
model(torch.rand(3, 1, 28, 28)).argmax(1)
---
model, history = lstm_mnist.main([*flags, "--recipe", "last-hidden"])
assert [r["epoch"] for r in history] == [0, 1]
assert state() == before
"""
    notebook = nbformat.v4.new_notebook()
    notebook.cells = [nbformat.v4.new_code_cell(cell) for cell in cells.split("---\n")]
    NotebookClient(notebook, timeout=120, kernel_name="python3").execute(cwd=str(tmp_path))
    texts = ["".join(out.text for out in cell.outputs if out.output_type == "stream") for cell in notebook.cells]
    assert texts[1].count("Epoch 1. Train Loss") == 2
    assert "Test Accuracy (Overall)" in texts[2]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("main", [mlp_mnist.main, lstm_mnist.main, modern_mnist.main])
def test_main_returns_the_model_and_its_history(main, tiny, capsys):
    flags = ["--data-dir", str(tiny), "--epochs", "2", "--device", "cpu"]
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    torch.set_num_threads(2)
    model, history = main(flags)
    assert torch.get_num_threads() == 2
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers
    assert torch.full((1,), 1e-40).mul(1).item() > 0  # denormals are there again
    assert [r["epoch"] for r in history] == [0, 1]
    x = common.to_float(common.read(tiny)[1][0])
    accuracy = (model.eval()(x).argmax(1) == common.read(tiny)[1][1]).float().mean().item()
    assert accuracy == pytest.approx(history[-1]["valid_acc"])
    capsys.readouterr()


def test_main_with_several_recipes_returns_a_list(tiny, capsys):
    results = lstm_mnist.main(["--recipe", "sgd", "last-hidden", "--data-dir", str(tiny), "--epochs", "1"])
    assert [history[0]["recipe"] for _, history in results] == ["sgd", "last-hidden"]
    assert [type(model) for model, _ in results] == [lstm_mnist.BatchFirst, lstm_mnist.LastHidden]
    capsys.readouterr()


def test_main_in_a_thread_and_into_a_string(tiny, tmp_path):
    """Python handles signals in the main thread alone, and a StringIO has no descriptor."""
    out, results = io.StringIO(), []

    def run():
        results.append(mlp_mnist.main(["--data-dir", str(tiny), "--epochs", "1", "--checkpoint", str(tmp_path / "c")]))

    with contextlib.redirect_stdout(out):
        thread = threading.Thread(target=run)
        thread.start()
        thread.join()
    assert len(results[0][1]) == 1
    assert "Epoch 0. Train Loss" in out.getvalue()


def test_the_returned_model_copies_and_pickles(tiny, capsys):
    """Nothing that a flag put into it for training is left in it."""
    flags = ["--cell", "gru", "--bf16"]  # not every CPU has an LSTM in bfloat16
    model, _ = lstm_mnist.main(["--recipe", "last-hidden", "--data-dir", str(tiny), "--epochs", "1", *flags])
    twin = pickle.loads(pickle.dumps(copy.deepcopy(model)))
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.zero_()
        assert twin(torch.rand(3, 1, 28, 28)).abs().sum() == 0
        assert model(torch.rand(3, 1, 28, 28)).abs().sum() > 0
    capsys.readouterr()


def test_recipes_without_an_epoch_end_in_a_table_too(tiny, capsys):
    lstm_mnist.main(["--recipe", "sgd", "last-hidden", "--data-dir", str(tiny), "--epochs", "0"])
    assert [line.split() for line in capsys.readouterr().out.splitlines()[-2:]] == [
        ["sgd", "36,910", "0", "-", "-"],
        ["last-hidden", "24,714", "0", "-", "-"],
    ]


@pytest.mark.parametrize("flag", ["--save-model", "--checkpoint", "--log"])
def test_predict_refuses_what_it_would_ignore(flag, capsys):
    with pytest.raises(SystemExit) as stop:
        mlp_mnist.main(["--load-model", "m.pth", "--predict", "7.png", flag, "x"])
    assert stop.value.code == 2
    assert "--predict trains nothing" in capsys.readouterr().err
