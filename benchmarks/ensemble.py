"""What several networks of modern_mnist.py answer together; about 3 minutes each on two cores.

python benchmarks/ensemble.py DIR --epochs 8 --seeds 6       # trains only what DIR lacks

DIR keeps each seed's model. The answer of an ensemble is the mean of its networks'
log-probabilities. Of 6 seeds, 1 to 3 are the first ensemble of three, 4 to 6 the second.
"""

import sys
from pathlib import Path

import measuring
from measuring import torch

import modern_mnist

SIZES = (2, 3, 4)


def trained(folder: Path, command: str, seed: int) -> Path:
    """The model file of that run; if there is none yet, the run is made and its record kept."""
    file = folder / f"{command.replace(' ', '_')}_{seed}.pth"
    if not file.exists():
        record = measuring.whole_run(command, seed, "--save-model", file)
        if not measuring.has_run(command, seed):
            measuring.keep("runs", record)
        print(f"{file}: done", file=sys.stderr)
    return file


def answers(file: Path, images: torch.Tensor) -> torch.Tensor:
    """The log-probabilities `(N, 10)` that a saved model gives for images `(N, 28, 28)`."""
    flags = ["--load-model", file, "--epochs", "0", "--device", "cpu", "--dry-run"]
    model, _ = modern_mnist.main(flags)
    with torch.no_grad():
        return torch.cat([model(part) for part in measuring.common.to_float(images).split(100)])


def table() -> str:
    """A row per command and size."""
    groups = {}
    for record in measuring.kept("ensembles"):
        name = f"{record['networks']} of `{record['command']}`"
        groups.setdefault(name, []).append(100 * record["valid_acc"])
    rows = [[name, len(values), measuring.spread(values)] for name, values in groups.items()]
    return measuring.table(["networks", "n", "test accuracy, %"], rows)


def main():
    parser = measuring.parser(__doc__, "--seeds", 6, recipes=None)
    add = parser.add_argument
    add("folder", type=Path, metavar="DIR", help="keep the models here")
    add("--epochs", default="8", metavar="N", help="default: 8")
    args = parser.parse_args()
    folder = args.folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    _, (images, labels) = measuring.common.read(measuring.common.DEFAULTS["data_dir"])
    command = f"modern_mnist.py --epochs {args.epochs}"
    outputs = []
    for seed in range(1, args.seeds + 1):
        outputs.append(answers(trained(folder, command, seed), images))
    records = []
    for size in SIZES:
        for first in range(0, args.seeds - size + 1, size):
            together = sum(outputs[first : first + size])
            right = (together.argmax(1) == labels).float().mean().item()
            record = {"command": command, "networks": size, "first_seed": first + 1}
            records.append(measuring.described(record | {"valid_acc": right}))
    measuring.replace("ensembles", records, "command")
    print(table())


if __name__ == "__main__":
    main()
