"""compare.py: its tables, its statistics against SciPy, what it starts, and what it survives."""

import json
import os
import re
import shlex
import signal
import sys
import time
from pathlib import Path

import common

import numpy as np
import pytest
from conftest import ROOT, Fork, call, posix, refused
from scipy import stats

import compare
import mlp_mnist
from support import files, log, plots, tables

BASE = dict(script="lstm_mnist.py", recipe="sgd", cell="lstm", dataset="mnist", lr=0.1)


def runs(accuracies, **settings):
    """A run for each seed: `{seed: [accuracy, …]}`."""
    settings = {**BASE, **settings}
    found = []
    for seed, values in accuracies.items():
        own = dict(settings, seed=seed, run=f"{seed} {settings}", parameters=7)
        records = []
        for epoch, value in enumerate(values):
            scores = dict(train_loss=1 - value, train_acc=value, valid_loss=1, valid_acc=value)
            records.append({**own, **scores, "epoch": epoch, "seconds": 2.0 + epoch})
        found.append(records)
    return found


def write(path, *groups):
    for group in groups:
        for run in group:
            log.append(path, run)
    return path


def test_a_log_is_read_run_by_run_each_epoch_once(tmp_path):
    first = runs({1: [0.5, 0.9], 2: [0.6, 0.7]})
    second = runs({1: [0.1]}, recipe="time-major")
    path = write(tmp_path / "a.jsonl", first, second, first)
    assert log.read(path) == first + second


def test_what_is_no_record_in_a_log_is_named(tmp_path, capsys):
    ((record,),) = runs({1: [0.5]})
    whole, without = json.dumps(record), json.dumps({**record, "valid_acc": None})
    path = tmp_path / "a.jsonl"
    path.write_text(f"{whole}\nnull\n[1]\n{{}}\n{without}\n{whole[:-9]}")
    assert log.read(path) == [[record]]
    lines = "line 2, 3, 4, 5, 6"
    assert capsys.readouterr().err == f"{path}: skipped what is not an epoch's record: {lines}\n"


def test_a_log_without_runs_is_refused(tmp_path, capsys):
    path = tmp_path / "none.jsonl"
    _, line = refused(compare.main, ["--log", path], capsys)
    assert line.startswith(f"{path}: contains no runs")


@pytest.mark.parametrize("command", [[], ["mlp_mnist.py"]])
def test_a_file_that_is_no_log_is_refused_and_stays(command, tmp_path, capsys):
    path = tmp_path / "model.pth"
    path.write_bytes(b"PK\3\4 weights")
    status, line = refused(compare.main, [*command, "--log", path], capsys)
    assert line == f"{path}: is not a log; name a new file, or one that --log wrote\n"
    assert status == 1
    assert path.read_bytes() == b"PK\3\4 weights"


SEEDS = {1: [0.5], 2: [0.6]}


@pytest.mark.parametrize(
    ("second", "names"),
    [
        (runs(SEEDS, lr=0.2), ["lr 0.1", "lr 0.2"]),
        (runs({1: [0.5, 0.6]}), ["epochs 1", "epochs 2"]),
        (runs(SEEDS, recipe="time-major", optimizer="Adam"), ["sgd", "time-major"]),
        (runs(SEEDS, data=3), ["data None", "data 3"]),
        (runs({3: [0.7]}), ["sgd"]),
        (runs({3: [0.7]}, load_model=None), ["sgd"]),  # before there was such a flag
    ],
)
def test_a_name_says_what_differs_and_nothing_else(second, names):
    assert list(tables.group(runs(SEEDS) + second)) == names


def test_two_copies_of_a_script_are_two_rows():
    """They are alike in all that is logged, perhaps not in what was edited."""
    both = runs({1: [0.5]}, command="a.py") + runs({1: [0.7]}, command="copy/a.py")
    assert list(tables.group(both)) == ["sgd: a.py", "sgd: copy/a.py"]


@pytest.mark.parametrize("other", [dict(hold_out=200), {}, dict(hold_out=100, dataset="kmnist")])
def test_rows_tested_on_other_images_are_not_compared(other):
    groups = tables.group(runs(SEEDS, hold_out=100) + runs(SEEDS, **other))
    _, row = tables.table(groups, "valid_acc")
    assert row["verdict"] == "tested on other images"
    assert row["difference"] is None


