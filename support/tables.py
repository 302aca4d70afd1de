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
    return {label: members for label, (_, members) in zip(labels, groups.values())}


def table(groups: dict, metric: str) -> list[dict]:
    """A row per group, a dictionary, each compared with the first, paired by seed.

    The intervals hold jointly (Bonferroni): with 95 % none of them misses. Of a seed that a group has twice the last
    run counts, for everything.
    """
    rows, first, level = [], None, 1 - 0.025 / max(1, len(groups) - 1)
    for name, runs in groups.items():
        runs = list({run[0]["seed"]: run for run in runs}.values())
        by_seed = {run[0]["seed"]: run[-1][metric] * SCORES[metric][1] for run in runs}
        tested = [runs[0][-1].get(setting) or None for setting in ("dataset", "hold_out")]
        first = first or (by_seed, tested)
        values, seeds = list(by_seed.values()), [seed for seed in by_seed if seed in first[0]]
        row = {"name": name, "seeds": len(values), "parameters": runs[0][-1].get("parameters"), "epochs": len(runs[0])}
        row |= {"mean": statistics.mean(values), "sd": statistics.stdev(values) if len(values) > 1 else None}
        row |= {"min": min(values), "max": max(values), "difference": None, "low": None, "high": None, "verdict": ""}
        row["smallest_shown"], row["seconds"] = None, statistics.median(r["seconds"] for run in runs for r in run)
        if tested != first[1]:
            row["verdict"] = "tested on other images"
        elif by_seed is not first[0] and not seeds:
            row["verdict"] = "no seed in common"
        elif by_seed is not first[0]:
            differences = [by_seed[seed] - first[0][seed] for seed in seeds]
            row["difference"] = middle = statistics.mean(differences)
            if len(seeds) == 1:
                row["verdict"] = "n = 1: no interval"
            else:
                half = float(t.ppf(level, len(seeds) - 1)) * statistics.stdev(differences) / len(seeds) ** 0.5
                row |= {"low": middle - half, "high": middle + half, "smallest_shown": half}
                row["verdict"] = "no difference shown" if abs(middle) <= half else ""
        rows.append(row)
    return rows


def digits(metric: str) -> int:
    """How many decimals a metric has in a table."""
    return 2 if metric.endswith("acc") or metric == "seconds" else 4


def cells(row: dict, metric: str) -> list[str]:
    """A row as a reader wants it."""
    n = digits(metric)
    span = f"({row['min']:.{n}f} to {row['max']:.{n}f})"
    spread = "" if row["sd"] is None else f" ± {row['sd']:.{n}f} {span}"
    difference = "" if row["difference"] is None else f"{row['difference']:+.{n}f}"
    if row["low"] is not None:
        difference += f" ({row['low']:+.{n}f} to {row['high']:+.{n}f})"
    parameters = "" if row["parameters"] is None else f"{row['parameters']:,}"
    middle = [str(row["seeds"]), parameters, str(row["epochs"]), f"{row['mean']:.{n}f}{spread}"]
    return [row["name"], *middle, ", ".join(filter(None, [difference, row["verdict"]])), f"{row['seconds']:.2f}"]


def show(rows: list[dict], form: str, metric: str, what: str) -> str:
    """The table as text, Markdown or JSON; `what` it shows is a metric in words."""
    if form == "json":
        return json.dumps(rows, indent=1)
    lines = [["", "seeds", "parameters", "epochs", f"{what}: mean ± sd (min to max)"]]
    lines[0] += [f"difference from the first row (95 %{', jointly' * (len(rows) > 2)})", "s per epoch"]
    lines += [cells(row, metric) for row in rows]
    if form == "markdown":
        lines.insert(1, ["---"] * len(lines[0]))
        lines = [[word.replace("|", r"\|") for word in line] for line in lines]
        text = [f"| {' | '.join(line)} |" for line in lines]
    else:
        widths = [max(map(len, column)) for column in zip(*lines)]
        text = ["  ".join(word.ljust(width) for word, width in zip(line, widths)).rstrip() for line in lines]
    shown = [f"{row['smallest_shown']:.{digits(metric)}f} ({row['name']})" for row in rows if row["smallest_shown"]]
    if shown:
        text += ["", f"The smallest difference that these seeds, with their spread, can show: {', '.join(shown)}"]
    return "\n".join(text)
