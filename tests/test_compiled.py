"""--compile: the loop's mathematics with plain SGD, or one line that says it cannot be."""

import os
import shutil

import common

import pytest
import torch
from torch import nn

import mlp_mnist
from support import compiled

FLAGS = ["--epochs", "2", "--lr", "0.1", "--batch-size", "25", "--data-dir"]  # 250 images: no short last batch


class Own(nn.Module):
    """Somebody's model: a function of two layers and the images' pixels `(N, 784)`."""

    def __init__(self, function=None, bias=True, end=None, frozen=False):
        super().__init__()
        self.first, self.second = nn.Linear(784, 20, bias=bias), nn.Linear(20, 10)
        self.first.weight.requires_grad_(not frozen)
        self.function, self.end = function or (lambda m, x: m.second(m.first(x).tanh())), end or nn.Identity()

    def forward(self, x):
        return self.end(self.function(self, x.flatten(1)))


@pytest.fixture
def eager(monkeypatch):
    """The step as it is written, run without a compiler."""
    monkeypatch.setattr(torch, "compile", lambda step, **_: step)


def loader():
    generator = torch.Generator().manual_seed(2)
    images = torch.randint(256, (70, 28, 28), generator=generator, dtype=torch.uint8)
    return common.Loader(images, torch.randint(10, (70,), generator=generator), 20, generator)


def trained(build, training, rates=(0.1, 0.2), **options):
    """Train for an epoch with each rate; returns what `train` did and the state_dict."""
    torch.manual_seed(1)
    model, criterion, data = build(), nn.CrossEntropyLoss(), loader()
    train, results = training(model, criterion), []
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0, **options)
    for rate in rates:
        optimizer.param_groups[0]["lr"] = rate
        results.append(train(model, data, criterion, optimizer))
    return results, model.state_dict()


def loop(*_):
    return mlp_mnist.train


def shared():
    model = nn.Sequential(nn.Flatten(), nn.Linear(784, 12), nn.Linear(12, 12), nn.Linear(12, 12))
    model[3].weight = model[2].weight
    return model


GOOD = {
    "mlp": mlp_mnist.Net,
    "one layer's weight is the other's": shared,
    "dropout": lambda: Own(end=nn.Dropout(0.2)),
    "batch norm": lambda: Own(end=nn.BatchNorm1d(10)),
    "a layer that is called twice": lambda: Own(
        lambda m, x: m.second(m.first(x).sigmoid()) + m.second(m.first(x).tanh())
    ),
    "a layer that is not called": lambda: Own(lambda m, x: m.first(x)[:, :10]),
    "without bias": lambda: Own(bias=False),
    "layer norm": lambda: Own(end=nn.LayerNorm(10)),
    "frozen": lambda: Own(frozen=True),
}


@pytest.mark.parametrize("kind", GOOD)
def test_the_step_is_the_loops_mathematics(kind, eager):
    build = GOOD[kind]
    torch.testing.assert_close(trained(build, compiled.training), trained(build, loop), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "options", [dict(momentum=0.9), dict(weight_decay=0.1), dict(momentum=0.9, nesterov=True), dict(maximize=True)]
)
def test_what_is_not_plain_sgd_is_refused(options, eager):
    with pytest.raises(SystemExit, match=f"--compile .*{[*options][-1]}.*omit it"):
        trained(Own, compiled.training, **options)


def test_many_rates_and_a_short_last_batch_are_compiled(monkeypatch):
    """One graph for all rates and one for the short batch; torch allows a function eight."""
    compile, rates = torch.compile, [k / 100 for k in range(1, 10)]
    monkeypatch.setattr(torch, "compile", lambda step, **options: compile(step, **options | {"backend": "eager"}))
    torch.testing.assert_close(trained(Own, compiled.training, rates), trained(Own, loop, rates), rtol=1e-5, atol=1e-6)


@pytest.mark.skipif(not shutil.which(os.environ.get("CXX", "g++")), reason="torch.compile needs a C++ compiler")
@pytest.mark.parametrize("flags", [[], pytest.param(["--bf16"], marks=pytest.mark.slow)])
def test_compiled_steps_train_as_the_loop_does(flags, tiny, capsys):
    near = dict(rtol=0.05, atol=0.005) if flags else dict(rtol=1e-4, atol=1e-5)
    (expected, loops), (model, history) = (mlp_mnist.main([*FLAGS, str(tiny), *flags, *c]) for c in ([], ["--compile"]))
    torch.testing.assert_close(model.state_dict(), expected.state_dict(), **near)
    assert history[1]["train_loss"] == pytest.approx(loops[1]["train_loss"], rel=0.02 if flags else 1e-4)
    torch.manual_seed(1)
    assert not torch.allclose(model.fc1.weight, mlp_mnist.Net().fc1.weight, atol=0.005)
