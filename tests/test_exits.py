"""How a program ends that is stopped from outside."""

import json
import os
import signal

import pytest
import torch
from conftest import Fork

import mlp_mnist


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_in_one_line_and_the_same_command_resumes(number, status, tiny, tmp_path, capsys):
    kept, log = tmp_path / "c.pt", tmp_path / "log.jsonl"
    flags = ["--data-dir", str(tiny), "--checkpoint", str(kept), "--log", str(log)]
    process = Fork("mlp_mnist.py", *flags, "--epochs", 100_000)
    while not process.stdout.readline().startswith("Epoch 1"):  # what is shown is kept
        assert process.returncode is None
    os.kill(process.pid, number)
    _, err = process.communicate()
    assert process.returncode == status, err
    assert len(err.splitlines()) == 1, err
    assert "the same command resumes" in err
    done = len(torch.load(kept, weights_only=True)["history"])
    assert done >= 2
    mlp_mnist.main([*flags, "--epochs", str(done + 1)])
    assert f"{kept}: resuming after epoch {done - 1}\n" in capsys.readouterr().out
    assert [json.loads(line)["epoch"] for line in log.read_text().splitlines()] == list(range(done + 1))
    assert sorted(tmp_path.iterdir()) == [kept, log]


@pytest.mark.parametrize("flags", [[], ["--log-interval", 1]])
def test_a_reader_that_has_gone_ends_it_without_a_word(flags, tiny, tmp_path):
    """As in `| head -1`."""
    kept = tmp_path / "c.pt"
    process = Fork("mlp_mnist.py", "--data-dir", tiny, "--epochs", 100_000, "--checkpoint", kept, *flags)
    process.stdout.readline()
    process.stdout.close()
    assert process.stderr.read() == ""
    assert process.wait() == 141
    assert [*tmp_path.glob(".*.lock")] == []