def test_the_table_is_scipys_paired_by_seed_with_bonferronis_intervals():
    first, second, third = np.random.default_rng(1).normal(0.97, 0.002, (3, 6))
    mixed = [3, 1, 5, 0, 2, 4]
    groups = {
        "lstm": runs({seed: [0.1, first[seed]] for seed in range(6)}),
        "gru": runs({seed: [0.1, second[seed]] for seed in mixed}),
        "rnn": runs({seed: [0.1, third[seed]] for seed in mixed}),
    }
    a, b, c = tables.table(groups, "valid_acc")
    assert a["mean"] == pytest.approx(100 * first.mean())
    assert a["sd"] == pytest.approx(100 * first.std(ddof=1))
    assert (a["seeds"], a["epochs"], a["parameters"], a["seconds"]) == (6, 2, 7, 2.5)
    for row, accuracies in ((b, second), (c, third)):
        low, high = stats.ttest_rel(100 * accuracies, 100 * first).confidence_interval(0.975)
        assert row["difference"] == pytest.approx(100 * (accuracies - first).mean())
        assert (row["low"], row["high"]) == pytest.approx((low, high))
        assert row["smallest_shown"] == pytest.approx((high - low) / 2)


@pytest.mark.parametrize(("rows", "seeds"), [(2, 5), (13, 3)])
def test_of_tables_without_a_difference_at_most_five_in_a_hundred_claim_one(
    rows, seeds, monkeypatch
):
    monkeypatch.setattr(tables, "seeds_needed", lambda *_: None)  # which takes its time
    rng, draws, claims = np.random.default_rng(1), 4000 // rows, 0
    for _ in range(draws):
        accuracies = 0.98 + rng.normal(0, 0.001, seeds) + rng.normal(0, 0.002, (rows, seeds))
        groups = {k: runs({s: [a] for s, a in enumerate(row)}) for k, row in enumerate(accuracies)}
        _, *others = tables.table(groups, "valid_acc")
        claims += "" in [row["verdict"] for row in others]
    assert stats.binom.sf(claims - 1, draws, 0.05) > 0.01
    assert stats.binom.cdf(claims, draws, 0.02) > 0.01  # but it does happen


@pytest.mark.parametrize(
    ("size", "needed"), [(1.0, "10"), (0.8, "15"), (0.5, "34"), (0.1, "more than 100")]
)
def test_the_seeds_needed_are_the_textbooks(size, needed):
    assert tables.seeds_needed(size, 0.975) == needed


def test_a_seed_that_is_there_twice_counts_once_with_its_last_run():
    again = runs({1: [0.9]}, run="again")
    (row,) = tables.table(tables.group(runs({1: [0.5]}) + again), "valid_acc")
    assert (row["seeds"], row["mean"]) == (1, 90)


@pytest.mark.parametrize(
    ("second", "verdict"),
    [
        ({1: [0.9]}, "n = 1: no interval"),
        ({1: [0.9], 2: [0.2]}, "no difference shown"),
        ({9: [0.9]}, "no seed in common"),
        ({1: [0.9], 2: [0.98]}, ""),
        ({1: [0.75], 2: [0.85]}, "spread 0: no interval"),
    ],
)
def test_the_verdict(second, verdict):
    groups = tables.group(runs(SEEDS) + runs(second, cell="gru"))
    assert tables.table(groups, "valid_acc")[1]["verdict"] == verdict


def test_the_last_epoch_counts_in_the_metric_that_is_asked_for(tmp_path, capsys):
    path = write(tmp_path / "a.jsonl", runs({1: [0.5, 0.9, 0.8], 2: [0.6, 0.7, 0.6]}))
    (row,) = compare.main(["--log", str(path), "--metric", "train_loss"])
    assert row["mean"] == pytest.approx(0.3)
    assert " training loss: mean" in capsys.readouterr().out


def test_held_out_images_are_not_called_the_test_set(tmp_path, capsys):
    compare.main(["--log", str(write(tmp_path / "a.jsonl", runs(SEEDS, hold_out=100)))])
    assert " held-out accuracy, %: mean" in capsys.readouterr().out


def printed(form, tmp_path, capsys):
    """A table of two rows, as it is printed, and its rows."""
    path = write(tmp_path / "a.jsonl", runs(SEEDS), runs({1: [0.7], 2: [0.9]}, cell="a|b"))
    rows = compare.main(["--log", str(path), "--format", form])
    return capsys.readouterr().out, rows


def test_the_table_as_text(tmp_path, capsys):
    out, _ = printed("text", tmp_path, capsys)
    _, _, row, _, smallest, seeds = out.splitlines()
    row = re.split(" {2,}", row)
    assert row[:4] == ["cell a|b", "2", "7", "1"]
    assert row[4] == "80.00 ± 14.14 (70.00 to 90.00)"
    assert row[5] == "+25.00 (-38.53 to +88.53), no difference shown"
    assert smallest.endswith(" can show: 63.53 (cell a|b)")
    assert seeds.endswith(" (power 80 %): 3 (cell a|b)")


