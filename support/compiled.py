"""--compile: the MLP's training step as a compiled graph."""

import sys
import warnings

import torch

PLAIN = torch.optim.SGD([torch.zeros(1)]).defaults


def training(optimizer):
    """A `train` like the scripts' whose step is one graph: forward, backward and plain SGD.

    The mathematics is the loop's, without the overhead of many small calls, which counts at a batch
    of 20 (benchmarks/speed.py --faster measures both). On CUDA it is a CUDA graph. Ends in one line
    and status 2 if the optimizer is not plain SGD.
    """
    check_plain(optimizer)
    torch._dynamo.config.trace_autograd_ops = True  # so that the graph can hold autograd.grad
    warnings.filterwarnings("ignore", "TensorFloat32")  # torch's advice to use it: 10-bit mantissas
    steps = {}  # by model, compiled at its first epoch

    def train(model, loader, criterion, optimizer, progress=None):
        device = next(model.parameters()).device
        if model not in steps:
            steps[model] = compiled_step(model, criterion, device)
        model.train()
        # A number would be compiled into the graph, anew for each rate
        lr = torch.tensor(optimizer.param_groups[0]["lr"], device=device)
        total, correct, count = 0.0, 0, 0
        for images, labels in loader:
            batch_total, batch_correct = steps[model](images.to(device), labels.to(device), lr)
            total += batch_total
            correct += batch_correct
            count += len(labels)
            if progress:
                progress(total, correct, count)
        return float(total) / count, float(correct) / count

    return train


def compiled_step(model, criterion, device):
    """One step as a graph: from images, labels and rate to the batch's loss and correct answers."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]

    def step(images, labels, lr):
        outputs = model(images)
        loss = criterion(outputs, labels)
        gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
        with torch.no_grad():
            for parameter, gradient in zip(parameters, gradients):
                if gradient is not None:
                    parameter.sub_(lr * gradient)
        return loss.detach() * len(labels), (outputs.detach().argmax(1) == labels).sum()

    mode = "default" if device.type == "cpu" else "reduce-overhead"
    return torch.compile(step, fullgraph=True, dynamic=False, mode=mode)


def check_plain(optimizer) -> None:
    """Refuse anything but plain SGD."""
    if type(optimizer) is not torch.optim.SGD:
        strange = [type(optimizer).__name__]
    elif len(optimizer.param_groups) > 1:
        strange = ["several groups"]
    else:
        free = ("lr", "fused", "foreach")
        group = optimizer.param_groups[0]
        strange = [name for name in PLAIN if name not in free and group[name] != PLAIN[name]]
    if strange:
        what = f"without {' '.join(strange)}"
        print(f"--compile trains with plain SGD only, {what}; omit it", file=sys.stderr)
        raise SystemExit(2)
