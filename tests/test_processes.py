"""Several processes under torchrun: the mathematics of one, one voice, a death that ends all."""

import json
import os
import signal
import socket
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from conftest import ROOT, Fork

if sys.platform != "linux":
    pytest.skip("torchrun is tested on Linux", allow_module_level=True)

MODERN = ["--no-bf16", "--lr", "0.0003"]
LAST_HIDDEN = ["lstm_mnist.py", "--recipe", "last-hidden"]


def place(rank: int, world: int, port: int = 1) -> dict[str, str]:
    """The environment in which torchrun starts a process."""
    numbers = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world}
    numbers["MASTER_PORT"] = port
    names = {"TORCHELASTIC_RUN_ID": "test", "MASTER_ADDR": "127.0.0.1"}
    return names | {name: str(number) for name, number in numbers.items()}


def ranks(world: int, *command, own=()) -> list[tuple[int, str, str]]:
    """Status, stdout and stderr of each rank of a command; `own` are flags of the last one."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        _, port = probe.getsockname()
    processes = []
    for rank in range(world):
        flags = own if rank == world - 1 else []
        env = place(rank, world, port) if world > 1 else {}
        processes.append(Fork(*command, *flags, env=env))
    with ThreadPoolExecutor(world) as pool:
        ends = [*pool.map(Fork.communicate, processes)]
    return [(process.returncode, *end) for process, end in zip(processes, ends)]


def records_of(log: Path) -> list[dict]:
    return [json.loads(line) for line in log.read_text().splitlines()]


def trained(world: int, folder: Path, *command) -> tuple[dict, list[dict], str]:
    """Weights, records and output of a command in that many processes."""
    model, log = folder / f"{world}.pth", folder / f"{world}.jsonl"
    results = ranks(world, *command, "--save-model", model, "--log", log)
    assert [status for status, _, _ in results] == [0] * world, results
    _, out, err = zip(*results)
    assert out[1:] == err[1:] == ("",) * (world - 1)  # rank 0 speaks for all
    return torch.load(model), records_of(log), out[0] + err[0]


def same(weights: dict, others: dict, records: list[dict], other_records: list[dict]) -> None:
    """But for the order of sums, some 1e-7 of a gradient, which Adam passes on however small."""
    torch.testing.assert_close(others, weights, rtol=1e-4, atol=2e-5)
    for one, other in zip(records, other_records, strict=True):
        for score in ("train_loss", "train_acc", "valid_loss", "valid_acc"):
            assert other[score] == pytest.approx(one[score], rel=1e-4)


def slow(*command):
    return pytest.param(command, marks=pytest.mark.slow)


@pytest.mark.parametrize(
    "command",
    [
        LAST_HIDDEN,
        ["mlp_mnist.py", "--batch-size", "249"],  # the last batch is a single image
        *(slow("lstm_mnist.py", "--recipe", name) for name in ("batch-first", "sgd", "time-major")),
        slow("modern_mnist.py", "--batch-size", "60", *MODERN),
    ],
    ids=" ".join,
)
def test_any_number_of_processes_learns_the_same(command, tiny, tmp_path):
    """And the same number gives the same digits; three share no batch evenly."""
    command = [*command, "--epochs", 1, "--data-dir", tiny]
    weights, records, _ = trained(1, tmp_path, *command)
    others, other_records, out = trained(3, tmp_path, *command)
    same(weights, others, records, other_records)
    assert " over 3 processes" in out
    again, _, _ = trained(3, tmp_path, *command)
    torch.testing.assert_close(again, others, rtol=0, atol=0)


IMPORT = f"""
import importlib, sys
sys.path.append({str(ROOT)!r})
import mlp_mnist, torch
from torch import nn
mlp_mnist = importlib.reload(mlp_mnist)  # the one that is there was imported outside torchrun
"""
MODEL = """
def Net():
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 32), nn.LAYER, nn.ReLU(), nn.Linear(32, 10))
mlp_mnist.Net = Net
mlp_mnist.common.run(mlp_mnist.main)
"""
SEND = """
from types import SimpleNamespace
from support import processes
torch.cuda.set_device = lambda device: sys.exit(f"sends from {device}")
args = SimpleNamespace(device=torch.device("cuda:1"))
with processes.group(SimpleNamespace(args=args)):
    pass
