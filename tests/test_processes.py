"""Several processes under torchrun: the mathematics of one, one voice, and no process that waits forever."""

import common

import importlib
import json
import os
import random
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import weakref
from datetime import timedelta
from types import SimpleNamespace

import pytest
import torch
from conftest import ROOT, Fork

import lstm_mnist
import mlp_mnist

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]
SCRIPTS = {name: ["lstm_mnist.py", "--recipe", name] for name in lstm_mnist.RECIPES}
SCRIPTS["mlp"] = ["mlp_mnist.py"]
SCRIPTS["modern"] = ["modern_mnist.py", "--batch-size", "60", "--no-bf16", "--lr", "0.0003", "--average", "2"]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def ranks(world: int, *command, own=None) -> list[tuple[int, str, str]]:
    """Status, stdout and stderr of each rank of a command, as torchrun would start it; `own[k]` are rank k's flags."""
    port, processes = free_port(), []
    for rank in range(world):
        place = dict(RANK=rank, WORLD_SIZE=world, LOCAL_RANK=rank, LOCAL_WORLD_SIZE=world, MASTER_PORT=port)
        env = {"TORCHELASTIC_RUN_ID": "test", "MASTER_ADDR": "127.0.0.1"} | {k: str(v) for k, v in place.items()}
        processes.append(Fork(*command, *(own or {}).get(rank, []), env=env if world > 1 else {}))
    results = [None] * world

    def wait(k):
        out, err = processes[k].communicate()
        results[k] = processes[k].returncode, out, err

    threads = [threading.Thread(target=wait, args=[k]) for k in range(world)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def trained(world: int, folder, *command) -> tuple[dict, list[dict], str]:
    """Weights, records and output of a command in that many processes."""
    model, log = folder / f"{world}.pth", folder / f"{world}.jsonl"
    results = ranks(world, *command, "--save-model", model, "--log", log)
    assert [status for status, *_ in results] == [0] * world, results
    assert all(out == "" for _, out, _ in results[1:])  # rank 0 speaks for all
    assert all(err == "" for *_, err in results)
    return torch.load(model), [json.loads(line) for line in log.read_text().splitlines()], results[0][1]


@pytest.mark.parametrize(
    "name", ["last-hidden", *(pytest.param(name, marks=pytest.mark.slow) for name in SCRIPTS if name != "last-hidden")]
)
def test_any_number_of_processes_learns_the_same(name, tiny, tmp_path):
    """On 250 images, not divisible by any batch size, and 3 processes that share no batch evenly.

    Only the order of sums differs: some 1e-7 of a gradient at each step, which Adam passes on undamped,
    however small the gradient: hence the rate of `modern`.
    """
    command = [*SCRIPTS[name], "--epochs", "2", "--data-dir", tiny]
    weights, records, out = trained(1, tmp_path, *command)
    for world in (2, 3):
        other, others, output = trained(world, tmp_path, *command)
        assert other.keys() == weights.keys()  # no `module.`
        for key in weights:
            torch.testing.assert_close(other[key], weights[key], rtol=1e-4, atol=2e-5)
        assert [r["processes"] for r in others] == [world] * 2
        for one, r in zip(records, others):
            for score in ("train_loss", "train_acc", "valid_loss", "valid_acc"):
                assert r[score] == pytest.approx(one[score], rel=1e-4)
        assert f" over {world} processes" in output
        assert re.findall(r"The test accuracy of .*", output) == re.findall(r"The test accuracy of .*", out)


@pytest.mark.parametrize("size", [*(pytest.param(n, marks=pytest.mark.slow) for n in (1, 2)), 249])
def test_batches_smaller_than_the_number_of_processes(size, tiny, tmp_path):
    """249: the last batch is a single image, whose gradient is that of all."""
    command = ["mlp_mnist.py", "--epochs", "1", "--data-dir", tiny, "--batch-size", size]
    weights, (record,), _ = trained(1, tmp_path, *command)
    other, (another,), _ = trained(3, tmp_path, *command)
    for key in weights:
        torch.testing.assert_close(other[key], weights[key], rtol=1e-4, atol=1e-5)
    assert another["train_loss"] == pytest.approx(record["train_loss"], rel=1e-4)
    assert another["train_acc"] == pytest.approx(record["train_acc"])


def test_a_loss_that_is_not_finite_names_the_step(tiny):
    """That of a single process, though one process has more of each batch than the other."""
    command = ["mlp_mnist.py", "--epochs", "1", "--data-dir", tiny, "--batch-size", "3", "--lr", "1e30"]
    steps = []
    for status, _, err in ranks(1, *command) + ranks(2, *command):
        assert status == 1
        steps.append(int(re.search(r"epoch 0, step (\d+): the loss is not finite", err)[1]))
    assert steps == [2, 2, 2]  # at this rate the first update is enough


def test_a_script_of_your_own_prints_on_each_rank(tmp_path):
    script = tmp_path / "own.py"
    script.write_text(f"import os, sys\nsys.path.append({str(ROOT)!r})\nimport common\nprint(os.environ['RANK'])\n")
    assert ranks(2, script) == [(0, "0\n", ""), (0, "1\n", "")]


@pytest.mark.slow
def test_the_same_number_of_processes_gives_the_same_digits(tiny, tmp_path):
    command = [*SCRIPTS["last-hidden"], "--epochs", "2", "--data-dir", tiny]
    runs = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        weights, records, _ = trained(2, tmp_path / name, *command)
        runs.append((weights, [{**r, "run": 0, "seconds": 0} for r in records]))
    assert runs[0][1] == runs[1][1]
    assert all(torch.equal(runs[0][0][key], runs[1][0][key]) for key in runs[0][0])


@pytest.mark.parametrize(("first", "then"), [(2, 1), pytest.param(1, 2, marks=pytest.mark.slow)])
def test_a_checkpoint_resumes_in_another_number_of_processes(first, then, tiny, tmp_path):
    command = [*SCRIPTS["sgd"], "--data-dir", tiny, "--batch-size", "50"]
    weights, _, _ = trained(1, tmp_path, *command, "--epochs", "4")
    kept = ["--checkpoint", tmp_path / "c.pt", "--log", tmp_path / "l.jsonl"]
    for world, epochs in ((first, 2), (then, 4)):
        results = ranks(world, *command, *kept, "--epochs", epochs)
        assert [status for status, *_ in results] == [0] * world, results
    assert "resuming after epoch 1" in results[0][1]
    saved = torch.load(tmp_path / "c.pt")["model"]
    for key in weights:
        torch.testing.assert_close(saved[key], weights[key], rtol=1e-4, atol=1e-5)
    records = [json.loads(line) for line in (tmp_path / "l.jsonl").read_text().splitlines()]
    assert [(r["epoch"], r["processes"]) for r in records] == [(0, first), (1, first), (2, then), (3, then)]
    assert len({r["run"] for r in records}) == 1


def test_a_saved_model_and_the_data_of_rank_0_alone_reach_the_others(tiny, tmp_path):
    """What a flag names may lie on rank 0's machine only."""
    trained(1, tmp_path, "mlp_mnist.py", "--epochs", "1", "--data-dir", tiny)
    load = ["mlp_mnist.py", "--epochs", "0", "--data-dir", tiny, "--load-model"]
    (_, alone, _), *_ = ranks(1, *load, tmp_path / "1.pth")
    results = ranks(2, *load, tmp_path / "1.pth", own={1: ["--load-model", tmp_path / "nowhere.pth"]})
    assert [status for status, *_ in results] == [0, 0], results
    assert results[0][1].splitlines()[-13:] == alone.splitlines()[-13:]


def test_broken_data_of_one_process_end_all(tiny, tmp_path):
    shutil.copytree(tiny, tmp_path / "broken")
    (tmp_path / "broken" / "MNIST" / "raw" / "t10k-labels-idx1-ubyte").write_bytes(b"short")
    results = ranks(
        2, "mlp_mnist.py", "--epochs", "1", "--data-dir", tiny, own={1: ["--data-dir", tmp_path / "broken"]}
    )
    (status, _, err), (other, out, line) = results
    assert status == 1
    assert err.startswith("rank 0 stopped: it lost the other processes (")
    assert other == 1
    assert "t10k-labels-idx1-ubyte: is damaged" in line
    assert len(line.splitlines()) == len(err.splitlines()) == 1
    assert out == ""


@pytest.mark.parametrize(
    ("flags", "name"),
    [
        (["--lr", "0.5"], "lr is 0.5 on rank 1 and 0.01 on rank 0"),
        pytest.param(["--epochs", "2"], "epochs is 2 on rank 1 and 1 on rank 0", marks=pytest.mark.slow),
        pytest.param(["--log-interval", "3"], "log_interval is 3 on rank 1 and 0 on", marks=pytest.mark.slow),
        (["--data-dir"], "data is "),
    ],
)
def test_processes_that_differ_are_refused(flags, name, tiny, small, tmp_path):
    flags = [*flags, small] if flags == ["--data-dir"] else flags
    results = ranks(2, "mlp_mnist.py", "--epochs", "1", "--data-dir", tiny, own={1: flags})
    (status, _, err), (other, _, silence) = results
    assert status == other == 1
    assert name in err
    assert len(err.splitlines()) == 1
    assert silence == ""


@pytest.mark.parametrize(
    ("flags", "line"),
    [(["--compile"], "--compile works in a single process only"), (["--epochs", "x"], "'x' is not an integer from 0")]
    + [(["--load-model", "m", "--predict", "7.png"], "--predict works in a single process only")],
)
def test_a_bad_flag_is_refused(flags, line, capsys, group_of_one):
    with pytest.raises(SystemExit) as stopped:
        mlp_mnist.main(flags)
    assert stopped.value.code == 2
    assert line in capsys.readouterr().err


@pytest.fixture
def group_of_one(monkeypatch):
    """All that several processes do, in this one: torch.distributed connects it with itself."""
    places = dict(RANK=0, WORLD_SIZE=1, LOCAL_RANK=0, LOCAL_WORLD_SIZE=1, MASTER_PORT=free_port())
    for name, value in places.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    processes = importlib.import_module("support.processes")
    monkeypatch.setattr(common, "processes", processes, raising=False)
    monkeypatch.setattr(common, "PROCESSES", 2)  # what several do, whatever their number
    yield processes
    assert not torch.distributed.is_initialized()


@pytest.mark.parametrize("name", ["last-hidden", "mlp"])
def test_a_group_of_one_learns_to_the_last_digit_what_a_process_alone_does(name, tiny, tmp_path, capsys, group_of_one):
    lstm = ["--recipe", name, "--log-interval", "2", "--parts", "1"]
    script, flags = (mlp_mnist, []) if name == "mlp" else (lstm_mnist, lstm)
    flags += ["--epochs", "2", "--data-dir", str(tiny), "--log", str(tmp_path / "l.jsonl")]
    model, history = script.main(flags)
    several = capsys.readouterr().out
    common.PROCESSES = 1
    alone, expected = script.main(flags)
    for key, value in alone.state_dict().items():
        assert torch.equal(model.state_dict()[key], value)
    for one, other in zip(history, expected):
        assert one["valid_loss"] == pytest.approx(other["valid_loss"], rel=1e-6)
    out = capsys.readouterr().out
    lines = r"The test accuracy.*|\d-\d+: accuracy.*"
    assert re.findall(lines, several) == re.findall(lines, out)


def test_what_rank_0_has_is_restored(tiny, capsys, monkeypatch, group_of_one):
    """Another rank takes over its weights and epochs."""
    boxes = []
    monkeypatch.setattr(group_of_one.dist, "broadcast_object_list", boxes.append)
    flags = ["--data-dir", str(tiny), "--epochs"]
    mlp_mnist.main([*flags, "1"])
    taken = boxes[0][0]
    taken["model"] = {key: torch.zeros_like(value) for key, value in taken["model"].items()}

    def hand_over(box):
        box[0] = taken
        monkeypatch.setattr(group_of_one, "RANK", 1)

    def restore(*state):
        real_restore(*state)
        monkeypatch.setattr(group_of_one, "RANK", 0)  # the only one that has a share of the test images

    real_restore = group_of_one.checkpoint.restore
    monkeypatch.setattr(group_of_one.checkpoint, "restore", restore)
    monkeypatch.setattr(group_of_one.dist, "broadcast_object_list", hand_over)
    model, history = mlp_mnist.main([*flags, "0"])
    assert all(value.abs().max() == 0 for value in model.state_dict().values())
    assert history is taken["history"]
    capsys.readouterr()


def test_a_process_that_does_not_come_is_not_waited_for_forever(group_of_one, monkeypatch):
    monkeypatch.setattr(group_of_one, "PATIENCE", 0.3)
    monkeypatch.setattr(group_of_one, "WORLD", 2)
    run = SimpleNamespace(device=torch.device("cpu"))
    with pytest.raises(SystemExit, match="^rank 0 stopped: it lost the other"), group_of_one.group([run]):
        pytest.fail("there is no other process")


@pytest.mark.parametrize("rank", [0, 1])
def test_processes_of_one_start_meet_whatever_an_earlier_one_left(rank, group_of_one, monkeypatch):
    store = torch.distributed.HashStore()
    for key, value in {"call": "old", "answer 1": "old dead", "heard old": "dead"}.items():
        store.set(key, value)

    def other():
        if rank == 0:
            while store.get("call") == b"old":
                time.sleep(0.01)
            store.set("answer 1", f"{store.get('call').decode()} own")
        else:
            store.set("call", "new")
            while not store.get("answer 1").startswith(b"new "):
                time.sleep(0.01)
            store.set("heard new", store.get("answer 1"))

    monkeypatch.setattr(group_of_one.dist, "rendezvous", lambda *_, **__: iter([(store, rank, 2)]))
    monkeypatch.setattr(group_of_one, "RANK", rank)
    monkeypatch.setattr(group_of_one, "WORLD", 2)
    thread = threading.Thread(target=other)
    thread.start()
    met = group_of_one.meet(timedelta(seconds=5))
    thread.join()
    met.set("key", "value")
    word = "new" if rank else store.get("call").decode()
    assert torch.distributed.PrefixStore(word, store).get("key") == b"value"
    assert word != "old"


def test_another_rank_keeps_no_flag_that_names_a_file(group_of_one, monkeypatch):
    monkeypatch.setattr(group_of_one, "RANK", 1)
    monkeypatch.setattr(group_of_one, "meet", lambda _: 1 / 0)
    names = ["save_model", "checkpoint", "log", "plot", "load_model"]
    run = SimpleNamespace(device=torch.device("cpu"), **dict.fromkeys(names, "file"))
    with pytest.raises(ZeroDivisionError), group_of_one.group([run]):
        pass
    assert [getattr(run, name) for name in names] == [None] * 5


def test_fewer_gpus_than_processes_end_in_one_line(group_of_one, monkeypatch):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    run = SimpleNamespace(device=torch.device("cuda"))
    line = r"^2 processes need 2 GPUs \(found 1\); lower --nproc-per-node$"
    with pytest.raises(SystemExit, match=line), group_of_one.group([run]):
        pytest.fail("a process has no GPU")


@pytest.mark.parametrize("kind", [SystemExit, ValueError, RuntimeError, torch.distributed.DistError])
@pytest.mark.parametrize("again", [False, True])
def test_an_errors_frames_let_go_of_the_replica_before_the_group_ends(kind, again, group_of_one, monkeypatch):
    replicas, gone, destroy = [], [], torch.distributed.destroy_process_group

    def fit():
        replica = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(1, 1))
        replicas.append(weakref.ref(replica))
        raise kind("the loss is not finite")

    def main():
        try:
            fit()
        except kind:
            if again:
                raise SystemExit("stopped") from None
            raise

    def end():
        gone.append(replicas[0]() is None)
        destroy()

    monkeypatch.setattr(torch.distributed, "destroy_process_group", end)
    run = SimpleNamespace(device=torch.device("cpu"))
    with pytest.raises((kind, SystemExit)), group_of_one.group([run]):
        main()
    assert gone == [True]


