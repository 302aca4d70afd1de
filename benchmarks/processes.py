"""Milliseconds per training step in one process and in two; about 5 minutes on two cores.

python benchmarks/processes.py                         # the five recipes, three rounds
python benchmarks/processes.py --recipe sgd --rounds 5
"""

import contextlib
import statistics
from pathlib import Path

import measuring

STEPS, WARM_UP = 300, 50
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]


def sent() -> int:
    """Bytes that this machine has sent to itself; 0 where the system does not say."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/net/dev").read_text().splitlines():
            if line.strip().startswith("lo:"):
                return int(line.split()[9])
    return 0


def step_times(name: str) -> dict:
    """Milliseconds and bytes of a step of this process, or of torchrun's, while it trains."""
    before = 0

    def enough(steps):
        nonlocal before
        if len(steps) == WARM_UP:
            before = sent()
        return len(steps) == WARM_UP + STEPS

    steps = measuring.steps_of_script(name, [], enough)
    seconds = [step for _, step in steps[WARM_UP:]]
    return {"ms": 1000 * statistics.mean(seconds), "bytes": (sent() - before) / STEPS}


def measure(name: str, processes: int) -> dict:
    """`step_times` in one fresh process, or in several under torchrun."""
    launcher = [*TORCHRUN, str(processes), "--"] if processes > 1 else []
    return measuring.apart(step_times, name, launcher=launcher)


def table() -> str:
    """A row per recipe."""
    results = measuring.by_side("processes")
    rows = []
    for name in measuring.recipes(results):
        one, two = results[name, 1], results[name, 2]
        ratio = statistics.median(one["ms"]) / statistics.median(two["ms"])
        row = [name, measuring.cell(one["ms"]), measuring.cell(two["ms"]), f"**{ratio:.2f}**"]
        rows.append([*row, f"{statistics.median(two['bytes']):,.0f}"])
    head = ["recipe", "ms per step, 1 process", "2 processes", "speed-up", "bytes sent per step"]
    return measuring.table(head, rows)


def main():
    args = measuring.parser(__doc__, "--rounds", 3).parse_args()
    sides = [(name, processes) for name in args.recipe for processes in (1, 2)]
    measuring.in_turn("processes", args.rounds, measure, sides)
    print(table())


if __name__ == "__main__":
    main()
