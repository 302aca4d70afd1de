"""What each ingredient of modern_mnist.py brings; about 45 minutes on two cores.

python benchmarks/leave_out.py                         # three seeds; runs only what is missing
python benchmarks/leave_out.py --without columns "one cycle" --seeds 5

Tested on 10,000 training images held out (--hold-out 10000), never on the test set.
"""

import functools
import shlex
import sys

import measuring
import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

import modern_mnist

PROGRAM = "benchmarks/leave_out.py"
FLAGS = {
    "nothing": "",
    "several lines per step": "--lines 1",
    "label smoothing": "--smoothing 0",
    "averaged weights": "--average 0",
    "bfloat16": "--no-bf16",
    "any distortion": "--distortion 0",
    "Muon": "--optimizer AdamW --lr 0.01",
}
READ = {  # of an image
    "shifted copies in evaluation": dict(PLACES=((2, 2),)),
    "shifted copies and an unread border": dict(SIDE=28, PLACES=((0, 0),)),
}
DISTORTION = {
    "affine distortion": dict(scale=0.0, shear=0.0, shift=0.0),
    "elastic distortion": dict(warp=0.0),
}
# Eighths of the features that are left: of the rows, then of the columns, the maximum over time and
# the final state, each forward and backward
EIGHTHS = {
    "columns": [0, 1, 2, 3],
    "maximum over time": [2, 3, 6, 7],
    "ends of the sequences": [0, 1, 4, 5],
    "last layer's second direction": [0, 2, 4, 6],
}
WITHOUT = [*FLAGS, *READ, *DISTORTION, *EIGHTHS, "one cycle"]


class Some(nn.Linear):
    """A classifier that sees some eighths of the features."""

    def __init__(self, features, eighths):
        super().__init__(features * len(eighths) // 8, 10, bias=False)
        self.eighths = eighths

    def forward(self, x):
        each = x.chunk(8, 1)
        return super().forward(torch.cat([each[k] for k in self.eighths], 1))


def train(without: str, flags: list[str]) -> None:
    """modern_mnist.py with these flags, without that ingredient; logged as `without`."""
    from support.parallel import keep_freed_memory

    keep_freed_memory()  # as a program does
    modern_mnist.RECIPE["without"] = without
    network, distort = modern_mnist.RowsAndColumns, modern_mnist.distort

    def smaller(*sizes):
        model = network(*sizes)
        model.classifier = Some(model.classifier.in_features, EIGHTHS[without])
        return model

    if without in EIGHTHS:
        modern_mnist.RowsAndColumns = smaller
    for name, value in READ.get(without, {}).items():
        setattr(network, name, value)
    if without in DISTORTION:
        modern_mnist.distort = functools.partial(distort, **DISTORTION[without])
    if without == "one cycle":
        modern_mnist.LambdaLR = lambda optimizer, _: LambdaLR(optimizer, lambda step: 1.0)
    modern_mnist.main([*FLAGS.get(without, "").split(), *flags])


def table(epochs: int = 4) -> str:
    """A row per ingredient, each compared with nothing left out."""
    groups = {}
    for record in measuring.kept("runs"):
        program, *words = shlex.split(record["command"])
        if program == PROGRAM and record["epochs"] == epochs:
            groups.setdefault(words[1], []).append(record)
    return measuring.comparison("without", groups)


def main():
    if sys.argv[1:2] == ["--train"]:  # one of the runs, in a process of its own
        train(sys.argv[2], sys.argv[3:])
        return
    parser = measuring.parser(__doc__, "--seeds", 3, recipes=None)
    add = parser.add_argument
    count = measuring.common.COUNT
    add("--epochs", type=count, default=4, metavar="N", help="default: 4")
    add("--without", nargs="+", choices=WITHOUT, default=WITHOUT, help="default: each of them")
    args = parser.parse_args()
    flags = ["--epochs", str(args.epochs), "--hold-out", "10000"]
    names = dict.fromkeys(["nothing", *args.without])
    commands = [shlex.join([PROGRAM, "--train", name, *flags]) for name in names]
    measuring.runs(commands, args.seeds)
    print(table(args.epochs))


if __name__ == "__main__":
    main()
