"""Writes the tables of README.md and docs/ from the records in benchmarks/results/; a second.

python benchmarks/tables.py

A table stands between `<!-- table: NAME -->` and `<!-- end -->`; NAME is one of TABLES.
"""

import functools
import re
import statistics

import ensemble
import measuring
import speed
from measuring import ROOT, torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from tutorials import network

import modern_mnist
from support import tables

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
PRINTED = {  # by the tutorials, in percent
    "mlp": "97.90",
    "batch-first": "98.17",
    "sgd": "“above 99.7”",
    "last-hidden": "96.4 (1000 images)",
    "time-major": "98.07",
}
KNOWN_BY = {  # what the reader of a tutorial finds in it
    "mlp": "`fc1`, `fc2`, `fc3`",
    "batch-first": "`nn.LSTM(28, 128, 2, batch_first=True)`",
    "sgd": "`nn.LSTM(28, 50, 2, batch_first=True)`",
    "last-hidden": "`nn.LSTM(28, 64, 1, batch_first=True)`",
    "time-major": "`nn.LSTM(28, 100, 2)`",
}


def multiply_adds(model: nn.Module) -> int:
    """Multiply-adds of a model for one image, forward, in training."""
    # On the CPU nn.LSTM is one operation, which the counter does not know
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        model.to("meta").train()(torch.zeros(1, 1, 28, 28))
    return counter.get_total_flops() // 2


def grouped(pattern: str = "(.*)") -> dict[str, list[dict]]:
    """The records of runs whose command matches, by the group in brackets."""
    groups = {}
    for record in measuring.kept("runs"):
        match = re.fullmatch(pattern, record["command"])
        if match:
            groups.setdefault(match[1], []).append(record)
    return groups


def modern_runs() -> list[tuple[int, list[dict]]]:
    """The records of modern_mnist.py with no other flag, by its epochs, from few to many."""
    groups = grouped(r"modern_mnist\.py --epochs (\d+)")
    return [(epochs, groups[str(epochs)]) for epochs in sorted(map(int, groups))]


def accuracy(records: list[dict]) -> str:
    """Mean ± standard deviation (min to max), in percent."""
    return measuring.spread([100 * record["valid_acc"] for record in records])


def brief(records: list[dict]) -> str:
    """Mean ± standard deviation."""
    return accuracy(records).split(" (")[0]


def in_brief(name, records: list[dict]) -> list:
    """A row: name, accuracy, median seconds, n."""
    seconds = statistics.median(record["seconds"] for record in records)
    return [name, brief(records), f"{seconds:.1f}", len(records)]


def readme() -> str:
    """The five recipes in brief: accuracy at full length, seconds per epoch."""
    results, by_command = measuring.by_side("speed"), grouped()
    rows = []
    for name, words in measuring.PROGRAMS.items():
        command = " ".join(words)
        records = by_command[command]
        seconds = [results[name, side] for side in ("tutorial", "ours")]
        theirs, ours = map(statistics.median, seconds)
        row = [KNOWN_BY[name], f"`{command}`", records[0]["epochs"], brief(records)]
        rows.append([*row, f"{theirs:.1f} → {ours:.1f}"])
    head = ["if your tutorial has", "run `python …`", "epochs"]
    head.append(f"test accuracy, % (n = {len(records)})")
    head.append(f"s per epoch: its loop → ours (n = {len(seconds[0])})")
    return measuring.table(head, rows, measuring.kept("runs"))  # also those of the other table


def recipes() -> str:
    """The five recipes at their tutorials' full length."""
    head = ["recipe", "parameters", "multiply-adds", "epochs", "tutorial prints, %", "here, %", "n"]
    by_command = grouped()
    rows, used = [], []
    for name, words in measuring.PROGRAMS.items():
        command = " ".join(words)
        records = by_command[command]
        row = [name, f"{records[0]['parameters']:,}", f"{multiply_adds(network(name)):,}"]
        row += [records[0]["epochs"], PRINTED[name], accuracy(records), len(records)]
        rows.append(row)
        used += records
    return measuring.table(head, rows, used)


def modern() -> str:
    """modern_mnist.py by its number of epochs."""
    head = ["`modern_mnist.py`", "parameters", "multiply-adds", "test accuracy, %", "seconds", "n"]
    rows, used = [], []
    for epochs, records in modern_runs():
        settings = modern_mnist.recipe({"epochs": epochs})
        sizes = settings["lines"], settings["windows"]
        model = modern_mnist.RowsAndColumns(settings["hidden"], settings["layers"], 10, *sizes)
        row = [f"`--epochs {epochs}`", f"{records[0]['parameters']:,}", f"{multiply_adds(model):,}"]
        seconds = measuring.cell([record["seconds"] for record in records])
        rows.append([*row, accuracy(records), seconds, len(records)])
        used += records
    return measuring.table(head, rows, used)


def readme_modern() -> str:
    """The same, in brief."""
    rows = [in_brief(epochs, records) for epochs, records in modern_runs()]
    return measuring.table(["`--epochs`", "test accuracy, %", "seconds", "n"], rows, [])


def tries() -> str:
    """Settings of modern_mnist.py, on held-out training images."""
    rows, used = [], []
    for flags, records in grouped(r"modern_mnist\.py (.*) --hold-out 10000").items():
        rows.append(in_brief(f"`{flags}`", records))
        used += records
    return measuring.table(["flags", "held-out accuracy, %", "seconds", "n"], rows, used)


GRU = [
    "mlp_mnist.py --epochs 5",
    "lstm_mnist.py --recipe last-hidden --epochs 5",
    "lstm_mnist.py --recipe last-hidden --epochs 5 --cell gru",
]
OPTIMIZERS = [
    "lstm_mnist.py --recipe last-hidden --optimizer SGD --lr 1",
    "lstm_mnist.py --recipe last-hidden --optimizer Adam --lr 0.01",
    "lstm_mnist.py --recipe last-hidden --optimizer RMSprop --lr 0.01",
    "lstm_mnist.py --recipe last-hidden --optimizer Adadelta --lr 3",
]


def compared(commands: list[str]) -> str:
    """A row per command, each compared with the first, as compare.py does."""
    by_command = grouped()
    runs, used, rows = {}, [], []
    for command in commands:
        records = by_command[command]
        runs[f"`{command}`"] = [[record] for record in records]
        used += records
    for row in tables.table(runs, "valid_acc"):
        name, n, _, _, scores, difference, _ = tables.cells(row, "valid_acc")
        rows.append([name, scores, difference or "-", n])
    head = ["command", "test accuracy, %", "difference from the first row (95 %, jointly)", "n"]
    return measuring.table(head, rows, used)


TABLES = {  # by the name in a page
    "readme": readme,
    "readme-modern": readme_modern,
    "recipes": recipes,
    "modern": modern,
    "tries": tries,
    "ensembles": ensemble.table,
    "gru": functools.partial(compared, GRU),
    "optimizers": functools.partial(compared, OPTIMIZERS),
    "speed": speed.table,
}


def filled(text: str) -> str:
    """A page's text with its tables as the records have them."""

    def table(match):
        return f"<!-- table: {match[1]} -->\n\n{TABLES[match[1]]()}\n<!-- end -->"

    return re.sub(r"<!-- table: ([a-z-]+) -->.*?<!-- end -->", table, text, flags=re.DOTALL)


def main():
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        new = filled(text)
        if new != text:
            page.write_text(new, encoding="utf-8", newline="\n")
            print(f"{page.relative_to(ROOT)}: written")


if __name__ == "__main__":
    main()
