"""README and docs: their snippets run, their links lead somewhere, their flags exist."""

import re
import runpy
import shutil

import pytest
from conftest import ROOT, snippet

import compare
import lstm_mnist
import mlp_mnist
import modern_mnist

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "data" / "README.md"]


@pytest.fixture
def data(tiny, tmp_path, monkeypatch):
    """The current folder has data/, as a clone."""
    shutil.copytree(tiny, tmp_path / "data")
    monkeypatch.chdir(tmp_path)


def test_a_loop_of_ones_own_trains(data, capsys):
    names = {}
    exec(snippet("for epoch in", "docs/own.md"), names)
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [epoch for epoch, *_ in lines] == [*"01234"]
    losses = [float(train_loss) for _, train_loss, *_ in lines]
    assert losses[4] < losses[0]
    assert len(names["train_loader"]) == 3
    scores = lstm_mnist.test(names["model"], names["test_loader"], names["criterion"])
    assert (names["valid_loss"], names["valid_acc"]) == pytest.approx(scores)


def test_the_page_on_ones_own_model_works(data, tmp_path, capsys):
    model, recipe = snippet("class", "docs/own.md"), snippet('"both-ways"', "docs/own.md")
    text = (ROOT / "lstm_mnist.py").read_text(encoding="utf-8")
    text = text.replace("class EquationsLSTM", f"{model}\n\nclass EquationsLSTM")
    text = text.replace("RECIPES = {", f"RECIPES = {{\n{recipe}\n")
    (tmp_path / "own_mnist.py").write_text(text)
    main = runpy.run_path("own_mnist.py")["main"]
    flags = "--recipe both-ways --data-dir data --hidden 5 --checkpoint both.pt --log log.jsonl"
    main(f"{flags} --epochs 1")
    main(f"{flags} --epochs 2")
    assert "\nboth.pt: resuming after epoch 0\n" in capsys.readouterr().out
    main(["--load-model", "both.pt", "--predict", ROOT / "docs" / "seven.jpg"])
    assert re.search(r"seven.jpg: \d \(\d\.\d{3}\)\n$", capsys.readouterr().out)
    (row,) = compare.main(["--log", "log.jsonl"])
    assert (row["name"], row["seeds"], row["epochs"]) == ("both-ways", 1, 2)


def headings(page):
    """A page's headings as the ends of links."""
    found = set()
    for line in page.read_text(encoding="utf-8").splitlines():
        if line.startswith("#"):
            words = re.sub(r"[^a-z0-9_ -]", "", line.lower()).strip()
            found.add(words.replace(" ", "-"))
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)]+)\)", page.read_text(encoding="utf-8")):
        name, _, heading = target.partition("#")
        if "://" in target:
            continue
        linked = page.parent / name if name else page
        assert linked.exists(), target
        assert not heading or heading in headings(linked), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_flag_in_the_docs_exists(page):
    programs = [*ROOT.glob("*.py"), *ROOT.glob("benchmarks/*.py")]
    code = "".join(file.read_text(encoding="utf-8") for file in programs)
    known = {*re.findall(r'"(--[a-z0-9-]+)"', code), "--help", "--cov", "--no-normalize"}
    known |= {"--nnodes", "--nproc-per-node", "--rdzv-backend", "--rdzv-endpoint"}  # torchrun's
    known |= {"--max-restarts", "--no-bf16", "--no-windows"}
    named = re.findall(r"(?<![\w-])--[a-z][a-z0-9-]+", page.read_text(encoding="utf-8"))
    assert set(named) - known == set()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_commands_flags_are_its_programs(page):
    """`ensemble.py --epochs 8` stood in a page; only other programs have --epochs."""
    text = page.read_text(encoding="utf-8").replace("\\\n", " ")
    for program, words in re.findall(r"^ {4}python (\S+\.py)(.*)$", text, flags=re.MULTILINE):
        file = ROOT / program
        if file.exists():
            shared = file.with_name("measuring.py" if program.startswith("bench") else "common.py")
            code = file.read_text(encoding="utf-8") + shared.read_text(encoding="utf-8")
            defined = re.findall(r'(?:add|argument|parser)\((?:__doc__, |\s*)"(--[a-z-]+)"', code)
            flags = re.findall(r"--[a-z-]+", re.sub('".*?"', "", words))
            assert {flag.replace("--no-", "--") for flag in flags} <= {*defined}, program


@pytest.mark.parametrize(
    ("script", "recipes"),
    [
        (mlp_mnist, [mlp_mnist.RECIPE]),
        (lstm_mnist, lstm_mnist.RECIPES.values()),
        (modern_mnist, [modern_mnist.RECIPE, *modern_mnist.LENGTHS.values()]),
    ],
)
def test_every_entry_of_a_recipe_is_a_flag(script, recipes):
    actions = script.flags()._actions
    has = {action.dest for action in actions}
    for recipe in recipes:
        assert set(recipe) - has <= {"model"}
