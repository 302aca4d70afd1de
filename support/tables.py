"""compare.py's table: runs in groups, statistics over their seeds, as text, Markdown or JSON."""

import json
import statistics

from scipy.stats import nct, t

from support.log import SCORES

NOTHING = dict.fromkeys(["difference", "low", "high", "smallest_shown", "seeds_needed"])
NOT_SETTINGS = {"run", "seed", "epoch", "total_epochs", "parameters", "command", *SCORES}


def group(runs: list[list[dict]]) -> dict[str, list[list[dict]]]:
    """Runs by settings and command, as `{name: runs}`; the name says what differs.

    If a group has a seed twice, the last run counts.
    """
    groups = {}
    for run in runs:
        settings = settings_of(run)
        command = run[-1].get("command")  # copies of a script may differ in code, too
        key = json.dumps([settings, command], sort_keys=True)
        _, _, by_seed = groups.setdefault(key, (settings, command, {}))
        by_seed[run[0]["seed"]] = run
    all_settings = [settings for settings, _, _ in groups.values()]
    names = [name_of(settings, all_settings) for settings in all_settings]
    named = {}
    for name, (_, command, by_seed) in zip(names, groups.values()):
        if command and names.count(name) > 1:
            name = f"{name}: {command}"
        named[name] = list(by_seed.values())
    return named


def settings_of(run: list[dict]) -> dict:
    """The settings by which runs are grouped."""
    settings = {"epochs": len(run)}
    for name, value in run[-1].items():
        if name not in NOT_SETTINGS and value is not None:
            settings[name] = value
    return settings


def name_of(settings: dict, all_settings: list[dict]) -> str:
    """The settings that differ among a recipe's groups; and the recipe, if there are several."""
    same_recipe = [other for other in all_settings if other["recipe"] == settings["recipe"]]
    words = []
    for name in dict.fromkeys(name for other in same_recipe for name in other):
        values = {json.dumps(other.get(name)) for other in same_recipe}
        if len(values) > 1:
            words.append(f"{name.replace('_', ' ')} {settings.get(name)}")
    if len(same_recipe) < len(all_settings) or not words:
        words.insert(0, settings["recipe"])
    return ", ".join(words)


def table(groups: dict, metric: str) -> list[dict]:
    """A row, a dictionary, per group, each compared with the first, paired by seed.

    The intervals hold jointly (Bonferroni): with 95 % confidence all contain the true difference.
    """
    quantile = 1 - 0.025 / max(1, len(groups) - 1)
    _, factor = SCORES[metric]
    rows = []
    for name, runs in groups.items():
        scores = {run[0]["seed"]: factor * run[-1][metric] for run in runs}
        values = list(scores.values())
        seconds = [record["seconds"] for run in runs for record in run]
        row = {
            "name": name,
            "seeds": len(values),
            "parameters": runs[0][-1].get("parameters"),
            "epochs": len(runs[0]),
            "mean": statistics.mean(values),
            "sd": statistics.stdev(values) if len(values) > 1 else None,
            "min": min(values),
            "max": max(values),
            "seconds": statistics.median(seconds),
        }
        last = runs[0][-1]
        images = [last.get(key) or None for key in ("dataset", "pictures", "hold_out")]
        if not rows:
            first_scores, first_images = scores, images
            row |= {**NOTHING, "verdict": ""}
        elif images != first_images:
            row |= {**NOTHING, "verdict": "tested on other images"}
        else:
            row |= compared(scores, first_scores, quantile)
        rows.append(row)
    return rows


def compared(scores: dict, others: dict, quantile: float) -> dict:
    """The difference between two groups' scores, by seed, its interval, and a verdict."""
    found = {**NOTHING}
    differences = [scores[seed] - others[seed] for seed in scores if seed in others]
    n = len(differences)
    if n == 0:
        return {**found, "verdict": "no seed in common"}
    middle = statistics.mean(differences)
    found["difference"] = middle
    if n == 1:
        return {**found, "verdict": "n = 1: no interval"}
    spread = statistics.stdev(differences)
    if spread < 1e-9:  # chance, or a run against its copy: this says nothing of other seeds
        return {**found, "verdict": "spread 0: no interval"}
    half = float(t.ppf(quantile, n - 1)) * spread / n**0.5
    found |= {"low": middle - half, "high": middle + half, "smallest_shown": half}
    if abs(middle) > half:
        return {**found, "verdict": ""}
    found["seeds_needed"] = seeds_needed(abs(middle) / spread, quantile)
    return {**found, "verdict": "no difference shown"}


def seeds_needed(size: float, quantile: float) -> str:
    """How many seeds would show a difference of `size` standard deviations with a power of 80 %."""
    for n in range(2, 101):
        power = nct.sf(t.ppf(quantile, n - 1), n - 1, size * n**0.5)
        if power >= 0.8:
            return str(n)
    return "more than 100"


def decimals(metric: str) -> int:
    """How many decimals a metric has in a table."""
    return 2 if metric.endswith("acc") or metric == "seconds" else 4


def cells(row: dict, metric: str) -> list[str]:
    """A row's cells, as text."""
    n = decimals(metric)
    mean = f"{row['mean']:.{n}f}"
    if row["sd"] is not None:
        mean += f" ± {row['sd']:.{n}f} ({row['min']:.{n}f} to {row['max']:.{n}f})"
    words = []
    if row["difference"] is not None:
        words.append(f"{row['difference']:+.{n}f}")
    if row["low"] is not None:
        words[0] += f" ({row['low']:+.{n}f} to {row['high']:+.{n}f})"
    if row["verdict"]:
        words.append(row["verdict"])
    parameters = "" if row["parameters"] is None else f"{row['parameters']:,}"
    seeds, epochs, seconds = str(row["seeds"]), str(row["epochs"]), f"{row['seconds']:.2f}"
    return [row["name"], seeds, parameters, epochs, mean, ", ".join(words), seconds]


def show(rows: list[dict], form: str, metric: str, what: str) -> str:
    """The table as text, Markdown or JSON; `what` is the metric in words."""
    if form == "json":
        return json.dumps(rows, indent=1)
    level = "95 %, jointly" if len(rows) > 2 else "95 %"
    head = ["", "seeds", "parameters", "epochs", f"{what}: mean ± sd (min to max)"]
    head += [f"difference from the first row ({level})", "s per epoch"]
    lines = [head] + [cells(row, metric) for row in rows]
    if form == "markdown":
        lines.insert(1, ["---"] * len(head))
        text = []
        for line in lines:
            words = [word.replace("|", r"\|") for word in line]
            text.append(f"| {' | '.join(words)} |")
    else:
        widths = [max(map(len, column)) for column in zip(*lines)]
        text = []
        for line in lines:
            words = [word.ljust(width) for word, width in zip(line, widths)]
            text.append("  ".join(words).rstrip())
    shown, needed = [], []
    for row in rows:
        if row["smallest_shown"]:
            shown.append(f"{row['smallest_shown']:.{decimals(metric)}f} ({row['name']})")
        if row["seeds_needed"]:
            needed.append(f"{row['seeds_needed']} ({row['name']})")
    if shown:
        what = "The smallest difference that these seeds, with their spread, can show"
        text += ["", f"{what}: {', '.join(shown)}"]
    if needed:
        what = "Seeds that would show the difference seen, at this spread (power 80 %)"
        text.append(f"{what}: {', '.join(needed)}")
    return "\n".join(text)
