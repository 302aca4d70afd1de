"""What several networks of modern_mnist.py answer together; some minutes each on two cores.

python benchmarks/ensemble.py DIR                      # trains only what DIR lacks
python benchmarks/ensemble.py DIR --seeds 6 --commands "modern_mnist.py --epochs 6"

DIR keeps the models. The answer of an ensemble is the mean of its networks' log-probabilities.
Ensembles share no network: with two seeds of each command in an ensemble, seeds 1 and 2 are the
first one, 3 and 4 the second.
"""

import itertools
import sys
from pathlib import Path

import measuring
from measuring import torch

import modern_mnist


def kinds(epochs: int) -> list[str]:
    """The command of a network with windows, and of one with two layers."""
    windows = f"modern_mnist.py --epochs {epochs}"
    return [windows, f"{windows} --no-windows --layers 2 --lines 2 --distortion 0.8"]


def answers(folder: Path, command: str, seed: int, images: torch.Tensor) -> torch.Tensor:
    """The log-probabilities `(N, 10)` of a run's model for images `(N, 28, 28)`.

    If the folder lacks the model, or this machine its record, the run is made.
    """
    file = folder / f"{command.replace(' ', '_')}_{seed}.pth"
    if not (file.exists() and measuring.run_of(command, seed)):
        measuring.whole_run(command, seed, "--save-model", file)
        print(f"{file}: done", file=sys.stderr)
    flags = ["--load-model", file, "--epochs", "0", "--device", "cpu", "--dry-run"]
    model, _ = modern_mnist.main(flags)
    with torch.no_grad():
        return torch.cat([model(part) for part in measuring.common.to_float(images).split(100)])


def table() -> str:
    """A row per ensemble of networks with windows and with two layers."""
    groups, used = {}, []
    for epochs, record in itertools.product((8, 16), measuring.kept("ensembles")):
        if not set(record["commands"]) <= set(kinds(epochs)):
            continue
        counts = [record["seeds"] if kind in record["commands"] else 0 for kind in kinds(epochs)]
        groups.setdefault((epochs, *counts), []).append(record)
        used.append(record)
    rows = []
    for group, records in sorted(groups.items()):
        scores = measuring.spread([100 * record["valid_acc"] for record in records])
        seconds = measuring.cell([record["seconds"] for record in records])
        rows.append([*group, scores, seconds, len(records)])
    head = ["epochs", "with windows", "two layers", "test accuracy, %", "seconds", "n"]
    return measuring.table(head, rows, used)


def main():
    parser = measuring.parser(__doc__, "--seeds", 4, recipes=None)
    add = parser.add_argument
    add("folder", type=Path, metavar="DIR", help="keep the models here")
    add("--commands", nargs="+", default=kinds(8), help="default: two kinds of networks")
    args = parser.parse_args()
    folder = args.folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    _, (images, labels) = measuring.common.read(measuring.common.DEFAULTS["data_dir"])
    outputs, seconds = [], []  # for each seed, of all commands together
    for seed in range(1, args.seeds + 1):
        each = [answers(folder, command, seed, images) for command in args.commands]
        outputs.append(sum(each))
        runs = [measuring.run_of(command, seed) for command in args.commands]
        seconds.append(sum(run["seconds"] for run in runs))
    records = []
    for size in (1, 2, 4):  # seeds of each command
        for first in range(0, args.seeds - size + 1, size):
            seeds = slice(first, first + size)
            right = (sum(outputs[seeds]).argmax(1) == labels).float().mean().item()
            record = {"commands": args.commands, "seeds": size, "first_seed": first + 1}
            record |= {"valid_acc": right, "seconds": sum(seconds[seeds])}
            records.append(record)
            print(f"{size} of each, from seed {first + 1}: {100 * right:.2f} %")
    measuring.keep("ensembles", records, "commands")


if __name__ == "__main__":
    main()
