"""Milliseconds per training step, alone and beside other work; 10 minutes on two cores.

python benchmarks/busy.py                              # the five recipes, three rounds of 4 seconds
python benchmarks/busy.py --recipe sgd --rounds 5

Of the tutorial's program and of ours. "Beside 1" means beside a process that keeps one core busy.
Each measurement is a fresh process, whose first second does not count. A step is one of the
training loop, getting its batch included.
"""

import contextlib
import statistics
import subprocess
import sys

import measuring
from tutorials import as_written

WARM_UP = 1.0  # seconds
BUSY = [sys.executable, "-c", "while True: pass"]
COLUMNS = [(side, others) for side in ("tutorial", "ours") for others in (0, 1)]


def step_times(name: str, side: str, folder: str, seconds: float) -> dict:
    """The mean over the training steps of this process, in milliseconds."""

    def enough(steps):
        return steps[-1][0] - steps[0][0] > WARM_UP + seconds

    if side == "ours":
        steps = measuring.steps_of_script(name, ["--data-dir", folder], enough)
    else:
        steps = []
        train, _, loader = as_written(name, folder)
        with contextlib.suppress(measuring.Enough):
            while True:
                train(measuring.timed(loader, steps, enough))
    start = steps[0][0] + WARM_UP
    return {"ms": statistics.mean(1000 * step for end, step in steps if end > start)}


def measure(name: str, side: str, others: int, folder: str, seconds: float) -> dict:
    """`step_times` in a fresh process, beside so many that keep a core busy."""
    running = [subprocess.Popen(BUSY) for _ in range(others)]
    try:
        return measuring.apart(step_times, name, side, folder, seconds)
    finally:
        for other in running:
            other.kill()


def table() -> str:
    """A row per recipe."""
    head = ["recipe", "tutorial alone, ms", "beside 1", "ours alone, ms", "beside 1"]
    head.append("beside 1, tutorial / ours")
    return measuring.by_name("busy", measuring.RECIPES, "ms", COLUMNS, 1, 3, head)


def main():
    parser = measuring.parser(__doc__, "--rounds", 3)
    number = measuring.common.between(0.1, 1000, float)
    parser.add_argument("--seconds", type=number, default=4.0, metavar="S", help="default: 4")
    args = parser.parse_args()
    sides = [(name, *column) for name in args.recipe for column in COLUMNS]
    with measuring.part_of_mnist() as folder:
        measuring.in_turn("busy", args.rounds, measure, sides, folder, args.seconds)
    print(table())


if __name__ == "__main__":
    main()
