"""The networks: shapes, the written-out LSTM against nn.LSTM, the tutorials' own classes and settings."""

import pytest
import torch
from conftest import TUTORIALS
from torch import nn

import mlp_mnist
from lstm_mnist import RECIPES, EquationsLSTM

PARAMETERS = {"batch-first": 214_282, "sgd": 36_910, "last-hidden": 24_714, "time-major": 133_810, "mlp": 269_322}


def build(name):
    recipe = RECIPES.get(name)
    return recipe["model"](28, recipe["hidden"], recipe["layers"], 10) if recipe else mlp_mnist.Net()


@pytest.mark.parametrize("name", TUTORIALS)
def test_state_dict_loads_in_the_tutorials_class_and_back(name):
    ours, theirs, x = build(name), TUTORIALS[name](), torch.rand(6, 1, 28, 28)
    theirs.load_state_dict(ours.state_dict(), strict=True)
    torch.testing.assert_close(theirs(x), ours(x))
    again = build(name)
    again.load_state_dict(theirs.state_dict(), strict=True)
    assert torch.equal(again(x), ours(x))
    assert sum(p.numel() for p in theirs.parameters()) == PARAMETERS[name]


@pytest.mark.parametrize("given_state", [False, True])
@pytest.mark.parametrize("batch_first", [False, True])
def test_written_out_lstm_equals_torchs(batch_first, given_state):
    lstms, results = [], []
    for kind in (EquationsLSTM, nn.LSTM):
        torch.manual_seed(3)
        lstms.append(kind(28, 20, 2, batch_first=batch_first))
    ours, theirs = (lstm.state_dict() for lstm in lstms)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(value, ours[name]) for name, value in theirs.items())  # the same seed, the same weights
    state = (torch.randn(2, 6, 20), torch.randn(2, 6, 20)) if given_state else None
    x = torch.randn((6, 11, 28) if batch_first else (11, 6, 28)).requires_grad_()
    for lstm in lstms:
        output, (h_n, c_n) = lstm(x, state)
        loss = output.pow(2).sum() + h_n.sum() + 2 * c_n.sin().sum()
        results.append([output, h_n, c_n, *torch.autograd.grad(loss, [x, *lstm.parameters()])])
    torch.testing.assert_close(*results, rtol=1e-4, atol=2e-5)


def test_recipes_are_the_tutorials():
    names = ("optimizer", "lr", "batch_size", "test_batch_size", "epochs", "normalize", "log_interval")
    rows = {name: [r.get(k) for k in names] for name, r in {**RECIPES, "mlp": mlp_mnist.RECIPE}.items()}
    assert rows == {
        "sgd": ["SGD", 0.1, 64, 128, 30, True, None],
        "time-major": ["Adadelta", 0.1, 64, 128, 10, True, None],
        "last-hidden": ["Adam", 0.001, 50, 1000, 3, False, 50],
        "mlp": ["SGD", 0.01, 20, 20, 30, None, None],
        "batch-first": ["Adam", 0.001, 100, 100, 5, False, 300],
    }
