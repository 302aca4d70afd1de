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
from conftest import ROOT, call, refused, snippet, untimed
from nbclient import NotebookClient
from torch import nn
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader, TensorDataset

import lstm_mnist
import mlp_mnist
import modern_mnist

SCRIPTS = {
    "mlp_mnist.py": mlp_mnist.main,
    "lstm_mnist.py": lstm_mnist.main,
    "modern_mnist.py": modern_mnist.main,
}


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_script_and_common_alone_train_and_print_as_here(script, tiny, tmp_path, capsys):
    shutil.copy(ROOT / script, tmp_path)
    shutil.copy(ROOT / "common.py", tmp_path)
    flags = ["--data-dir", str(tiny), "--epochs", "2"]
    there = call(tmp_path / script, *flags, cwd=tmp_path)
    SCRIPTS[script](flags)
    assert untimed(there.stdout) == untimed(capsys.readouterr().out)
    assert there.stderr == ""
    assert there.returncode == 0


@pytest.mark.parametrize(
    "flags",
    ["--save-model x", "--load-model x", "--checkpoint x", "--log x", "--plot x", "--predict x"]
    + ["--compile"],
)
def test_a_flag_that_needs_support_says_so(flags, monkeypatch, capsys):
    monkeypatch.setattr(common, "SUPPORT", False)
    status, line = refused(mlp_mnist.main, flags.split(), capsys)
    needs = f"{flags.split()[0]} needs the folder support/ beside common.py; copy it too"
    assert line == f"mlp_mnist.py: {needs} (--help lists the flags)\n"
    assert status == 2


def test_pictures_need_support_too(tmp_path, monkeypatch, capsys):
    """MNIST was downloaded beside them, and trained on."""
    monkeypatch.setattr(common, "SUPPORT", False)
    (tmp_path / "train").mkdir()
    status, line = refused(mlp_mnist.main, ["--data-dir", tmp_path], capsys)
    assert (status, "--data-dir needs the folder support/" in line) == (2, True)


@pytest.mark.parametrize("argv", ["--epochs 1", ["--epochs", 1], None])
def test_main_without_support_takes_a_notebooks_flags(argv, tiny, monkeypatch, capsys):
    """As one string, as a list with numbers, or none: a kernel has flags of its own."""
    monkeypatch.setattr(common, "SUPPORT", False)
    monkeypatch.setitem(common.DEFAULTS, "data_dir", tiny)
    monkeypatch.setitem(mlp_mnist.RECIPE, "epochs", 1)
    monkeypatch.setitem(sys.modules, "ipykernel", sys)
    monkeypatch.setattr(sys, "argv", ["kernel.py", "-f", "kernel.json"])
    _, history = mlp_mnist.main(argv)
    assert [record["epoch"] for record in history] == [0]


def pasted(script, *names):
    """The classes and functions of these names from a script's text, run with torch alone."""
    namespace = {"torch": torch, "nn": nn}
    body = ast.parse((ROOT / script).read_text(encoding="utf-8")).body
    parts = [node for node in body if getattr(node, "name", None) in names]
    exec(compile(ast.Module(parts, []), script, "exec"), namespace)
    return [namespace[name] for name in names]


def alone(optimizer):
    """What most scripts' train needs besides: nothing."""
    return []


def todays(optimizer):
    """What modern_mnist.py's train needs besides."""
    return [LambdaLR(optimizer, lambda step: 1.0)]


