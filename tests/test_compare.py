"""compare.py: what it reads, how it groups and names, its statistics against SciPy, and what survives a kill."""

import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from PIL import Image
from scipy import stats

import compare
import mlp_mnist
from support import files, plots

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


def test_a_log_is_read_run_by_run_and_each_epoch_once(tmp_path, capsys):
    log = write(tmp_path / "a.jsonl", runs({1: [0.5, 0.9], 2: [0.6, 0.7]}), runs({1: [0.1]}, recipe="time-major"))
    log.write_text(log.read_text() * 2 + '{"cut')
    found = compare.read(log)
    assert [[r["epoch"] for r in run] for run in found] == [[0, 1], [0, 1], [0]]
    assert capsys.readouterr().err == f"{log}: skipped what is not an epoch's record: line 11\n"


def test_a_byte_order_mark_hides_no_record(tmp_path, capsys):
    """As PowerShell writes it."""
    log = write(tmp_path / "a.jsonl", runs({1: [0.5]}))
    log.write_text(log.read_text(), encoding="utf-8-sig")
    assert len(compare.read(log)) == 1
    assert capsys.readouterr().err == ""


ODD = [
    "null", "3", '"x"', "[]", "[1, 2]", "{}", '{"epoch": 1}', "NaN", "[" * 100000,
    *(
        json.dumps({**record(1, 0, 0.5), name: value})
        for name in ("seed", "epoch", "valid_acc", "seconds", "recipe", "lr", "run", "cell")
        for value in ([], {}, [1], None, "x", True)
        if not (name in ("lr", "run", "cell") and not isinstance(value, (list, dict)))
        and not (name == "recipe" and value == "x")
    ),
    json.dumps({**record(1, 0, 0.5), "valid_loss": float("nan")}),
    json.dumps({**record(1, 0, 0.5), "seconds": 10**400}),
    json.dumps({**record(1, 0, 0.5), "train_loss": 1.7e308}),
    json.dumps({**record(1, 0, 0.5), "parameters": "many"}),
]  # fmt: skip


@pytest.mark.parametrize("line", ODD, ids=range(len(ODD)))
def test_what_is_not_a_record_is_left_out(line, tmp_path, capsys):
    log = write(tmp_path / "a.jsonl", runs({1: [0.5]}))
    log.write_text(log.read_text() + line + "\n")
    assert len(compare.read(log)) == 1
    assert capsys.readouterr().err == f"{log}: skipped what is not an epoch's record: line 2\n"


@pytest.mark.parametrize("content", [None, "", "no json\n", '{"epoch": 1}\n', b"\xff\xfe\x00"])
def test_what_is_no_log_gets_one_line(content, tmp_path, capsys):
    log = tmp_path / "runs.jsonl"
    if content is not None:
        log.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(SystemExit) as end:
        compare.main(["--log", str(log)])
    assert str(log) in str(end.value.code)
    assert len(str(end.value.code).splitlines()) == 1
    capsys.readouterr()


def test_a_name_says_what_differs_and_nothing_else():
    seeds = {1: [0.5], 2: [0.6]}
    assert list(compare.group(runs(seeds))) == ["sgd"]
    assert list(compare.group(runs(seeds) + runs(seeds, lr=0.2))) == ["lr 0.1", "lr 0.2"]
    several = runs(seeds) + runs(seeds, cell="gru") + runs(seeds, recipe="time-major", optimizer="Adam", lr=1.0)
    assert list(compare.group(several)) == ["sgd, cell lstm", "sgd, cell gru", "time-major"]
    longer = runs(seeds) + runs({1: [0.5, 0.6]})
    assert list(compare.group(longer)) == ["epochs 1", "epochs 2"]
    for name, value in (("optimizer", "Adam"), ("data", "abc"), ("bf16", True), ("parts", 3), ("batch_size", 9)):
        assert len(compare.group(runs(seeds) + runs(seeds, **{name: value}))) == 2