def test_an_error_that_is_not_the_connections_is_not_taken_for_it(group_of_one):
    run = SimpleNamespace(device=torch.device("cpu"))
    with pytest.raises(RuntimeError, match="shapes"), group_of_one.group([run]):
        raise RuntimeError("shapes do not fit")
    with pytest.raises(SystemExit, match="lost the other processes .Connection closed"), group_of_one.group([run]):
        raise RuntimeError("[/a/gloo/transport/tcp/pair.cc:1] Connection closed by peer [127.0.0.1]:1")


@pytest.mark.slow
def test_the_threads_of_the_group_end_with_it(tmp_path):
    """One that outlived it and met the end of the interpreter would abort the process."""
    (tmp_path / "group.py").write_text(
        "import os, types, torch\n"
        "from support import processes\n"
        "with processes.group([types.SimpleNamespace(device=torch.device('cpu'))]):\n"
        "    import torch._dynamo\n"
        "    count = len(os.listdir('/proc/self/task'))\n"
        "print(count, len(os.listdir('/proc/self/task')))\n"
    )
    places = dict(RANK="0", WORLD_SIZE="1", LOCAL_RANK="0", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(free_port()))
    env = os.environ | places | {"PYTHONPATH": str(ROOT)}
    run = subprocess.run([sys.executable, "group.py"], cwd=tmp_path, env=env, capture_output=True, text=True)
    during, after = map(int, run.stdout.split())
    assert after < during - 1  # gloo's loop and its workers


