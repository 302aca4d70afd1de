"""Seconds per epoch of a tutorial's own program, ours and Keras's; about 6 minutes on two cores.

python benchmarks/speed.py                             # three rounds of all five, without Keras
python benchmarks/speed.py --recipe mlp --rounds 5
python benchmarks/speed.py --quick --rounds 1 --results DIR    # a tenth: times mean nothing
python benchmarks/speed.py --keras-python keras/bin/python   # with benchmarks/requirements.txt

An epoch is training and test. Each measurement is a fresh process; medians, with (min to max).

- tutorial: the program in tutorials.py; 20 steps go before the epoch that counts.
- ours: the script for two epochs; the second counts. With --faster `mlp --compile`, which needs a
  C++ compiler, and `batch-first --bf16`, which needs AVX512, have rows of their own.
- Keras: the same network, data in memory, `fit` with its defaults; the second of two epochs counts.
"""

import itertools
import json
import os
import statistics

import measuring
from measuring import PROGRAMS, RECIPES

FASTER = {"mlp": "--compile", "batch-first": "--bf16"}  # a flag that speeds up the recipe
BACKENDS = ["jax", "tensorflow"]
TWO_EPOCHS = ["--epochs", 2, "--log-interval", 0]


def last_epoch(words: list, folder: str, *launcher) -> dict:
    """Seconds and accuracy of a program's last epoch."""
    record = measuring.epochs_of([*words, "--data-dir", folder], *launcher)[-1]
    return {"seconds": record["seconds"], "accuracy": record["valid_acc"]}


def keras(name: str, backend: str, folder: str, python: str) -> dict:
    """The second epoch of the same recipe in Keras."""
    recipe = {"hidden": 256, "layers": 2, **RECIPES[name]}  # mlp's are in its model
    recipe.pop("model", None)
    recipe["lstm"] = name != "mlp"
    program = measuring.ROOT / "benchmarks" / "keras_mnist.py"
    printed = measuring.run([python, program, backend, folder, json.dumps(recipe)])
    return json.loads(printed.splitlines()[-1])


def measure(name: str, side: str, folder: str, python: str | None = None) -> dict:
    """One side of one recipe, once, in a fresh process."""
    if side in BACKENDS:
        return keras(name, side, folder, python)
    if side == "tutorial":
        words = ["benchmarks/tutorials.py", name, "--epochs", 1, "--warm-up", 20]
    else:
        words = [*PROGRAMS[name], *TWO_EPOCHS]
    if side == FASTER.get(name):
        words.append(side)
    return last_epoch(words, folder)


def table() -> str:
    """A row for each side that is ours; the others' seconds, and their ratio to ours."""
    results = measuring.by_side("speed")
    rows = []
    for name, side in itertools.product(RECIPES, ["ours", *FASTER.values()]):
        if (name, side) not in results:
            continue
        ours = results[name, side]
        row = [name if side == "ours" else f"{name} {side}", measuring.cell(ours)]
        for other in ("tutorial", *BACKENDS):
            seconds = results.get((name, other))
            if seconds:
                ratio = statistics.median(seconds) / statistics.median(ours)
                row += [measuring.cell(seconds), f"**{ratio:.2f}**"]
            else:
                row += ["-", "-"]
        rows.append(row)
    head = ["recipe", "ours, s"]
    for title in ("tutorial", "Keras jax", "Keras tensorflow"):
        head += [f"{title}, s", "/ ours"]
    return measuring.table(head, rows, measuring.kept("speed"))


def main():
    parser = measuring.parser(__doc__, "--rounds", 3)
    parser.add_argument("--quick", action="store_true", help="a tenth of the images")
    parser.add_argument("--faster", action="store_true", help="also rows with --compile, --bf16")
    help = "an interpreter with Keras, JAX and TensorFlow"
    parser.add_argument("--keras-python", type=os.path.abspath, metavar="PATH", help=help)
    args = parser.parse_args()
    counts = (6000, 1000) if args.quick else (60000, 10000)
    sides = []
    for name in args.recipe:
        sides += [(name, "tutorial"), (name, "ours")]
        if args.faster and name in FASTER:
            sides.append((name, FASTER[name]))
        if args.keras_python:
            sides += [(name, backend) for backend in BACKENDS]
    with measuring.part_of_mnist(*counts) as folder:
        measuring.in_turn("speed", args.rounds, measure, sides, folder, args.keras_python)
    print(table())


if __name__ == "__main__":
    main()