def test_two_copies_of_a_script_are_two_rows(tmp_path, capsys):
    """Alike in all that is logged, perhaps not in what was edited."""
    log = write(tmp_path / "a.jsonl", runs({1: [0.5]}, command="a.py"), runs({1: [0.7]}, command="copy/a.py"))
    first, second = compare.main(["--log", str(log)])
    assert (first["name"], first["mean"]) == ("sgd: a.py", 50)
    assert (second["name"], second["mean"]) == ("sgd: copy/a.py", 70)
    names = compare.group(runs({1: [0.5]}) + runs({1: [0.7]}, command="a.py"))  # the first was not run by compare.py
    assert list(names) == ["sgd", "sgd: a.py"]
    names = compare.group(runs({1: [0.5]}) + runs({1: [0.7]}, script="lstm_copy.py"))
    assert list(names) == ["script lstm_mnist.py", "script lstm_copy.py"]


def test_no_row_hides_another(tmp_path, capsys):
    """A setting that is not there is as one that is null, as before there was such a flag."""
    one, two = runs({1: [0.5]}, load_model=None), runs({2: [0.7]})
    assert {name: len(members) for name, members in compare.group(one + two).items()} == {"sgd": 2}
    odd = runs({1: [0.5]}, lr="0.1") + runs({1: [0.6]}) + runs({1: [0.7]}, lr="0.1", load_model="None")
    odd += runs({1: [0.8]}, cell="a|b\udcff")
    rows = compare.main(["--log", str(write(tmp_path / "a.jsonl", odd)), "--format", "markdown"])
    assert [row["mean"] for row in rows] == [50, 60, 70, 80]
    assert len({row["name"] for row in rows}) == 4
    assert r"a\|b?" in capsys.readouterr().out


def test_held_out_images_are_not_called_the_test_set(tmp_path, capsys):
    log = write(tmp_path / "a.jsonl", runs({1: [0.5]}, hold_out=100), runs({1: [0.7]}, hold_out=200))
    compare.main(["--log", str(log), "--plot", str(tmp_path)])
    assert "held-out accuracy, %" in capsys.readouterr().out
    assert plots.comparison(compare.group(compare.read(log)), label="held-out").axes[0].get_ylabel() == "held-out"
    log = write(tmp_path / "a.jsonl", runs({1: [0.5]}, hold_out=100), runs({1: [0.7]}, hold_out=0))
    compare.main(["--log", str(log)])
    assert "test accuracy, %" in capsys.readouterr().out


def test_the_table_is_scipys_and_pairs_by_seed():
    rng = np.random.default_rng(1)
    first, second = rng.normal(0.97, 0.002, 6), rng.normal(0.971, 0.002, 6)
    order = [3, 1, 5, 0, 2, 4]  # the same seeds in another order
    groups = compare.group(
        runs({s: [0.1, first[s]] for s in range(6)}) + runs({s: [0.1, second[s]] for s in order}, cell="gru")
    )
    a, b = compare.table(groups, "valid_acc", best=False)
    expected = stats.ttest_rel(100 * second, 100 * first)
    low, high = expected.confidence_interval(0.95)
    assert (a["mean"], a["sd"]) == pytest.approx((100 * first.mean(), 100 * first.std(ddof=1)))
    assert (a["min"], a["max"]) == pytest.approx((100 * first.min(), 100 * first.max()))
    assert b["difference"] == pytest.approx(100 * (second - first).mean())
    assert (b["low"], b["high"]) == pytest.approx((low, high))
    assert b["verdict"] == ("no difference shown" if expected.pvalue > 0.05 else "")
    assert (a["difference"], a["low"], a["verdict"]) == (None, None, "")
    assert (a["seeds"], a["epochs"], a["parameters"], a["seconds"]) == (6, 2, 7, 2.5)


@pytest.mark.parametrize(
    ("second", "verdict"),
    [
        ({1: [0.9]}, "n = 1: no interval"),
        ({1: [0.9], 2: [0.2]}, "no difference shown"),
        ({9: [0.9]}, "no seed in common"),
    ],
)
def test_the_verdict(second, verdict):
    groups = compare.group(runs({1: [0.5], 2: [0.6]}) + runs(second, cell="gru"))
    assert compare.table(groups, "valid_acc", best=False)[1]["verdict"] == verdict


