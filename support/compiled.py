"""--compile: the MLP's training step as one compiled graph."""

import torch


def training(model, criterion, lr):
    """A `train` of the scripts' form for this model, whose whole step with SGD is one graph.

    The same mathematics as the loop's own lines, in one graph instead of many small calls, whose overhead counts at a
    batch of 20 (benchmarks/speed.py). Raises SystemExit where torch is too old to put gradients into a graph.
    """
    if not hasattr(torch._dynamo.config, "trace_autograd_ops"):
        raise SystemExit(f"--compile needs a newer torch than {torch.__version__}; omit --compile")
    torch._dynamo.config.trace_autograd_ops = True  # gradients within the graph
    parameters = list(model.parameters())

    torch.compiler.reset()  # in a notebook, graphs of runs at other rates count against the eight allowed

    @torch.compile(fullgraph=True, dynamic=False)
    def step(images, labels):
        outputs = model(images)
        gradients = torch.autograd.grad(criterion(outputs, labels), parameters)
        with torch.no_grad():
            for parameter, gradient in zip(parameters, gradients):
                parameter.sub_(gradient, alpha=lr)
        return outputs.detach()

    def train(model, loader, criterion, optimizer):
        model.train()
        return [(step(images, labels), labels) for images, labels in loader]

    return train
