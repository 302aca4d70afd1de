"""--checkpoint and --log: a run that was cut off ends as the one that was not."""

import json
import re
import signal

import pytest
import torch
from conftest import Fork, call, start

import lstm_mnist
import mlp_mnist
from support import checkpoint, records

RUNS = [("mlp_mnist.py", mlp_mnist.main, []), ("lstm_mnist.py", lstm_mnist.main, ["--recipe", "last-hidden"])]


def epochs(text):
    """The epoch lines of an output without what the clock decides."""
    return [re.sub(r", Time .*", "", line) for line in text.splitlines() if line.startswith("Epoch")]


def same(a, b):
    """Whether two files hold the same state_dict, to the last bit."""
    a, b = (torch.load(file, weights_only=True) for file in (a, b))
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize(("script", "main", "recipe"), RUNS)
def test_continued_run_equals_the_uninterrupted_one(script, main, recipe, tiny, tmp_path, capsys):
    def run(epochs, *flags):
        files = ["--save-model", str(tmp_path / f"{flags[-1]}.pth")] if flags else []
        main([*recipe, "--data-dir", str(tiny), "--epochs", str(epochs), "--log-interval", "0", *flags[:-1], *files])
        return capsys.readouterr().out

    kept = ["--checkpoint", str(tmp_path / "c.pt"), "--log", str(tmp_path / "log.jsonl")]
    whole = run(4, "whole")
    first = run(2, *kept, "part")
    second = run(4, *kept, "continued")
    assert epochs(first) + epochs(second) == epochs(whole)
    assert f"{tmp_path / 'c.pt'}: resuming after epoch 1\n" in second
    assert second[second.index("Test Loss") :] == whole[whole.index("Test Loss") :]
    assert same(tmp_path / "whole.pth", tmp_path / "continued.pth")
    assert not same(tmp_path / "whole.pth", tmp_path / "part.pth")
    before = (tmp_path / "c.pt").read_bytes()
    for fewer in (4, 3):
        done = run(fewer, *kept, "done")
        assert "complete, 4 epochs" in done
        assert epochs(done) == []
        assert done[done.index("Test Loss") :] == whole[whole.index("Test Loss") :]
    assert (tmp_path / "c.pt").read_bytes() == before
    records = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [r["epoch"] for r in records] == [0, 1, 2, 3]
    assert len({r["run"] for r in records}) == 1


def test_log_that_a_kill_left_short_is_completed(tiny, tmp_path, capsys):
    log = tmp_path / "log.jsonl"
    flags = ["--data-dir", str(tiny), "--checkpoint", str(tmp_path / "c.pt"), "--log", str(log)]
    mlp_mnist.main([*flags, "--epochs", "3"])
    lines = log.read_text().splitlines(keepends=True)
    log.write_text("".join(lines[:2]))  # the kill came between checkpoint and log
    mlp_mnist.main([*flags, "--epochs", "4"])
    assert log.read_text().splitlines(keepends=True)[:3] == lines
    assert [json.loads(line)["epoch"] for line in log.read_text().splitlines()] == [0, 1, 2, 3]
    assert not capsys.readouterr().err


def test_a_log_that_ends_within_a_line_is_completed_whatever_else_is_in_it(tiny, tmp_path, capsys):
    log = tmp_path / "log.jsonl"
    flags = ["--data-dir", str(tiny), "--checkpoint", str(tmp_path / "c.pt"), "--log", str(log)]
    mlp_mnist.main([*flags, "--epochs", "2"])
    log.write_text(log.read_text()[:-30])
    mlp_mnist.main([*flags, "--epochs", "3"])
    assert capsys.readouterr().err == f"{log}: skipped what is not an epoch's record: line 2\n"
    assert [[r["epoch"] for r in run] for run in records.read(log)] == [[0, 1, 2]]
    capsys.readouterr()
    log.write_bytes(other := b"\xff\xfe")
    mlp_mnist.main([*flags, "--epochs", "4"])
    assert capsys.readouterr().err == f"{log}: skipped what is not an epoch's record: line 1\n"
    assert log.read_bytes().startswith(other + b"\n")
    assert [[r["epoch"] for r in run] for run in records.read(log)] == [[0, 1, 2, 3]]
    capsys.readouterr()


def test_checkpoint_holds_the_random_states_and_loads_weights_only(tiny, tmp_path, capsys):
    file = tmp_path / "c.pt"
    mlp_mnist.main(["--data-dir", str(tiny), "--epochs", "1", "--checkpoint", str(file)])
    content = torch.load(file, weights_only=True)
    assert content.keys() == checkpoint.PARTS
    assert len(content["random"]) == 2
    assert content["run"]["seed"] == 1
    capsys.readouterr()