def test_a_clear_difference_and_one_without_spread():
    first = {1: [0.50], 2: [0.52], 3: [0.51]}
    better = {1: [0.70], 2: [0.73], 3: [0.71]}
    same = {seed: [values[0] + 0.25] for seed, values in first.items()}
    _, b, c = compare.table(
        compare.group(runs(first) + runs(better, cell="gru") + runs(same, cell="rnn")), "valid_acc", False
    )
    assert b["verdict"] == c["verdict"] == ""
    assert 0 < b["low"] < b["difference"] < b["high"]
    assert c["low"] == pytest.approx(25)


def test_best_epochs_and_other_metrics(tmp_path, capsys):
    log = write(tmp_path / "a.jsonl", runs({1: [0.5, 0.9, 0.8], 2: [0.6, 0.7, 0.6]}))
    (last,), (best,), (loss,) = (
        compare.main(["--log", str(log), *flags]) for flags in ([], ["--best"], ["--metric", "valid_loss", "--best"])
    )
    assert [row["mean"] for row in (last, best, loss)] == pytest.approx([70, 80, 0.3])
    out = capsys.readouterr().out
    assert out.count("picked on the images that it is tested on") == 2


@pytest.mark.parametrize("form", ["text", "markdown", "csv", "json"])
def test_the_forms_say_the_same(form, tmp_path, capsys):
    log = write(tmp_path / "a.jsonl", runs({1: [0.5], 2: [0.6]}), runs({1: [0.7], 2: [0.9]}, cell="gru"))
    rows = compare.main(["--log", str(log), "--format", form])
    out = capsys.readouterr().out
    if form == "json":
        assert json.loads(out) == rows
    elif form == "csv":
        assert out.splitlines()[0].split(",")[:5] == ["name", "seeds", "parameters", "epochs", "mean"]
        assert len(out.splitlines()) == 3
    else:
        assert "80.00 ± 14.14 (70.00 to 90.00)" in out
        assert "+25.00 (-38.53 to +88.53), no difference shown" in out
        assert len({line.count("|") for line in out.splitlines()}) == 1


def test_two_hundred_runs_in_one_log(tmp_path, capsys):
    groups = [runs({s: [0.5 + s / 1000] for s in range(25)}, lr=k / 10) for k in range(1, 9)]
    rows = compare.main(["--log", str(write(tmp_path / "a.jsonl", *groups)), "--plot", str(tmp_path)])
    assert [(row["name"], row["seeds"]) for row in rows] == [(f"lr {k / 10}", 25) for k in range(1, 9)]
    assert min(Image.open(tmp_path / "runs.png").size) > 400
    capsys.readouterr()


def test_the_picture_has_means_bands_and_names_at_the_ends():
    groups = compare.group(runs({1: [0.5, 0.9], 2: [0.6, 0.7]}) + runs({1: [0.1, 0.2]}, cell="gru"))
    by_epoch, by_time = plots.comparison(groups).axes
    assert by_epoch.lines[0].get_ydata() == pytest.approx([55, 80])
    assert list(by_time.lines[0].get_xdata()) == pytest.approx([2, 5])  # seconds of training, added up
    band = by_epoch.collections[0].get_paths()[0].vertices
    assert (band[:, 1].min(), band[:, 1].max()) == pytest.approx((50, 90))
    assert sorted(text.get_text() for text in by_time.texts) == ["cell gru", "cell lstm"]
    assert {text.get_color() for text in by_time.texts} == {line.get_color() for line in by_time.lines}


def test_the_picture_has_the_tables_name_and_unit_of_each_metric():
    groups = compare.group(runs({1: [0.5, 0.9]}))
    for metric, end, label in (("train_acc", 90, "training accuracy, %"), ("valid_loss", 0.2, "test loss")):
        axes = plots.comparison(groups, metric).axes[0]
        assert axes.get_ylabel() == label
        assert axes.lines[0].get_ydata()[-1] == pytest.approx(end)
        (row,) = compare.table(groups, metric, best=False)
        assert row["mean"] == pytest.approx(end)
        assert label in compare.show([row], "text", metric, False, compare.SCORES[metric][0])


