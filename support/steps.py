"""What an LSTM knows after each step of an image: its classifier, applied to every step."""

import torch
from torch import nn

from support import plots


def figure(model: nn.Module, loader, names: list[str]):
    """A figure: the probabilities for a digit of each class, and the accuracy, after each step.

    None for a model that `after_each_step` cannot read.
    """
    images = one_of_each(loader)
    answers = after_each_step(model, images)
    if answers is None:
        return None
    accuracy = accuracy_by_step(model, loader)
    probabilities = answers.softmax(2).cpu()
    pixels = images[:, 0].cpu()
    return plots.steps(pixels, probabilities, reads_columns(model), accuracy, names)


def after_each_step(model: nn.Module, images: torch.Tensor):
    """The outputs `(28, N, 10)` that the classifier gives for the hidden state after each step.

    None unless the model is a recurrent module of one direction and a linear layer that gets its
    last step.
    """
    recurrent = [layer for layer in model.modules() if isinstance(layer, nn.RNNBase)]
    linear = [layer for layer in model.modules() if isinstance(layer, nn.Linear)]
    if len(recurrent) != 1 or len(linear) != 1 or recurrent[0].bidirectional:
        return None
    if linear[0].in_features != recurrent[0].hidden_size:
        return None
    states = []
    hook = recurrent[0].register_forward_hook(lambda layer, inputs, out: states.append(out[0]))
    with torch.no_grad():
        outputs = model(images)
        hook.remove()
        steps = states[0].transpose(0, 1) if recurrent[0].batch_first else states[0]
        answers = linear[0](steps)
    if answers[-1].shape != outputs.shape:
        return None
    same = torch.allclose(answers[-1], outputs, rtol=1e-3, atol=1e-3)
    return answers if same else None


def reads_columns(model: nn.Module) -> bool:
    """Whether a step is a column of the image, judged by the first step."""
    image = torch.zeros(1, 1, 28, 28, device=next(model.parameters()).device)
    blank = after_each_step(model, image)
    image[..., 1:, 0] = 1  # the first column, without the first row
    return not torch.equal(after_each_step(model, image)[0], blank[0])


def accuracy_by_step(model: nn.Module, loader) -> list[float]:
    """The accuracy on the loader's images after each of the 28 steps."""
    right = 0
    for images, labels in loader:
        answers = after_each_step(model, images)
        right += (answers.argmax(2) == labels).sum(1)
    return (right / len(loader.labels)).tolist()


def one_of_each(loader) -> torch.Tensor:
    """The loader's first image of each class, `(10, 1, 28, 28)` at most."""
    first = {}
    for images, labels in loader:
        for image, label in zip(images, labels.tolist()):
            first.setdefault(label, image)
    return torch.stack([first[label] for label in sorted(first)])
