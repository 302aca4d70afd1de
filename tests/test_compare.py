"""compare.py: what it reads, how it groups and names, its statistics against SciPy, and what survives a kill."""

import json
import os
import shlex
import signal
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import ROOT, Fork, refused
from scipy import stats

import compare
import mlp_mnist
from support import plots, saving, tables

BASE = dict(script="lstm_mnist.py", recipe="sgd", cell="lstm", device="cpu", dataset="mnist", optimizer="SGD", lr=0.1)


def record(seed, epoch, accuracy, **settings):
    scores = dict(train_loss=1 - accuracy, train_acc=accuracy, valid_loss=1.1 - accuracy, valid_acc=accuracy)
    settings = {**BASE, **settings}
    run = f"{seed} {sorted(settings.items(), key=str)}"
    return {**settings, "parameters": 7, "seed": seed, "run": run, "epoch": epoch, **scores, "seconds": 2.0 + epoch}


def runs(accuracies, **settings):
    """A run for each seed: `{seed: [accuracy, …]}`."""
    return [[record(seed, k, a, **settings) for k, a in enumerate(values)] for seed, values in accuracies.items()]


def write(path, *groups):
    path.write_text("".join(json.dumps(r) + "\n" for group in groups for run in group for r in run))
    return path


def test_a_log_is_read_run_by_run_each_epoch_once_and_what_is_no_record_is_named(tmp_path, capsys):
    log = write(tmp_path / "a.jsonl", runs({1: [0.5, 0.9], 2: [0.6, 0.7]}), runs({1: [0.1]}, recipe="time-major"))
    whole, odd = record(1, 0, 0.5), ["null", "3", "[1]", "{}", "no json", '{"epoch": 1}']
    odd += [json.dumps({**whole, "valid_acc": None}), json.dumps({n: whole[n] for n in whole if n != "seed"}), '{"cut']
    log.write_text(log.read_text() * 2 + "\n".join(odd))
    assert [[r["epoch"] for r in run] for run in saving.read_log(log)] == [[0, 1], [0, 1], [0]]
    lines = ", ".join(str(number) for number in range(11, 20))
    assert capsys.readouterr().err == f"{log}: skipped what is not an epoch's record: line {lines}\n"
    log.write_text("")
    for file in (log, tmp_path / "none.jsonl"):
        assert f"{file}: contains no runs" in refused(compare.main, ["--log", file], capsys)[1]


def test_a_name_says_what_differs_and_nothing_else():
    seeds = {1: [0.5], 2: [0.6]}
    assert list(tables.group(runs(seeds))) == ["sgd"]
    assert list(tables.group(runs(seeds) + runs(seeds, lr=0.2))) == ["lr 0.1", "lr 0.2"]
    several = runs(seeds) + runs(seeds, cell="gru") + runs(seeds, recipe="time-major", optimizer="Adam", lr=1.0)
    assert list(tables.group(several)) == ["sgd, cell lstm", "sgd, cell gru", "time-major"]
    assert list(tables.group(runs(seeds) + runs({1: [0.5, 0.6]}))) == ["epochs 1", "epochs 2"]
    for name, value in (("data", "abc"), ("bf16", True), ("parts", 3), ("script", "copy.py"), ("processes", 2)):
        assert len(tables.group(runs(seeds) + runs(seeds, **{name: value}))) == 2


def test_no_row_hides_another(tmp_path, capsys):
    """Two copies of a script are alike in all that is logged, perhaps not in what was edited."""
    names = list(tables.group(runs({1: [0.5]}, command="a.py") + runs({1: [0.7]}, command="copy/a.py")))
    assert names == ["sgd: a.py", "sgd: copy/a.py"]
    one, two = runs({1: [0.5]}, load_model=None), runs({2: [0.7]})  # before there was such a flag
    assert {name: len(members) for name, members in tables.group(one + two).items()} == {"sgd": 2}
    odd = runs({1: [0.6]}) + runs({1: [0.8]}, cell="a|b")
    rows = compare.main(["--log", str(write(tmp_path / "a.jsonl", odd)), "--format", "markdown"])
    assert [row["mean"] for row in rows] == [60, 80]
    assert r"a\|b" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("one", "other", "what"),
    [
        (dict(hold_out=100), dict(hold_out=200), "held-out accuracy, %"),
        (dict(hold_out=100), {}, "test accuracy, %"),
        ({}, dict(dataset="kmnist"), "test accuracy, %"),
    ],
)
def test_rows_tested_on_other_images_are_not_compared(one, other, what, tmp_path, capsys):
    """And held-out images are not called the test set."""
    seeds = {1: [0.5], 2: [0.6]}
    _, row = compare.main(["--log", str(write(tmp_path / "a.jsonl", runs(seeds, **one), runs(seeds, **other)))])
    assert (row["verdict"], row["difference"]) == ("tested on other images", None)
    assert what in capsys.readouterr().out


