"""What each ingredient of modern_mnist.py brings: the same training with one of them left out, as a Markdown table.

python benchmarks/leave_out.py --log leave_out.jsonl     # three seeds of all; run again, it only adds what is missing
python benchmarks/leave_out.py --log leave_out.jsonl --without columns "one cycle" --seeds 5

Tested on 10,000 training images held out (--hold-out 10000), never on the test set.
"""

import argparse
import functools
import shlex
import sys
from pathlib import Path

import torch
from machine import COUNT, compared, machine
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

import modern_mnist
from support.tables import cells

FLAGS = {
    "nothing": "",
    "several lines per step": "--lines 1",
    "label smoothing": "--smoothing 0",
    "averaged weights": "--average 0",
    "bfloat16": "--no-bf16",
    "any distortion": "--distortion 0",
}
DISTORTION = {"affine distortion": dict(turn=0.0, scale=0.0, shift=0.0), "elastic distortion": dict(warp=0.0)}
MODEL = {
    "columns": dict(columns=False),
    "second direction": dict(directions=1),
    "maximum over time": dict(maximum=False),
    "ends of the sequences": dict(ends=False),
}
WITHOUT = [*FLAGS, *DISTORTION, *MODEL, "one cycle"]


class Without(modern_mnist.RowsAndColumns):
    """The network without its columns, its second direction, the maximum over time or the sequences' ends."""

    def __init__(self, hidden_dim, n_layer, n_class, *shape, columns=True, directions=2, maximum=True, ends=True):
        super().__init__(hidden_dim, n_layer, n_class, *shape)
        self.columns = self.columns if columns else None
        if directions == 1:
            self.rows, self.columns = (nn.LSTM(self.rows.input_size, hidden_dim, n_layer) for _ in range(2))
        self.maximum, self.ends, self.directions = maximum, ends, directions
        self.classifier = nn.Linear((1 + columns) * directions * (maximum + ends) * hidden_dim, n_class)

    def forward(self, x):
        x = self.windows((x - 0.1307) / 0.3081)
        pooled = []
        for lstm, image in [(self.rows, x), (self.columns, x.mT)][: 2 if self.columns else 1]:
            steps = image.transpose(1, 2).unflatten(1, (-1, self.lines)).flatten(2)
            out, (h_n, _) = lstm(steps.transpose(0, 1))
            pooled += [out.amax(0)] * self.maximum + [*h_n[-self.directions :]] * self.ends
        return self.classifier(torch.cat(pooled, 1))


def train(without: str, flags: list[str]) -> None:
    """modern_mnist.py with these flags, without that ingredient; logged as `without`."""
    modern_mnist.RECIPE["without"] = without
    if without in MODEL:
        modern_mnist.RowsAndColumns = functools.partial(Without, **MODEL[without])
    if without in DISTORTION:
        modern_mnist.distort = functools.partial(modern_mnist.distort, **DISTORTION[without])
    if without == "one cycle":
        modern_mnist.LambdaLR = lambda optimizer, _: LambdaLR(optimizer, lambda step: 1.0)
    modern_mnist.main([*FLAGS.get(without, "").split(), *flags])


def main():
    if sys.argv[1:2] == ["--train"]:  # one of the runs, in a process of its own
        train(sys.argv[2], sys.argv[3:])
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--log", type=Path, required=True, metavar="FILE", help="keep the runs' records here")
    parser.add_argument("--seeds", type=COUNT, default=3, metavar="N", help="seeds 1 to N (default: 3)")
    parser.add_argument("--epochs", type=COUNT, default=4, metavar="N", help="default: 4")
    parser.add_argument("--without", nargs="+", choices=WITHOUT, default=WITHOUT, help="default: each of them")
    args = parser.parse_args()
    flags = f"--epochs {args.epochs} --hold-out 10000"
    names = dict.fromkeys(["nothing", *args.without])
    commands = {w: shlex.join([__file__, "--train", w, *flags.split()]) for w in names}
    rows = compared(commands.values(), args.seeds, args.log)
    if len(rows) != len(commands):
        raise SystemExit(f"{args.log}: some of the runs are missing or of other versions; name another --log")
    print("| without | accuracy, held out, % | difference from the full recipe (95 %, jointly) | s per epoch |")
    print("|---|---|---|---|")
    for without, row in zip(commands, rows):
        _, _, _, _, accuracy, difference, seconds = cells(row, "valid_acc")
        print(f"| {without} | {accuracy} | {difference or '-'} | {seconds} |")
    print(f"\n{machine()}; n = {args.seeds} seeds, {args.epochs} epochs")


if __name__ == "__main__":
    main()
