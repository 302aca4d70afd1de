"""The networks: shapes, the written-out LSTM against nn.LSTM, the tutorials' own classes."""

import pytest
import torch
from conftest import TUTORIALS
from torch import nn

import lstm_mnist
import mlp_mnist
from lstm_mnist import CELLS, RECIPES, BatchFirst, EquationsLSTM, LastHidden, TimeMajor

PARAMETERS = {"batch-first": 214_282, "sgd": 36_910, "last-hidden": 24_714, "time-major": 133_810, "mlp": 269_322}


def build(name, cell="lstm"):
    if name == "mlp":
        return mlp_mnist.Net()
    recipe = RECIPES[name]
    return recipe["model"](28, recipe["hidden"], recipe["layers"], 10, CELLS[cell])


@pytest.mark.parametrize("n", [1, 5])
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("name", RECIPES)
def test_each_class_takes_images_and_gives_ten_logits(name, cell, n):
    assert build(name, cell)(torch.rand(n, 1, 28, 28)).shape == (n, 10)


@pytest.mark.parametrize("n", [1, 5])
def test_mlp_takes_images_and_gives_ten_logits(n):
    assert mlp_mnist.Net()(torch.rand(n, 1, 28, 28)).shape == (n, 10)


@pytest.mark.parametrize("name", TUTORIALS)
def test_state_dict_loads_in_the_tutorials_class_and_back(name):
    ours, theirs, x = build(name), TUTORIALS[name](), torch.rand(6, 1, 28, 28)
    theirs.load_state_dict(ours.state_dict(), strict=True)
    torch.testing.assert_close(theirs(x), ours(x))
    again = build(name)
    again.load_state_dict(theirs.state_dict(), strict=True)
    assert torch.equal(again(x), ours(x))
    assert sum(p.numel() for p in theirs.parameters()) == PARAMETERS[name]


def test_time_steps_are_columns_in_time_major_and_rows_elsewhere():
    """A network that forgets all but its last step sees the last column, or the last row, alone."""
    for kind, rnn in ((BatchFirst, "lstm"), (LastHidden, "rnn"), (TimeMajor, "rnn")):
        model = kind(28, 8, 1, 10)
        with torch.no_grad():
            getattr(model, rnn).weight_hh_l0.zero_()
            bias = getattr(model, rnn).bias_ih_l0
            bias[8:16] = -100  # the forget gate shut
        x = torch.rand(1, 1, 28, 28)
        row, column = x.clone(), x.clone()
        row[..., -1, :14] += 0.5
        column[..., :14, -1] += 0.5
        by_row, by_column = (not torch.allclose(model(y), model(x)) for y in (row, column))
        assert (by_row, by_column) == ((False, True) if kind is TimeMajor else (True, False))


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("cell", CELLS)
def test_last_hidden_state_is_the_last_output(cell, layers):
    """the `last-hidden` tutorial's remark: for one direction `h_n[-1]` equals the last time step of the output."""
    output, state = CELLS[cell](28, 16, layers, batch_first=True)(torch.rand(5, 28, 28))
    h_n = state[0] if isinstance(state, tuple) else state
    assert torch.equal(h_n[-1], output[:, -1, :])


@pytest.mark.parametrize("given_state", [False, True])
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("layers", [1, 2])
def test_written_out_lstm_equals_torchs(layers, batch_first, given_state):
    torch.manual_seed(3)
    ours = EquationsLSTM(28, 20, layers, batch_first=batch_first)
    torch.manual_seed(3)
    theirs = nn.LSTM(28, 20, layers, batch_first=batch_first)
    assert [(n, p.shape) for n, p in ours.named_parameters()] == [(n, p.shape) for n, p in theirs.named_parameters()]
    for a, b in zip(ours.parameters(), theirs.parameters()):
        assert torch.equal(a, b)  # the same seed gives the same weights
    state = (torch.randn(layers, 6, 20), torch.randn(layers, 6, 20)) if given_state else None
    results = []
    for lstm in (ours, theirs):
        torch.manual_seed(4)
        x = torch.randn((6, 11, 28) if batch_first else (11, 6, 28)).requires_grad_()
        output, (h_n, c_n) = lstm(x, state)
        (output.pow(2).sum() + h_n.sum() + 2 * c_n.sin().sum()).backward()
        results.append([output, h_n, c_n, x.grad, *(p.grad for p in lstm.parameters())])
    for a, b in zip(*results):
        assert a.shape == b.shape
        torch.testing.assert_close(a, b, rtol=1e-4, atol=2e-5)


def test_written_out_weights_go_either_way():
    ours, theirs = build("batch-first", "equations"), build("batch-first")
    x = torch.rand(4, 1, 28, 28)
    theirs.load_state_dict(ours.state_dict(), strict=True)
    torch.testing.assert_close(ours(x), theirs(x))
    other = build("batch-first")
    ours.load_state_dict(other.state_dict(), strict=True)
    torch.testing.assert_close(ours(x), other(x))


def test_recipes_are_the_tutorials():
    rows = {
        name: [
            r[k] for k in ("optimizer", "lr", "batch_size", "test_batch_size", "epochs", "normalize", "log_interval")
        ]
        for name, r in {**lstm_mnist.RECIPES, **mlp_mnist.RECIPES}.items()
    }
    assert rows == {
        "sgd": ["SGD", 0.1, 64, 128, 30, True, 0],
        "time-major": ["Adadelta", 0.1, 64, 128, 10, True, 0],
        "last-hidden": ["Adam", 0.001, 50, 1000, 3, False, 50],
        "mlp": ["SGD", 0.01, 20, 20, 30, False, 0],
        "batch-first": ["Adam", 0.001, 100, 100, 5, False, 300],
    }
