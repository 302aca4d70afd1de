"""Accuracy against time: tutorials, recipes, modern_mnist.py; about 5 hours on two cores.

python benchmarks/clock.py --log clock.jsonl --plot docs       # runs only what is missing
python benchmarks/clock.py --log clock.jsonl --seeds 1 --lengths 1 2 4 --recipe sgd

Seconds are those of training and evaluation, summed over the epochs. Each length of modern_mnist.py
is a run of its own, since its schedule follows --epochs.
"""

import statistics
import sys
import time
import uuid
from pathlib import Path

import measuring
from matplotlib.figure import Figure
from measuring import PROGRAMS, RECIPES
from tutorials import as_written

from support import files, log, plots

LEVELS = (98, 99, 99.5)  # percent
LENGTHS = ["1", "2", "4", "6", "8", "16", "32"]
SECONDS = [3, 10, 30, 100, 300, 1000, 3000]


def tutorial(name: str, seed: int, path: str) -> None:
    """Run a tutorial's own program and append its epochs to the log, once all are there."""
    with measuring.part_of_mnist() as folder:
        train, test, train_loader = as_written(name, folder, seed)
    records = []
    own = {"script": "tutorial", "recipe": name, "command": f"tutorial {name}", "seed": seed}
    own["run"] = uuid.uuid4().hex[:12]
    for epoch in range(RECIPES[name]["epochs"]):
        start = time.perf_counter()
        train_loss, train_acc = train(train_loader)
        valid_loss, valid_acc = test()
        record = {**own, "epoch": epoch, "seconds": time.perf_counter() - start}
        record |= {"train_loss": train_loss, "train_acc": train_acc}
        records.append({**record, "valid_loss": valid_loss, "valid_acc": valid_acc})
    log.append(Path(path), records)


def course(runs: list) -> list[tuple]:
    """After each epoch of several runs: seconds since the start, and all accuracies in percent."""
    points, seconds = [], 0.0
    for epoch in zip(*runs):
        seconds += statistics.mean(record["seconds"] for record in epoch)
        points.append((seconds, [100 * record["valid_acc"] for record in epoch]))
    return points


def draw(axes, points: list[tuple], **look) -> None:
    """Means with bars from the least to the most accurate seed."""
    means, below, above = [], [], []
    for _, accuracies in points:
        mean = statistics.mean(accuracies)
        means.append(mean)
        below.append(mean - min(accuracies))
        above.append(max(accuracies) - mean)
    axes.errorbar([seconds for seconds, _ in points], means, [below, above], **look)


def picture(series: dict) -> Figure:
    """Tutorials dashed, recipes solid, modern_mnist.py a point per length."""
    figure = Figure(figsize=(9, 5.5), layout="constrained")
    axes = figure.subplots()
    modern = []
    for name, points in series.items():
        recipe = name.split(",")[0]
        if recipe not in RECIPES:
            modern.append(points[-1])
            continue
        look = {"color": plots.COLOURS[list(RECIPES).index(recipe)], "linewidth": 1.2}
        if name.endswith("here"):
            draw(axes, points, fmt="-", elinewidth=0.4, label=recipe, **look)
        else:
            draw(axes, points, fmt="--", elinewidth=0.4, **look)
    axes.plot([], [], "--", color="grey", label="the tutorial's own program")
    name = "modern_mnist.py, trained for each length"
    draw(axes, sorted(modern), fmt="-o", color="black", markersize=4, capsize=3, label=name)
    axes.set(xscale="log", xlabel="seconds of training and evaluation")
    axes.set(ylim=(94, 100), ylabel="test accuracy, %")
    axes.set_xticks(SECONDS, labels=SECONDS)
    axes.grid(alpha=0.3, which="both")
    axes.legend(loc="lower right", fontsize=9)
    return figure


def line(name: str, points: list[tuple]) -> list:
    """A series as a row of the table."""
    seconds, ends = points[-1]
    row = [name, len(ends), len(points), measuring.spread(ends), f"{seconds:.1f}"]
    if "modern" in name:  # before the end its learning rate is still high
        points = points[-1:]
    for level in LEVELS:
        reached = [at for at, accuracies in points if statistics.mean(accuracies) >= level]
        row.append(f"{reached[0]:.1f}" if reached else "-")
    return row


def main():
    parser = measuring.parser(__doc__, "--seeds", 3)
    add = parser.add_argument
    add("--log", type=Path, required=True, metavar="FILE", help="keep the runs' records here")
    add("--lengths", nargs="+", default=LENGTHS, metavar="N", help="modern's --epochs")
    add("--plot", type=Path, metavar="DIR", help="write clock.png there")
    args = parser.parse_args()
    if args.plot:
        files.check_writable(args.plot / "clock.png")
    commands = {f"{name}, the tutorial's program": f"tutorial {name}" for name in args.recipe}
    ours = {}
    for name in args.recipe:
        ours[f"{name}, here"] = " ".join([*PROGRAMS[name], "--log-interval 0"])
    for length in args.lengths:
        command = f"modern_mnist.py --epochs {length}"
        ours[f"`{command}`"] = command
    commands |= ours
    for seed in range(1, args.seeds + 1):  # all in turn, so that a slow hour slows all of them
        measuring.compared([*ours.values()], 1, args.log, "--first-seed", str(seed))
        have = {(run[-1].get("command"), run[-1]["seed"]) for run in log.read(args.log)}
        for name in args.recipe:
            if (f"tutorial {name}", seed) not in have:
                measuring.apart(tutorial, name, seed, str(args.log.absolute()))
                print(f"tutorial {name}, seed {seed}: done", file=sys.stderr)
    runs, series = log.read(args.log), {}  # all seeds that it has, also of another call
    for name, command in commands.items():
        series[name] = course([run for run in runs if run[-1].get("command") == command])
    head = ["", "n", "epochs", "test accuracy, %", "seconds"]
    head += [f"{level:g} % after, s" for level in LEVELS]
    measuring.table(head, [line(name, points) for name, points in series.items()])
    what = "n seeds, mean ± standard deviation (min to max)"
    print(f"\n{measuring.machine()}; {what}, seconds of training and evaluation")
    if args.plot:
        files.write(args.plot / "clock.png", plots.png(picture(series)))


if __name__ == "__main__":
    main()