def test_the_table_as_markdown(tmp_path, capsys):
    out, _ = printed("markdown", tmp_path, capsys)
    row = out.splitlines()[3]
    assert row.startswith(r"| cell a\|b | 2 | 7 | 1 | 80.00 ± 14.14 (70.00 to 90.00) | +25.00 ")


def test_the_table_as_json(tmp_path, capsys):
    out, rows = printed("json", tmp_path, capsys)
    assert json.loads(out) == rows


def test_the_table_prints_on_an_ascii_pipe(tmp_path):
    path = write(tmp_path / "a.jsonl", runs(SEEDS))
    ended = call("compare.py", "--log", path, env={"PYTHONIOENCODING": "ascii"})
    assert ended.stderr == ""
    assert r"55.00 \xb1 7.07 (50.00 to 60.00)" in ended.stdout


def test_the_picture_has_means_and_bands():
    groups = {"$\\frac{$": runs({1: [0.5, 0.9], 2: [0.6, 0.7]})}
    figure = plots.comparison(groups, "valid_acc", "test accuracy, %", 100)
    by_epoch, by_time = figure.axes
    assert by_epoch.lines[0].get_ydata() == pytest.approx([55, 80])
    assert by_time.lines[0].get_xdata() == pytest.approx([2, 5])  # seconds, added up
    band = by_epoch.collections[0].get_paths()[0].vertices[:, 1]
    assert (band.min(), band.max()) == pytest.approx((50, 90))
    assert plots.png(figure).startswith(b"\x89PNG")  # with a name that is no formula


@pytest.mark.parametrize(
    ("argv", "expected", "named"),
    [
        ("", 2, "or a log with --log FILE"),
        ("--seeds 0 x.py", 2, "argument --seeds: '0' is not from 1"),
        ("x.py 'y.py --seed 4'", 2, "y.py --seed 4: leave out --seed"),
        ("'x.py --log x --plot=p'", 2, "x.py --log x --plot=p: leave out --log, --plot"),
        ('"x.py \'x"', 2, "x.py 'x: No closing quotation"),
        ("' '", 2, "a command is empty; leave it out"),
        ("x.py --epochs 1", 2, "there is no --epochs; put a command and its flags in quotes: "),
        ("x.py --log p/runs.png --plot p", 2, "--log and --plot both name p/runs.png"),
        ("x.py --log out --plot out", 2, "--log out and --plot out/runs.png: one is in the other"),
        ("x.py --log .", 1, ".: is not a regular file"),
        ("x.py --log l.jsonl --plot file/p", 1, "file/p/runs.png: cannot be written"),
    ],
)
def test_bad_flags_and_paths_are_refused_before_a_run(
    argv, expected, named, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    status, line = refused(compare.main, shlex.split(argv), capsys)
    assert named in line
    assert status == expected
    assert os.listdir() == ["file"]


MLP = str(ROOT / "mlp_mnist.py")
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--", MLP]


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("mlp_mnist.py --lr 1", [sys.executable, MLP, "--lr", "1"]),
        ("python mlp_mnist.py --lr 1", [sys.executable, MLP, "--lr", "1"]),
        ("python -m mlp_mnist --lr 1", [sys.executable, "-m", "mlp_mnist", "--lr", "1"]),
        ("taskset 1 python mlp_mnist.py", ["taskset", "1", "python", MLP]),
        ("torchrun --nproc-per-node 2 mlp_mnist.py --lr 1", [*TORCHRUN, "--lr", "1"]),
        ("torchrun --nproc-per-node 2 -- mlp_mnist.py --lr 1", [*TORCHRUN, "--lr", "1"]),
    ],
)
def test_what_is_started(command, words, tmp_path, monkeypatch):
    """Scripts are found from any folder; torchrun is told where the script begins."""
    monkeypatch.chdir(tmp_path)
    assert compare.started_as(command) == (words, os.environ)


def test_assignments_before_a_command_are_its_environment():
    words, environment = compare.started_as("OMP_NUM_THREADS=7 A=b=c python -m mlp_mnist")
    assert words == [sys.executable, "-m", "mlp_mnist"]
    assert environment == {**os.environ, "OMP_NUM_THREADS": "7", "A": "b=c"}


def test_on_windows_backslashes_in_commands_stay(monkeypatch):
    with monkeypatch.context() as windows:
        windows.setattr(os, "name", "nt")
        words = common.words(r'C:\python.exe mlp_mnist.py --data-dir "D:\my data"')
    assert words == [r"C:\python.exe", "mlp_mnist.py", "--data-dir", r"D:\my data"]


