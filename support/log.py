"""The log: a line of JSON per epoch; it can hold many runs."""

import json
import os
import sys
from pathlib import Path

SCORES = {  # an epoch's scores: their name with a unit, and the factor to that unit
    "train_loss": ("training loss", 1),
    "train_acc": ("training accuracy, %", 100),
    "valid_loss": ("test loss", 1),
    "valid_acc": ("test accuracy, %", 100),
    "seconds": ("s per epoch", 1),
}


def check(path: Path) -> None:
    """See that a file is a log, or empty or new; SystemExit with one line if not."""
    try:
        begin = path.open("rb").read(1) if path.exists() else b""
    except OSError as error:
        raise SystemExit(f"{path}: cannot be read ({error.strerror}); name another") from None
    if begin not in (b"", b"{"):
        raise SystemExit(f"{path}: is not a log; name a new file, or one that --log wrote")


def append(path: Path, records: list[dict]) -> None:
    """Append records, each as a line; SystemExit with one line where that fails."""
    lines = "".join(json.dumps(record) + "\n" for record in records)
    try:
        with open(path, "a+b") as file:
            end = file.seek(0, os.SEEK_END)
            if end > 0:
                file.seek(end - 1)
                if file.read(1) != b"\n":  # a kill or a full disk has cut the last line short
                    lines = "\n" + lines
            file.write(lines.encode())
    except OSError as error:
        raise SystemExit(f"{path}: cannot be written ({error.strerror})") from None


def complete(path: Path, history: list[dict]) -> None:
    """Append the epochs that a kill between checkpoint and log kept out of the log."""
    have = set()
    for run in read(path):
        have |= {record["epoch"] for record in run if record["run"] == history[0]["run"]}
    append(path, [record for record in history if record["epoch"] not in have])


def read(path: Path) -> list[list[dict]]:
    """The runs in a log, each a list of its epochs' records.

    Lines that are not records are named on stderr and left out.
    """
    try:
        check(path)
        text = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
    except OSError as error:
        reason = f"cannot be read ({error.strerror}); name a file that --log wrote"
        raise SystemExit(f"{path}: {reason}") from None
    runs, odd = {}, []
    for number, line in enumerate(text.splitlines(), 1):
        try:
            record = json.loads(line)
            record |= {name: float(record[name]) for name in SCORES}
            key = record["run"], record["script"], record["recipe"], record["seed"]
            epoch = int(record["epoch"])
            epochs = runs.setdefault(key, {})
            epochs.setdefault(epoch, record)  # the same epoch twice is one
        except (ValueError, TypeError, KeyError, OverflowError):
            odd.append(str(number))
    if odd:
        lines = ", ".join(odd[:9])
        print(f"{path}: skipped what is not an epoch's record: line {lines}", file=sys.stderr)
    return [[epochs[k] for k in sorted(epochs)] for epochs in runs.values()]
