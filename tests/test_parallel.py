"""common.Parallel: a batch in parts has the outputs, gradients and training of the whole, whatever model is in it."""

import threading
import time

import common

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._pytree import tree_leaves

import lstm_mnist
import modern_mnist
from lstm_mnist import BatchFirst, EquationsLSTM, LastHidden, TimeMajor

OURS = {
    "batch-first": lambda: BatchFirst(28, 9, 2, 10),
    "gru": lambda: LastHidden(28, 9, 1, 10, nn.GRU),
    "equations": lambda: LastHidden(28, 9, 2, 10, EquationsLSTM),
    "time-major": lambda: TimeMajor(28, 9, 2, 10),
    "modern": lambda: modern_mnist.RowsAndColumns(8, 1, 10, windows=True),
}


class Own(nn.Module):
    """Somebody's model: layers, an LSTM's last output, layers; then `end`, a function."""

    def __init__(self, *after, before=nn.Identity, end=lambda x: x, frozen=None, **lstm):
        super().__init__()
        self.before, self.lstm, self.end = before(), nn.LSTM(28, 12, batch_first=True, **lstm), end
        self.after, self.classifier = nn.Sequential(*after), nn.Linear(12, 10)
        self.unused = nn.Linear(3, 3) if frozen == "unused" else None
        for name, parameter in self.named_parameters():
            parameter.requires_grad_(name != frozen)

    def forward(self, x):
        return self.end(self.classifier(self.after(self.lstm(self.before(x).squeeze(1))[0][:, -1])))


class Bright(nn.Module):
    """A layer of its own answers for bright images; a batch that has none does not use it."""

    def __init__(self):
        super().__init__()
        self.usual, self.bright = nn.Linear(784, 10), nn.Linear(784, 10)

    def forward(self, x):
        out, bright = self.usual(x.flatten(1)), x.mean((1, 2, 3)) > 0.25
        return torch.where(bright[:, None], self.bright(x.flatten(1)), out) if bright.any() else out


class Function(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.forward = function


WHOLE = {  # what has to see the whole batch
    "nn.LSTM(dropout=…)": lambda: Own(num_layers=2, dropout=0.5),
    "F.dropout": lambda: Own(end=lambda x: F.dropout(x, 0.3)),
    "nn.Dropout, pixels changed in place": lambda: Own(nn.Dropout(0.5), before=lambda: Function(lambda x: x.sub_(0.5))),
    "batch norm": lambda: Own(nn.BatchNorm1d(12)),
    "batch norm of the batch alone": lambda: Own(nn.BatchNorm1d(12, track_running_stats=False)),
    "two outputs": lambda: Own(end=lambda x: (x, x[:, :3])),
    "outputs by name": lambda: Own(end=lambda x: {"out": x}),
    "classes first": lambda: Own(end=lambda x: x.T),
    "a single number": lambda: Own(end=lambda x: x.logsumexp(1).mean()),
}
PARTED = {
    "frozen": lambda: Own(frozen="lstm.weight_ih_l0"),
    "unused": lambda: Own(frozen="unused"),
    "layers without parameters": lambda: Own(nn.ReLU(), Function(torch.tanh)),
    "layer norm": lambda: Own(nn.LayerNorm(12)),
    "bright": Bright,
}


def batches():
    """Images that get brighter, then some that get darker, then others, and fewer."""
    ramp = torch.linspace(0, 1, 70).view(-1, 1, 1, 1)
    images = torch.rand(3, 70, 1, 28, 28, generator=torch.Generator().manual_seed(3))
    return [images[0] * ramp, images[1] * ramp.flip(0), images[2, :41]]


def criterion(outputs):
    """A loss of whatever a model's outputs are."""
    return sum(each.sin().mean() for each in tree_leaves(outputs))


def trained(build, wrap):
    """Train for some steps; returns losses, gradients, outputs in evaluation, state_dict; and the parts' sizes."""
    torch.manual_seed(1)
    model, sizes, losses = build(), [], []
    net = wrap(model)
    hook = model.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    optimizer = torch.optim.SGD(model.parameters(), 0.2, momentum=0.5, weight_decay=0.01)
    net.train()
    for images in 2 * batches():
        loss = criterion(net(images.clone()))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    hook.remove()
    net.eval()
    torch.manual_seed(1)
    with torch.no_grad():
        outputs = [net(images.clone()) for images in batches()]
    return (losses, [p.grad for p in model.parameters()], outputs, model.state_dict()), sizes


@pytest.mark.parametrize("kind", [*OURS, *WHOLE, *PARTED])
def test_it_trains_as_the_model_alone(kind):
    build = {**OURS, **WHOLE, **PARTED}[kind]
    expected, _ = trained(build, lambda model: model)
    result, sizes = trained(build, lambda model: common.Parallel(model, 3))
    assert (sizes[-1] < 41) == (kind not in WHOLE)
    torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-5)


def test_digits_depend_on_the_parts_and_not_on_the_threads_or_support(monkeypatch):
    def digits(cores, parts, support=True):
        monkeypatch.setattr(common, "CORES", cores)
        monkeypatch.setattr(common, "SUPPORT", support)
        result, _ = trained(OURS["batch-first"], lambda model: common.Parallel(model, parts))
        return torch.cat([each.flatten() for each in tree_leaves(result)])

    first = digits(1, 4)
    assert torch.equal(digits(3, 4), first)
    assert torch.equal(digits(3, 4, support=False), first)
    assert not torch.equal(digits(3, 2), first)


