"""Several processes under torchrun: the mathematics of one, one voice, and a death that ends all."""

import json
import os
import re
import signal
import socket
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from conftest import ROOT, Fork

import lstm_mnist
import mlp_mnist

MODERN = ["--no-bf16", "--lr", "0.0003", "--average", "2"]
LAST_HIDDEN = ["lstm_mnist.py", "--recipe", "last-hidden"]


def place(rank: int, world: int, port: int = 1) -> dict[str, str]:
    """The environment in which torchrun starts a process."""
    numbers = dict(RANK=rank, WORLD_SIZE=world, LOCAL_RANK=rank, LOCAL_WORLD_SIZE=world, MASTER_PORT=port)
    return {"TORCHELASTIC_RUN_ID": "test", "MASTER_ADDR": "127.0.0.1"} | {k: str(v) for k, v in numbers.items()}


def ranks(world: int, *command, own=()) -> list[tuple[int, str, str]]:
    """Status, stdout and stderr of each rank of a command, as torchrun would start it; `own` are the last one's."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    places = [place(rank, world, port) if world > 1 else {} for rank in range(world)]
    processes = [Fork(*command, *(own if env is places[-1] else []), env=env) for env in places]
    with ThreadPoolExecutor(world) as pool:
        ends = [*pool.map(Fork.communicate, processes)]
    return [(process.returncode, *end) for process, end in zip(processes, ends)]


def trained(world: int, folder: Path, *command) -> tuple[dict, list[dict], str]:
    """Weights, records and output of a command in that many processes."""
    model, log = folder / f"{world}.pth", folder / f"{world}.jsonl"
    results = ranks(world, *command, "--save-model", model, "--log", log)
    assert [(status, err) for status, _, err in results] == [(0, "")] * world
    assert all(out == "" for _, out, _ in results[1:])  # rank 0 speaks for all
    return torch.load(model), [json.loads(line) for line in log.read_text().splitlines()], results[0][1]


def same(weights: dict, others: dict, records: list[dict], other_records: list[dict]) -> None:
    """But for the order of sums, some 1e-7 of a gradient at each step, which Adam passes on however small it is."""
    assert others.keys() == weights.keys()
    for key in weights:
        torch.testing.assert_close(others[key], weights[key], rtol=1e-4, atol=2e-5)
    for one, other in zip(records, other_records, strict=True):
        for score in ("train_loss", "train_acc", "valid_loss", "valid_acc"):
            assert other[score] == pytest.approx(one[score], rel=1e-4)


def slow(*command):
    return pytest.param(command, marks=pytest.mark.slow)


@pytest.mark.parametrize(
    "command",
    [
        LAST_HIDDEN,
        ["mlp_mnist.py", "--batch-size", "249"],  # the last batch is a single image, whose gradient is that of all
        *(slow("lstm_mnist.py", "--recipe", name) for name in lstm_mnist.RECIPES if name != "last-hidden"),
        slow("mlp_mnist.py", "--batch-size", "2"),
        slow("modern_mnist.py", "--batch-size", "60", *MODERN),
        slow("modern_mnist.py", "--batch-size", "31", "--members", "2", *MODERN),
    ],
    ids=" ".join,
)
def test_any_number_of_processes_learns_the_same(command, tiny, tmp_path):
    """And the same number gives the same digits."""
    command = [*command, "--epochs", "1", "--data-dir", tiny]
    weights, records, out = trained(1, tmp_path, *command)
    (others, other_records, other_out), (again, records_again, _) = (trained(3, tmp_path, *command) for _ in range(2))
    same(weights, others, records, other_records)  # 3 share no batch evenly
    assert [r["processes"] for r in other_records] == [3]
    assert " over 3 processes" in other_out
    assert re.findall("The test accuracy of .*", other_out) == re.findall("The test accuracy of .*", out)
    assert all(torch.equal(again[key], others[key]) for key in weights)
    assert records_again[-1]["train_loss"] == other_records[0]["train_loss"]


IMPORT = f"""
import importlib, sys
sys.path.append({str(ROOT)!r})
import mlp_mnist, torch
from torch import nn
mlp_mnist = importlib.reload(mlp_mnist)  # the one that is there was imported outside torchrun
"""
MODEL = """
mlp_mnist.Net = lambda: nn.Sequential(nn.Flatten(), nn.Linear(784, 32), nn.LAYER, nn.ReLU(), nn.Linear(32, 10))
mlp_mnist.common.run(mlp_mnist.main)
"""
SEND = """
from types import SimpleNamespace
from support import processes
torch.cuda.set_device = lambda device: sys.exit(f"sends from {device}")
with processes.group(SimpleNamespace(device=torch.device("cuda:1"))):
    pass
