"""README and docs: their snippets run, their links lead somewhere, their flags exist."""

import re

import common

import pytest
import torch
from conftest import ROOT, call
from test_copies import pasted
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import compare
import lstm_mnist
import mlp_mnist
import modern_mnist

README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "data" / "README.md"]


def snippet(word):
    """README's Python block that contains the word."""
    (block,) = [code for code in re.findall(r"```python\n(.*?)```", README, flags=re.S) if word in code]
    return block


def test_the_pasted_loop_runs(small):
    BatchFirst, train, test = pasted("lstm_mnist.py", "BatchFirst", "train", "test")
    (images, labels), (test_images, test_labels) = common.read(small)
    names = dict(BatchFirst=BatchFirst, train=train, test=test, torch=torch, nn=nn)
    names["train_loader"] = DataLoader(TensorDataset(images[:500, None] / 255, labels[:500]), 100, shuffle=True)
    names["test_loader"] = DataLoader(TensorDataset(test_images[:, None] / 255, test_labels), 100)
    exec(snippet("for epoch in"), names)
    images, labels = common.to_float(test_images), test_labels
    accuracy = (names["model"].eval()(images).argmax(1) == labels).float().mean().item()
    assert names["valid_acc"] == pytest.approx(accuracy)
    assert names["train_acc"] > 0.2


def test_the_loader_trains_a_model_of_ones_own(tiny, monkeypatch, capsys):
    monkeypatch.chdir(tiny)
    (tiny / "data").symlink_to(".")
    names = dict(model=nn.Sequential(nn.Flatten(), nn.Linear(784, 10)), train=mlp_mnist.train, test=mlp_mnist.test)
    names |= dict(criterion=nn.CrossEntropyLoss(), optimizer=torch.optim.SGD(names["model"].parameters(), 0.1))
    exec(snippet("epoch_line"), names)
    (tiny / "data").unlink()
    assert len(names["train_loader"]) == 3
    assert capsys.readouterr().out.startswith(f"Epoch 0. Train Loss: {names['train_loss']:.6f}, ")


def test_the_page_on_ones_own_model_works(tiny, tmp_path, capsys):
    model, recipe = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "own.md").read_text(encoding="utf-8"), re.S)
    text = (ROOT / "lstm_mnist.py").read_text(encoding="utf-8")
    text = text.replace("class EquationsLSTM", f"{model}\n\nclass EquationsLSTM")
    (tmp_path / "own_mnist.py").write_text(text.replace("RECIPES = {\n", f"RECIPES = {{\n{recipe}"))
    for name in ("common.py", "support", "compare.py"):
        (tmp_path / name).symlink_to(ROOT / name)
    flags = ["--recipe", "both-ways", "--data-dir", tiny, "--hidden", "5"]
    files = ["--checkpoint", "both.pt", "--log", "log.jsonl"]
    for epochs in (1, 2):
        result = call(tmp_path / "own_mnist.py", *flags, *files, "--epochs", epochs, cwd=tmp_path)
        assert (result.returncode, result.stderr) == (0, "")
    assert "both.pt: resuming after epoch 0\n" in result.stdout
    assert len((tmp_path / "log.jsonl").read_text().splitlines()) == 2
    result = call(tmp_path / "own_mnist.py", "--load-model", "both.pt", "--predict", ROOT / "docs" / "seven.jpg")
    command = f"{tmp_path}/own_mnist.py {' '.join(map(str, flags))} --epochs 1"
    (row,) = compare.main(["--seeds", "1", "--log", str(tmp_path / "c.jsonl"), command])
    assert (row["name"], row["seeds"]) == ("both-ways", 1)
    capsys.readouterr()


def test_the_notebook_cell_runs(tiny, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(common, "DATA_DIR", tiny)
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(snippet("main("), names)
    assert isinstance(names["model"], lstm_mnist.LastHidden)
    assert [r["epoch"] for r in names["history"]] == [0]
    capsys.readouterr()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    text = page.read_text(encoding="utf-8")
    headings = {re.sub(r"[^a-z0-9 -]", "", line.lower()).strip().replace(" ", "-") for line in text.split("\n#")}
    for target in re.findall(r"\]\(([^)]+)\)", text):
        if target.startswith("#"):
            assert any(heading.startswith(target[1:]) for heading in headings), target
        elif "://" not in target:
            assert (page.parent / target).exists(), target


def test_flags_in_the_docs_exist(capsys):
    flags = set()
    for main in (mlp_mnist.main, lstm_mnist.main, modern_mnist.main):
        with pytest.raises(SystemExit):
            main(["--help"])
        flags |= set(re.findall(r"--[a-z0-9-]+", capsys.readouterr().out))
    programs = [ROOT / "compare.py", *(ROOT / "benchmarks").glob("*.py")]
    code = "".join(file.read_text(encoding="utf-8") for file in programs)
    flags |= set(re.findall(r'"(--[a-z0-9-]+)"', code)) | {"--help", "--cov", "--no-keras", "--no-flags"}
    flags |= {"--no-normalize", "--no-bf16", "--no-windows"}
    flags |= {"--nnodes", "--nproc-per-node", "--rdzv-backend", "--rdzv-endpoint", "--max-restarts"}  # torchrun's
    for page in PAGES:
        named = set(re.findall(r"(?<![\w-])--[a-z][a-z0-9-]+", page.read_text(encoding="utf-8")))
        assert named <= flags, (page.name, named - flags)