"""
TOUCH = """
torch.accelerator.current_accelerator = lambda check_available: torch.device("cuda")
torch.ones = lambda _, device: sys.exit(f"touched {device}")
mlp_mnist.main()
"""


def program(folder: Path, text: str) -> Path:
    path = folder / "own.py"
    path.write_text(IMPORT + text)
    return path


@pytest.mark.parametrize("layer", ["Dropout(0.3)", "BatchNorm1d(32)"])
def test_a_model_that_needs_its_batches_whole_gets_them(layer, tiny, tmp_path):
    script = program(tmp_path, MODEL.replace("LAYER", layer))
    command = [script, "--epochs", 1, "--data-dir", tiny, "--batch-size", 31]
    weights, (record,), _ = trained(1, tmp_path, *command)
    others, (other,), out = trained(2, tmp_path, *command)
    torch.testing.assert_close(others, weights, rtol=0, atol=0)
    assert other["train_loss"] == record["train_loss"]
    assert other["valid_loss"] == pytest.approx(record["valid_loss"], rel=1e-5)
    assert out.count("its batches are computed whole") == 1


def test_a_checkpoint_resumes_in_another_number_of_processes(tiny, tmp_path):
    command = ["lstm_mnist.py", "--recipe", "sgd", "--data-dir", tiny, "--batch-size", 50]
    weights, records, _ = trained(1, tmp_path, *command, "--epochs", 3)
    log = tmp_path / "l.jsonl"
    command += ["--checkpoint", tmp_path / "c.pt", "--log", log, "--save-model", tmp_path / "m.pth"]
    for epochs, world in ((1, 2), (2, 1), (3, 3)):
        results = ranks(world, *command, "--epochs", epochs)
        assert [status for status, _, _ in results] == [0] * world, results
    assert "resuming after epoch 1" in results[0][1]
    others = records_of(log)
    same(weights, torch.load(tmp_path / "m.pth"), records, others)
    assert [(r["epoch"], r["processes"]) for r in others] == [(0, 2), (1, 1), (2, 3)]


def test_files_are_those_of_rank_0_alone(tiny, tmp_path):
    other = tmp_path / "other"
    own = []
    for flag in ("--save-model", "--checkpoint", "--log", "--plot"):
        own += [flag, other / flag]
    results = ranks(2, "mlp_mnist.py", "--epochs", 0, "--data-dir", tiny, own=own)
    assert [status for status, _, _ in results] == [0, 0], results
    assert not other.exists()


@pytest.mark.parametrize(("flags", "name"), [(["--epochs", 2], "epochs"), ([], "data")])
def test_processes_that_differ_are_refused(flags, name, tiny, small):
    command = ["mlp_mnist.py", "--epochs", 1, "--data-dir", tiny]
    (status, _, _), (other, out, err) = ranks(2, *command, own=flags or ["--data-dir", small])
    assert status != 0
    assert (other, out) == (1, "")
    assert err.startswith(f"{name} is ")
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize("flags", [["--compile"], ["--device", "cuda:1"], ["--device", "mps"]])
def test_flags_for_a_single_process_are_refused(flags):
    process = Fork("mlp_mnist.py", *flags, env=place(0, 2))
    out, err = process.communicate()
    assert (process.returncode, out) == (2, "")
    assert flags[0] in err
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize(
    ("text", "flags", "said"),
    [
        (TOUCH, ["--device", "cuda"], "touched cuda:1"),
        (TOUCH, ["--device", "auto"], "touched cuda:1"),
        (SEND, [], "sends from cuda:1"),
    ],
)
def test_each_process_uses_no_gpu_but_its_own(text, flags, said, tmp_path):
    process = Fork(program(tmp_path, text), *flags, env=place(1, 2))
    assert process.communicate() == ("", f"{said}\n")


def torchrun(folder: Path, *command) -> Fork:
    """torchrun itself, without importing torch anew; its two processes do."""
    path = folder / "torchrun.py"
    path.write_text("from torch.distributed.run import main\nmain()\n")
    return Fork(path, "--standalone", "--nproc-per-node", 2, *command, cwd=ROOT)


def workers_after_an_epoch(process: Fork) -> list[int]:
    assert any(line.startswith("Epoch 0.") for line in process.stdout)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text()
    return [int(pid) for pid in children.split()]


def test_a_process_that_dies_ends_all(tiny, tmp_path):
    command = ["mlp_mnist.py", "--epochs", 100_000, "--data-dir", tiny]
    process = torchrun(tmp_path, "--", *command)
    one, other = workers_after_an_epoch(process)
    os.kill(other, signal.SIGKILL)
    process.communicate()
    assert process.returncode != 0
    assert not Path(f"/proc/{one}").exists()


@pytest.mark.slow
@pytest.mark.parametrize("script", ["lstm_mnist.py", "modern_mnist.py"])
def test_killed_workers_are_started_again_and_nothing_is_lost(script, tiny, tmp_path):
    flags = [script, "--data-dir", tiny, "--epochs", 20]
    _, expected, _ = trained(2, tmp_path, *flags)
    kept = ["--checkpoint", tmp_path / "c.pt", "--log", tmp_path / "l.jsonl"]
    process = torchrun(tmp_path, "--max-restarts", 3, "--", *flags, *kept)
    os.kill(workers_after_an_epoch(process)[1], signal.SIGKILL)
    out, err = process.communicate()
    assert process.returncode == 0, err
    assert "resuming after epoch" in out
    records = records_of(tmp_path / "l.jsonl")
    assert [r["valid_loss"] for r in records] == [r["valid_loss"] for r in expected]


@pytest.mark.slow
def test_a_killed_torchruns_processes_end_and_the_same_command_resumes(tiny, tmp_path):
    """They trained on, and the checkpoint was theirs."""
    log = tmp_path / "l.jsonl"
    flags = ["--epochs", 50, "--checkpoint", tmp_path / "c.pt", "--log", log, "--data-dir", tiny]
    command = ["--", *LAST_HIDDEN, *flags]
    killed = torchrun(tmp_path, *command)
    workers_after_an_epoch(killed)
    os.kill(killed.pid, signal.SIGKILL)
    again = torchrun(tmp_path, *command)
    _, err = killed.communicate()  # until its processes have ended
    assert "torchrun has ended; the same command resumes" in err
    out, err = again.communicate()
    assert again.returncode == 0, err
    assert "resuming after epoch" in out
    assert [r["epoch"] for r in records_of(log)] == list(range(50))