"""
TOUCH = """
torch.cuda.is_available = lambda: True
torch.ones = lambda _, device: sys.exit(f"touched {device}")
mlp_mnist.main()
"""


@pytest.mark.parametrize("layer", ["Dropout(0.3)", "BatchNorm1d(32)"])
def test_a_model_that_needs_its_batches_whole_gets_them(layer, tiny, tmp_path):
    (script := tmp_path / "own.py").write_text(IMPORT + MODEL.replace("LAYER", layer))
    command = [script, "--epochs", "1", "--data-dir", tiny, "--batch-size", "31"]
    (weights, (record,), _), (others, (other,), _) = (trained(world, tmp_path, *command) for world in (1, 2))
    assert all(torch.equal(others[key], weights[key]) for key in weights)
    assert other["train_loss"] == record["train_loss"]
    assert other["valid_loss"] == pytest.approx(record["valid_loss"], rel=1e-5)


def test_a_checkpoint_resumes_in_another_number_of_processes(tiny, tmp_path):
    command = ["lstm_mnist.py", "--recipe", "sgd", "--data-dir", tiny, "--batch-size", "50"]
    weights, records, _ = trained(1, tmp_path, *command, "--epochs", "3")
    log = tmp_path / "l.jsonl"
    kept = ["--checkpoint", tmp_path / "c.pt", "--log", log, "--save-model", tmp_path / "m.pth"]
    for epochs, world in enumerate((2, 1, 3), 1):
        results = ranks(world, *command, *kept, "--epochs", epochs)
        assert [(status, err) for status, _, err in results] == [(0, "")] * world
        assert (f"resuming after epoch {epochs - 2}" in results[0][1]) is (epochs > 1)
    others = [json.loads(line) for line in log.read_text().splitlines()]
    same(weights, torch.load(tmp_path / "m.pth"), records, others)
    assert [(r["epoch"], r["processes"]) for r in others] == [(0, 2), (1, 1), (2, 3)]
    assert len({r["run"] for r in others}) == 1


def test_files_are_those_of_rank_0_alone(tiny, tmp_path, capsys):
    model, other = tmp_path / "m.pth", tmp_path / "other"
    load = ["--epochs", "0", "--data-dir", str(tiny), "--load-model", str(model)]
    mlp_mnist.main([*load[:4], "--seed", "2", "--save-model", str(model)])
    alone = capsys.readouterr().out
    own = ["--load-model", tmp_path / "nowhere.pth"]
    for flag in ("--save-model", "--checkpoint", "--log", "--plot"):
        own += [flag, other / flag]
    results = ranks(2, "mlp_mnist.py", *load, own=own)
    assert [(status, err) for status, _, err in results] == [(0, "")] * 2
    assert results[0][1].splitlines()[-13:] == alone.splitlines()[-13:]
    assert not other.exists()


@pytest.mark.parametrize(("flags", "name"), [(["--epochs", "2"], "epochs"), ([], "data")])
def test_processes_that_differ_are_refused(flags, name, tiny, small):
    command = ["mlp_mnist.py", "--epochs", "1", "--data-dir", tiny]
    (status, _, _), (other, out, err) = ranks(2, *command, own=flags or ["--data-dir", small])
    assert status != 0
    assert (other, out) == (1, "")
    assert err.startswith(f"{name} is ")
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["--compile"], "--compile"),
        (["--load-model", "m", "--predict", "7.png"], "--predict"),
        (["--device", "cuda:1"], "--device cuda"),
    ],
)
def test_flags_for_a_single_process_are_refused(flags, named):
    process = Fork("mlp_mnist.py", *flags, env=place(0, 2))
    out, err = process.communicate()
    assert (process.returncode, out) == (2, "")
    assert named in err
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize("device", ["cuda", "auto"])
def test_each_process_touches_no_gpu_but_its_own(device, tmp_path):
    (script := tmp_path / "own.py").write_text(IMPORT + TOUCH)
    process = Fork(script, "--device", device, env=place(1, 2))
    assert process.communicate() == ("", "touched cuda:1\n")
    script.write_text(IMPORT + SEND)
    assert Fork(script, env=place(1, 2)).communicate() == ("", "sends from cuda:1\n")


def torchrun(folder: Path, *command) -> Fork:
    """torchrun itself, without importing torch anew; its two processes do."""
    (program := folder / "torchrun.py").write_text("from torch.distributed.run import main\nmain()\n")
    return Fork(program, "--standalone", "--nproc-per-node", 2, *command, cwd=ROOT)


def kill_a_worker(process: Fork) -> list[int]:
    """Kill one of its processes once an epoch has ended; returns them all."""
    assert any(line.startswith("Epoch 0.") for line in process.stdout)
    workers = [int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]
    assert len(workers) == 2
    os.kill(workers[1], signal.SIGKILL)
    return workers


def test_a_process_that_dies_ends_all(tiny, tmp_path):
    command = ["mlp_mnist.py", "--epochs", 100000, "--data-dir", tiny, "--log", tmp_path / "l.jsonl"]
    process = torchrun(tmp_path, "--", *command)
    workers = kill_a_worker(process)
    process.communicate()
    assert process.returncode != 0
    assert not any(Path(f"/proc/{pid}").exists() for pid in workers)
    records = [json.loads(line) for line in (tmp_path / "l.jsonl").read_text().splitlines()]
    assert [(r["epoch"], r["processes"]) for r in records] == [(k, 2) for k in range(len(records))]


@pytest.mark.slow
@pytest.mark.parametrize("script", ["lstm_mnist.py", "modern_mnist.py"])
def test_killed_workers_are_started_again_and_nothing_is_lost(script, tiny, tmp_path):
    flags = [script, "--data-dir", tiny, "--epochs", 20]
    _, expected, _ = trained(2, tmp_path, *flags)
    log = tmp_path / "l.jsonl"
    process = torchrun(tmp_path, "--max-restarts", 3, "--", *flags, "--checkpoint", tmp_path / "c.pt", "--log", log)
    kill_a_worker(process)
    out, err = process.communicate()
    assert process.returncode == 0, err
    assert "resuming after epoch" in out
    records = [json.loads(line) for line in log.read_text().splitlines()]
    assert [r["epoch"] for r in records] == list(range(20))
    assert [r["valid_loss"] for r in records] == [r["valid_loss"] for r in expected]