def test_the_table_is_scipys_by_seed_with_bonferronis_intervals_and_says_what_it_can_show(tmp_path, capsys):
    rng = np.random.default_rng(1)
    first, second, third = rng.normal(0.97, 0.002, (3, 6))
    order = [3, 1, 5, 0, 2, 4]  # the same seeds in another order
    log = write(
        tmp_path / "a.jsonl",
        runs({s: [0.1, first[s]] for s in range(6)}),
        runs({s: [0.1, second[s]] for s in order}, cell="gru"),
        runs({s: [0.1, third[s]] for s in order}, cell="rnn"),
    )
    a, b, c = compare.main(["--log", str(log)])
    assert (a["mean"], a["sd"]) == pytest.approx((100 * first.mean(), 100 * first.std(ddof=1)))
    assert (a["min"], a["max"]) == pytest.approx((100 * first.min(), 100 * first.max()))
    assert (a["difference"], a["low"], a["verdict"]) == (None, None, "")
    assert (a["seeds"], a["epochs"], a["parameters"], a["seconds"]) == (6, 2, 7, 2.5)
    for row, accuracies in ((b, second), (c, third)):
        low, high = stats.ttest_rel(100 * accuracies, 100 * first).confidence_interval(0.975)
        assert row["difference"] == pytest.approx(100 * (accuracies - first).mean())
        assert (row["low"], row["high"]) == pytest.approx((low, high))
        assert row["smallest_shown"] == pytest.approx((high - low) / 2)
    out = capsys.readouterr().out
    assert "(95 %, jointly)" in out
    assert out.endswith(f"can show: {b['smallest_shown']:.2f} (cell gru), {c['smallest_shown']:.2f} (cell rnn)\n")


def drawn(rng, rows, seeds, difference=0.0):
    """Groups of runs, of which the last differs from the others; seeds have something in common, as in practice."""
    common = rng.normal(0, 0.001, seeds)
    accuracies = 0.98 + common + rng.normal(0, 0.002, (rows, seeds))
    accuracies[-1] += difference
    return {str(k): runs({s: [a] for s, a in enumerate(row)}) for k, row in enumerate(accuracies)}


@pytest.mark.parametrize(("rows", "seeds"), [(2, 5), (4, 5), (13, 3)])
def test_in_a_table_without_any_difference_one_is_claimed_in_five_of_a_hundred_cases(rows, seeds):
    """At most: the rows share the first one, so that joint intervals are a little wide."""
    rng, draws = np.random.default_rng(1), 4000 // rows
    every = (tables.table(drawn(rng, rows, seeds), "valid_acc") for _ in range(draws))
    claims = sum(any(row["verdict"] == "" for row in others) for _, *others in every)
    assert stats.binom.sf(claims - 1, draws, 0.05) > 0.01
    assert stats.binom.cdf(claims, draws, 0.02) > 0.01  # but it does happen


def test_a_real_difference_is_found_as_often_as_theory_says():
    rng, seeds, difference, draws = np.random.default_rng(2), 5, 0.004, 2000
    found = sum(tables.table(drawn(rng, 2, seeds, difference), "valid_acc")[1]["low"] > 0 for _ in range(draws))
    centre = difference / (0.002 * 2**0.5) * seeds**0.5
    power = stats.nct.sf(stats.t.ppf(0.975, seeds - 1), seeds - 1, centre)
    assert 0.5 < power < 0.9
    assert abs(found / draws - power) < 4 * (power * (1 - power) / draws) ** 0.5


def test_a_seed_that_is_there_twice_counts_once_with_its_last_run():
    again = [[{**record(1, 0, 0.9), "run": "again", "seconds": 50.0}]]
    (row,) = tables.table(tables.group(runs({1: [0.5]}) + again), "valid_acc")
    assert (row["seeds"], row["mean"], row["seconds"]) == (1, 90, 50)


