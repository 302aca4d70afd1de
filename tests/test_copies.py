"""What people take from here: two files, a pasted model and loop, `main` in a notebook."""

import ast
import importlib
import os
import re
import shutil
import signal
import subprocess
import sys

import common

import nbformat
import pytest
import torch
from conftest import ROOT
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
EACH = """
import runpy, sys
for folder in sys.argv.pop().split(","):
    print(folder, flush=True)
    sys.path[0], sys.argv[0] = folder, f"{folder}/{folder}_mnist.py"
    sys.modules.pop("common", None)
    runpy.run_path(sys.argv[0], run_name="__main__")
"""


def test_a_script_and_common_alone_train_and_print_as_in_the_checkout(tiny, tmp_path, capsys):
    """Each script in a folder of its own, one after the other, since importing torch takes seconds."""
    flags, folders, here = ["--data-dir", str(tiny), "--epochs", "2"], [], ""
    for script, main in SCRIPTS.items():
        folders.append(script.removesuffix("_mnist.py"))
        (tmp_path / folders[-1]).mkdir()
        for name in (script, "common.py"):
            shutil.copy(ROOT / name, tmp_path / folders[-1])
        main(flags)
        here += f"{folders[-1]}\n{capsys.readouterr().out}"
    command = [sys.executable, "-c", EACH, *flags, ",".join(folders)]
    there = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert (there.returncode, there.stderr) == (0, "")
    assert re.sub(r"Time \S+", "", there.stdout) == re.sub(r"Time \S+", "", here)
    assert here.count("Epoch 1. Train Loss") == 3


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
    """In a real kernel, whose stdout is not a file: twice the same, and nothing of the kernel's is changed."""
    cells = f"""
import signal, sys, torch
from pathlib import Path
sys.path.insert(0, {str(ROOT)!r})
import mlp_mnist, lstm_mnist
def state():
    return [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)], torch.get_num_threads(), sys.stdout
before = state()
---
flags = ["--data-dir", Path({str(tiny)!r}), "--epochs", 2]
model, history = mlp_mnist.main(flags)
model, again = mlp_mnist.main(flags)
assert [r["valid_loss"] for r in history] == [r["valid_loss"] for r in again]
assert isinstance(model, mlp_mnist.Net)
model(torch.rand(3, 1, 28, 28)).argmax(1)
---
model, history = lstm_mnist.main([*flags, "--recipe", "last-hidden"])
assert [r["epoch"] for r in history] == [0, 1]
assert state() == before
---
import contextlib, io, threading
kept = io.StringIO()
threading.Timer(2, lambda: signal.raise_signal(signal.SIGINT)).start()
try:
    mlp_mnist.main("--data-dir {tiny} --epochs 100000 --checkpoint c.pt --log-interval 1")
except KeyboardInterrupt:
    pass
assert state() == before
_, history = mlp_mnist.main("--data-dir {tiny} --epochs 0 --checkpoint c.pt")
assert len(history) > 1
---
common = mlp_mnist.common
common.DATA_DIR = Path({str(tiny)!r})
mlp_mnist.RECIPE["epochs"] = 1
_, history = mlp_mnist.main()
assert len(history) == 1
"""
    notebook = nbformat.v4.new_notebook()
    notebook.cells = [nbformat.v4.new_code_cell(cell) for cell in cells.split("---\n")]
    NotebookClient(notebook, timeout=120, kernel_name="python3").execute(cwd=str(tmp_path))
    texts = ["".join(out.text for out in cell.outputs if out.output_type == "stream") for cell in notebook.cells]
    assert texts[1].count("Epoch 1. Train Loss") == 2
    assert "\rEpoch 1:   0%" in texts[1]  # the bar
    assert "Test Accuracy (Overall)" in texts[2]
    assert [file.name for file in tmp_path.iterdir()] == ["c.pt"]


@pytest.mark.parametrize("missing", ["torch", "tqdm"])
def test_a_missing_package_is_one_line(missing, tmp_path):
    (tmp_path / f"{missing}.py").write_text(f"raise ModuleNotFoundError(name={missing!r})")
    env = {**os.environ, "PYTHONPATH": str(tmp_path)}
    result = subprocess.run([sys.executable, ROOT / "mlp_mnist.py"], env=env, capture_output=True, text=True)
    assert result.stderr == f"{missing} is missing: pip install -r requirements.txt\n"
    assert result.returncode == 1


def test_another_common_on_the_path_is_named(tmp_path, monkeypatch):
    (tmp_path / "common.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("common", "mlp_mnist"):
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(ImportError, match=re.escape(str(tmp_path / "common.py"))):
        importlib.import_module("mlp_mnist")


@pytest.mark.parametrize("script", SCRIPTS)
def test_main_returns_the_model_and_its_history_and_leaves_all_else_as_it_was(script, tiny, monkeypatch, capsys):
    def state():
        handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
        return handlers, torch.get_num_threads(), sys.stdout, sys.stderr

    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    before = state()
    model, history = SCRIPTS[script](["--data-dir", str(tiny), "--epochs", "2"])
    assert state() == before
    monkeypatch.setattr(common, "end_epoch", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        SCRIPTS[script](["--data-dir", str(tiny), "--epochs", "2"])
    assert state() == before
    torch.set_num_threads(threads)
    assert [r["epoch"] for r in history] == [0, 1]
    images, labels = common.read(tiny)[1]
    accuracy = (model.eval()(common.to_float(images)).argmax(1) == labels).float().mean().item()
    assert accuracy == pytest.approx(history[-1]["valid_acc"])
