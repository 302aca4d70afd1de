"""Writes the tables of README.md and docs/ from the records in benchmarks/results/; a second.

python benchmarks/tables.py

A table stands between `<!-- table: NAME -->` and `<!-- end -->`; NAME is one of TABLES.
"""

import re

import busy
import ensemble
import leave_out
import measuring
import photographs
import processes
import set_up
import speed
from measuring import ROOT, torch
from torch import nn
from tutorials import network

import modern_mnist

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
MODERN = r"modern_mnist.py --epochs \d+"
PRINTED = {  # by the tutorials, in percent
    "mlp": "97.90",
    "batch-first": "98.17",
    "sgd": "above 99.7",
    "last-hidden": "96.4 (first 1000 test images)",
    "time-major": "98.07",
}


def multiply_adds(model: nn.Module) -> int:
    """How many multiplications with a weight a model does for an image, forward, in training."""
    counts = []

    def count(layer, inputs, _):
        matrices = sum(weight.numel() for weight in layer.parameters() if weight.dim() == 2)
        features = layer.input_size if isinstance(layer, nn.LSTM) else layer.in_features
        counts.append(matrices * inputs[0].numel() // features)

    for layer in model.modules():
        if isinstance(layer, (nn.LSTM, nn.Linear)):
            layer.register_forward_hook(count)
    model.train()(torch.zeros(1, 1, 28, 28))
    return sum(counts)


def by_command(pattern: str = ".*") -> dict[str, list[dict]]:
    """The records of each command that matches, from few epochs to many."""
    groups = {}
    for record in sorted(measuring.kept("runs"), key=lambda record: record["epochs"]):
        if re.fullmatch(pattern, record["command"]):
            groups.setdefault(record["command"], []).append(record)
    return groups


def accuracy(records: list[dict]) -> str:
    """Mean ± standard deviation (min to max), in percent."""
    return measuring.spread([100 * record["valid_acc"] for record in records])


def seconds(records: list[dict]) -> str:
    """Median (min to max) of whole runs."""
    return measuring.cell([record["seconds"] for record in records])


def recipes() -> str:
    """The five recipes at their tutorials' full length, and the tutorials' own programs."""
    head = ["recipe", "parameters", "multiply-adds", "epochs", "tutorial prints", "n", "here, %"]
    rows, records = [], by_command()
    for name, words in measuring.PROGRAMS.items():
        ours = records.get(" ".join(words))
        theirs = records.get(f"benchmarks/tutorials.py {name}")
        if ours and theirs:
            model = network(name)
            row = [name, f"{ours[0]['parameters']:,}", f"{multiply_adds(model):,}"]
            row += [ours[0]["epochs"], PRINTED[name], len(ours), accuracy(ours), seconds(ours)]
            rows.append([*row, len(theirs), accuracy(theirs), seconds(theirs)])
    return measuring.table([*head, "s", "n", "the tutorial's program, %", "s"], rows)


def modern() -> str:
    """modern_mnist.py by its number of epochs."""
    head = ["`modern_mnist.py`", "parameters", "multiply-adds", "n", "test accuracy, %", "seconds"]
    rows = []
    for command, records in by_command(MODERN).items():
        settings = modern_mnist.recipe({"epochs": records[0]["epochs"]})
        sizes = settings["lines"], settings["windows"]
        model = modern_mnist.RowsAndColumns(settings["hidden"], settings["layers"], 10, *sizes)
        flags = command.removeprefix("modern_mnist.py ")
        row = [f"`{flags}`", f"{records[0]['parameters']:,}", f"{multiply_adds(model):,}"]
        rows.append([*row, len(records), accuracy(records), seconds(records)])
    return measuring.table(head, rows)


def readme_modern() -> str:
    """The same, shorter."""
    rows = []
    for command, records in by_command(MODERN).items():
        rows.append([f"`python {command}`", accuracy(records), seconds(records), len(records)])
    return measuring.table(["command", "test accuracy, %", "seconds", "seeds"], rows)


TABLES = {  # by the name in a page: the table, and the file of its records
    "recipes": (recipes, "runs"),
    "modern": (modern, "runs"),
    "readme-modern": (readme_modern, "runs"),
    "ensembles": (ensemble.table, "ensembles"),
    "leave-out": (leave_out.table, "runs"),
    "speed": (speed.table, "speed"),
    "busy": (busy.table, "busy"),
    "set-up": (set_up.table, "set_up"),
    "processes": (processes.table, "processes"),
    "photographs": (photographs.table, "photographs"),
}


def filled(text: str) -> str:
    """A page's text with its tables as the records have them."""

    def table(match):
        make, name = TABLES[match[1]]
        about = measuring.about(measuring.kept(name))
        return f"<!-- table: {match[1]} -->\n\n{make()}\n{about}.\n\n<!-- end -->"

    return re.sub(r"<!-- table: ([a-z-]+) -->.*?<!-- end -->", table, text, flags=re.DOTALL)


def main():
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        if filled(text) != text:
            page.write_text(filled(text), encoding="utf-8", newline="\n")
            print(f"{page.relative_to(ROOT)}: written")


if __name__ == "__main__":
    main()
