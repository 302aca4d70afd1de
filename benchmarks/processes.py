"""Seconds per epoch in one process and in two; about 4 minutes on two cores.

python benchmarks/processes.py                         # the five recipes, three rounds
python benchmarks/processes.py --recipe sgd --rounds 5

With 20,000 training images; the second of two epochs counts.
"""

import measuring
import speed

SIDES = ["2 processes", "1 process"]
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", 2, "--"]


def measure(name: str, side: str, folder: str) -> dict:
    """An epoch of a recipe's script."""
    launcher = TORCHRUN if side == "2 processes" else []
    return speed.last_epoch([*measuring.PROGRAMS[name], *speed.TWO_EPOCHS], folder, *launcher)


def main():
    args = measuring.parser(__doc__, "--rounds", 3).parse_args()
    sides = [(name, side) for name in args.recipe for side in SIDES]
    with measuring.part_of_mnist(20000, 1000) as folder:
        measuring.in_turn("processes", args.rounds, measure, sides, folder)
    print(measuring.by_name("processes", measuring.RECIPES, *SIDES))


if __name__ == "__main__":
    main()
