"""common.Parallel gives what the bare model does, also one that parts of a batch would change."""

import copy
import io
import multiprocessing
import os
import random
import threading
from types import SimpleNamespace

import common

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.optim.swa_utils import AveragedModel
from torch.utils._pytree import tree_leaves

import lstm_mnist
import mlp_mnist
from lstm_mnist import BatchFirst, EquationsLSTM, LastHidden, TimeMajor
from modern_mnist import RowsAndColumns
from support.parallel import pool


class Own(nn.Module):
    """Somebody's model: two layers, and between them what people write."""

    def __init__(self, change=None, layer=None, keep=None, kept=None, end=None):
        super().__init__()
        self.first = nn.Linear(784, 12)
        self.layer = layer or nn.Identity()
        self.last = nn.Linear(12, 10)
        self.change, self.keep, self.kept, self.end = change, keep, kept, end

    def forward(self, x):
        h = self.first(x.flatten(1)).tanh()
        if self.keep:
            self.kept = self.keep(self.kept, h)
        if self.change:
            h = self.change(h)
        outputs = self.last(self.layer(h))
        return self.end(outputs) if self.end else outputs


class Popped(Own):
    """Keeps a hidden state on itself, but not until forward ends."""

    def forward(self, x):
        self.kept.append(self.first(x.flatten(1)))
        self.layer(x)
        return self.last(self.kept.pop())


class Noise(nn.Module):
    def __init__(self):
        super().__init__()
        self.generator = torch.Generator()

    def forward(self, x):
        return x + torch.rand(x.shape, generator=self.generator)


def appended(kept, h):
    return [*kept, h.detach()]


def gradients(kept, h):
    """Those of a hidden state, for a picture of what the network looks at."""
    if h.requires_grad:
        h.register_hook(kept.append)
    return kept


def centred(h):
    return h - h.mean(0)


def zeros_at_the_end():
    """Behind statistics of the batch, which no output shows at first."""
    model = Own(centred, nn.LayerNorm(12))
    nn.init.zeros_(model.last.weight)
    return model


def hooked():
    model = Own()
    model.first.weight.register_hook(lambda gradient: 0.1 * gradient)
    return model


def another_forward():
    """As in a notebook: a copy of the model would still call this one."""
    model = Own(layer=nn.BatchNorm1d(12))
    model.forward = lambda x: 2 * Own.forward(model, x)
    return model


WHOLE = {
    "a hidden state is kept": lambda: Own(keep=lambda _, h: h),
    "a hidden state is kept for a while": lambda: Popped(kept=[]),
    "another forward": another_forward,
    "hidden states are listed": lambda: Own(keep=appended, kept=[]),
    "gradients are listed": lambda: Own(keep=gradients, kept=[]),
    "a counter": lambda: Own(keep=lambda kept, _: kept + 1, kept=0),
    "statistics by hand": lambda: Own(centred),
    "statistics in training": lambda: Own(lambda h: centred(h) if torch.is_grad_enabled() else h),
    "F.batch_norm": lambda: Own(lambda h: F.batch_norm(h, None, None, training=True)),
    "nn.BatchNorm1d": lambda: Own(layer=nn.BatchNorm1d(12)),
    "zeros at the end": zeros_at_the_end,
    "images change": lambda: nn.Sequential(nn.Threshold(0.5, 0, inplace=True), Own()),
    "a parameter's hook": hooked,
    "nn.Dropout": lambda: Own(layer=nn.Dropout(0.3)),
    "F.dropout": lambda: Own(lambda h: F.dropout(h, 0.3)),
    "random": lambda: Own(lambda h: -h if random.random() < 0.1 else h),
    "np.random": lambda: Own(lambda h: -h if np.random.rand() < 0.1 else h),
    "a generator": lambda: Own(layer=Noise()),
    "two outputs": lambda: Own(end=lambda x: (x, x[:, :3])),
    "outputs by name": lambda: Own(end=lambda x: {"out": x}),
    "a single number": lambda: Own(end=lambda x: x.logsumexp(1).mean()),
    "classes first": lambda: Own(end=lambda x: x.T),
    "several rows for an image": lambda: Own(end=lambda x: x.view(-1, 2)),
}