@pytest.mark.parametrize(
    ("argv", "named"),
    [
        ([], "--log"),
        (["--seeds", "0", "x.py"], "--seeds"),
        (["--jobs", "0", "x.py"], "--jobs"),
        (["mlp_mnist.py --seed 3"], "--seed"),
        (["mlp_mnist.py", "--seeds", "1", "mlp_mnist.py --seed 4"], "mlp_mnist.py --seed 4: leave out --seed"),
        (["mlp_mnist.py --checkpoint=c.pt"], "--checkpoint"),
        (["mlp_mnist.py --load-model m --predict x.png"], "--predict"),
        (["mlp_mnist.py --save-model=m.pth"], "--save-model"),
        (["mlp_mnist.py --save-model r.jsonl", "--seeds", "1", "--log", "r.jsonl"], "--save-model"),
        (["--metric", "speed", "x.py"], "--metric"),
        (["mlp_mnist.py 'x"], "No closing quotation"),
        ([" "], "empty"),
    ],
)
def test_bad_arguments(argv, named, capsys):
    with pytest.raises(SystemExit) as end:
        compare.main(argv)
    err = capsys.readouterr().err
    assert end.value.code == 2
    assert len(err.splitlines()) == 1
    assert named in err


def command(tiny, *more):
    return " ".join(["mlp_mnist.py", "--data-dir", str(tiny), *more])


def test_commands_run_once_and_a_failing_one_is_named(tiny, tmp_path, capsys):
    log = tmp_path / "runs.jsonl"
    good, bad = command(tiny, "--epochs", "2"), command(tiny, "--epochs", "two")
    others = ["nothing-of-this-name x", "nowhere/mlp_mnist.py", f"{tmp_path}/x.py", "true"]
    with pytest.raises(SystemExit) as end:
        compare.main([good, bad, *others, "--seeds", "1", "--log", str(log)])
    assert end.value.code == 1
    out, err = capsys.readouterr()
    assert "mlp" in out.splitlines()[1]
    assert f"{bad}, seed 1: failed: mlp_mnist.py: argument --epochs: 'two' is not an integer" in err
    assert "nothing-of-this-name x, seed 1: failed: nothing-of-this-name: No such file" in err
    assert "true, seed 1: failed: trained nothing; " in err
    for missing in ("nowhere/mlp_mnist.py", f"{tmp_path}/x.py"):
        assert re.search(rf"{missing}, seed 1: failed: .*can't open file '.*{missing}'", err)
    before = log.read_text()
    (row,) = compare.main([good, "--seeds", "1", "--log", str(log)])
    assert log.read_text() == before
    assert "seed 1:" not in capsys.readouterr().err
    _, history = mlp_mnist.main(["--data-dir", str(tiny), "--epochs", "2"])
    assert row["mean"] == 100 * history[-1]["valid_acc"]  # as the command gives alone
    assert [file.name for file in tmp_path.iterdir()] == ["runs.jsonl"]
    capsys.readouterr()


def test_a_run_whose_checkpoint_no_longer_fits_says_what_to_remove_and_then_starts_anew(tiny, tmp_path, capsys):
    log, text = tmp_path / "r.jsonl", command(tiny, "--epochs", "2")
    parts = tmp_path / "r.jsonl.parts"
    parts.mkdir()
    kept = parts / hashlib.sha256(f"{text} 1".encode()).hexdigest()[:16]
    flags = ["--data-dir", str(tiny), "--epochs", "1", "--seed", "1", "--lr", "0.2"]
    mlp_mnist.main([*flags, "--checkpoint", f"{kept}.pt", "--log", f"{kept}.jsonl"])
    with pytest.raises(SystemExit):
        compare.main([text, "--seeds", "1", "--log", str(log)])
    assert f"lr was 0.2, now 0.01; use the same settings, or remove {kept}.pt" in capsys.readouterr().err
    Path(f"{kept}.pt").unlink()
    (row,) = compare.main([text, "--seeds", "1", "--log", str(log)])
    assert (row["seeds"], row["epochs"]) == (1, 2)
    assert not parts.exists()
    capsys.readouterr()


