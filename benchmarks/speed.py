"""An epoch of each recipe, training and test: the tutorial's own way, ours and Keras's, as a Markdown table.

python benchmarks/speed.py                             # three rounds of all five
python benchmarks/speed.py --recipe mlp --rounds 5
python benchmarks/speed.py --quick --rounds 1          # a tenth of the data: a smoke test, whose times mean nothing
python benchmarks/speed.py --keras-python keras/bin/python   # Keras 3, installed in an environment of its own
python benchmarks/speed.py --products                  # how much of a step of batch-first its matrix products take

Each measurement is a fresh process; within a round the sides take turns. Given are medians, with (min to max).

- tutorial: a DataLoader over torchvision's MNIST, each image transformed on its own, with the tutorial's workers,
  batch sizes and order (`mlp`'s does not shuffle), the optimizer as it comes, `.item()` of loss and hits at every
  step, nothing tuned. 20 steps go before the epoch that counts. All sides report the same four numbers, so that the
  tutorials differ in this a little: `sgd`'s adds up tensors, `time-major`'s loop is not on its page, `last-hidden`'s
  sums nothing in training but tests 24 times per epoch, `mlp`'s sums the loss alone and counts the test's hits image
  by image.
- ours: the script itself for two epochs; the second counts, as its --log gives it. `mlp --compile` and
  `batch-first --bf16` stand in rows of their own beside the same tutorial and Keras, if the machine can do them.
- Keras: the same network, data in memory, `fit` with its defaults, likewise the second of two epochs.
"""

import argparse
import contextlib
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from machine import COUNT, DEVICE, ROOT, common, machine, run
from torch import nn
from torch.utils.data import DataLoader
from torchvision import datasets, transforms

import lstm_mnist
import mlp_mnist

RECIPES = {"mlp": {"normalize": False, **mlp_mnist.RECIPE}} | lstm_mnist.RECIPES
TUTORIALS = {  # what a tutorial does its own way; the rest is in the recipe
    "mlp": dict(workers=0, shuffle=False, test_gradients=False),
    "sgd": dict(workers=0, shuffle=True, test_gradients=True),
    "last-hidden": dict(workers=2, shuffle=True, test_gradients=False),
    "time-major": dict(workers=4, shuffle=True, test_gradients=False),
    "batch-first": dict(workers=0, shuffle=True, test_gradients=False),
}
PROGRAMS = {name: ["mlp_mnist.py"] if name == "mlp" else ["lstm_mnist.py", "--recipe", name] for name in RECIPES}
WARM_UP = 20
QUICK = (6000, 1000)
FLAGS = {"mlp": ["--compile"], "batch-first": ["--bf16"]}  # what speeds up a recipe where it is asked for


def script_of(name: str):
    """The recipe's script as a module, and the flags that choose the recipe."""
    return (mlp_mnist if name == "mlp" else lstm_mnist), PROGRAMS[name][1:]


def network(name: str) -> nn.Module:
    """The recipe's network; the tutorial's class and ours are the same one."""
    if name == "mlp":
        return mlp_mnist.Net()
    recipe = RECIPES[name]
    return recipe["model"](28, recipe["hidden"], recipe["layers"], 10)


