"""Test accuracy against time: the tutorials' own programs, the five recipes, and modern_mnist.py at several lengths.

python benchmarks/clock.py --log clock.jsonl --plot docs       # run again, it only adds what is missing
python benchmarks/clock.py --log clock.jsonl --seeds 3 --lengths 1 2 4

Seconds are those of training and evaluation, summed over the epochs. The tutorials' programs are those in speed.py.
Each length of modern_mnist.py is a separate run, since its schedule follows --epochs.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from pathlib import Path

from machine import COUNT, compared, machine
from matplotlib.figure import Figure
from speed import PROGRAMS, RECIPES, as_written, write_part

from support import plots, saving

LEVELS = (98, 99, 99.5)  # percent
LENGTHS = ["1", "2", "4", "8", "16", "32", "32 --members 4"]
SECONDS = [3, 10, 30, 100, 300, 1000, 3000]


def tutorial(name: str, seed: int, epochs: int, log: Path) -> None:
    """Run a tutorial's own program and append its epochs to the log, once all are there."""
    with tempfile.TemporaryDirectory() as folder:
        write_part(Path(folder), (None, None))  # unpacked, as torchvision wants it
        train, test, train_loader = as_written(name, Path(folder), seed)
    own = {"script": "tutorial", "recipe": name, "command": f"tutorial {name}", "seed": seed}
    kept, own["run"] = [], uuid.uuid4().hex[:12]
    for epoch in range(epochs):
        start = time.perf_counter()
        (train_loss, train_acc), (valid_loss, valid_acc) = train(train_loader), test()
        scores = dict(train_loss=train_loss, train_acc=train_acc, valid_loss=valid_loss, valid_acc=valid_acc)
        kept.append({**own, "epoch": epoch, **scores, "seconds": time.perf_counter() - start})
    saving.append(log, kept)


def course(runs: list) -> list[tuple]:
    """After each epoch of a series of runs: seconds since the start, mean accuracy, all accuracies in percent."""
    points, seconds = [], 0.0
    for epoch in zip(*runs):
        seconds += statistics.mean(r["seconds"] for r in epoch)
        accuracies = [100 * r["valid_acc"] for r in epoch]
        points.append((seconds, statistics.mean(accuracies), accuracies))
    return points


def draw(axes, points: list[tuple], **look) -> None:
    """Means with bars from the least to the most accurate seed."""
    seconds, means, accuracies = zip(*points)
    below = [mean - min(values) for mean, values in zip(means, accuracies)]
    above = [max(values) - mean for mean, values in zip(means, accuracies)]
    axes.errorbar(seconds, means, [below, above], **look)


def picture(series: dict) -> Figure:
    """`{name: [(seconds, mean, accuracies), …]}`: tutorials dashed, recipes solid, modern one point per length."""
    figure = Figure(figsize=(9, 5.5), layout="constrained")
    axes = figure.subplots()
    for k, name in enumerate(RECIPES):
        for kind, style in (("the tutorial's program", "--"), ("here", "-")):
            if points := series.get(f"{name}, {kind}"):
                draw(axes, points, fmt=style, color=plots.COLOURS[k], linewidth=1.2, elinewidth=0.4)
        axes.plot([], [], color=plots.COLOURS[k], label=name)
    axes.plot([], [], "--", color="grey", label="the tutorial's own program")
    if points := [points[-1] for name, points in series.items() if "modern" in name]:
        name = "modern_mnist.py, trained for each length"
        draw(axes, sorted(points), fmt="-o", color="black", markersize=4, capsize=3, label=name)
    axes.set(xscale="log", xlabel="seconds of training and evaluation", ylabel="test accuracy, %", ylim=(94, 100))
    axes.set_xticks(SECONDS, labels=SECONDS)
    axes.grid(alpha=0.3, which="both")
    axes.legend(loc="lower right", fontsize=9)
    return figure


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--log", type=Path, required=True, metavar="FILE", help="keep the runs' records here")
    add("--seeds", type=COUNT, default=3, metavar="N", help="seeds 1 to N (default: 3)")
    add("--recipe", nargs="+", choices=RECIPES, default=list(RECIPES), help="default: all five")
    add("--lengths", nargs="+", default=LENGTHS, metavar="N", help="modern's --epochs, with further flags or without")
    add("--plot", type=Path, metavar="DIR", help="write clock.png there")
    add("--side", nargs=3, help=argparse.SUPPRESS)  # a tutorial's program, in a process of its own
    args = parser.parse_args()
    if args.side:
        tutorial(args.side[0], int(args.side[1]), int(args.side[2]), args.log)
        return
    if args.plot:
        saving.check_plot(args.plot)
    theirs = {f"{name}, the tutorial's program": f"tutorial {name}" for name in args.recipe}
    modern = {f"`modern_mnist.py --epochs {n}`": f"modern_mnist.py --epochs {n}" for n in args.lengths}
    ours = {f"{name}, here": " ".join([*PROGRAMS[name], "--log-interval 0"]) for name in args.recipe}
    for seed in range(1, args.seeds + 1):  # all sides in turn, so that a slow hour slows all of them
        compared([*modern.values(), *ours.values()], 1, args.log, "--first-seed", str(seed))
        have = {(run[-1].get("command"), run[-1]["seed"]) for run in saving.read_log(args.log)}
        for name in args.recipe:
            if (f"tutorial {name}", seed) not in have:
                side = [name, str(seed), str(RECIPES[name]["epochs"])]
                subprocess.run([sys.executable, __file__, "--log", args.log, "--side", *side], check=True)
                print(f"{name}, the tutorial's program, seed {seed}: done", file=sys.stderr)
    runs, series = saving.read_log(args.log), {}  # all seeds that it has, also of another call
    for name, command in {**theirs, **ours, **modern}.items():
        series[name] = course([run for run in runs if run[-1].get("command") == command])
    levels = " | ".join(f"{level:g} % after, s" for level in LEVELS)
    print(f"| | n | epochs | test accuracy, % | seconds | {levels} |\n|---|---|---|---|---|{'---|' * len(LEVELS)}")
    for name, points in series.items():
        seconds, mean, ends = points[-1]
        timed = points[-1:] if name in modern else points  # before the end modern's learning rate is still high
        reached = [next((f"{s:.1f}" for s, each, _ in timed if each >= level), "-") for level in LEVELS]
        spread = f" ± {statistics.stdev(ends):.2f} ({min(ends):.2f} to {max(ends):.2f})" if len(ends) > 1 else ""
        row = [name, len(ends), len(points), f"{mean:.2f}{spread}", f"{seconds:.1f}", *reached]
        print(f"| {' | '.join(map(str, row))} |")
    print(f"\n{machine()}; n seeds, mean ± standard deviation (min to max), seconds of training and evaluation")
    if args.plot:
        saving.write(args.plot / "clock.png", plots.png(picture(series)))


if __name__ == "__main__":
    main()