class Bright(nn.Linear):
    """Answers for bright images; a part that has none does not use the weights."""

    def forward(self, x):
        bright = x.mean((1, 2, 3)) > 0.25
        x = x.flatten(1)
        if not bright.any():
            return x[:, :10]
        return torch.where(bright[:, None], super().forward(x), x[:, :10])


def frozen():
    model = Own()
    model.first.requires_grad_(False)
    return model


PARTED = {
    "batch-first": lambda: BatchFirst(28, 9, 2, 10),
    "last-hidden": lambda: LastHidden(28, 9, 1, 10, nn.GRU),
    "equations": lambda: LastHidden(28, 9, 2, 10, EquationsLSTM),
    "time-major": lambda: TimeMajor(28, 9, 2, 10),
    "mlp": mlp_mnist.Net,
    "modern": lambda: RowsAndColumns(8, 1, 10, 1, windows=True),
    "frozen": frozen,
    "used by some parts": lambda: Bright(784, 10),
    "layer norm": lambda: Own(layer=nn.LayerNorm(12)),
    "batch norm in evaluation": lambda: Own(layer=nn.BatchNorm1d(12).eval()),
}


@pytest.fixture
def sizes(monkeypatch):
    """The sizes of the batches, or parts, that models get once they have been tried."""
    sizes = []
    compute = common.Parallel.compute

    def spy(self, images):
        sizes.append(len(images))
        return compute(self, images)

    monkeypatch.setattr(common.Parallel, "compute", spy)
    return sizes


def bare(model):
    return model


def in_parts(model):
    return common.Parallel(model, 3)


def batches():
    """Images that get brighter, then some that get darker, then others, and fewer."""
    ramp = torch.linspace(0, 1, 70).view(-1, 1, 1, 1)
    images = torch.rand(3, 70, 1, 28, 28, generator=torch.Generator().manual_seed(3))
    return [images[0] * ramp, images[1] * ramp.flip(0), images[2, :41]]


def criterion(outputs):
    """A loss of whatever a model's outputs are."""
    return sum(each.sin().mean() for each in tree_leaves(outputs))


def trained(build, wrap):
    """Train for some steps; returns what came of it, and the outputs in evaluation then.

    Losses, gradients, what the model holds, the next random numbers.
    """
    for seed in (random.seed, np.random.seed, torch.manual_seed):
        seed(1)
    model = build()
    net = wrap(model)
    optimizer = torch.optim.SGD(model.parameters(), 0.2, momentum=0.5, weight_decay=0.01)
    losses = []
    for images in 2 * batches():
        loss = criterion(net(images.clone()))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    gradients = [parameter.grad for parameter in model.parameters()]
    held = [copy.deepcopy(model.state_dict()), getattr(model, "kept", None)]
    training = [losses, gradients, held, random.random(), np.random.rand(), torch.rand(2)]
    net.eval()
    with torch.no_grad():
        return training, [net(images.clone()) for images in batches()]


@pytest.mark.parametrize("kind", WHOLE)
def test_what_parts_would_change_is_computed_whole_and_a_line_says_so(kind, sizes, capsys):
    training, outputs = trained(WHOLE[kind], in_parts)
    line = capsys.readouterr().err
    expected, expected_outputs = trained(WHOLE[kind], bare)
    torch.testing.assert_close(training, expected, rtol=0, atol=0)
    torch.testing.assert_close(outputs, expected_outputs)
    assert sizes[:6] == [70, 70, 41] * 2
    assert line.count("\n") == line.count(": its batches are computed whole: ") == 1