def as_written(name: str, folder: Path, seed: int = 1):
    """The tutorial's `train(batches)`, `test()` and training loader, as it writes them.

    Both return loss and accuracy: the mean over batches of the one, over samples of the other.
    """
    recipe, own, device = RECIPES[name], TUTORIALS[name], DEVICE
    steps = [transforms.ToTensor()] + ([transforms.Normalize([0.5], [0.5])] if recipe["normalize"] else [])
    train_set, test_set = (datasets.MNIST(folder, part, transforms.Compose(steps)) for part in (True, False))
    train_loader = DataLoader(train_set, recipe["batch_size"], own["shuffle"], num_workers=own["workers"])
    test_loader = DataLoader(test_set, recipe["test_batch_size"], num_workers=own["workers"])
    torch.manual_seed(seed)
    model = network(name).to(device)
    criterion = nn.CrossEntropyLoss()
    optimizer = getattr(torch.optim, recipe["optimizer"])(model.parameters(), lr=recipe["lr"])

    def train(batches) -> tuple[float, float]:
        model.train()
        total, hits, steps, samples = 0.0, 0, 0, 0
        for image, label in batches:
            image, label = image.to(device), label.to(device)
            output = model(image)
            loss = criterion(output, label)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.item()
            hits += (output.argmax(1) == label).sum().item()
            steps, samples = steps + 1, samples + len(label)
        return total / steps, hits / samples

    def test() -> tuple[float, float]:
        model.eval()
        total, hits = 0.0, 0
        with torch.set_grad_enabled(own["test_gradients"]):
            for image, label in test_loader:
                image, label = image.to(device), label.to(device)
                output = model(image)
                total += criterion(output, label).item()
                hits += (output.argmax(1) == label).sum().item()
        return total / len(test_loader), hits / len(test_set)

    return train, test, train_loader


def tutorial(name: str, folder: Path) -> dict:
    """Seconds and test accuracy of one epoch as the tutorial writes it."""
    train, test, train_loader = as_written(name, folder)
    train(itertools.islice(train_loader, WARM_UP))
    start = time.perf_counter()
    train(train_loader)
    _, accuracy = test()
    return {"seconds": time.perf_counter() - start, "accuracy": accuracy}


def products(recipe: dict, samples: int):
    """A function that computes the matrix products of one training step of `batch-first`, and nothing else.

    Of each layer: those of its input and the gradients of its weights for all 28 time steps at once, those of its
    state and their gradient one time step after the other.
    """
    hidden, layers = recipe["hidden"], []
    for width in [28] + [hidden] * (recipe["layers"] - 1):
        shapes = (28, samples, width), (28, samples, hidden), (28, samples, 4 * hidden), (4 * hidden, width)
        layers.append([torch.rand(shape) for shape in (*shapes, (4 * hidden, hidden))])

    def compute():
        for inputs, states, _, w_input, w_state in layers:
            torch.mm(inputs.flatten(0, 1), w_input.T)
            for state in states:
                torch.mm(state, w_state.T)
        for k, (inputs, states, gates, w_input, w_state) in enumerate(layers):
            for gate in gates:
                torch.mm(gate, w_state)
            gates = gates.flatten(0, 1)
            for values in (inputs, states):
                torch.mm(gates.T, values.flatten(0, 1))
            if k:  # nobody needs the gradient of the images
                torch.mm(gates, w_input)

    return compute


def share_of_products(turns: int) -> str:
    """Milliseconds of a step of `batch-first` on the CPU and of its products alone, in as many parts, in turn."""
    recipe, model, criterion = RECIPES["batch-first"], network("batch-first"), nn.CrossEntropyLoss()
    defaults = {**recipe, "recipe": "batch-first", "parts": None}
    args = common.parse(common.parser("lstm_mnist.py", ""), ["--device", "cpu"], {"products": defaults})
    with contextlib.redirect_stdout(sys.stderr), common.session(args, {"model": model}):
        parts = [products(recipe, len(part)) for part in torch.arange(args.batch_size).tensor_split(args.parts)]
        pool = ThreadPoolExecutor(args.parts, initializer=torch.set_num_threads, initargs=[1])
        net = common.Parallel(model, args.parts)
        optimizer = torch.optim.Adam(model.parameters(), lr=args.lr, fused=True)
        batch = [(torch.rand(args.batch_size, 1, 28, 28), torch.randint(10, (args.batch_size,)))]

        sides = {
            lambda: list(pool.map(lambda part: part(), parts)): [],
            lambda: lstm_mnist.train(net, batch, criterion, optimizer): [],
        }
        for _ in range(turns + 1):
            for side, taken in sides.items():
                start = time.perf_counter()
                for _ in range(50):
                    side()
                taken.append(1000 * (time.perf_counter() - start) / 50)
        alone, step = (taken[1:] for taken in sides.values())  # the first turn warms up
    share = statistics.median(alone) / statistics.median(step)
    return f"batch-first: its products alone take {cell(alone)} ms of {cell(step)} ms per step, {100 * share:.0f} %"


