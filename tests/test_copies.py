"""What people take from here: two files, a pasted model and loop, `main` in a notebook."""

import ast
import runpy
import shutil
import signal
import sys

import common

import nbformat
import pytest
import torch
from conftest import ROOT, call, snippet, untimed
from nbclient import NotebookClient
from torch import nn
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.swa_utils import AveragedModel
from torch.utils.data import DataLoader, TensorDataset

import lstm_mnist
import mlp_mnist
import modern_mnist

SCRIPTS = {"mlp_mnist.py": mlp_mnist.main, "lstm_mnist.py": lstm_mnist.main, "modern_mnist.py": modern_mnist.main}
NEEDING = ["--save-model", "--load-model", "--checkpoint", "--log", "--plot", "--predict", "--compile"]


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_script_and_common_alone_train_and_print_as_in_the_checkout(script, tiny, tmp_path, capsys):
    for name in (script, "common.py"):
        shutil.copy(ROOT / name, tmp_path)
    flags = ["--data-dir", str(tiny), "--epochs", "2"]
    there = call(tmp_path / script, *flags, cwd=tmp_path)
    assert (there.returncode, there.stderr) == (0, "")
    SCRIPTS[script](flags)
    assert untimed(there.stdout) == untimed(capsys.readouterr().out)
    assert "Epoch 1. Train Loss" in there.stdout


