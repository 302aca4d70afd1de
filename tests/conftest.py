"""What the tests share: MNIST in small, tutorials' classes as printed, running the scripts."""

import functools
import multiprocessing
import os
import re
import runpy
import signal
import subprocess
import sys
import threading
from pathlib import Path

import common

import pytest
import torch
from torch import nn

import lstm_mnist
import mlp_mnist
import modern_mnist

ROOT = Path(__file__).resolve().parents[1]
os.environ.setdefault("GPU_TO_TEST", os.environ.get("CUDA_VISIBLE_DEVICES", "0"))  # for test_gpu.py alone
os.environ["CUDA_VISIBLE_DEVICES"] = ""  # the others expect the CPU's digits, wherever they run
torch.set_num_threads(1)  # the data are small, and several processes share the cores


def snippet(word: str, page: str = "README.md") -> str:
    """The page's Python block that contains the word."""
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(encoding="utf-8"), flags=re.S)
    (block,) = [block for block in blocks if word in block]
    return block


@pytest.fixture(scope="session")
def digits():
    """`[(train images, labels), (test images, labels)]`, bytes."""
    return common.read(ROOT / "data")


def write_idx(path: Path, array: torch.Tensor) -> None:
    """A uint8 tensor as an IDX file."""
    sizes = b"".join(n.to_bytes(4, "big") for n in array.shape)
    path.write_bytes(bytes([0, 0, 8, array.dim()]) + sizes + array.to(torch.uint8).numpy().tobytes())


def first(n: int, m: int):
    """A fixture: a torchvision MNIST root of unpacked files with the first n training and m test images."""

    @pytest.fixture(scope="session")
    def folder(digits, tmp_path_factory):
        root = tmp_path_factory.mktemp("data")
        (raw := root / "MNIST" / "raw").mkdir(parents=True)
        for part, count, (images, labels) in zip(("train", "t10k"), (n, m), digits):
            write_idx(raw / f"{part}-images-idx3-ubyte", images[:count])
            write_idx(raw / f"{part}-labels-idx1-ubyte", labels[:count])
        return root

    return folder


small, tiny = first(6000, 1010), first(250, 110)


def untimed(text: str) -> str:
    """An output without what the clock decides."""
    return re.sub(r"Time \S+", "", text)


has_bf16_lstm = torch.ops.mkldnn._is_mkldnn_bf16_supported  # a CPU without AVX512 cannot train one


class Fork:
    """One of the scripts as a process forked from one that has imported torch already: 0.1 s instead of 3.

    Has what the tests need of subprocess.Popen.
    """

    one_at_a_time = threading.Lock()  # start() polls all processes: if two threads poll one, its status is 255
    server = multiprocessing.get_context("forkserver")
    ours = ["common", "lstm_mnist", "mlp_mnist", "modern_mnist", "support.saving", "support.data"]
    server.set_forkserver_preload([*ours, "torch._dynamo"])  # slow, and optimizers import it

    def __init__(self, *command, cwd=None, env=None):
        (out, out_end), (err, err_end) = self.server.Pipe(duplex=False), self.server.Pipe(duplex=False)
        arguments = [str(ROOT / command[0]), *map(str, command[1:])]
        where = str(cwd or os.getcwd()), env or {}
        self.process = self.server.Process(target=self.run, args=(arguments, *where, out_end, err_end), daemon=True)
        with self.one_at_a_time:
            self.process.start()
        self.pid = self.process.pid
        for end in (out_end, err_end):
            end.close()
        self.stdout, self.stderr = (os.fdopen(os.dup(pipe.fileno()), encoding="utf-8") for pipe in (out, err))

    @staticmethod
    def run(arguments, cwd, env, out, err):
        for number, end in ((1, out), (2, err)):
            os.dup2(end.fileno(), number)
        sys.stdout, sys.stderr = os.fdopen(1, "w", encoding="utf-8"), os.fdopen(2, "w", encoding="utf-8")
        signal.signal(signal.SIGINT, signal.default_int_handler)
        torch.set_num_threads(1)
        os.chdir(cwd)
        os.environ.update(env)  # too late for what torch reads when it is imported
        if "WORLD_SIZE" in env or ROOT not in Path(arguments[0]).parents:  # but not for ours, or copies of them
            for name in [name for name in sys.modules if name.split(".")[0] in ("common", "support")]:
                del sys.modules[name]
        others = [folder for folder in sys.path if folder not in ("", str(ROOT))]  # a copy must not find support/ there
        sys.argv, sys.path[:] = arguments, [str(Path(arguments[0]).parent), *others]
        runpy.run_path(arguments[0], run_name="__main__")

    @property
    def returncode(self):
        return self.process.exitcode

    def wait(self):
        self.process.join()
        return self.returncode

    def communicate(self):
        out, err = self.stdout.read(), self.stderr.read()
        with self.one_at_a_time:
            self.process.join()
        return out, err


def call(*command, **options) -> subprocess.CompletedProcess:
    """One of the scripts as a forked process, run to its end."""
    process = Fork(*command, **options)
    out, err = process.communicate()
    return subprocess.CompletedProcess(command, process.returncode, out, err)


def train(recipe, data, *flags):
    """What `main` of the script that has this recipe returns."""
    script = {"mlp": mlp_mnist, "modern": modern_mnist}.get(recipe)
    own = [] if script else ["--recipe", recipe]
    return (script or lstm_mnist).main([*own, "--data-dir", str(data), "--device", "cpu", *map(str, flags)])


def refused(main, argv, capsys) -> tuple[int, str]:
    """The exit status of a command that must end before its first epoch, and its one line on stderr."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        main([str(word) for word in argv])
    out, err = capsys.readouterr()
    status, err = (stop.value.code, err) if isinstance(stop.value.code, int) else (1, f"{err}{stop.value.code}\n")
    assert "Epoch" not in out
    assert len(err.splitlines()) == 1, err
    return status, err


def tutorial(forward, **layers):
    """A network with a tutorial's attribute names; only a place for its state_dict and its forward step."""
    model = nn.ModuleDict(layers)
    model.forward = functools.partial(forward, model)
    return model


def batch_first(hidden):
    lstm, classifier = nn.LSTM(28, hidden, 2, batch_first=True), nn.Linear(hidden, 10)
    return tutorial(lambda m, x: m.classifier(m.lstm(x.squeeze(1))[0][:, -1, :]), lstm=lstm, classifier=classifier)


TUTORIALS = {
    "batch-first": lambda: batch_first(128),
    "sgd": lambda: batch_first(50),
    "last-hidden": lambda: tutorial(
        lambda m, x: m.out(m.rnn(x.view(-1, 28, 28))[1][0][-1, :, :]),
        rnn=nn.LSTM(28, 64, 1, batch_first=True),
        out=nn.Linear(64, 10),
    ),
    "time-major": lambda: tutorial(
        lambda m, x: m.classifier(m.rnn(x.squeeze().permute(2, 0, 1))[0][-1, :, :]),
        rnn=nn.LSTM(28, 100, 2),
        classifier=nn.Linear(100, 10),
    ),
    "mlp": lambda: tutorial(
        lambda m, x: m.fc3(m.fc2(m.fc1(x.view(-1, 784)).relu()).relu()),
        fc1=nn.Linear(784, 256),
        fc2=nn.Linear(256, 256),
        fc3=nn.Linear(256, 10),
    ),
}