def test_a_run_moves_to_another_device_with_that_devices_defaults(tiny, tmp_path, capsys):
    """Parts, and bfloat16 in modern_mnist.py, follow the device unless a flag decides them."""
    file, flags = tmp_path / "c.pt", ["--recipe", "last-hidden", "--data-dir", str(tiny), "--batch-size", "64"]
    flags += ["--checkpoint", str(file)]
    lstm_mnist.main([*flags, "--parts", "2", "--epochs", "1"])
    with pytest.raises(SystemExit, match="parts was 2, now 1"):
        lstm_mnist.main([*flags, "--parts", "1", "--epochs", "2"])
    content = torch.load(file, weights_only=True)
    for record in (content["run"], *content["history"]):
        record.update(processes=2, parts=1, bf16=True)
    torch.save(content, file)
    with pytest.raises(SystemExit, match="bf16 was True, now False"):  # only parts follow the processes
        lstm_mnist.main([*flags, "--parts", "2", "--epochs", "2"])
    lstm_mnist.main([*flags, "--parts", "2", "--epochs", "1"])  # trains nothing
    for record in (content["run"], *content["history"]):
        record.update(processes=1, device="cuda")
    torch.save(content, file)
    _, history = lstm_mnist.main([*flags, "--parts", "2", "--epochs", "2"])
    assert [(r["device"], r["parts"], r["bf16"]) for r in history] == [("cuda", 1, True), ("cpu", 2, False)]
    _, history = lstm_mnist.main([*flags, "--parts", "2", "--epochs", "3"])  # with a history of both
    assert len(history) == 3
    capsys.readouterr()


@pytest.mark.parametrize(("signum", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_interrupted_run_says_how_to_go_on_and_does(signum, status, tiny, tmp_path):
    flags = ["--data-dir", tiny, "--batch-size", 1]  # so that an epoch takes some time
    command = ["mlp_mnist.py", *flags, "--checkpoint", tmp_path / "c.pt", "--log", tmp_path / "log.jsonl"]
    process = Fork(*command, "--epochs", 2000)
    for line in process.stdout:
        if line.startswith("Epoch 1"):
            break
    process.send_signal(signum)
    _, err = process.communicate()
    assert process.returncode == status
    assert len(err.splitlines()) == 1
    assert f"rerun the same command to resume from {tmp_path / 'c.pt'}" in err
    done = len(torch.load(tmp_path / "c.pt", weights_only=True)["history"])
    assert done >= 2
    again = call(*command, "--epochs", done + 2, "--save-model", tmp_path / "continued.pth")
    assert [line.split(".")[0] for line in epochs(again.stdout)] == [f"Epoch {done}", f"Epoch {done + 1}"]
    assert [json.loads(x)["epoch"] for x in (tmp_path / "log.jsonl").read_text().splitlines()] == list(range(done + 2))
    call("mlp_mnist.py", *flags, "--epochs", done + 2, "--save-model", tmp_path / "whole.pth")
    assert same(tmp_path / "whole.pth", tmp_path / "continued.pth")


@pytest.mark.slow
def test_a_hundred_kills_lose_nothing(tiny, tmp_path):
    """kill -9 at random moments, half of them within a write; the end equals the run that was never cut off."""
    import random
    import time

    rng, kills, in_write = random.Random(1), 0, 0
    flags = ["--data-dir", tiny, "--seed", 5]
    kept = ["--checkpoint", tmp_path / "c.pt", "--log", tmp_path / "log.jsonl"]
    goal = 0
    while kills < 100:
        process = start("mlp_mnist.py", *flags, *kept, "--epochs", 10**6)
        for line in process.stdout:
            if line.startswith("Epoch"):
                break
        time.sleep(rng.random() / 10)
        if kills % 2:  # wait for the moment at which a write is under way
            while not list(tmp_path.glob(".c.pt.????????.part")) and process.poll() is None:
                pass
        in_write += bool(list(tmp_path.glob(".c.pt.????????.part")))
        process.kill()
        process.communicate()
        kills += 1
    goal = len(torch.load(tmp_path / "c.pt", weights_only=True)["history"]) + 2
    call("mlp_mnist.py", *flags, *kept, "--epochs", goal, "--save-model", tmp_path / "killed.pth")
    call("mlp_mnist.py", *flags, "--epochs", goal, "--save-model", tmp_path / "whole.pth")
    print(f"{kills} kills, {in_write} of them within a write, {goal} epochs")
    assert in_write >= 10
    assert [json.loads(x)["epoch"] for x in (tmp_path / "log.jsonl").read_text().splitlines()] == list(range(goal))
    assert same(tmp_path / "killed.pth", tmp_path / "whole.pth")
    assert sorted(f.name for f in tmp_path.iterdir()) == ["c.pt", "killed.pth", "log.jsonl", "whole.pth"]
