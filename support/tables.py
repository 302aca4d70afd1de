"""compare.py's table: runs that belong together, statistics over their seeds, in the form that is asked for."""

import json
import statistics

from scipy.stats import t

from support.saving import SCORES

NOT_SETTINGS = {"run", "seed", "epoch", "total_epochs", "parameters", "command", *SCORES}


def group(runs: list[list[dict]]) -> dict[str, list[list[dict]]]:
    """The runs by settings and command, as `{name: runs}`; a name says what differs between them, nothing else."""
    groups = {}
    for run in runs:
        settings = {k: value for k, value in run[-1].items() if k not in NOT_SETTINGS and value is not None}
        settings["epochs"] = len(run)
        command = run[-1].get("command")  # two copies of a script can differ in more than their settings
        groups.setdefault((json.dumps(settings, sort_keys=True), command), (settings, []))[1].append(run)
    every = [settings for settings, _ in groups.values()]
    names = list(dict.fromkeys(name for settings in every for name in settings))
    labels = []
    for settings in every:
        # a recipe decides most of its settings: named are those that not all of its runs share
        kin = [other for other in every if other["recipe"] == settings["recipe"]]
        own = [name for name in names if len({json.dumps(other.get(name)) for other in kin}) > 1]
        words = [f"{name.replace('_', ' ')} {settings.get(name)}" for name in own]
        if len(kin) < len(every) or not own:
            words.insert(0, settings["recipe"])
        labels.append(", ".join(words))
    twice = {label for label in labels if labels.count(label) > 1}
    labels = [f"{name}: {how}" if how and name in twice else name for name, (_, how) in zip(labels, groups)]
    labels = [label.encode(errors="replace").decode() for label in labels]  # a command may not be UTF-8
    # none may hide another, even where they differ as 1 and "1" do
    labels = [f"{name} ({labels[:k].count(name) + 1})" if name in labels[:k] else name for k, name in enumerate(labels)]
    return {label: members for label, (_, members) in zip(labels, groups.values())}


def value(run: list[dict], metric: str, best: bool) -> float:
    """A run's metric: of its last epoch, or of its best one; accuracies in percent."""
    values = [record[metric] * SCORES[metric][1] for record in run]
    return (max(values) if metric.endswith("acc") else min(values)) if best else values[-1]


def table(groups: dict, metric: str, best: bool) -> list[dict]:
    """A row per group, a dictionary, each compared with the first."""
    rows, first = [], None
    for name, runs in groups.items():
        by_seed = {run[0]["seed"]: value(run, metric, best) for run in runs}
        first = first or by_seed
        values, seeds = list(by_seed.values()), [seed for seed in by_seed if seed in first]
        row = {"name": name, "seeds": len(values), "parameters": runs[0][-1].get("parameters"), "epochs": len(runs[0])}
        row |= {"mean": statistics.mean(values), "sd": statistics.stdev(values) if len(values) > 1 else None}
        row |= {"min": min(values), "max": max(values), "difference": None, "low": None, "high": None, "verdict": ""}
        if by_seed is not first and seeds:
            differences = [by_seed[seed] - first[seed] for seed in seeds]
            row["difference"] = middle = statistics.mean(differences)
            if len(seeds) == 1:
                row["verdict"] = "n = 1: no interval"
            else:
                half = float(t.ppf(0.975, len(seeds) - 1)) * statistics.stdev(differences) / len(seeds) ** 0.5
                row |= {"low": middle - half, "high": middle + half}
            if row["low"] is not None and row["low"] <= 0 <= row["high"]:
                row["verdict"] = "no difference shown"
        elif by_seed is not first:
            row["verdict"] = "no seed in common"
        row["seconds"] = statistics.median(record["seconds"] for run in runs for record in run)
        rows.append(row)
    return rows


def cells(row: dict, metric: str) -> list[str]:
    """A row as a reader wants it."""
    digits = 2 if metric.endswith("acc") or metric == "seconds" else 4
    span = f"({row['min']:.{digits}f} to {row['max']:.{digits}f})"
    spread = "" if row["sd"] is None else f" ± {row['sd']:.{digits}f} {span}"
    difference = "" if row["difference"] is None else f"{row['difference']:+.{digits}f}"
    if row["low"] is not None:
        difference += f" ({row['low']:+.{digits}f} to {row['high']:+.{digits}f})"
    parameters = "" if row["parameters"] is None else f"{row['parameters']:,}"
    middle = [str(row["seeds"]), parameters, str(row["epochs"]), f"{row['mean']:.{digits}f}{spread}"]
    return [row["name"], *middle, ", ".join(filter(None, [difference, row["verdict"]])), f"{row['seconds']:.2f}"]


def show(rows: list[dict], form: str, metric: str, best: bool, what: str) -> str:
    """The table as text, Markdown or JSON; `what` it shows is a metric in words."""
    if form == "json":
        return json.dumps(rows, indent=1)
    what += ", best epoch" if best else ""
    lines = [["", "seeds", "parameters", "epochs", f"{what}: mean ± sd (min to max)"]]
    lines[0] += ["difference from the first row (95 %)", "s per epoch"]
    lines += [cells(row, metric) for row in rows]
    if form == "markdown":
        lines.insert(1, ["---"] * len(lines[0]))
        lines = [[word.replace("|", r"\|") for word in line] for line in lines]
        text = [f"| {' | '.join(line)} |" for line in lines]
    else:
        widths = [max(map(len, column)) for column in zip(*lines)]
        text = ["  ".join(word.ljust(width) for word, width in zip(line, widths)).rstrip() for line in lines]
    if best and metric.startswith("valid"):
        text += ["", "The best epoch was picked on the images that it is tested on: these figures are optimistic."]
    return "\n".join(text)