@pytest.mark.parametrize(
    ("script", "name", "sizes", "besides"),
    [
        ("mlp_mnist.py", "Net", (), alone),
        ("lstm_mnist.py", "BatchFirst", (28, 32, 1, 10), alone),
        ("lstm_mnist.py", "LastHidden", (28, 32, 1, 10), alone),
        ("lstm_mnist.py", "TimeMajor", (28, 32, 1, 10), alone),
        ("modern_mnist.py", "RowsAndColumns", (16, 1, 10, 4), todays),
    ],
)
def test_a_pasted_model_and_loop_train_with_torch_alone(script, name, sizes, besides, small):
    Model, train, test = pasted(script, name, "train", "test")
    torch.manual_seed(1)
    model = Model(*sizes)
    (images, labels), (test_images, test_labels) = common.read(small)
    images, test_images = images[:2000, None] / 255, test_images[:, None] / 255
    loader = DataLoader(TensorDataset(images, labels[:2000]), 64, shuffle=True)
    test_loader = DataLoader(TensorDataset(test_images, test_labels), 128)
    criterion = nn.CrossEntropyLoss()
    optimizer = torch.optim.AdamW(model.parameters(), 0.01)
    counts = []

    def progress(total, correct, count):
        counts.append(count)

    needed = [criterion, optimizer, *besides(optimizer)]
    first, _ = train(model, loader, *needed, progress)
    second, accuracy = train(model, loader, *needed)
    assert second < first
    assert accuracy > 0.4
    assert counts == [*range(64, 2000, 64), 2000]
    outputs = model.eval()(test_images)
    model.train()
    right = (outputs.argmax(1) == test_labels).float().mean().item()
    expected = pytest.approx((criterion(outputs, test_labels).item(), right), rel=1e-4)
    assert test(model, test_loader, criterion) == expected
    assert not model.training


IMPORTS = """
import signal, sys
from pathlib import Path
sys.path.insert(0, {root!r})
import common, lstm_mnist, mlp_mnist
common.DEFAULTS["data_dir"] = Path({data!r})
"""
INTERRUPTED = """
line = common.Run.line
def interrupting(run, loss, acc):
    if len(run.history) == 3:
        signal.raise_signal(signal.SIGINT)
    return line(run, loss, acc)
common.Run.line = interrupting
try:
    mlp_mnist.main("--epochs 5 --checkpoint c.pt --log-interval 1")
except KeyboardInterrupt:
    print("interrupted")
common.Run.line = line
mlp_mnist.main("--epochs 5 --checkpoint c.pt")
"""


def test_main_in_a_notebook(tiny, tmp_path):
    """In a real kernel, whose stdout is not a file: README's cell, and an interrupt."""
    cells = [IMPORTS.format(root=str(ROOT), data=str(tiny)), snippet(".main("), INTERRUPTED]
    notebook = nbformat.v4.new_notebook()
    notebook.cells = [nbformat.v4.new_code_cell(cell) for cell in cells]
    NotebookClient(notebook, kernel_name="python3").execute(cwd=str(tmp_path))
    sys.modules.pop("ipykernel", None)  # the client's; by it a script knows a notebook
    texts = []
    for cell in notebook.cells:
        texts.append("".join(output.get("text", "") for output in cell.outputs))
    assert "\rEpoch 0:   0%" in texts[1]  # the bar
    assert "Epoch 0. Train Loss: " in texts[1]
    assert "interrupted\n" in texts[2]
    assert "c.pt: resuming after epoch 2\n" in texts[2]
    assert "Epoch 4. Train Loss: " in texts[2]


@pytest.mark.parametrize("missing", ["torch", "tqdm"])
@pytest.mark.parametrize("script", [*SCRIPTS, "compare.py"])
def test_a_missing_package_is_one_line(script, missing, tmp_path, monkeypatch):
    (tmp_path / f"{missing}.py").write_text(f"raise ModuleNotFoundError(name={missing!r})")
    monkeypatch.syspath_prepend(tmp_path)
    for name in (missing, "tqdm.auto", "common"):
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(SystemExit, match=f"^{missing} is missing: pip install -r req"):
        runpy.run_path(ROOT / script)


def outside():
    """What a run must leave as it was."""
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    return handlers, torch.get_num_threads(), sys.stdout, sys.stderr


@pytest.mark.parametrize("script", SCRIPTS)
def test_main_leaves_all_else_as_it_was(script, tiny, monkeypatch, capsys):
    """Also where a run ends with an exception."""
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    before = outside()
    flags = ["--data-dir", str(tiny), "--epochs", "1"]
    SCRIPTS[script](flags)
    assert outside() == before
    monkeypatch.setattr(common.Run, "end_epoch", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        SCRIPTS[script](flags)
    assert outside() == before
    torch.set_num_threads(threads)
