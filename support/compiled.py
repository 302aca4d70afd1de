"""--compile: the MLP's training step as a compiled graph."""

import contextlib
import functools
import warnings

import torch


def training(model, criterion, lr):
    """A `train` of the scripts' form for this model, whose forward and backward passes are one graph.

    The model's parameters are those of `nn.Linear` layers, called in the order of their definition. The mathematics is
    that of the loop's own lines with SGD, without many small calls, whose overhead counts at a batch of 20. On a CPU no
    weight's gradient, as large as the weight, is stored: it is the product of the layer's input, `(B, in)`, and the
    gradient of its output, `(B, out)`, and after the graph `addmm_` multiplies and subtracts in one pass. Elsewhere the
    whole step is one graph, with CUDA a CUDA graph (benchmarks/speed.py measures both). Raises SystemExit where torch
    is too old for gradients within a graph.
    """
    if not hasattr(torch._dynamo.config, "trace_autograd_ops"):
        raise SystemExit(f"--compile needs a newer torch than {torch.__version__}; omit --compile")
    torch._dynamo.config.trace_autograd_ops = True  # gradients within the graph
    layers = [layer for layer in model.modules() if isinstance(layer, torch.nn.Linear)]
    calls = []  # each layer's input and output in a step

    def keep(layer, inputs, output):
        calls.append((*inputs, output))

    def passes(images, labels):
        outputs = model(images)
        inputs, results = zip(*calls)
        calls.clear()
        gradients = torch.autograd.grad(criterion(outputs, labels), results)
        with torch.no_grad():
            for layer, gradient in zip(layers, gradients):
                layer.bias.sub_(gradient.sum(0), alpha=lr)
        # Copies: the first input is a view of the images, and making that anew outside the graph takes longer.
        inputs = [x.detach().to(torch.float32, copy=True) for x in inputs]
        return outputs.detach(), [(x, gradient.float()) for x, gradient in zip(inputs, gradients)]

    def update(passes, images, labels):
        outputs, pairs = passes(images, labels)
        with torch.no_grad():
            for layer, (x, gradient) in zip(layers, pairs):
                layer.weight.addmm_(gradient.T, x, alpha=-lr)
        return outputs

    torch.compiler.reset()  # in a notebook, graphs of runs at other rates count against the eight allowed
    options = dict(fullgraph=True, dynamic=False)
    if layers[0].weight.device.type == "cpu":
        step = functools.partial(update, torch.compile(passes, **options))  # within a graph addmm_ copies the weight
    else:
        warnings.filterwarnings("ignore", "TensorFloat32")  # torch recommends TF32, which rounds to 10 bits
        graph = torch.compile(update, mode="reduce-overhead", **options)

        def step(images, labels):
            return graph(passes, images, labels).clone()  # a CUDA graph writes its next outputs to the same place

    def train(model, loader, criterion, optimizer):
        model.train()
        with contextlib.ExitStack() as hooks:
            for layer in layers:
                hooks.enter_context(layer.register_forward_hook(keep))
            return [(step(images, labels), labels) for images, labels in loader]

    return train