def test_odd_names_and_huge_numbers_can_be_drawn(tmp_path, capsys):
    odd = [[{**record(seed, 0, 0.9, recipe="$\\frac{$"), "valid_loss": 10**20}] for seed in (1, 2)]
    compare.main(["--log", str(write(tmp_path / "r.jsonl", odd)), "--metric", "valid_loss", "--plot", str(tmp_path)])
    assert (tmp_path / "runs.png").exists()
    capsys.readouterr()


def test_no_temporary_folder(monkeypatch):
    monkeypatch.setattr(compare.tempfile, "tempdir", "/nowhere")
    with pytest.raises(SystemExit, match="name a log with --log FILE"):
        compare.main(["true"])


def test_a_log_without_runs(tmp_path):
    with pytest.raises(SystemExit, match=r"e\.jsonl: contains no runs; name commands to run, too$"):
        compare.main(["--log", str(write(tmp_path / "e.jsonl"))])


def test_a_log_that_cannot_be_written_or_is_in_use(tmp_path, capsys):
    for log, reason in ((tmp_path, "is a folder; name a file in it"), (tmp_path / "l", "another run is using it; .*")):
        with files.lock(tmp_path / "l"), pytest.raises(SystemExit, match=re.escape(f"{log}: ") + reason):
            compare.main(["true", "--log", str(log)])
    assert capsys.readouterr() == ("", "")


def test_the_picture_does_not_replace_the_log(tmp_path, capsys):
    log = write(tmp_path / "runs.png")
    for commands in ([], ["true"]):
        with pytest.raises(SystemExit) as end:
            compare.main([*commands, "--log", str(log), "--plot", str(tmp_path)])
        assert end.value.code == 2
        assert f"--log and --plot both name {log}; " in capsys.readouterr().err


def test_bytes_that_are_not_text(tmp_path, capfd):
    """In a command, and in what it says."""
    commands = ["sh -c 'exit 3' \udcff", "sh -c 'printf \"a\\377b\" >&2; exit 1'"]
    with pytest.raises(SystemExit) as end:
        compare.main([*commands, "--seeds", "1", "--log", str(tmp_path / "l.jsonl")])
    assert end.value.code == 1
    err = capfd.readouterr().err
    assert "failed: ended with status 3" in err
    assert "failed: a\N{REPLACEMENT CHARACTER}b" in err


def test_an_interruption_while_runs_are_queued_ends_the_one_that_started(tmp_path, monkeypatch, capsys):
    pid, submit = tmp_path / "pid", ThreadPoolExecutor.submit

    def once(pool, *job):
        if pid.exists():
            raise KeyboardInterrupt
        future = submit(pool, *job)
        while not (pid.exists() and pid.read_text()):
            time.sleep(0.01)
        return future

    monkeypatch.setattr(ThreadPoolExecutor, "submit", once)
    with pytest.raises(SystemExit) as end:
        compare.main([f"sh -c 'echo $$ > {pid}; exec sleep 60'", "--seeds", "2", "--log", str(tmp_path / "l.jsonl")])
    assert end.value.code == 130
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid.read_text()), 0)
    capsys.readouterr()