@pytest.mark.parametrize(
    ("second", "verdict"),
    [
        ({1: [0.9]}, "n = 1: no interval"),
        ({1: [0.9], 2: [0.2]}, "no difference shown"),
        ({9: [0.9]}, "no seed in common"),
        ({1: [0.9], 2: [0.98]}, ""),
        ({1: [0.75], 2: [0.85]}, ""),  # the same difference for each seed
    ],
)
def test_the_verdict(second, verdict):
    groups = tables.group(runs({1: [0.5], 2: [0.6]}) + runs(second, cell="gru"))
    assert tables.table(groups, "valid_acc")[1]["verdict"] == verdict


def test_the_last_epoch_counts_in_any_metric(tmp_path, capsys):
    log = write(tmp_path / "a.jsonl", runs({1: [0.5, 0.9, 0.8], 2: [0.6, 0.7, 0.6]}))
    rows = [compare.main(["--log", str(log), *flags])[0] for flags in ([], ["--metric", "train_acc"])]
    assert [row["mean"] for row in rows] == pytest.approx([70, 70])
    assert "training accuracy, %" in capsys.readouterr().out


@pytest.mark.parametrize("form", ["text", "markdown", "json"])
def test_the_forms_say_the_same(form, tmp_path, capsys):
    log = write(tmp_path / "a.jsonl", runs({1: [0.5], 2: [0.6]}), runs({1: [0.7], 2: [0.9]}, cell="gru"))
    rows = compare.main(["--log", str(log), "--format", form])
    out = capsys.readouterr().out
    if form == "json":
        assert json.loads(out) == rows
    else:
        assert "80.00 ± 14.14 (70.00 to 90.00)" in out
        assert "+25.00 (-38.53 to +88.53), no difference shown" in out
        assert {line.count("|") for line in out.splitlines()[:3]} == {8 if form == "markdown" else 0}


def test_the_picture_has_means_bands_and_a_legend():
    groups = tables.group(runs({1: [0.5, 0.9], 2: [0.6, 0.7]}) + runs({1: [0.1, 0.2]}, recipe="$\\frac{$"))
    figure = plots.comparison(groups, "valid_acc", "test accuracy, %", 100)
    by_epoch, by_time = figure.axes
    assert by_epoch.get_ylabel() == "test accuracy, %"
    assert by_epoch.lines[0].get_ydata() == pytest.approx([55, 80])
    assert list(by_time.lines[0].get_xdata()) == pytest.approx([2, 5])  # seconds of training, added up
    band = by_epoch.collections[0].get_paths()[0].vertices
    assert (band[:, 1].min(), band[:, 1].max()) == pytest.approx((50, 90))
    assert [text.get_text() for text in by_time.get_legend().get_texts()] == ["sgd", r"\$\frac{\$"]
    assert plots.png(figure).startswith(b"\x89PNG")


BAD = [
    ("", 2, "--log"),
    ("--seeds 0 x.py", 2, "--seeds"),
    ("mlp_mnist.py --seeds 1 'mlp_mnist.py --seed 4'", 2, "mlp_mnist.py --seed 4: leave out --seed"),
    ("'mlp_mnist.py --checkpoint=c.pt --log x --plot=p'", 2, "leave out --checkpoint, --log, --plot"),
    ("'mlp_mnist.py --load-model m --predict x.png --save-model=m.pth'", 2, "leave out --predict, --save-model"),
    ('"mlp_mnist.py \'x"', 2, "No closing quotation"),
    ("' '", 2, "command"),
    ("mlp_mnist.py --epochs 1", 2, "there is no --epochs; put a command and its flags in quotes: "),
    ("mlp_mnist.py --log .", 1, ".: "),
    ("mlp_mnist.py --log l.jsonl --plot file/p", 1, "file/p"),
]


