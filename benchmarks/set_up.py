"""Seconds per epoch if glibc keeps freed memory or not; about 3 minutes on two cores.

python benchmarks/set_up.py                            # three rounds of the two larger LSTMs

Each measurement is a fresh process that trains six epochs of 6000 images, with mallopt called (in
support/parallel.py) or not; the first epoch does not count. Page faults are the process's own.
POSIX only.
"""

import functools
import resource
import statistics

import measuring

EPOCHS = 6


def epochs(name: str, keeps: bool, folder: str) -> dict:
    """The middle epoch's seconds, and page faults per epoch, of this process."""
    from support.parallel import keep_freed_memory

    if keeps:
        keep_freed_memory()
    faults, end_epoch = [], measuring.common.Run.end_epoch

    def counting(*args):
        faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
        end_epoch(*args)

    measuring.common.Run.end_epoch = counting
    flags = ["--epochs", EPOCHS, "--log-interval", 0, "--device", "cpu", "--data-dir", folder]
    _, history = measuring.lstm_mnist.main(["--recipe", name, *flags])
    seconds = statistics.median(record["seconds"] for record in history[1:])
    return {"seconds": seconds, "faults": (faults[-1] - faults[0]) / (EPOCHS - 1)}


def table() -> str:
    """A row per recipe."""
    results = measuring.by_side("set_up")
    rows = []
    for name in measuring.recipes(results):
        without, kept = results[name, False], results[name, True]
        ratio = statistics.median(without["seconds"]) / statistics.median(kept["seconds"])
        row = [name, f"**{ratio:.2f}**"]
        row += [measuring.cell(side["seconds"]) for side in (without, kept)]
        row += [f"{statistics.median(side['faults']):,.0f}" for side in (without, kept)]
        rows.append(row)
    head = ["recipe", "time without / with", "without, s", "with, s"]
    return measuring.table([*head, "page faults per epoch, without", "with"], rows)


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