@pytest.mark.parametrize("logged", [True, False])
def test_the_end_of_a_comparison_without_a_finished_run(logged, tmp_path, monkeypatch, capsys):
    """Why it ended is what it says, with a way to resume that works."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))

    def interrupted(args, log):
        raise KeyboardInterrupt

    log = tmp_path / "l.jsonl"
    argv = ["true", "--seeds", "1", *(["--log", str(log)] if logged else [])]
    with pytest.raises(SystemExit) as end:
        compare.main(argv)
    assert end.value.code == 1
    assert "true, seed 1: failed: " in capsys.readouterr().err
    monkeypatch.setattr(compare, "train", interrupted)
    with pytest.raises(SystemExit) as end:
        compare.main(argv)
    assert end.value.code == 130
    *_, last = capsys.readouterr().err.splitlines()
    if logged:
        assert last == f"interrupted; rerun the same command to resume from {log}"
    else:
        log = last.removeprefix("interrupted; rerun with --log ").partition(" ")[0]
        assert last == f"interrupted; rerun with --log {log} to resume from {log}"
        assert log.startswith(str(tmp_path / "compare-"))


@pytest.mark.slow
def test_a_command_may_start_with_torchrun(tiny, tmp_path, capsys):
    both = [command(tiny, "--epochs", "1"), command(tiny, "--epochs", "1", "--optimizer", "none")]
    commands = [f"torchrun --standalone --nproc-per-node 2 {command}" for command in both]
    with pytest.raises(SystemExit) as end:
        compare.main([both[0], *commands, "--seeds", "1", "--log", str(tmp_path / "l.jsonl")])
    assert end.value.code == 1
    out, err = capsys.readouterr()
    assert [line.split("  ")[0] for line in out.splitlines()[1:]] == ["processes 1", "processes 2"]
    assert "failed: mlp_mnist.py: argument --optimizer: invalid choice: 'none'" in err


def test_a_picture_that_cannot_be_drawn_is_found_before_the_runs(tiny, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "support.plots", None)
    monkeypatch.delattr("support.plots")
    with pytest.raises(SystemExit, match="^--plot: matplotlib cannot be imported"):
        compare.main([command(tiny), "--log", str(tmp_path / "l.jsonl"), "--plot", str(tmp_path / "p")])
    assert list(tmp_path.iterdir()) == []


def start(log, *argv):
    # of a session of its own, so that a signal reaches the parent alone
    own = [sys.executable, ROOT / "compare.py", *argv, "--seeds", "1", "--log", log]
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    return subprocess.Popen([str(word) for word in own], start_new_session=True, **pipes)


def until_there_is_a_checkpoint(log):
    while not list(log.parent.glob("runs.jsonl.parts/*.pt")):
        time.sleep(0.01)


@pytest.mark.slow
def test_a_killed_comparison_resumes(small, tmp_path):
    """Neither a parent nor a child that is killed loses more than an epoch."""
    log, line = tmp_path / "runs.jsonl", command(small, "--epochs", "6", "--batch-size", "5")
    parent = start(log, line)
    until_there_is_a_checkpoint(log)
    os.killpg(parent.pid, signal.SIGKILL)
    parent.communicate()
    assert log.read_text() == ""
    again = start(log, line)
    out, err = again.communicate()
    assert (again.returncode, "mlp" in out) == (0, True), err
    (run,) = compare.read(log)
    assert [r["epoch"] for r in run] == list(range(6))
    _, whole = mlp_mnist.main(["--data-dir", str(small), "--epochs", "6", "--batch-size", "5"])
    assert [r["valid_loss"] for r in run] == [r["valid_loss"] for r in whole]
    assert sorted(file.name for file in tmp_path.iterdir()) == ["runs.jsonl"]


@pytest.mark.slow
def test_ctrl_c_ends_the_children_and_shows_what_is_there(small, tiny, tmp_path):
    log = tmp_path / "runs.jsonl"
    parent = start(log, command(tiny, "--epochs", "1"), command(small, "--epochs", "10000"))
    until_there_is_a_checkpoint(log)
    while len(log.read_text()) == 0 or not list(tmp_path.glob("runs.jsonl.parts/*.pt")):
        time.sleep(0.01)
    time.sleep(0.5)
    parent.send_signal(signal.SIGINT)
    out, err = parent.communicate(timeout=60)
    assert parent.returncode == 130
    assert "epochs" in out.splitlines()[0]
    assert len(out.splitlines()) == 2
    assert f"rerun the same command to resume from {log}" in err
    with pytest.raises(ProcessLookupError):
        os.killpg(parent.pid, 0)  # nobody of the group is left
