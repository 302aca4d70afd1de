"""What the tests share: MNIST in small, tutorials' classes as printed, running the scripts."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import common
import mnist

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def _threads():
    """mlp_mnist sets the number of threads; put it back."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def digits():
    """`[(train images, labels), (test images, labels)]`, bytes."""
    return mnist.read_mnist(common.DATA_DIR)


def write_idx(path: Path, array: torch.Tensor) -> None:
    """A uint8 tensor as an IDX file."""
    sizes = b"".join(n.to_bytes(4, "big") for n in array.shape)
    path.write_bytes(bytes([0, 0, 8, array.dim()]) + sizes + array.to(torch.uint8).numpy().tobytes())


def write_mnist(root: Path, train, test) -> Path:
    """A torchvision MNIST root of unpacked files."""
    raw = root / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for part, (images, labels) in (("train", train), ("t10k", test)):
        write_idx(raw / f"{part}-images-idx3-ubyte", images)
        write_idx(raw / f"{part}-labels-idx1-ubyte", labels)
    return root


@pytest.fixture(scope="session")
def small(digits, tmp_path_factory):
    """A data folder with the first 6000 training and 1010 test images."""
    (x, y), (xt, yt) = digits
    return write_mnist(tmp_path_factory.mktemp("small"), (x[:6000], y[:6000]), (xt[:1010], yt[:1010]))


@pytest.fixture(scope="session")
def tiny(digits, tmp_path_factory):
    """A data folder with the first 250 training and 110 test images."""
    (x, y), (xt, yt) = digits
    return write_mnist(tmp_path_factory.mktemp("tiny"), (x[:250], y[:250]), (xt[:110], yt[:110]))


def start(*command, **options) -> subprocess.Popen:
    """One of the scripts as a process; its output is text."""
    env = {**os.environ, **options.pop("env", {})}
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    return subprocess.Popen(
        [sys.executable, ROOT / command[0], *map(str, command[1:])], env=env, **{**pipes, **options}
    )


def call(*command, **options) -> subprocess.CompletedProcess:
    """One of the scripts as a process, run to its end."""
    process = start(*command, **options)
    out, err = process.communicate()
    return subprocess.CompletedProcess(command, process.returncode, out, err)


class Tutorial(nn.Module):
    """A network with a tutorial's attribute names; only a place for its state_dict and its forward step."""

    def __init__(self, forward, **layers):
        super().__init__()
        for name, layer in layers.items():
            setattr(self, name, layer)
        self.step = forward

    def forward(self, x):
        return self.step(self, x)


def batch_first(hidden):  # 000, 004
    return Tutorial(
        lambda m, x: m.classifier(m.lstm(x.squeeze(1))[0][:, -1, :]),
        lstm=nn.LSTM(28, hidden, 2, batch_first=True),
        classifier=nn.Linear(hidden, 10),
    )


TUTORIALS = {
    "batch-first": lambda: batch_first(128),
    "sgd": lambda: batch_first(50),
    "last-hidden": lambda: Tutorial(  # 002
        lambda m, x: m.out(m.rnn(x.view(-1, 28, 28))[1][0][-1, :, :]),
        rnn=nn.LSTM(28, 64, 1, batch_first=True),
        out=nn.Linear(64, 10),
    ),
    "time-major": lambda: Tutorial(  # 001
        lambda m, x: m.classifier(m.rnn(x.squeeze().permute(2, 0, 1))[0][-1, :, :]),
        rnn=nn.LSTM(28, 100, 2),
        classifier=nn.Linear(100, 10),
    ),
    "mlp": lambda: Tutorial(  # 003
        lambda m, x: m.fc3(m.fc2(m.fc1(x.view(-1, 784)).relu()).relu()),
        fc1=nn.Linear(784, 256),
        fc2=nn.Linear(256, 256),
        fc3=nn.Linear(256, 10),
    ),
}
