"""Seconds per epoch of a tutorial's own program, ours and Keras's; about 15 minutes on two cores.

python benchmarks/speed.py                             # three rounds of all five, without Keras
python benchmarks/speed.py --recipe mlp --rounds 5
python benchmarks/speed.py --quick --rounds 1          # a tenth of the data: times mean nothing
python benchmarks/speed.py --keras-python keras/bin/python   # with benchmarks/requirements.txt

An epoch is training and test. Each measurement is a fresh process; medians, with (min to max).

- tutorial: the program in tutorials.py; 20 steps go before the epoch that counts.
- ours: the script for two epochs; the second counts. `mlp --compile` and `batch-first --bf16` have
  rows of their own, if the machine can do them.
- Keras: the same network, data in memory, `fit` with its defaults; the second of two epochs counts.
"""

import json
import os
import statistics
import sys

import measuring
from measuring import PROGRAMS, RECIPES

FASTER = {"mlp": "--compile", "batch-first": "--bf16"}  # a flag that speeds up the recipe
BACKENDS = ["jax", "tensorflow"]
TWO_EPOCHS = ["--epochs", 2, "--log-interval", 0]


def last_epoch(words: list, folder: str, *launcher) -> dict:
    """The last epoch of a program."""
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


def works(name: str, flag: str) -> bool:
    """Whether this machine can do it: --bf16 needs AVX512, --compile a compiler."""
    try:
        measuring.run([sys.executable, *PROGRAMS[name], flag, "--dry-run"])
    except SystemExit as error:
        print(f"{name} {flag} is left out: {error}", file=sys.stderr)
        return False
    return True


def table() -> str:
    """A row for each side that is ours; the others' seconds, and their ratio to ours."""
    results = measuring.by_side("speed")
    theirs = ["tutorial", *BACKENDS]
    rows = []
    for name, side in results:
        if side in theirs:
            continue
        ours = results[name, side]["seconds"]
        row = [name if side == "ours" else f"{name} {side}", measuring.cell(ours)]
        for other in theirs:
            seconds = results.get((name, other), {}).get("seconds")
            if seconds:
                ratio = statistics.median(seconds) / statistics.median(ours)
                row += [measuring.cell(seconds), f"**{ratio:.2f}**"]
            else:
                row += ["-", "-"]
        rows.append(row)
    head = ["recipe", "ours, s"]
    for other in ("tutorial", "Keras jax", "Keras tensorflow"):
        head += [f"{other}, s", "/ ours"]
    return measuring.table(head, rows, measuring.kept("speed"))


def main():
    parser = measuring.parser(__doc__, "--rounds", 3)
    parser.add_argument(
        "--quick", action="store_true", help="6000 images of training, 1000 of test"
    )
    help = "an interpreter with Keras, JAX and TensorFlow"
    parser.add_argument("--keras-python", type=os.path.abspath, metavar="PATH", help=help)
    args = parser.parse_args()
    counts = (6000, 1000) if args.quick else (60000, 10000)
    backends = BACKENDS if args.keras_python else []
    sides = []
    for name in args.recipe:
        sides += [(name, "tutorial"), (name, "ours")]
        if name in FASTER and works(name, FASTER[name]):
            sides.append((name, FASTER[name]))
        sides += [(name, backend) for backend in backends]
    with measuring.part_of_mnist(*counts) as folder:
        measuring.in_turn("speed", args.rounds, measure, sides, folder, args.keras_python)
    print(table())


if __name__ == "__main__":
    main()
