"""Seconds per epoch if glibc keeps freed memory or not; about 5 minutes on two cores.

python benchmarks/freed_memory.py                      # three rounds

Each measurement is a fresh process that trains on 6000 images, with mallopt called (in
support/parallel.py) or not; the first epoch does not count. Linux only.
"""

import functools
import importlib
import statistics

import measuring

COMMANDS = [
    "lstm_mnist.py --epochs 6",
    "lstm_mnist.py --recipe time-major --epochs 6",
    "modern_mnist.py --epochs 6",
    "modern_mnist.py --epochs 8",
]


def epochs(command: str, keeps: bool, folder: str) -> dict:
    """The middle epoch's seconds in this process."""
    from support.parallel import keep_freed_memory

    if keeps:
        keep_freed_memory()
    program, *flags = command.split()
    script = importlib.import_module(program.removesuffix(".py"))
    flags += ["--log-interval", "0", "--device", "cpu", "--data-dir", folder]
    _, history = script.main(flags)
    return {"seconds": statistics.median(record["seconds"] for record in history[1:])}


def table() -> str:
    """A row per command."""
    head = ["6000 images", "without, s", "with, s", "without / with"]
    sides = [(False,), (True,)]
    return measuring.by_name("freed_memory", COMMANDS, "seconds", sides, 0, 1, head)


def main():
    parser = measuring.parser(__doc__, "--rounds", 3, recipes=None)
    parser.add_argument("--commands", nargs="+", choices=COMMANDS, default=COMMANDS)
    args = parser.parse_args()
    sides = [(command, keeps) for command in args.commands for keeps in (False, True)]
    measure = functools.partial(measuring.apart, epochs)
    with measuring.part_of_mnist(6000, 1000) as folder:
        measuring.in_turn("freed_memory", args.rounds, measure, sides, folder)
    print(table())


if __name__ == "__main__":
    main()