def test_torchrun_itself(tiny, tmp_path):
    command = [
        *TORCHRUN,
        "2",
        "--",
        ROOT / "mlp_mnist.py",
        "--epochs",
        "1",
        "--data-dir",
        tiny,
        "--log",
        tmp_path / "l.jsonl",
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Epoch 0.") == 1
    assert " over 2 processes, 1 epoch, cpu, seed 1\n" in done.stdout
    assert [json.loads(line)["processes"] for line in (tmp_path / "l.jsonl").read_text().splitlines()] == [2]


def workers(parent: int) -> list[int]:
    """The processes that torchrun has started."""
    try:
        return [int(pid) for pid in open(f"/proc/{parent}/task/{parent}/children").read().split()]
    except OSError:
        return []


def is_alive(pid: int) -> bool:
    try:
        return open(f"/proc/{pid}/stat").read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_torchrun_ends_all(number, tiny, tmp_path):
    flags = ["--epochs", "100000", "--data-dir", tiny, "--checkpoint", tmp_path / "c.pt"]
    command = [*TORCHRUN, "2", "--", ROOT / "mlp_mnist.py", *flags]
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    process = subprocess.Popen(command, **pipes, start_new_session=True)
    for line in process.stdout:
        if line.startswith("Epoch 1."):
            break
    started = workers(process.pid)
    assert len(started) == 2
    if number == signal.SIGINT:  # a terminal sends it to all
        os.killpg(process.pid, number)
    else:
        process.send_signal(number)
    out, err = process.communicate(timeout=40)
    assert process.returncode != 0
    assert not any(map(is_alive, started))
    how = "interrupted" if number == signal.SIGINT else "terminated"
    assert err.count(f"{how}; rerun the same command to resume from ") == 1


@pytest.mark.slow
@pytest.mark.parametrize("script", ["mlp_mnist.py", "lstm_mnist.py", "modern_mnist.py"])
def test_killed_workers_are_started_again_and_nothing_is_lost(script, small, tmp_path):
    """Ten runs, each with a worker killed at some moment; the last digits are those of an undisturbed run."""
    dice = random.Random(script)
    flags = ["--data-dir", small, "--epochs", "6", *(["--recipe", "last-hidden"] if script[0] == "l" else [])]

    def run(place, disturb):
        kept = ["--checkpoint", place / "c.pt", "--log", place / "l.jsonl"]
        command = [
            *TORCHRUN,
            "2",
            "--max-restarts",
            "3",
            "--monitor-interval",
            "0.2",
            "--",
            ROOT / script,
            *flags,
            *kept,
        ]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        if disturb:
            epoch, wait = dice.randrange(5), dice.random()
            for line in process.stdout:
                if line.startswith(f"Epoch {epoch}."):
                    break
            time.sleep(wait)
            for victim in workers(process.pid)[dice.randrange(2) :][:1]:
                os.kill(victim, signal.SIGKILL)
        out, err = process.communicate(timeout=300)
        assert process.returncode == 0, err
        records = [json.loads(line) for line in (place / "l.jsonl").read_text().splitlines()]
        assert [r["epoch"] for r in records] == list(range(6))
        return [r["valid_loss"] for r in records], out

    places = [tmp_path / str(k) for k in range(11)]
    for place in places:
        place.mkdir()
    expected, _ = run(places[0], False)
    resumed = 0
    for place in places[1:]:
        losses, out = run(place, True)
        assert losses == expected
        resumed += "resuming after epoch" in out
    assert resumed > 0


def network(*command) -> subprocess.CompletedProcess:
    return subprocess.run(["ip", *command], capture_output=True, text=True)


ADDRESSES = {"left": "10.77.0.1", "right": "10.77.0.2"}
SPACES = {name: f"{name}-{os.getpid()}" for name in ADDRESSES}  # pytest-xdist runs several of these tests at once


@pytest.fixture
def on_machine(tmp_path):
    """Starts torchrun on one of two machines, `left` and `right`: network namespaces with a host name, and a cable."""
    if not hasattr(os, "geteuid") or os.geteuid() != 0 or network("netns", "add", SPACES["left"]).returncode:
        pytest.skip("network namespaces are not allowed here")
    hosts = tmp_path / "hosts"
    hosts.write_text(
        "".join(f"{address} {name}\n" for name, address in {**ADDRESSES, "localhost": "127.0.0.1"}.items())
    )
    processes = []

    def start(name, *flags):
        launch = f"--nnodes 2 --nproc-per-node 1 --rdzv-backend c10d --rdzv-endpoint {ADDRESSES['left']}:29500 --"
        words = [sys.executable, "-m", "torch.distributed.run", *launch.split(), *map(str, flags)]
        inner = f"hostname {name} && mount --bind {hosts} /etc/hosts && exec {shlex.join(words)}"
        command = ["ip", "netns", "exec", SPACES[name], "unshare", "--uts", "--mount", "sh", "-c", inner]
        pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        processes.append(subprocess.Popen(command, **pipes))
        return processes[-1]

    try:
        left, right = (["cable", "netns", space] for space in SPACES.values())
        ends = ["link", "add", *left, "type", "veth", "peer", *right]
        done = [network("netns", "add", SPACES["right"]), network(*ends)]
        for name, space in SPACES.items():
            done.append(network("-n", space, "addr", "add", f"{ADDRESSES[name]}/24", "dev", "cable"))
            done += [network("-n", space, "link", "set", device, "up") for device in ("lo", "cable")]
            # torchrun's own connection has no timeout: it ends when the kernel gives it up, by default after 15 minutes
            sysctl = ["sh", "-c", "echo 5 > /proc/sys/net/ipv4/tcp_retries2"]
            done.append(network("netns", "exec", space, *sysctl))
        assert [each.returncode for each in done] == [0] * len(done), done
        yield start
    finally:
        for process in processes:
            process.kill()
        for space in SPACES.values():
            network("netns", "del", space)


@pytest.mark.slow
def test_two_machines_learn_what_one_does(on_machine, small, tmp_path):
    """The data set of one of them lies on a read-only disk."""
    (tmp_path / "disk").mkdir()
    log = tmp_path / "l.jsonl"
    script = [ROOT / "lstm_mnist.py", "--recipe", "sgd", "--epochs", "2", "--log", log, "--data-dir"]
    subprocess.run(["mount", "--bind", small, tmp_path / "disk"], check=True)
    try:
        subprocess.run(["mount", "-o", "remount,ro,bind", tmp_path / "disk"], check=True)
        processes = [on_machine("left", *script, small), on_machine("right", *script, tmp_path / "disk")]
        ends = [process.communicate(timeout=300) for process in processes]
    finally:
        subprocess.run(["umount", tmp_path / "disk"], check=True)
    assert [process.returncode for process in processes] == [0, 0], ends
    _, alone, _ = trained(1, tmp_path, *SCRIPTS["sgd"], "--epochs", "2", "--data-dir", small)
    records = [json.loads(line) for line in log.read_text().splitlines()]
    assert [r["processes"] for r in records] == [2, 2]
    assert records[1]["valid_loss"] == pytest.approx(alone[1]["valid_loss"], rel=1e-3)
    assert sorted("Epoch 1." in out for out, _ in ends) == [False, True]


@pytest.mark.slow
def test_a_cut_cable_ends_both_machines_with_a_line(on_machine, small):
    """The processes within the patience of their connection, two minutes; torchrun once the kernel has given up.

    Where torchrun's own connection is given up first, it is torchrun that stops the process on that machine.
    """
    processes = [
        on_machine(name, ROOT / "mlp_mnist.py", "--epochs", "100000", "--data-dir", small) for name in ADDRESSES
    ]
    trained = threading.Event()

    def read(process):
        for line in process.stdout:
            if line.startswith("Epoch 0."):
                trained.set()

    for process in processes:
        threading.Thread(target=read, args=[process], daemon=True).start()
    assert trained.wait(120)
    network("-n", SPACES["left"], "link", "set", "cable", "down")
    lost = r"rank \d stopped: it lost the other processes \("
    for process, line in zip(processes, (lost, rf"{lost}|terminated; what was saved is on rank 0's machine\n")):
        err = process.stderr.read()
        assert process.wait() != 0
        assert re.search(line, err), err[-3000:]