@pytest.mark.parametrize(("argv", "expected", "named"), BAD)
def test_bad_flags_and_paths_are_refused_before_a_run(argv, expected, named, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(compare, "train", lambda *_: pytest.fail("it ran"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    status, line = refused(compare.main, shlex.split(argv), capsys)
    assert (status, named in line) == (expected, True)
    assert os.listdir() == ["file"]


class Forked(Fork):
    """What compare.py uses of Popen, without importing torch anew."""

    def terminate(self):
        self.process.terminate()


@pytest.mark.parametrize("dashes", ["", "-- "])
def test_what_is_started_and_which_of_its_epochs_count(dashes, tmp_path, monkeypatch):
    """torchrun is told where the script begins. Epochs of a checkpoint that was removed do not count."""
    started = []

    def child(words, **_):
        started.extend(words)
        checkpoint, log = (Path(words[words.index(flag) + 1]) for flag in ("--checkpoint", "--log"))
        log.parent.mkdir()
        checkpoint.touch()
        write(log, runs({1: [0.1, 0.2]}), runs({1: [0.5, 0.6, 0.7]}, lr=0.2))
        return SimpleNamespace(returncode=0, communicate=lambda: (None, ""))

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(compare.subprocess, "Popen", child)
    log = tmp_path / "l.jsonl"
    epochs = compare.run(f"torchrun --nproc-per-node 2 {dashes}mlp_mnist.py --epochs 1", 3, log, [])
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--"]
    assert started[:11] == [*launch, str(ROOT / "mlp_mnist.py"), "--epochs", "1", "--seed", "3"]
    for records in (epochs, *saving.read_log(log)):
        assert [r["valid_acc"] for r in records] == [0.5, 0.6, 0.7]
    err = "W1128 19:28 run.py:1] a warning\nx.py: argument --lr: what\nE1128 19:28 api.py:1] failed\nits report"
    ended = SimpleNamespace(returncode=1, communicate=lambda: (None, err))
    monkeypatch.setattr(compare.subprocess, "Popen", lambda *_, **__: ended)
    with pytest.raises(compare.Failed, match="^x.py: argument --lr: what$"):
        compare.run("torchrun x.py", 3, log, [])


@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGKILL, marks=pytest.mark.slow)])
def test_a_comparison_names_what_fails_and_resumes_where_it_was_ended(number, small, tmp_path, capsys, monkeypatch):
    """Ctrl-C ends the runs and shows the table of what is there; nothing loses more than an epoch, or is run twice."""
    bad, missing = "bad.py --epochs two", "nowhere/mlp_mnist.py"
    (tmp_path / "bad.py").write_text("import sys\nsys.exit('warning\\nbad.py: argument --epochs: …')\n")
    log = write(tmp_path / "runs.jsonl", [[record(1, 0, 0.5, command="x.py")]])
    argv = ["x.py", bad, missing, f"mlp_mnist.py --data-dir {small} --epochs 4", "--seeds", "1", "--log", "runs.jsonl"]
    parent = Fork("compare.py", *argv, cwd=tmp_path)  # from any folder
    while not list(tmp_path.glob("runs.jsonl.parts/*.pt")):
        assert parent.process.is_alive()
        time.sleep(0.01)
    tasks = Path(f"/proc/{parent.pid}/task").iterdir()  # a thread of them started it
    (child,) = [pid for task in tasks for pid in (task / "children").read_text().split()]
    os.kill(parent.pid, number)
    if number == signal.SIGKILL:
        os.kill(int(child), number)
    out, err = parent.communicate()
    if number == signal.SIGINT:
        assert not Path(f"/proc/{child}").exists()
        assert parent.returncode == 130, err
        assert len(out.splitlines()) == 2  # head and the row of x.py
        assert f"{bad}, seed 1: failed: bad.py: argument --epochs: …\n" in err
        assert f"{missing}, seed 1: failed: " in err
        assert "Traceback" not in err
    (kept,) = saving.read_log(next(tmp_path.glob("runs.jsonl.parts/*.jsonl")))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(compare.subprocess, "Popen", lambda words, **_: Forked(*words[1:]))
    with pytest.raises(SystemExit) as end:
        compare.main(argv)
    assert end.value.code == 1
    assert len(capsys.readouterr().out.splitlines()) == 3
    before = log.read_text()
    (_, row) = compare.main([argv[0], *argv[3:]])
    assert log.read_text() == before
    _, found = saving.read_log(log)
    assert [{**r, "command": argv[3]} for r in kept] == found[: len(kept)]
    assert [r["epoch"] for r in found] == list(range(4))
    _, whole = mlp_mnist.main(argv[3].removeprefix("mlp_mnist.py"))
    assert [r["valid_loss"] for r in found] == [r["valid_loss"] for r in whole]
    assert (row["seeds"], row["epochs"], row["mean"]) == (1, 4, 100 * whole[-1]["valid_acc"])
    assert list(tmp_path.glob("*.parts")) == []
    capsys.readouterr()
