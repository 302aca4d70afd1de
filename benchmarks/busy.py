"""Seconds per epoch, alone and beside a process that keeps one core busy; 8 minutes on two cores.

python benchmarks/busy.py                              # the five recipes, three rounds
python benchmarks/busy.py --recipe sgd --rounds 5

Of the tutorial's loop and of ours, as speed.py measures them, with 20,000 training images.
"""

import subprocess
import sys

import measuring
import speed

BESIDE = " beside a busy core"
SIDES = ["tutorial", "ours", "tutorial" + BESIDE, "ours" + BESIDE]


def measure(name: str, side: str, folder: str) -> dict:
    """One side of a recipe."""
    others = []
    if side.endswith(BESIDE):
        others.append(subprocess.Popen([sys.executable, "-c", "while True: pass"]))
    try:
        return speed.measure(name, side.removesuffix(BESIDE), folder)
    finally:
        for other in others:
            other.kill()


def main():
    args = measuring.parser(__doc__, "--rounds", 3).parse_args()
    sides = [(name, side) for name in args.recipe for side in SIDES]
    with measuring.part_of_mnist(20000, 1000) as folder:
        measuring.in_turn("busy", args.rounds, measure, sides, folder)
    print(measuring.by_name("busy", measuring.RECIPES, *SIDES))


if __name__ == "__main__":
    main()
