"""The networks: shapes, the written-out LSTM against nn.LSTM, the tutorials' own classes."""

import common

import runpy
import threading
from types import SimpleNamespace

import pytest
import torch
from conftest import ROOT, TUTORIALS
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


# parts of a batch, each on a thread of its own


def parted(model, parts, threads):
    """The model, its batches computed in parts."""
    common.in_parts(model, SimpleNamespace(parts=parts, threads=threads, device=torch.device("cpu")))
    return model


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize(("n", "parts"), [(64, 2), (50, 3), (100, 4), (17, 2), (1, 2)])
def test_parts_give_the_outputs_and_gradients_of_the_whole(name, n, parts):
    whole, model = build(name), build(name)
    model.load_state_dict(whole.state_dict())
    parted(model, parts, 2)
    x, y = torch.rand(n, 1, 28, 28), torch.randint(10, (n,))
    for each in (whole, model):
        nn.functional.cross_entropy(each(x), y).backward()
    torch.testing.assert_close(model(x), whole(x))
    for a, b in zip(model.parameters(), whole.parameters()):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-6)
    assert model.state_dict().keys() == whole.state_dict().keys()


@pytest.mark.parametrize("threads", [1, 2, 4])
def test_digits_depend_on_the_parts_not_on_the_threads(threads):
    """To the last digit, after some steps."""
    results = []
    for count in (2, threads):
        torch.manual_seed(5)
        model = parted(lstm_mnist.BatchFirst(28, 30, 2, 10), 4, count)
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        loader = [(torch.rand(70, 1, 28, 28), torch.randint(10, (70,))) for _ in range(5)]
        seen = lstm_mnist.train(model, loader, nn.CrossEntropyLoss(), optimizer) + lstm_mnist.test(model, loader)
        results.append([outputs for outputs, _ in seen] + list(model.state_dict().values()))
    assert all(torch.equal(a, b) for a, b in zip(*results))


def test_a_batch_is_parted_where_every_part_has_sixteen(monkeypatch):
    sizes, model = [], build("last-hidden")
    forward = model.forward
    monkeypatch.setattr(model, "forward", lambda x: sizes.append(len(x)) or forward(x))
    parted(model, 6, 1)
    for n in (1, 31, 32, 63, 64, 100, 1000):
        with torch.no_grad():
            model(torch.rand(n, 1, 28, 28))
    assert sizes == [1, 31, 16, 16, 21, 21, 21, 16, 16, 16, 16, 17, 17, 17, 17, 16, 16, *[125] * 8]


@pytest.mark.parametrize(
    ("cores", "size", "flags", "parts"),
    [(2, 50, [], 2), (2, 64, [], 2), (8, 100, [], 6), (8, 20, [], 1), (2, 64, ["--parts", "9"], 4)]
    + [(8, 64, ["--parts", "3"], 3), (8, 10, ["--parts", "2"], 1)],
)
def test_there_is_one_part_per_core_unless_told(monkeypatch, tiny, capsys, cores, size, flags, parts):
    """Of at least 16 samples each."""
    monkeypatch.setattr(common, "CORES", cores)
    sizes = ["--batch-size", str(size), "--hidden", "3", "--dry-run", "--data-dir", str(tiny)]
    _, (record,) = lstm_mnist.main([*sizes, *flags])
    assert record["parts"] == parts
    assert (f"batch {size} in {parts} parts," if parts > 1 else f"batch {size}, ") in capsys.readouterr().out


def test_evaluation_in_parts_records_no_gradients():
    model = parted(build("last-hidden"), 2, 2)
    with torch.no_grad():
        outputs = model(torch.rand(64, 1, 28, 28))
    assert not outputs.requires_grad
    assert model(torch.rand(64, 1, 28, 28)).requires_grad


@pytest.mark.parametrize("bf16", [False, True])
def test_what_holds_for_one_thread_holds_in_each_part(bf16):
    """One OpenMP thread, flushed denormals, autocast in training alone."""
    states, both = [], threading.Barrier(2)

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(784, 10)

        def forward(self, x):
            if len(x) > 1:  # not the one image that `use_bfloat16` tries
                both.wait()  # so that the parts are on two threads
            tiny = torch.full((1,), 1e-40).mul(1).item()
            out = self.layer(x.flatten(1))
            states.append((threading.get_ident(), torch.get_num_threads(), tiny, out.dtype))
            return out

    model = Model()
    args = SimpleNamespace(save_model=None, checkpoint=None, log=None, plot=None, device=torch.device("cpu"), parts=2)
    torch.set_num_threads(2)
    with common.session([args]):
        if bf16:
            common.use_bfloat16(model, args.device)
            states.clear()
        common.in_parts(model, args)
        batches = [(torch.rand(64, 1, 28, 28), torch.arange(64) % 10)]
        lstm_mnist.train(model, batches, nn.CrossEntropyLoss(), torch.optim.SGD(model.parameters(), 0.1))
        lstm_mnist.test(model, batches)
    torch.set_num_threads(1)
    assert len({thread for thread, *_ in states}) == 2
    assert {(threads, tiny) for _, threads, tiny, _ in states} == {(1, 0.0)}
    expected = torch.bfloat16 if bf16 else torch.float32
    assert [dtype for *_, dtype in states] == [expected] * 2 + [torch.float32] * 2


def test_what_fails_in_a_part_is_raised():
    model = build("last-hidden")
    model.forward = lambda x: 1 / 0
    parted(model, 2, 2)
    with pytest.raises(ZeroDivisionError):
        model(torch.rand(64, 1, 28, 28))


def test_the_script_works_without_the_call(tiny, tmp_path, capsys):
    """Whoever copies it may delete the line."""
    text = (ROOT / "lstm_mnist.py").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if "in_parts" in line]
    assert len(lines) == 1
    (tmp_path / "short.py").write_text(text.replace(lines[0] + "\n", ""))
    flags = ["--recipe", "last-hidden", "--parts", "2", "--data-dir", str(tiny), "--epochs", "2"]
    main = runpy.run_path(str(tmp_path / "short.py"))["main"]
    (_, without), (_, with_parts) = main(flags), lstm_mnist.main(flags)
    capsys.readouterr()
    assert without[1]["valid_loss"] == pytest.approx(with_parts[1]["valid_loss"], rel=1e-3)


def test_the_returned_model_is_bare(tiny, capsys):
    flags = ["--cell", "gru", "--bf16"]  # not every CPU has an LSTM in bfloat16
    model, _ = lstm_mnist.main(["--recipe", "last-hidden", "--data-dir", str(tiny), "--epochs", "1", *flags])
    assert "forward" not in vars(model)
    capsys.readouterr()