@pytest.mark.parametrize("script", SCRIPTS)
def test_flags_that_need_support_say_so_in_one_line(script, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(common, "SUPPORT", False)
    for flag in NEEDING if script == "mlp_mnist.py" else NEEDING[:-1]:
        with pytest.raises(SystemExit) as stop:
            SCRIPTS[script]([flag, *[str(tmp_path / "x")] * (flag != "--compile")])
        assert stop.value.code == 2
        line = capsys.readouterr().err
        assert f"{flag} needs the folder support/ beside common.py" in line
        assert len(line.splitlines()) == 1
    assert [*tmp_path.iterdir()] == []


def test_main_without_support_takes_a_notebooks_flags(tiny, monkeypatch, capsys):
    monkeypatch.setattr(common, "SUPPORT", False)
    monkeypatch.setattr(common, "DATA_DIR", tiny)
    monkeypatch.setitem(sys.modules, "ipykernel", sys)
    monkeypatch.setattr(sys, "argv", ["kernel.py", "-f", "kernel.json"])
    monkeypatch.setitem(mlp_mnist.RECIPE, "epochs", 1)
    for argv in ("--epochs 1", ["--epochs", 1], None):
        assert len(mlp_mnist.main(argv)[1]) == 1


def pasted(script, *names):
    """The classes and functions of these names from a script's text, run with torch alone."""
    body = ast.parse((ROOT / script).read_text(encoding="utf-8")).body
    parts = [node for node in body if getattr(node, "name", None) in names]
    assert [node.name for node in parts] == list(names)
    namespace = {"torch": torch, "nn": nn}
    exec(compile(ast.Module(parts, []), script, "exec"), namespace)
    return [namespace[name] for name in names]


@pytest.mark.parametrize("kind", ["Net", "BatchFirst", "LastHidden", "TimeMajor", "RowsAndColumns"])
def test_a_pasted_model_and_loop_train_with_torch_alone(kind, small):
    script = {"Net": "mlp_mnist.py", "RowsAndColumns": "modern_mnist.py"}.get(kind, "lstm_mnist.py")
    *_, Model, train, test = pasted(script, *["Windows"] * (script == "modern_mnist.py"), kind, "train", "test")
    torch.manual_seed(1)
    model = Model() if kind == "Net" else Model(28, 32, 1, 10) if "lstm" in script else Model(16, 1, 10, 1, True)
    (images, labels), (test_images, test_labels) = common.read(small)
    loader = DataLoader(TensorDataset(images[:2000, None] / 255, labels[:2000]), 64, shuffle=True)
    test_loader = DataLoader(TensorDataset(test_images[:, None] / 255, test_labels), 128)
    criterion, optimizer = nn.CrossEntropyLoss(), torch.optim.AdamW(model.parameters(), 0.01)
    more = [LambdaLR(optimizer, lambda step: 1.0), AveragedModel(model)] if kind == "RowsAndColumns" else []
    told = []
    (first, _), (second, accuracy) = (
        train(model, loader, criterion, optimizer, *more, lambda *so_far: told.append(so_far)) for _ in range(2)
    )
    assert second < first
    assert accuracy > 0.4
    assert [count for *_, count in told] == 2 * [*range(64, 2000, 64), 2000]
    outputs = model(test_images[:, None] / 255)
    expected = criterion(outputs, test_labels).item(), (outputs.argmax(1) == test_labels).float().mean().item()
    assert test(model, test_loader, criterion) == pytest.approx(expected, rel=1e-4)
    assert not model.training


def test_main_in_a_notebook(tiny, tmp_path):
    """In a real kernel, whose stdout is not a file: README's cell, an interrupt."""
    cells = f"""
import signal, sys, torch
from pathlib import Path
sys.path.insert(0, {str(ROOT)!r})
import mlp_mnist, lstm_mnist
common = mlp_mnist.common
common.DATA_DIR = Path({str(tiny)!r})
---
mlp_mnist.RECIPE["epochs"] = 2
model, history = mlp_mnist.main()
_, again = mlp_mnist.main(["--data-dir", common.DATA_DIR, "--epochs", 2])
assert [r["valid_loss"] for r in history] == [r["valid_loss"] for r in again]
assert isinstance(model, mlp_mnist.Net)
model(torch.rand(3, 1, 28, 28)).argmax(1)
---
{snippet("main(")}
assert isinstance(model, lstm_mnist.LastHidden)
assert [r["epoch"] for r in history] == [0]
---
say, steps = common.say, []
def interrupted(*words, **how):
    say(*words, **how)
    steps.append(words)
    if len(steps) == 50:  # within the fourth epoch of 13 steps
        signal.raise_signal(signal.SIGINT)
common.say = interrupted
try:
    mlp_mnist.main("--epochs 100000 --checkpoint c.pt --log-interval 1")
except KeyboardInterrupt:
    pass
_, history = mlp_mnist.main("--epochs 0 --checkpoint c.pt")
assert len(history) == 3
"""
    notebook = nbformat.v4.new_notebook()
    notebook.cells = [nbformat.v4.new_code_cell(cell) for cell in cells.split("---\n")]
    NotebookClient(notebook, timeout=120, kernel_name="python3").execute(cwd=str(tmp_path))
    sys.modules.pop("ipykernel", None)  # the client's; by it a script knows that it is in a notebook
    texts = ["".join(out.text for out in cell.outputs if out.output_type == "stream") for cell in notebook.cells]
    assert texts[1].count("Epoch 1. Train Loss") == 2
    assert "\rEpoch 1:   0%" in texts[1]  # the bar
    assert "Test Accuracy (Overall)" in texts[2]
    assert sorted(file.name for file in tmp_path.iterdir()) == ["c.pt", "last-hidden.pt"]


@pytest.mark.parametrize("missing", ["torch", "tqdm"])
@pytest.mark.parametrize("script", [*SCRIPTS, "compare.py"])
def test_a_missing_package_is_one_line(script, missing, tmp_path, monkeypatch):
    (tmp_path / f"{missing}.py").write_text(f"raise ModuleNotFoundError(name={missing!r})")
    monkeypatch.syspath_prepend(tmp_path)
    for name in (missing, "tqdm.auto", "common"):
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(SystemExit, match=f"^{missing} is missing: pip install -r requirements.txt$"):
        runpy.run_path(ROOT / script)


@pytest.mark.parametrize("script", SCRIPTS)
def test_main_returns_the_model_and_its_history_and_leaves_all_else_as_it_was(script, tiny, monkeypatch, capsys):
    def state():
        handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
        return handlers, torch.get_num_threads(), sys.stdout, sys.stderr

    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    before = state()
    _, history = SCRIPTS[script](["--data-dir", str(tiny), "--epochs", "2"])
    assert state() == before
    monkeypatch.setattr(common, "end_epoch", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        SCRIPTS[script](["--data-dir", str(tiny), "--epochs", "2"])
    assert state() == before
    torch.set_num_threads(threads)
    assert [r["epoch"] for r in history] == [0, 1]
