"""--compile: the MLP's training step as a compiled graph."""

import contextlib
import functools
import warnings

import torch
from torch import nn

PLAIN = torch.optim.SGD([torch.zeros(1)]).defaults


def training(net: nn.Module, criterion):
    """A `train` of the scripts' form for this network, whose forward and backward passes are one graph.

    The mathematics is that of the loop's own lines with plain SGD, without many small calls, whose overhead counts at a
    batch of 20. On a CPU no weight's gradient, as large as the weight, is stored: it is the product of the layer's
    input, `(B, in)`, and the gradient of its output, `(B, out)`, and after the graph `addmm_` multiplies and subtracts
    in one pass. Elsewhere the whole step is one graph, with CUDA a CUDA graph (benchmarks/speed.py measures both).
    The network's parameters are those of `nn.Linear` layers that are each called once, and used in no other way; where
    they are not, or the optimizer is not plain SGD, it raises SystemExit with one line.
    """
    torch._dynamo.config.trace_autograd_ops = True  # gradients within the graph
    linear, calls = [layer for layer in net.modules() if isinstance(layer, nn.Linear)], []

    @contextlib.contextmanager
    def recorded():  # while it lasts, `calls` gets each linear layer's call: the layer, its input and its output
        hook = lambda layer, inputs, output: calls.append((layer, *inputs, output))  # noqa: E731
        hooks = [layer.register_forward_hook(hook) for layer in linear]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    with recorded():
        net.eval()(torch.zeros(1, 1, 28, 28, device=next(net.parameters()).device))
    layers = [layer for layer, *_ in calls]
    calls.clear()
    trained = {parameter for layer in linear for parameter in layer.parameters() if parameter.requires_grad}
    if len(layers) != len(linear) or trained != {*net.parameters()} or any(layer.bias is None for layer in layers):
        raise SystemExit("--compile trains networks of nn.Linear layers, each called once; omit it")

    def passes(images, labels, lr):
        outputs = net(images)
        loss = criterion(outputs, labels)
        _, inputs, results = zip(*calls)
        calls.clear()
        gradients = torch.autograd.grad(loss, results)
        with torch.no_grad():
            for layer, gradient in zip(layers, gradients):
                layer.bias.sub_(gradient.sum(0), alpha=lr)
        # Copies: the first input is a view of the images, and making that anew outside the graph takes longer.
        pairs = [(x.detach().to(torch.float32, copy=True), gradient.float()) for x, gradient in zip(inputs, gradients)]
        return loss.detach() * len(labels), (outputs.detach().argmax(1) == labels).sum(), pairs

    def step(passes, images, labels, lr):
        loss, hits, pairs = passes(images, labels, lr)
        with torch.no_grad():
            for layer, (x, gradient) in zip(layers, pairs):
                layer.weight.addmm_(gradient.T, x, alpha=-lr)
        return loss, hits

    @functools.lru_cache(maxsize=1)
    def compiled(lr):  # for one learning rate; another is compiled anew
        torch.compiler.reset()  # graphs of other rates count against the eight that torch allows
        options = dict(fullgraph=True, dynamic=False)
        if layers[0].weight.device.type == "cpu":  # within a graph addmm_ would copy the weight
            return functools.partial(step, torch.compile(passes, **options))
        warnings.filterwarnings("ignore", "TensorFloat32")  # torch recommends TF32, which rounds to 10 bits
        return functools.partial(torch.compile(step, mode="reduce-overhead", **options), passes)

    def train(model, loader, criterion, optimizer, progress=None):
        group, *more = optimizer.param_groups
        free = ("lr", "fused", "foreach")
        other = [name for name, value in PLAIN.items() if name not in free and group.get(name) != value]
        if type(optimizer) is not torch.optim.SGD or more or other:
            what = " ".join(other) or ("several groups" if more else type(optimizer).__name__)
            raise SystemExit(f"--compile trains with plain SGD only, without {what}; omit it")
        net.train()
        lr, total, correct, count = group["lr"], 0.0, 0, 0
        with recorded():
            for images, labels in loader:
                loss, hits = compiled(lr)(images, labels, lr)
                total, correct, count = total + loss, correct + hits, count + len(labels)
                if progress:
                    progress(total, correct, count)
        return float(total) / count, float(correct) / count

    return train
