"""On a CUDA device, where there is one: what the scripts compute there, and what they refuse."""

import json
import os

import pytest
from conftest import call

import lstm_mnist

SCRIPTS = {name: ["lstm_mnist.py", "--recipe", name] for name in lstm_mnist.RECIPES}
SCRIPTS |= {"mlp": ["mlp_mnist.py"], "modern": ["modern_mnist.py", "--no-bf16", "--lr", "0.001"]}


@pytest.fixture
def run(tiny, tmp_path):
    """Runs a command on the GPU; returns its status, stderr and the records of its log."""
    env = {"CUDA_VISIBLE_DEVICES": os.environ["GPU_TO_TEST"]}

    def run(*command, device="cuda"):
        log = tmp_path / f"{len([*tmp_path.iterdir()])}.jsonl"
        ended = call(*command, "--device", device, "--data-dir", tiny, "--log", log, env=env)
        records = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
        return ended.returncode, ended.stderr, records

    if "not available" in run("mlp_mnist.py", "--dry-run")[1]:
        pytest.skip("there is no CUDA device")
    return run


def near(records, others, rel=5e-3):
    for one, other in zip(records, others, strict=True):
        for loss in ("train_loss", "valid_loss"):
            assert one[loss] == pytest.approx(other[loss], rel=rel)


@pytest.mark.parametrize("name", SCRIPTS)
def test_it_learns_what_the_cpu_does(name, run):
    status, err, records = run(*SCRIPTS[name], "--epochs", 2)
    assert status == 0, err
    assert records[-1]["device"] == "cuda"
    _, _, cpu = run(*SCRIPTS[name], "--epochs", 2, device="cpu")
    near(records, cpu)


def test_a_run_resumes_where_it_was(run, tmp_path):
    command = SCRIPTS["last-hidden"]
    _, _, whole = run(*command, "--epochs", 2)
    _, _, first = run(*command, "--epochs", 1, "--checkpoint", tmp_path / "c.pt")
    _, _, resumed = run(*command, "--epochs", 2, "--checkpoint", tmp_path / "c.pt")
    assert [len(resumed), resumed[0]] == [2, *first]  # the same run and seconds: it was not trained again
    near(resumed, whole, rel=1e-4)


def test_bfloat16_is_for_the_mlp(run):
    status, err, (record,) = run(*SCRIPTS["mlp"], "--epochs", 1, "--bf16")
    assert status == 0, err
    assert record["bf16"]
    status, err, records = run(*SCRIPTS["sgd"], "--epochs", 1, "--bf16")
    assert (status, records) == (1, [])
    assert err.startswith("--bf16: ")
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize("flags", [[], ["--bf16"]])
def test_the_compiled_step(flags, run):
    command = [*SCRIPTS["mlp"], "--epochs", 2, "--batch-size", 100, *flags]  # 100, 100 and 50: two graphs
    status, err, compiled = run(*command, "--compile")
    assert status == 0, err
    assert "TensorFloat32" not in err
    _, _, loop = run(*command)
    near(compiled, loop)
