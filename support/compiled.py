"""--compile: the MLP's training step as a compiled graph."""

import warnings

import torch
from torch import nn

PLAIN = torch.optim.SGD([torch.zeros(1)]).defaults


def training(net: nn.Module, criterion):
    """A `train` of the scripts' form for this network; each step is one graph: forward, backward and plain SGD.

    The mathematics is that of the loop's own lines, without their many small calls, whose overhead counts at a batch of
    20 (benchmarks/speed.py measures both). With CUDA it is a CUDA graph. `train` raises SystemExit with one line where
    the optimizer is not plain SGD.
    """
    torch._dynamo.config.trace_autograd_ops = True  # gradients within the graph
    warnings.filterwarnings("ignore", "TensorFloat32")  # torch recommends TF32, which rounds to 10 bits
    parameters = [parameter for parameter in net.parameters() if parameter.requires_grad]

    def step(images, labels, lr):
        outputs = net(images)
        loss = criterion(outputs, labels)
        gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
        with torch.no_grad():
            for parameter, gradient in zip(parameters, gradients):
                if gradient is not None:
                    parameter.sub_(lr * gradient)
        return loss.detach() * len(labels), (outputs.detach().argmax(1) == labels).sum()

    device = parameters[0].device
    mode = "default" if device.type == "cpu" else "reduce-overhead"
    compiled = torch.compile(step, fullgraph=True, dynamic=False, mode=mode)

    def train(model, loader, criterion, optimizer, progress=None):
        group, *more = optimizer.param_groups
        changed = [n for n, value in PLAIN.items() if n not in ("lr", "fused", "foreach") and group.get(n) != value]
        if type(optimizer) is not torch.optim.SGD or more or changed:
            what = " ".join(changed) or ("several groups" if more else type(optimizer).__name__)
            raise SystemExit(f"--compile trains with plain SGD only, without {what}; omit it")
        net.train()
        lr = torch.tensor(group["lr"], device=device)  # as a number each rate would be compiled anew
        total, correct, count = 0.0, 0, 0
        for images, labels in loader:
            loss, hits = compiled(images, labels, lr)
            total, correct, count = total + loss, correct + hits, count + len(labels)
            if progress:
                progress(total, correct, count)
        return float(total) / count, float(correct) / count

    return train