def last_line(command: list[str]) -> dict:
    """Run a program in a process of its own and return the JSON of the last line it prints."""
    return json.loads(run(command).splitlines()[-1])


def script(name: str, folder: Path, flags: list[str]) -> dict:
    """The script itself for two epochs; seconds and test accuracy of the second."""
    with tempfile.TemporaryDirectory() as place:
        log = Path(place, "run.jsonl")
        flags = ["--epochs", "2", "--log-interval", "0", "--data-dir", str(folder), "--log", str(log), *flags]
        run([sys.executable, *PROGRAMS[name], *flags])
        record = json.loads(log.read_text(encoding="utf-8").splitlines()[-1])
    return {"seconds": record["seconds"], "accuracy": record["valid_acc"]}


def keras(name: str, backend: str, folder: Path, python: str) -> dict:
    """The same recipe in Keras, by the interpreter that has it."""
    recipe = {key: value for key, value in RECIPES[name].items() if isinstance(value, (str, int, float))}
    lstm = name != "mlp"
    hidden = [recipe["hidden"]] * recipe["layers"] if lstm else [256, 256]
    recipe |= {"hidden": hidden, "lstm": lstm, "columns": name == "time-major"}
    return last_line([python, str(ROOT / "benchmarks" / "keras_mnist.py"), backend, str(folder), json.dumps(recipe)])


def measure(side: str, name: str, folder: Path, python: str) -> dict:
    """One side of one recipe, once, in a fresh process."""
    if side == "ours" or side.startswith("--"):
        return script(name, folder, [side] if side != "ours" else [])
    if side == "tutorial":
        return last_line([sys.executable, __file__, "--side", side, "--recipe", name, "--folder", str(folder)])
    return keras(name, side, folder, python)


def backends(python: str) -> list[str]:
    """Which of Keras's backends that interpreter can import, with Keras itself."""
    find = "import importlib.util as u; print(*[m for m in ('keras', 'jax', 'tensorflow') if u.find_spec(m)])"
    try:
        found = subprocess.run([python, "-c", find], capture_output=True, text=True, check=True).stdout.split()
    except (OSError, subprocess.CalledProcessError) as error:
        raise SystemExit(f"{python}: is not a Python that runs ({error}); give --keras-python an interpreter") from None
    return found[1:] if "keras" in found else []


def write_part(folder: Path, counts: tuple = QUICK) -> None:
    """The first images of each set, or all (None), as unpacked IDX files in a torchvision MNIST root."""
    raw = folder / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for (images, labels), part, count in zip(common.read(common.DATA_DIR), ("train", "t10k"), counts):
        for data, kind in ((images, "images-idx3"), (labels.byte(), "labels-idx1")):
            write_idx(raw / f"{part}-{kind}-ubyte", data, count or len(data))


def write_idx(file: Path, data: torch.Tensor, count: int) -> None:
    """The first `count` entries of a tensor of bytes as an unpacked IDX file; where it has fewer, over and over."""
    with open(file, "wb") as out:
        out.write(bytes([0, 0, 8, data.dim()]) + b"".join(n.to_bytes(4, "big") for n in (count, *data.shape[1:])))
        for start in range(0, count, len(data)):
            data[: count - start].numpy().tofile(out)


