"""What several networks of modern_mnist.py answer together; about 2 minutes each on two cores.

python benchmarks/ensemble.py DIR --epochs 8 --seeds 12      # trains only what DIR lacks

DIR keeps each seed's model, checkpoint and log. The answer of an ensemble is the mean of its
networks' log-probabilities. Of 12 seeds, 1 to 4 are the first ensemble of four, and so on.
"""

import statistics
import sys
from pathlib import Path

import measuring
from measuring import ROOT, torch

import modern_mnist
from support import log

SIZES = (1, 2, 3, 4)


def trained(folder: Path, flags: list[str]) -> Path:
    """The model file of a run with these flags, which may have been cut off or made before."""
    name = "_".join(flags).replace("--", "")
    model = folder / f"{name}.pth"
    if not model.exists():
        files = ["--save-model", model, "--checkpoint", folder / f"{name}.pt"]
        files += ["--log", folder / "runs.jsonl"]
        measuring.run([sys.executable, ROOT / "modern_mnist.py", *flags, *files])
        print(f"{name}: done", file=sys.stderr)
    return model


def answers(file: Path, images: torch.Tensor) -> torch.Tensor:
    """The log-probabilities `(N, 10)` that a saved model gives for images `(N, 28, 28)`."""
    model, _ = modern_mnist.main(["--load-model", file, "--epochs", "0", "--device", "cpu"])
    with torch.no_grad():
        parts = [model(part) for part in measuring.common.to_float(images).split(100)]
    return torch.cat(parts)


def row(size: int, outputs: list[torch.Tensor], labels: torch.Tensor, seconds: list) -> list:
    """The accuracies of disjoint ensembles of this size, as a row of the table."""
    accuracies, times = [], []
    for first in range(0, len(outputs) - size + 1, size):
        together = sum(outputs[first : first + size])
        accuracies.append(100 * (together.argmax(1) == labels).float().mean().item())
        times.append(sum(seconds[first : first + size]))
    return [size, len(accuracies), measuring.spread(accuracies), f"{statistics.mean(times):.0f}"]


def main():
    parser = measuring.parser(__doc__, "--seeds", 12, recipes=None)
    add = parser.add_argument
    add("folder", type=Path, metavar="DIR", help="keep models and logs here")
    add("--epochs", default="8", metavar="N", help="default: 8")
    add("--hold-out", default="0", metavar="N", help="test on the last N training images instead")
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    (images, labels), test_set = measuring.common.read(measuring.common.DEFAULTS["data_dir"])
    held = int(args.hold_out)
    if held:
        test_set = images[-held:], labels[-held:]
    outputs = []
    for seed in range(1, args.seeds + 1):
        flags = ["--epochs", args.epochs, "--hold-out", args.hold_out, "--seed", str(seed)]
        outputs.append(answers(trained(args.folder, flags), test_set[0]))
    by_seed = {}
    for run in log.read(args.folder / "runs.jsonl"):
        last = run[-1]
        if [last["total_epochs"], last["hold_out"]] == [int(args.epochs), held]:
            by_seed[last["seed"]] = sum(record["seconds"] for record in run)
    seconds = [by_seed[seed] for seed in range(1, args.seeds + 1)]
    rows = []
    for size in SIZES:
        if size <= args.seeds:
            rows.append(row(size, outputs, test_set[1], seconds))
    print()
    measuring.table(["networks", "n", "accuracy, %", "seconds"], rows)
    print(f"\n{measuring.machine()}; mean ± standard deviation (min to max) of n ensembles")


if __name__ == "__main__":
    main()
