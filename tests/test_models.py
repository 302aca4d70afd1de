"""The networks are the tutorials' own, as are the settings; the written-out LSTM is torch's."""

from unittest.mock import Mock

import pytest
import torch
from conftest import TUTORIALS
from torch import nn

import lstm_mnist
import mlp_mnist
import modern_mnist
from lstm_mnist import RECIPES, EquationsLSTM


def build(name):
    if name == "mlp":
        return mlp_mnist.Net()
    recipe = RECIPES[name]
    return recipe["model"](28, recipe["hidden"], recipe["layers"], 10)


@pytest.mark.parametrize("name", TUTORIALS)
def test_state_dict_loads_in_the_tutorials_class_and_back(name):
    ours, theirs, images = build(name), TUTORIALS[name](), torch.rand(6, 1, 28, 28)
    theirs.load_state_dict(ours.state_dict())  # strict
    torch.testing.assert_close(theirs(images), ours(images))
    again = build(name)
    again.load_state_dict(theirs.state_dict())
    assert torch.equal(again(images), ours(images))


@pytest.mark.parametrize("state", [None, (torch.rand(2, 6, 20), torch.rand(2, 6, 20))])
@pytest.mark.parametrize("batch_first", [False, True])
def test_written_out_lstm_equals_torchs(batch_first, state):
    theirs = nn.LSTM(28, 20, 2, batch_first=batch_first)
    ours = EquationsLSTM(28, 20, 2, batch_first=batch_first)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn((6, 11, 28) if batch_first else (11, 6, 28)).requires_grad_()
    results = []
    for lstm in (ours, theirs):
        output, (h_n, c_n) = lstm(x, state)
        loss = output.sin().sum() + c_n.cos().sum()
        gradients = torch.autograd.grad(loss, [x, *lstm.parameters()])
        results.append([output, h_n, c_n, *gradients])
    torch.testing.assert_close(*results, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize(
    ("recipe", "settings"),
    [
        (RECIPES["batch-first"], ("Adam", 0.001, 100, 5, False)),
        (RECIPES["sgd"], ("SGD", 0.1, 64, 30, True)),
        (RECIPES["last-hidden"], ("Adam", 0.001, 50, 3, False)),
        (RECIPES["time-major"], ("Adadelta", 0.1, 64, 10, True)),
        (mlp_mnist.RECIPE, ("SGD", 0.01, 20, 30, False)),
    ],
)
def test_recipes_are_the_tutorials(recipe, settings):
    names = ("optimizer", "lr", "batch_size", "epochs", "normalize")
    assert tuple(recipe.get(name, False) for name in names) == settings


class Elsewhere:
    """A tensor on another device: of no use until it is brought to the model's."""

    def __init__(self, tensor):
        self.tensor = tensor

    def to(self, device):
        assert device == torch.device("cpu")
        return self.tensor


@pytest.mark.parametrize(
    ("script", "more"),
    [(mlp_mnist, []), (lstm_mnist, []), (modern_mnist, [Mock()])],
)
def test_batches_are_brought_to_the_models_device(script, more):
    model, criterion = nn.Sequential(nn.Flatten(), nn.Linear(784, 10)), nn.CrossEntropyLoss()
    images, labels = torch.rand(6, 1, 28, 28), torch.randint(10, (6,))
    loader = [(Elsewhere(images), Elsewhere(labels))]
    expected = pytest.approx(criterion(model(images), labels).item())
    assert script.test(model, loader, criterion)[0] == expected
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    assert script.train(model, loader, criterion, optimizer, *more)[0] == expected


def test_the_report_brings_its_batches_there_too(capsys):
    model = nn.Sequential(nn.Flatten(), nn.Linear(784, 10))
    loader = [(Elsewhere(torch.rand(6, 1, 28, 28)), Elsewhere(torch.randint(10, (6,))))]
    mlp_mnist.report(model, loader, nn.CrossEntropyLoss(), range(10))
    assert "/6)" in capsys.readouterr().out