def test_a_failed_run_is_named_by_its_own_last_line():
    """Not by torchrun's, which begin with W or E and a date."""
    err = "W1128 19:28 run.py:1] y\na warning\nx.py: argument --lr: what\nE1128 19:28 api.py] x\nso"
    assert compare.last_line(err) == "x.py: argument --lr: what"


@pytest.fixture
def quick(tmp_path, monkeypatch):
    """quick.py in the current folder, which only logs an epoch of seed 1."""
    ((record,),) = runs({1: [0.5]})
    line = json.dumps(record) + "\n"
    text = f"import sys\nopen(sys.argv[-3], 'w')\nopen(sys.argv[-1], 'a').write({line!r})\n"
    (tmp_path / "quick.py").write_text(text)
    monkeypatch.chdir(tmp_path)
    return ["quick.py", "--seeds", "1", "--log", "l.jsonl"]


def test_what_cannot_start_fails_alone(quick, capsys):
    with pytest.raises(SystemExit) as end:
        compare.main(["pythn quick.py", "nowhere/quick.py", "A=1", *quick])
    assert end.value.code == 1
    out, err = capsys.readouterr()
    assert "\npythn quick.py, seed 1: failed: pythn: " in err
    assert "\nnowhere/quick.py, seed 1: failed: " in err
    assert "\nA=1, seed 1: failed: starts nothing; name a script\n" in err
    assert "\nquick.py, seed 1: 50.00 % in 2.0 s\n" in err
    assert out.splitlines()[1].startswith("sgd  1 ")


def test_what_a_log_has_is_not_run_again(quick, capsys):
    first = compare.main(quick)
    os.remove("quick.py")
    assert compare.main(quick) == first
    assert os.listdir() == ["l.jsonl"]


def test_epochs_of_a_checkpoint_that_was_removed_do_not_count(quick, capsys):
    _, kept = compare.kept("quick.py", 1, Path("l.jsonl"))
    kept.parent.mkdir()
    write(kept, runs({1: [0.1, 0.2]}, lr=0.2))
    (row,) = compare.main(quick)
    assert (row["epochs"], row["mean"]) == (1, 50)


def test_a_second_comparison_on_a_log_is_refused(quick, capsys):
    with files.locked(Path("l.jsonl")):
        _, line = refused(compare.main, quick, capsys)
    assert line == "l.jsonl: another run is using it; wait for it, or name another\n"


@posix
def test_ctrl_c_ends_the_runs_and_the_same_command_resumes(quick, capsys):
    """With the table of what is there; slow.py needs to be started twice."""
    first, second = (json.dumps(record) + "\n" for record in runs({1: [0.1, 0.2]}, lr=0.2)[0])
    text = f"""
import os, sys, time
resumes = os.path.exists(sys.argv[-3])
open(sys.argv[-3], "w")
open(sys.argv[-1], "a").write({second!r} if resumes else {first!r})
open(f"pid {{os.getpid()}}", "w")
time.sleep(0 if resumes else 1000)
"""
    Path("slow.py").write_text(text)
    parent = Fork("compare.py", "slow.py", *quick, "--jobs", 2)
    while not (log.read(Path("l.jsonl")) and list(Path().glob("pid *"))):
        assert parent.poll() is None
        time.sleep(0.01)
    os.kill(parent.pid, signal.SIGINT)
    out, err = parent.communicate()
    assert parent.returncode == 130
    assert err.endswith("\ninterrupted; the same command resumes\n")
    assert out.splitlines()[1].startswith("sgd  1 ")
    (pid,) = Path().glob("pid *")
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid.name[4:]), 0)
    rows = compare.main(["slow.py", *quick])
    assert [row["epochs"] for row in rows] == [2, 1]


@pytest.mark.slow
@posix
def test_after_kill_9_the_same_command_waits_for_the_run_that_goes_on(small, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    command = f"mlp_mnist.py --data-dir {small} --epochs 9"
    argv = [command, "--seeds", "2", "--log", "l.jsonl"]
    parent = Fork("compare.py", *argv)
    _, kept = compare.kept(command, 1, Path("l.jsonl"))
    while not log.read(kept):
        assert parent.poll() is None
        time.sleep(0.01)
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    (left,) = log.read(kept)
    compare.main(argv)
    first, _ = log.read(Path("l.jsonl"))
    assert first[0]["run"] == left[0]["run"]
    assert [record["epoch"] for record in first] == list(range(9))
    _, whole = mlp_mnist.main(command.split()[1:])
    assert [r["valid_loss"] for r in first] == [r["valid_loss"] for r in whole]
    assert os.listdir() == ["l.jsonl"]
