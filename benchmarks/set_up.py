"""Seconds per epoch if glibc keeps freed memory or not; about 3 minutes on two cores.

python benchmarks/set_up.py                            # three rounds of the two larger LSTMs

Each measurement is a fresh process that trains six epochs of 6000 images, with mallopt called (in
support/parallel.py) or not; the first epoch does not count. Linux only.
"""

import functools
import statistics

import measuring

EPOCHS = 6


def epochs(name: str, keeps: bool, folder: str) -> dict:
    """The middle epoch's seconds in this process."""
    from support.parallel import keep_freed_memory

    if keeps:
        keep_freed_memory()
    flags = ["--epochs", EPOCHS, "--log-interval", 0, "--device", "cpu", "--data-dir", folder]
    _, history = measuring.lstm_mnist.main(["--recipe", name, *flags])
    return {"seconds": statistics.median(record["seconds"] for record in history[1:])}


def table() -> str:
    """A row per recipe."""
    head = ["without, s", "with, s", "without / with"]
    return measuring.by_recipe("set_up", "seconds", [(False,), (True,)], 0, 1, head)


def main():
    larger = ("time-major", "batch-first")
    args = measuring.parser(__doc__, "--rounds", 3, larger).parse_args()
    sides = [(name, keeps) for name in args.recipe for keeps in (False, True)]
    measure = functools.partial(measuring.apart, epochs)
    with measuring.part_of_mnist(6000, 1000) as folder:
        measuring.in_turn("set_up", args.rounds, measure, sides, folder)
    print(table())


if __name__ == "__main__":
    main()
