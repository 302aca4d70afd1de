"""On a CUDA device, where there is one: what the scripts compute there, and what they refuse."""

import json
import os

import pytest
from conftest import call

import lstm_mnist

SCRIPTS = {name: ["lstm_mnist.py", "--recipe", name] for name in lstm_mnist.RECIPES}
SCRIPTS["mlp"] = ["mlp_mnist.py"]
SCRIPTS["modern"] = ["modern_mnist.py", "--no-bf16", "--lr", 0.001]


@pytest.fixture
def run(tiny, tmp_path):
    """Runs a command on the GPU; returns its status, stderr and the records of its log."""
    env = {"CUDA_VISIBLE_DEVICES": os.environ["GPU_TO_TEST"]}

    def run(*command, device="cuda"):
        log = tmp_path / f"{len([*tmp_path.iterdir()])}.jsonl"
        ended = call(*command, "--device", device, "--data-dir", tiny, "--log", log, env=env)
        lines = log.read_text().splitlines() if log.exists() else []
        return ended.returncode, ended.stderr, [json.loads(line) for line in lines]

    if "does not work" in run("mlp_mnist.py", "--dry-run")[1]:
        pytest.skip("there is no CUDA device")
    return run


def losses(records) -> list[float]:
    return [record[name] for record in records for name in ("train_loss", "valid_loss")]


@pytest.mark.parametrize("name", SCRIPTS)
def test_it_learns_what_the_cpu_does(name, run):
    status, err, records = run(*SCRIPTS[name], "--epochs", 2)
    assert status == 0, err
    assert records[-1]["device"] == "cuda"
    _, _, expected = run(*SCRIPTS[name], "--epochs", 2, device="cpu")
    assert losses(records) == pytest.approx(losses(expected), rel=5e-3)


def test_a_run_resumes_where_it_was(run, tmp_path):
    command = SCRIPTS["last-hidden"]
    _, _, whole = run(*command, "--epochs", 2)
    command = [*command, "--checkpoint", tmp_path / "c.pt"]
    _, _, first = run(*command, "--epochs", 1)
    _, _, resumed = run(*command, "--epochs", 2)
    assert resumed[:1] == first  # with the same seconds: it was not trained again
    assert losses(resumed) == pytest.approx(losses(whole), rel=1e-4)


def test_bfloat16_is_for_the_mlp(run):
    status, err, (record,) = run(*SCRIPTS["mlp"], "--epochs", 1, "--bf16")
    assert status == 0, err
    assert record["bf16"]


def test_bfloat16_is_not_for_lstms(run):
    status, err, records = run(*SCRIPTS["sgd"], "--epochs", 1, "--bf16")
    assert (status, records) == (1, [])
    assert err.startswith("--bf16: ")
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize("flags", [[], ["--bf16"]])
def test_the_compiled_step(flags, run):
    """Of batches of 100, 100 and 50: two graphs."""
    command = [*SCRIPTS["mlp"], "--epochs", 2, "--batch-size", 100, *flags]
    status, err, compiled = run(*command, "--compile")
    assert status == 0, err
    assert "TensorFloat32" not in err
    _, _, loop = run(*command)
    assert losses(compiled) == pytest.approx(losses(loop), rel=5e-3)
