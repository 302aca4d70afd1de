"""How a program ends: stopped from outside, or in a pipe that has gone or lacks letters."""

import os
import signal

import pytest
import torch
from conftest import Fork, call, link, posix

import mlp_mnist


@posix
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_in_one_line_and_the_same_command_resumes(number, tiny, tmp_path, capsys):
    kept, log = tmp_path / "c.pt", tmp_path / "log.jsonl"
    flags = ["--data-dir", str(tiny), "--checkpoint", str(kept), "--log", str(log)]
    process = Fork("mlp_mnist.py", *flags, "--epochs", 100_000)
    while not process.stdout.readline().startswith("Epoch 1"):  # what is shown is kept
        assert process.returncode is None
    os.kill(process.pid, number)
    _, err = process.communicate()
    assert process.returncode == 128 + number, err
    assert err == "interrupted; the same command resumes\n"
    done = len(torch.load(kept)["history"])
    assert done >= 2
    mlp_mnist.main([*flags, "--epochs", str(done + 1)])
    assert f"{kept}: resuming after epoch {done - 1}\n" in capsys.readouterr().out
    assert len(log.read_text().splitlines()) == done + 1


@posix
def test_a_reader_that_has_gone_ends_it_without_a_word(tiny, tmp_path):
    """As in `| head -1`."""
    kept = tmp_path / "c.pt"
    flags = ["--epochs", 100_000, "--checkpoint", kept]
    process = Fork("mlp_mnist.py", "--data-dir", tiny, *flags)
    process.stdout.readline()
    process.stdout.close()
    assert process.stderr.read() == ""
    assert process.wait() == 141
    assert list(tmp_path.glob(".*.lock")) == []


@pytest.mark.parametrize(
    ("flags", "shown"),
    [
        (["--help"], r"784 \u2192 256"),
        (["--epochs", "0", "--data-dir", "Zähler"], r"110 images of Z\xe4hler/MNIST"),
    ],
)
def test_letters_that_a_pipe_lacks_are_their_codes(flags, shown, tiny, tmp_path):
    """A pipe on Windows, or in the locale C, once ended `--help` in a UnicodeEncodeError."""
    link(tmp_path / "Zähler", tiny)
    end = call("mlp_mnist.py", *flags, cwd=tmp_path, env={"PYTHONIOENCODING": "ascii"})
    assert (end.returncode, end.stderr) == (0, "")
    assert shown in end.stdout