@pytest.mark.parametrize("kind", PARTED)
def test_what_parts_do_not_change_is_computed_in_parts(kind, sizes, capsys):
    result = trained(PARTED[kind], in_parts)
    assert max(sizes) < 41
    assert capsys.readouterr().err == ""
    torch.testing.assert_close(result, trained(PARTED[kind], bare), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("first", [torch.zeros, torch.ones])
def test_equal_images_in_the_first_batch_hide_no_statistics(first, sizes):
    in_parts(Own(lambda h: h / h.max()))(first(70, 1, 28, 28))
    assert sizes == [70]


def test_dropout_that_is_switched_on_later_is_noticed(sizes):
    """Parts drew random numbers on two threads: another result in each run."""
    model = Own(layer=nn.Dropout(0.0))
    net = in_parts(model)
    net(batches()[0])
    model.layer.p = 0.3
    sizes.clear()
    net(batches()[0])
    assert sizes == [70]


def test_time_first_outputs_keep_their_shape():
    """Halves of 56 images, put together, had the shape (56, 28, 10)."""
    model = Own(end=lambda x: x.expand(28, -1, -1))
    images = torch.rand(56, 1, 28, 28)
    assert torch.equal(common.Parallel(model, 2)(images), model(images))


def test_a_hook_is_called_once_for_each_batch():
    model, features = Own(), []
    net = in_parts(model)
    net(batches()[0])  # in parts
    hook = model.first.register_forward_hook(lambda layer, inputs, out: features.append(out))
    for images in batches():
        net(images)
    hook.remove()
    torch.testing.assert_close(features, [model.first(x.flatten(1)) for x in batches()])


def saved_and_loaded(net):
    file = io.BytesIO()
    torch.save(net, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("used", [False, True])
@pytest.mark.parametrize("copied", [copy.deepcopy, AveragedModel, saved_and_loaded])
def test_a_copy_works(copied, used):
    model, images = BatchFirst(28, 9, 2, 10), batches()[0]
    net = in_parts(model)
    if used:
        net(images)
    torch.testing.assert_close(copied(net)(images), model(images))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
def test_a_forked_child_computes_the_same():
    net, images = in_parts(BatchFirst(28, 9, 2, 10)).requires_grad_(False), batches()[0]
    expected = net(images)

    def compute():
        assert torch.equal(net(images), expected)

    child = multiprocessing.get_context("fork").Process(target=compute)
    child.start()
    child.join()
    assert child.exitcode == 0


def test_one_within_another_ends():
    """Parts of the one waited for the thread that computed a part of the other."""
    model = Own()
    inner = in_parts(model)
    images = torch.rand(150, 1, 28, 28)
    inner(images)
    torch.testing.assert_close(in_parts(inner)(images), model(images))


def test_all_share_the_threads_of_a_process(monkeypatch):
    threads = set()

    def compute(self, images):
        threads.add(threading.current_thread())
        return self.model(images)

    monkeypatch.setattr(common, "CORES", 2)
    monkeypatch.setattr(common.Parallel, "compute", compute)
    for _ in range(10):
        in_parts(Own())(batches()[0])
    assert len(threads) <= 2


@pytest.mark.filterwarnings("ignore")
def test_models_without_parameters_work():
    quantized = torch.ao.quantization.quantize_dynamic(mlp_mnist.Net(), {nn.Linear})
    for model in (nn.Flatten(), quantized):
        torch.testing.assert_close(in_parts(model)(batches()[0]), model(batches()[0]))


def test_outputs_that_need_no_gradient_need_none():
    class Teacher(Own):
        forward = torch.no_grad()(Own.forward)

    assert not in_parts(Teacher())(batches()[0]).requires_grad


def test_digits_depend_on_the_parts_and_not_on_the_threads_or_support(monkeypatch):
    def digits(cores, parts, support=True):
        monkeypatch.setattr(common, "CORES", cores)
        monkeypatch.setattr(common, "SUPPORT", support)
        _, outputs = trained(PARTED["batch-first"], lambda model: common.Parallel(model, parts))
        return torch.cat(outputs)

    first = digits(1, 4)
    assert torch.equal(digits(3, 4), first)
    assert torch.equal(digits(3, 4, support=False), first)
    assert not torch.equal(digits(3, 2), first)


@pytest.mark.parametrize(
    ("n", "recording", "parts"),
    [
        (31, True, [31]),
        (63, True, [21, 21, 21]),
        (1000, True, [250] * 4),
        (102, False, [25, 25, 26, 26]),
        (1000, False, [125] * 8),
    ],
)
def test_parts_have_sixteen_images_or_more_and_about_125_in_evaluation(n, recording, parts, sizes):
    with torch.set_grad_enabled(recording):
        common.Parallel(mlp_mnist.Net(), 4)(torch.rand(n, 1, 28, 28))
    assert sorted(sizes) == parts


@pytest.mark.parametrize(
    ("flags", "parts"),
    [(["--batch-size", 64], 3), (["--batch-size", 32], 2), (["--parts", 4], 4)],
)
def test_there_is_one_part_per_core_unless_told(monkeypatch, tiny, flags, parts):
    monkeypatch.setattr(common, "CORES", 3)
    _, (record,) = lstm_mnist.main(["--hidden", 3, "--dry-run", "--data-dir", tiny, *flags])
    assert record["parts"] == parts


def test_each_thread_computes_alone():
    assert pool(1, os.getpid()).submit(torch.get_num_threads).result() == 1


def test_bf16_is_for_training_alone():
    net = common.Parallel(mlp_mnist.Net(), 2, bf16=True)
    outputs = net(batches()[0])
    assert outputs.dtype == torch.float32
    assert torch.equal(outputs, outputs.bfloat16())
    outputs = net.eval()(batches()[0])
    assert not torch.equal(outputs, outputs.bfloat16())


@pytest.mark.parametrize("ops", [{}, {"_is_mkldnn_bf16_supported": lambda: False}])
def test_bf16_says_in_one_line_where_it_cannot(ops, monkeypatch):
    """On Apple silicon torch cannot even be asked."""
    monkeypatch.setattr(torch.ops, "mkldnn", SimpleNamespace(**ops))
    with pytest.raises(SystemExit, match=r"^--bf16: .* no bfloat16 .*leave it out$"):
        common.Parallel(BatchFirst(28, 3, 1, 10), bf16=True)


def test_images_get_gradients():
    model, images = LastHidden(28, 9, 1, 10, nn.GRU), batches()[0].requires_grad_()
    gradient, expected = (
        torch.autograd.grad(net(images).sin().sum(), images) for net in (in_parts(model), model)
    )
    torch.testing.assert_close(gradient, expected)


def test_an_autocast_around_it_holds_within():
    model = mlp_mnist.Net()
    with torch.autocast("cpu", torch.bfloat16):
        outputs, expected = in_parts(model)(batches()[0]), model(batches()[0])
    assert outputs.dtype == torch.bfloat16
    torch.testing.assert_close(outputs, expected)


@pytest.mark.parametrize("without", [torch.no_grad, torch.inference_mode])
def test_evaluation_records_no_gradients(without):
    model = BatchFirst(28, 9, 2, 10)
    with without():
        outputs = in_parts(model)(batches()[0])
    assert not outputs.requires_grad
    torch.testing.assert_close(outputs, model(batches()[0]).detach())


@pytest.mark.parametrize("failing", [0, 2])
def test_an_error_in_any_part_is_raised(failing, monkeypatch):
    """The first part is the calling thread's."""

    def compute(self, images):
        if images.max() == failing:
            raise ZeroDivisionError
        return self.model(images)

    monkeypatch.setattr(common.Parallel, "compute", compute)
    images = torch.arange(3.0).repeat_interleave(16).view(-1, 1, 1, 1).expand(-1, 1, 28, 28)
    with pytest.raises(ZeroDivisionError):
        in_parts(Own())(images)
