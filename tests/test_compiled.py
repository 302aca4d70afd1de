"""--compile: the loop's mathematics with plain SGD, or one line that says it cannot be."""

import os
import shutil

import common

import pytest
import torch
from conftest import refused
from torch import nn

import mlp_mnist
from support import compiled

FLAGS = ["--epochs", 2, "--lr", 0.1, "--batch-size", 25]  # 250 images: no short last batch


def own(*more):
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 20), nn.Tanh(), *more, nn.Linear(20, 10))


def tied():
    model = own(nn.Linear(20, 20), nn.Tanh(), nn.Linear(20, 20))
    model[3].weight = model[5].weight
    return model


def frozen():
    model = own()
    model[1].requires_grad_(False)
    return model


def unused():
    model = own()
    model[1].unused = nn.Linear(3, 3)
    return model


def trained(build, training, rates=(0.1, 0.2)):
    """Train for an epoch with each rate; returns what `train` did and the state_dict."""
    generator = torch.Generator().manual_seed(2)
    images = torch.randint(256, (70, 28, 28), generator=generator, dtype=torch.uint8)
    labels = torch.randint(10, (70,), generator=generator)
    loader = common.Loader(images, labels, 20, generator)
    torch.manual_seed(1)
    model = build()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    train = training(optimizer)
    results = []
    for rate in rates:
        optimizer.param_groups[0]["lr"] = rate
        results.append(train(model, loader, nn.CrossEntropyLoss(), optimizer))
    return results, model.state_dict()


def loop(optimizer):
    return mlp_mnist.train


GOOD = {
    "mlp": mlp_mnist.Net,
    "a layer's weight is another's": tied,
    "dropout": lambda: own(nn.Dropout(0.2)),
    "batch norm": lambda: own(nn.BatchNorm1d(20)),
    "frozen": frozen,
    "unused": unused,
}


@pytest.mark.parametrize("kind", GOOD)
def test_the_step_is_the_loops_mathematics(kind, monkeypatch):
    """The step as it is written, without a compiler."""
    monkeypatch.setattr(torch, "compile", lambda step, **_: step)
    result, expected = trained(GOOD[kind], compiled.training), trained(GOOD[kind], loop)
    torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-5)


def test_many_rates_and_a_short_last_batch_are_compiled(monkeypatch):
    """One graph for all rates and one for the short batch; torch allows a function eight."""
    compile = torch.compile

    def eager(step, fullgraph, dynamic, mode):
        return compile(step, fullgraph=fullgraph, dynamic=dynamic, backend="eager")

    monkeypatch.setattr(torch, "compile", eager)
    rates = [k / 100 for k in range(1, 10)]
    result, expected = trained(own, compiled.training, rates), trained(own, loop, rates)
    torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("named", "kind", "options"),
    [
        ("momentum", torch.optim.SGD, {"momentum": 0.9}),
        ("weight_decay", torch.optim.SGD, {"weight_decay": 0.1}),
        ("nesterov", torch.optim.SGD, {"momentum": 0.9, "nesterov": True}),
        ("maximize", torch.optim.SGD, {"maximize": True}),
        ("Adam", torch.optim.Adam, {}),
    ],
)
def test_what_is_not_plain_sgd_is_refused(named, kind, options, capsys):
    with pytest.raises(SystemExit, match="^2$"):
        compiled.training(kind([torch.zeros(1)], lr=0.1, **options))
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("--compile ")
    assert named in line


def test_parts_are_refused(capsys):
    status, line = refused(mlp_mnist.main, ["--compile", "--parts", 2], capsys)
    assert (status, "leave out --parts" in line) == (2, True)


@pytest.mark.skipif(
    not shutil.which(os.environ.get("CXX", "g++")), reason="torch.compile needs a C++ compiler"
)
def test_compiled_steps_train_as_the_loop_does(tiny):
    command = [*FLAGS, "--data-dir", tiny]
    expected, loops = mlp_mnist.main(command)
    model, history = mlp_mnist.main([*command, "--compile"])
    torch.testing.assert_close(model.state_dict(), expected.state_dict(), rtol=1e-4, atol=1e-5)
    assert history[1]["train_loss"] == pytest.approx(loops[1]["train_loss"], rel=1e-4)
