"""Seconds per epoch of a tutorial's own program, ours and Keras's; about 15 minutes on two cores.

python benchmarks/speed.py                             # three rounds of all five, without Keras
python benchmarks/speed.py --recipe mlp --rounds 5
python benchmarks/speed.py --quick --rounds 1          # a tenth of the data: times mean nothing
python benchmarks/speed.py --keras-python keras/bin/python   # with benchmarks/requirements.txt

An epoch is training and test. Each measurement is a fresh process; medians, with (min to max).

- tutorial: the program in tutorials.py; 20 steps go before the epoch that counts.
- ours: the script itself for two epochs; the second counts, as its --log gives it. `mlp --compile`
  and `batch-first --bf16` have rows of their own, if the machine can do them.
- Keras: the same network, data in memory, `fit` with its defaults; the second of two epochs counts.
"""

import itertools
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

import measuring
from measuring import PROGRAMS, RECIPES
from tutorials import as_written

FASTER = {"mlp": "--compile", "batch-first": "--bf16"}  # a flag that speeds up the recipe
BACKENDS = ["jax", "tensorflow"]


def tutorial(name: str, folder: str) -> dict:
    """One epoch of the tutorial's program in this process."""
    train, test, train_loader = as_written(name, folder)
    train(itertools.islice(train_loader, 20))
    start = time.perf_counter()
    train(train_loader)
    _, accuracy = test()
    return {"seconds": time.perf_counter() - start, "accuracy": accuracy}


def ours(name: str, flags: list, folder: str) -> dict:
    """The second epoch of the script."""
    with tempfile.TemporaryDirectory() as place:
        log = Path(place, "run.jsonl")
        flags = ["--log-interval", "0", "--data-dir", folder, "--log", log, *flags]
        measuring.run([sys.executable, *PROGRAMS[name], "--epochs", "2", *flags])
        record = measuring.lines(log)[-1]
    return {"seconds": record["seconds"], "accuracy": record["valid_acc"]}


def keras(name: str, backend: str, folder: str, python: str) -> dict:
    """The second epoch of the same recipe in Keras."""
    recipe = {"hidden": 256, "layers": 2, **RECIPES[name]}  # mlp's are in its model
    recipe.pop("model", None)
    recipe["lstm"] = name != "mlp"
    recipe["columns"] = name == "time-major"
    program = measuring.ROOT / "benchmarks" / "keras_mnist.py"
    return measuring.last_line([python, program, backend, folder, json.dumps(recipe)])


def measure(name: str, side: str, folder: str, python: str) -> dict:
    """One side of one recipe, once, in a fresh process."""
    if side == "tutorial":
        return measuring.apart(tutorial, name, folder)
    if side in BACKENDS:
        return keras(name, side, folder, python)
    return ours(name, [side] if side.startswith("--") else [], folder)


def works(name: str, flag: str) -> bool:
    """Whether this machine can do it: --bf16 needs AVX512, --compile a compiler."""
    try:
        measuring.run([sys.executable, *PROGRAMS[name], flag, "--dry-run"])
    except SystemExit as error:
        print(f"{name} {flag} is left out: {error}", file=sys.stderr)
        return False
    return True


def table() -> str:
    """A row for each side that is ours."""
    results = measuring.by_side("speed")
    head = ["recipe", "tutorial / ours", "tutorial, s", "ours, s"]
    head += [f"Keras {backend}, s" for backend in BACKENDS] + ["faster Keras / ours"]
    rows = []
    for name, side in results:
        if side == "tutorial" or side in BACKENDS:
            continue
        own, theirs = (results[name, which]["seconds"] for which in (side, "tutorial"))
        ratio = statistics.median(theirs) / statistics.median(own)
        words = name if side == "ours" else f"{name} {side}"
        row = [words, f"**{ratio:.2f}**", measuring.cell(theirs), measuring.cell(own)]
        medians = []
        for backend in BACKENDS:
            if (name, backend) in results:
                seconds = results[name, backend]["seconds"]
                medians.append(statistics.median(seconds))
                row.append(measuring.cell(seconds))
            else:
                row.append("-")
        row.append(f"**{min(medians) / statistics.median(own):.2f}**" if medians else "-")
        rows.append(row)
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