def test_every_part_has_sixteen_images_or_more_and_about_125_in_evaluation():
    sizes, model = [], OURS["gru"]()
    model.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    net = common.Parallel(model, 4)

    def seen(n):
        sizes.clear()
        net(torch.rand(n, 1, 28, 28))
        return sorted(sizes)

    assert [seen(n) for n in (1, 31, 32, 63)] == [[1], [31], [16, 16], [21, 21, 21]]
    assert seen(1000) == [250] * 4
    with torch.no_grad():
        assert seen(102) == [25, 25, 26, 26]
        assert seen(1000) == [125] * 8


@pytest.mark.parametrize(
    ("cores", "size", "flags", "parts"),
    [(2, 64, [], 2), (8, 100, [], 6), (8, 20, [], 1), (2, 64, ["--parts", "9"], 4), (8, 64, ["--parts", "3"], 3)],
)
def test_there_is_one_part_per_core_unless_told(monkeypatch, tiny, capsys, cores, size, flags, parts):
    """What main returns is the bare model."""
    monkeypatch.setattr(common, "CORES", cores)
    sizes = ["--batch-size", str(size), "--hidden", "3", "--dry-run", "--data-dir", str(tiny)]
    model, (record,) = lstm_mnist.main([*sizes, *flags])
    assert record["parts"] == parts
    assert (f"batch {size} in {parts} parts," if parts > 1 else f"batch {size}, ") in capsys.readouterr().out
    assert [type(model), *model.state_dict()] == [BatchFirst, *BatchFirst(28, 3, 2, 10).state_dict()]
    assert not {"forward", *model._forward_hooks, *model._forward_pre_hooks} & vars(model).keys()


@pytest.mark.parametrize("bf16", [False, True])
def test_each_part_has_one_thread_and_autocast_in_training_alone(bf16, monkeypatch):
    monkeypatch.setattr(common, "CORES", 2)
    both, notes = threading.Barrier(2, timeout=60), []  # the parts wait for each other

    def note(out):
        both.wait()
        notes.append((threading.get_ident(), torch.get_num_threads(), out.dtype))
        return out

    model = nn.Sequential(nn.Flatten(), nn.Linear(784, 10), Function(note))
    net = common.Parallel(model, 2, bf16)
    outputs = net(torch.rand(64, 1, 28, 28))
    outputs.sum().backward()
    assert outputs.dtype == model[1].weight.grad.dtype == torch.float32
    net.eval()(torch.rand(64, 1, 28, 28))
    assert [len({thread for thread, *_ in notes[k : k + 2]}) for k in (0, 2)] == [2, 2]
    training = torch.bfloat16 if bf16 else torch.float32
    assert [note[1:] for note in notes] == [(1, training)] * 2 + [(1, torch.float32)] * 2


def test_bf16_says_in_one_line_where_it_cannot(tiny, monkeypatch, capsys):
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False)
    with pytest.raises(SystemExit, match=r"^--bf16: .* no bfloat16 .*leave it out$"):
        lstm_mnist.main(["--dry-run", "--data-dir", str(tiny), "--bf16"])


@pytest.mark.parametrize("autocast", [False, True])
def test_images_get_gradients_and_an_autocast_around_it_holds_within(autocast):
    model, results = OURS["gru"](), []
    for net in (model, common.Parallel(model, 3)):
        images = batches()[0].requires_grad_(not autocast)
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            outputs = net(images)
        assert outputs.dtype == (torch.bfloat16 if autocast else torch.float32)
        wanted = [*model.parameters()] if autocast else [images]
        results.append([outputs, *torch.autograd.grad(criterion(outputs.float()), wanted)])
    torch.testing.assert_close(*results)


def test_a_second_derivative_raises():
    net = common.Parallel(OURS["equations"](), 2)
    loss = net(torch.rand(40, 1, 28, 28)).square().sum()
    gradients = torch.autograd.grad(loss, [*net.parameters()], create_graph=True)
    with pytest.raises(RuntimeError, match="differentiate twice"):
        sum(gradient.square().sum() for gradient in gradients).backward()


@pytest.mark.parametrize("failing", [0, 2])
def test_an_error_in_a_part_is_raised_when_all_have_ended(failing, monkeypatch):
    """The first part is the calling thread's."""
    monkeypatch.setattr(common, "CORES", 3)
    model, ended = nn.Linear(1, 10), []

    def forward(x):
        part = x[0, 0, 0, 0].item()
        if part == failing:
            raise ZeroDivisionError(f"part {failing}")
        time.sleep(0.2)
        ended.append(part)
        return model.weight.T + x.flatten(1)[:, :1]

    monkeypatch.setattr(model, "forward", forward)
    x = torch.arange(3.0).repeat_interleave(16).view(-1, 1, 1, 1).expand(48, 1, 28, 28)
    with pytest.raises(ZeroDivisionError, match=f"part {failing}"):
        common.Parallel(model, 3)(x)
    assert sorted(ended) == sorted({0, 1, 2} - {failing})


@pytest.mark.parametrize("without", [torch.no_grad, torch.inference_mode])
def test_evaluation_records_no_gradients(without):
    model, x = OURS["batch-first"](), batches()[0]
    with without():
        outputs, expected = common.Parallel(model, 3)(x), model(x)
    assert not outputs.requires_grad
    torch.testing.assert_close(outputs, expected)


def test_two_outputs_in_bfloat16_are_both_float32():
    layers = nn.Flatten(), nn.Linear(784, 10), Function(lambda x: (x, x[:, :3]))
    outputs = common.Parallel(nn.Sequential(*layers), 3, bf16=True)(batches()[0])
    assert [(each.shape, each.dtype) for each in outputs] == [((70, 10), torch.float32), ((70, 3), torch.float32)]
