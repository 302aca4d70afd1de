"""Accuracy and seconds of whole runs; ten seeds of the recipes take an hour on two cores.

python benchmarks/accuracy.py                          # the five recipes
python benchmarks/accuracy.py --seeds 3 --commands "benchmarks/tutorials.py sgd"
python benchmarks/accuracy.py --seeds 5 --commands "modern_mnist.py --epochs 6"

Each run is a process of its own. What results/runs.jsonl has of this machine is not run again.
"""

import measuring


def main():
    parser = measuring.parser(__doc__, "--seeds", 10, recipes=None)
    recipes = [" ".join(words) for words in measuring.PROGRAMS.values()]
    parser.add_argument("--commands", nargs="+", default=recipes, help="programs with flags")
    args = parser.parse_args()
    measuring.runs(args.commands, args.seeds)


if __name__ == "__main__":
    main()
