"""README and docs: their snippets run, their links lead somewhere, their flags exist."""

import re
import runpy

import common

import pytest
import torch
from conftest import ROOT, snippet
from test_copies import pasted
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import compare
import lstm_mnist
import mlp_mnist
import modern_mnist

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "data" / "README.md"]


def test_the_pasted_loop_runs(small):
    BatchFirst, train, test = pasted("lstm_mnist.py", "BatchFirst", "train", "test")
    (images, labels), (test_images, test_labels) = common.read(small)
    names = dict(BatchFirst=BatchFirst, train=train, test=test, torch=torch, nn=nn)
    names["train_loader"] = DataLoader(TensorDataset(images[:500, None] / 255, labels[:500]), 100, shuffle=True)
    names["test_loader"] = DataLoader(TensorDataset(test_images[:, None] / 255, test_labels), 100)
    exec(snippet("for epoch in"), names)
    assert names["train_acc"] > 0.2


def test_the_loader_trains_a_model_of_ones_own(tiny, monkeypatch, capsys):
    monkeypatch.chdir(tiny)
    (tiny / "data").symlink_to(".")
    names = dict(model=nn.Sequential(nn.Flatten(), nn.Linear(784, 10)), train=mlp_mnist.train, test=mlp_mnist.test)
    names |= dict(criterion=nn.CrossEntropyLoss(), optimizer=torch.optim.SGD(names["model"].parameters(), 0.1))
    exec(snippet("epoch_line", "docs/own.md"), names)
    (tiny / "data").unlink()
    assert len(names["train_loader"]) == 3
    assert capsys.readouterr().out.startswith(f"Epoch 0. Train Loss: {names['train_loss']:.6f}, ")


def test_the_page_on_ones_own_model_works(tiny, tmp_path, capsys):
    model, recipe = snippet("class", "docs/own.md"), snippet('"both-ways"', "docs/own.md")
    text = (ROOT / "lstm_mnist.py").read_text(encoding="utf-8")
    text = text.replace("class EquationsLSTM", f"{model}\n\nclass EquationsLSTM")
    (tmp_path / "own_mnist.py").write_text(text.replace("RECIPES = {\n", f"RECIPES = {{\n{recipe}"))
    main = runpy.run_path(tmp_path / "own_mnist.py")["main"]
    kept, log = ["--checkpoint", tmp_path / "both.pt"], ["--log", tmp_path / "log.jsonl"]
    for epochs in (1, 2):
        main(["--recipe", "both-ways", "--data-dir", tiny, "--hidden", 5, *kept, *log, "--epochs", epochs])
    out, err = capsys.readouterr()
    assert (f"{kept[1]}: resuming after epoch 0\n" in out, err) == (True, "")
    main(["--load-model", kept[1], "--predict", ROOT / "docs" / "seven.jpg"])
    assert re.search(r"seven.jpg: \d \(\d\.\d{3}\)\n$", capsys.readouterr().out)
    (row,) = compare.main([str(word) for word in log])
    assert (row["name"], row["seeds"], row["epochs"]) == ("both-ways", 1, 2)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    text = page.read_text(encoding="utf-8")
    headings = {re.sub(r"[^a-z0-9 -]", "", line.lower()).strip().replace(" ", "-") for line in text.split("\n#")}
    for target in re.findall(r"\]\(([^)]+)\)", text):
        if target.startswith("#"):
            assert any(heading.startswith(target[1:]) for heading in headings), target
        elif "://" not in target:
            assert (page.parent / target).exists(), target


def test_every_flag_in_the_docs_exists_and_every_entry_of_a_recipe_has_one(capsys):
    own = {"recipe", "model", "opening", "running", "closing", "parts"}  # what makes it that tutorial's; mlp has one
    modern = [modern_mnist.RECIPE, *modern_mnist.LENGTHS.values()]
    recipes = {mlp_mnist: [mlp_mnist.RECIPE], lstm_mnist: lstm_mnist.RECIPES.values(), modern_mnist: modern}
    flags = set()
    for script, tables in recipes.items():
        with pytest.raises(SystemExit):
            script.main(["--help"])
        has = set(re.findall(r"--[a-z0-9-]+", capsys.readouterr().out))
        assert {f"--{name.replace('_', '-')}" for table in tables for name in {*table} - own} <= has
        flags |= has
    programs = [ROOT / "compare.py", *(ROOT / "benchmarks").glob("*.py")]
    code = "".join(file.read_text(encoding="utf-8") for file in programs)
    flags |= {*re.findall(r'"(--[a-z0-9-]+)"', code), "--help", "--cov", "--no-normalize", "--no-bf16", "--no-keras"}
    flags |= {"--nnodes", "--nproc-per-node", "--rdzv-backend", "--rdzv-endpoint", "--max-restarts"}  # torchrun's
    for page in PAGES:
        named = set(re.findall(r"(?<![\w-])--[a-z][a-z0-9-]+", page.read_text(encoding="utf-8")))
        assert named <= flags, (page.name, named - flags)
