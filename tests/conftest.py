"""What the tests share: MNIST in small, tutorials' classes as printed, running the scripts."""

import functools
import multiprocessing
import os
import re
import runpy
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
VISIBLE = "CUDA_VISIBLE_DEVICES"
os.environ.setdefault("GPU_TO_TEST", os.environ.get(VISIBLE, "0"))  # for test_gpu.py alone
os.environ[VISIBLE] = ""  # the others expect the CPU's digits, wherever they run
torch.set_num_threads(1)  # the data are small, and several processes share the cores


def hide_apples_gpu() -> None:
    """No environment variable does; and a forked process cannot use it."""
    if sys.platform == "darwin":
        torch.accelerator.is_available = lambda: False
        torch.accelerator.current_accelerator = lambda check_available: None


hide_apples_gpu()


def snippet(word: str, page: str = "README.md") -> str:
    """The page's Python block that contains the word."""
    text = (ROOT / page).read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", text, flags=re.S)
    (block,) = [block for block in blocks if word in block]
    return block


@pytest.fixture(scope="session")
def digits():
    """`[(train images, labels), (test images, labels)]`, bytes."""
    return common.read(ROOT / "data")


def write_idx(path: Path, array: torch.Tensor) -> None:
    """A uint8 tensor as an IDX file."""
    sizes = b"".join(n.to_bytes(4, "big") for n in array.shape)
    data = array.to(torch.uint8).numpy().tobytes()
    path.write_bytes(bytes([0, 0, 8, array.dim()]) + sizes + data)


def first(n: int, m: int):
    """A fixture: a torchvision root of the first n training and m test images, unpacked."""

    @pytest.fixture(scope="session")
    def folder(digits, tmp_path_factory):
        root = tmp_path_factory.mktemp("data")
        raw = root / "MNIST" / "raw"
        raw.mkdir(parents=True)
        for part, count, (images, labels) in zip(("train", "t10k"), (n, m), digits):
            write_idx(raw / f"{part}-images-idx3-ubyte", images[:count])
            write_idx(raw / f"{part}-labels-idx1-ubyte", labels[:count])
        return root

    return folder


small = first(6000, 1010)
tiny = first(250, 110)


def untimed(text: str) -> str:
    """An output without what the clock decides."""
    return re.sub(r"Time \S+", "", text)


class Fork:
    """A script as a process forked from one that has imported torch already: 0.1 s instead of 3.

    Has what the tests need of subprocess.Popen.
    """

    one_at_a_time = threading.Lock()  # start() polls all: if two threads poll one, it ends with 255
    server = multiprocessing.get_context("forkserver" if hasattr(os, "fork") else "spawn")
    ours = ["lstm_mnist", "mlp_mnist", "modern_mnist", "support.folders", "support.run_files"]
    server.set_forkserver_preload([*ours, "torch._dynamo"])  # slow, and optimizers import it

    def __init__(self, *command, cwd=None, env=None):
        out, out_end = self.server.Pipe(duplex=False)
        err, err_end = self.server.Pipe(duplex=False)
        arguments = [str(ROOT / command[0]), *map(str, command[1:])]
        options = arguments, str(cwd or os.getcwd()), env or {}, out_end, err_end
        self.process = self.server.Process(target=self.run, args=options, daemon=True)
        with self.one_at_a_time:
            self.process.start()
        self.pid = self.process.pid
        out_end.close()
        err_end.close()
        self.stdout = os.fdopen(os.dup(out.fileno()), encoding="utf-8")
        self.stderr = os.fdopen(os.dup(err.fileno()), encoding="utf-8")

    @staticmethod
    def run(arguments, cwd, env, out, err):
        os.dup2(out.fileno(), 1)
        os.dup2(err.fileno(), 2)
        sys.stdout = os.fdopen(1, "w", encoding=env.get("PYTHONIOENCODING", "utf-8"))
        sys.stderr = os.fdopen(2, "w", encoding="utf-8", errors="backslashreplace")
        torch.set_num_threads(1)
        hide_apples_gpu()
        os.chdir(cwd)
        os.environ.update(env)  # too late for what torch reads when it is imported
        if "WORLD_SIZE" in env or ROOT not in Path(arguments[0]).parents:
            for name in [*sys.modules]:  # a copy has a common of its own
                if name.split(".")[0] in ("common", "support"):
                    del sys.modules[name]
        others = [folder for folder in sys.path if folder not in ("", str(ROOT))]
        sys.path[:] = [str(Path(arguments[0]).parent), *others]  # a copy must not find support/
        sys.argv = arguments
        runpy.run_path(arguments[0], run_name="__main__")

    @property
    def returncode(self):
        return self.process.exitcode

    def poll(self):
        return self.returncode

    def kill(self):
        self.process.kill()

    def wait(self):
        self.process.join()
        return self.returncode

    def communicate(self):
        out, err = self.stdout.read(), self.stderr.read()
        with self.one_at_a_time:
            self.process.join()
        return out, err


class Started(subprocess.Popen):
    """The same as a process of its own, where there is no fork, as on Windows."""

    def __init__(self, *command, cwd=None, env=None):
        words = [sys.executable, ROOT / command[0], *map(str, command[1:])]
        env = {**os.environ, "PYTHONIOENCODING": "utf-8", **(env or {})}
        pipe = subprocess.PIPE
        super().__init__(words, cwd=cwd, env=env, stdout=pipe, stderr=pipe, encoding="utf-8")


if not hasattr(os, "fork"):
    Fork = Started


posix = pytest.mark.skipif(os.name == "nt", reason="Windows has no such signals")


def link(path: Path, target: Path) -> None:
    """A symbolic link; skips the test if this user may not make one, as on Windows."""
    try:
        path.symlink_to(target)
    except OSError:
        pytest.skip("this user may make no links")


def call(*command, **options) -> subprocess.CompletedProcess:
    """One of the scripts as a forked process, run to its end."""
    process = Fork(*command, **options)
    out, err = process.communicate()
    return subprocess.CompletedProcess(command, process.returncode, out, err)


def train(recipe, data, *flags):
    """What `main` of the script that has this recipe returns."""
    command = ["--data-dir", str(data), "--device", "cpu", *map(str, flags)]
    if recipe == "mlp":
        return mlp_mnist.main(command)
    if recipe == "modern":
        return modern_mnist.main(command)
    return lstm_mnist.main(["--recipe", recipe, *command])


def refused(main, argv, capsys) -> tuple[int, str]:
    """Exit status and the one line on stderr of a command that must end before its first epoch."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        main([str(word) for word in argv])
    out, err = capsys.readouterr()
    status = stop.value.code
    if isinstance(status, str):  # Python prints it, and ends with 1
        err += f"{status}\n"
        status = 1
    assert "Epoch" not in out
    assert len(err.splitlines()) == 1, err
    return status, err


def tutorial(forward, **layers):
    """A network with a tutorial's attribute names: a place for its state_dict and forward step."""
    model = nn.ModuleDict(layers)
    model.forward = functools.partial(forward, model)
    return model


def batch_first(hidden):
    return tutorial(
        lambda m, x: m.classifier(m.lstm(x.squeeze(1))[0][:, -1, :]),
        lstm=nn.LSTM(28, hidden, 2, batch_first=True),
        classifier=nn.Linear(hidden, 10),
    )


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