def cell(seconds: list[float]) -> str:
    """Median and, where there are several, the spread."""
    spread = f" ({min(seconds):.2f} to {max(seconds):.2f})" if len(seconds) > 1 else ""
    return f"{statistics.median(seconds):.2f}{spread}"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=COUNT, default=3, metavar="N", help="default: 3")
    parser.add_argument("--recipe", nargs="+", choices=TUTORIALS, default=list(TUTORIALS), help="one or several")
    parser.add_argument("--quick", action="store_true", help="6000 images of training and 1000 of test")
    parser.add_argument(
        "--flags", action=argparse.BooleanOptionalAction, default=True, help="also mlp --compile, batch-first --bf16"
    )
    parser.add_argument(
        "--keras", action=argparse.BooleanOptionalAction, help="also Keras (default: where it is installed)"
    )
    parser.add_argument("--keras-python", default=sys.executable, metavar="PATH", help="the interpreter with Keras")
    parser.add_argument("--products", action="store_true", help="only the share of batch-first's products in a step")
    parser.add_argument("--side", choices=["tutorial"], help=argparse.SUPPRESS)  # the program calls itself
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.side:
        print(json.dumps(tutorial(args.recipe[0], args.folder)))
        return

    if args.products:
        print(f"{share_of_products(args.rounds)}\n{machine()}; n = {args.rounds}")
        return

    if os.sep in args.keras_python:
        args.keras_python = os.path.abspath(args.keras_python)  # it is called from the scripts' folder
    found = [] if args.keras is False else backends(args.keras_python)
    if args.keras and not found:
        parser.error(f"{args.keras_python} has no Keras with JAX or TensorFlow; see benchmarks/requirements.txt")
    sides = {name: ["tutorial", "ours", *(FLAGS.get(name, []) if args.flags else []), *found] for name in args.recipe}
    seconds = {(name, side): [] for name in args.recipe for side in sides[name]}
    versions = {}
    with tempfile.TemporaryDirectory() as part:
        folder = Path(part)
        write_part(folder, QUICK if args.quick else (None, None))  # torchvision reads unpacked files alone
        counts = [len(labels) for _, labels in common.read(folder)]
        for turn in range(1, args.rounds + 1):
            for name, side in list(seconds):
                try:
                    result = measure(side, name, folder, args.keras_python)
                except SystemExit as error:
                    if not side.startswith("--"):
                        raise
                    print(f"{name} {side} is left out: {error}", file=sys.stderr)  # no AVX512, no compiler
                    sides[name].remove(side)
                    del seconds[name, side]
                    continue
                seconds[name, side].append(result["seconds"])
                versions[side] = result.get("versions")
                print(
                    f"round {turn}, {name}, {side}: {result['seconds']:.2f} s, "
                    f"test accuracy {100 * result['accuracy']:.2f}",
                    file=sys.stderr,
                )

    heads = ["recipe", "tutorial / ours", "tutorial, s", "ours, s"]
    heads += [f"Keras {backend}, s" for backend in found] + (["faster Keras / ours"] if found else [])
    rows = []
    for name, side in seconds:
        if side in ("tutorial", *found):
            continue
        middle = {other: statistics.median(seconds[name, other]) for other in sides[name]}
        row = [name if side == "ours" else f"{name} {side}", f"**{middle['tutorial'] / middle[side]:.2f}**"]
        row += [cell(seconds[name, "tutorial"]), cell(seconds[name, side])]
        row += [cell(seconds[name, backend]) for backend in found]
        row += [f"**{min(middle[backend] for backend in found) / middle[side]:.2f}**"] if found else []
        rows.append(row)
    for row in (heads, ["---"] * len(heads), *rows):
        print(f"| {' | '.join(row)} |")

    spread = ", (min to max)" if args.rounds > 1 else ""
    print(f"\n{'; '.join([machine(), *filter(None, versions.values())])}")
    images = f"an epoch is {counts[0]} images of training and {counts[1]} of test"
    print(f"n = {args.rounds}, medians{spread}; {images}")
    if not torch.accelerator.is_available():
        print("Seconds depend on what else the machine is doing; compare the ratios.")


if __name__ == "__main__":
    main()
