"""Milliseconds per training step in one process and in two; about 5 minutes on two cores.

python benchmarks/processes.py                         # the five recipes, three rounds
python benchmarks/processes.py --recipe sgd --rounds 5
"""

import statistics

import measuring

STEPS, WARM_UP = 300, 50
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]


def step_times(name: str) -> dict:
    """Milliseconds of a step of this process, or of torchrun's, while it trains."""
    steps = measuring.steps_of_script(name, [], lambda steps: len(steps) == WARM_UP + STEPS)
    return {"ms": statistics.mean(1000 * step for _, step in steps[WARM_UP:])}


def measure(name: str, processes: int) -> dict:
    """`step_times` in one fresh process, or in several under torchrun."""
    launcher = [*TORCHRUN, str(processes), "--"] if processes > 1 else []
    return measuring.apart(step_times, name, launcher=launcher)


def table() -> str:
    """A row per recipe."""
    head = ["recipe", "ms per step, 1 process", "2 processes", "2 processes / 1"]
    sides = [(1,), (2,)]
    return measuring.by_name("processes", measuring.RECIPES, "ms", sides, 1, 0, head)


def main():
    args = measuring.parser(__doc__, "--rounds", 3).parse_args()
    sides = [(name, processes) for name in args.recipe for processes in (1, 2)]
    measuring.in_turn("processes", args.rounds, measure, sides)
    print(table())


if __name__ == "__main__":
    main()
