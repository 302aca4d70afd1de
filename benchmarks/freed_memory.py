"""Seconds per epoch if glibc keeps freed memory or not; about 5 minutes on two cores.

python benchmarks/freed_memory.py                      # three rounds

With 6000 training images. A script has mallopt keep the memory (in support/parallel.py); `main`,
called from elsewhere, does not. Linux only.
"""

import statistics

import measuring

COMMANDS = [
    "lstm_mnist.py --epochs 6",
    "lstm_mnist.py --recipe time-major --epochs 6",
    "modern_mnist.py --epochs 6",
    "modern_mnist.py --epochs 8",
]
SIDES = ["without", "with"]


def measure(command: str, side: str, folder: str) -> dict:
    """The median epoch of a run without its first."""
    words = [*command.split(), "--device", "cpu", "--data-dir", folder]
    if side == "without":
        script = words.pop(0).removesuffix(".py")
        words = ["-c", f"import sys, {script}; {script}.main(sys.argv[1:])", *words]
    records = measuring.epochs_of(words)
    return {"seconds": statistics.median(record["seconds"] for record in records[1:])}


def main():
    parser = measuring.parser(__doc__, "--rounds", 3, recipes=None)
    parser.add_argument("--commands", nargs="+", choices=COMMANDS, default=COMMANDS)
    args = parser.parse_args()
    sides = [(command, side) for command in args.commands for side in SIDES]
    with measuring.part_of_mnist(6000, 1000) as folder:
        measuring.in_turn("freed_memory", args.rounds, measure, sides, folder)
    print(measuring.by_name("freed_memory", COMMANDS, *SIDES))


if __name__ == "__main__":
    main()
