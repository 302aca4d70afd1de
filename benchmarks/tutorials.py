"""The tutorials' own programs, as far as they can share a loop.

python benchmarks/tutorials.py sgd --seed 1 --log run.jsonl

A DataLoader over torchvision's MNIST, each image transformed on its own, with the tutorial's
workers, batch sizes and order (`mlp`'s does not shuffle), the optimizer as it comes, `.item()` of
loss and hits at every step, nothing tuned. All report the same four numbers, so that the tutorials
differ in this a little: `sgd`'s adds up tensors, `time-major`'s loop is not on its page,
`last-hidden`'s sums nothing in training but tests 24 times per epoch, `mlp`'s sums the loss alone
and counts the test's hits image by image.
"""

import argparse
import contextlib
import itertools
import time
from pathlib import Path

import torch
from measuring import RECIPES, part_of_mnist
from torch import nn
from torch.utils.data import DataLoader
from torchvision import datasets, transforms

import mlp_mnist
from support import log

WORKERS = {"last-hidden": 2, "time-major": 4}  # of the DataLoader; the others have none
DEVICE = torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")


def network(name: str) -> nn.Module:
    """The recipe's network; the tutorial's class and ours are the same one."""
    if name == "mlp":
        return mlp_mnist.Net()
    recipe = RECIPES[name]
    return recipe["model"](28, recipe["hidden"], recipe["layers"], 10)


def as_written(name: str, folder: str, seed: int = 1):
    """The tutorial's `train(batches)`, `test()` and training loader, as it writes them.

    Both return loss and accuracy: the mean over batches of the one, over samples of the other.
    """
    recipe, workers = RECIPES[name], WORKERS.get(name, 0)
    transform = transforms.ToTensor()
    if recipe["normalize"]:
        transform = transforms.Compose([transform, transforms.Normalize([0.5], [0.5])])
    train_set = datasets.MNIST(folder, True, transform)
    test_set = datasets.MNIST(folder, False, transform)
    shuffle = name != "mlp"
    train_loader = DataLoader(train_set, recipe["batch_size"], shuffle, num_workers=workers)
    test_loader = DataLoader(test_set, recipe["test_batch_size"], num_workers=workers)
    torch.manual_seed(seed)
    model = network(name).to(DEVICE)
    criterion = nn.CrossEntropyLoss()
    optimizer = getattr(torch.optim, recipe["optimizer"])(model.parameters(), lr=recipe["lr"])

    def train(batches) -> tuple[float, float]:
        model.train()
        total, hits, steps, samples = 0.0, 0, 0, 0
        for image, label in batches:
            image, label = image.to(DEVICE), label.to(DEVICE)
            output = model(image)
            loss = criterion(output, label)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.item()
            hits += (output.argmax(1) == label).sum().item()
            steps += 1
            samples += len(label)
        return total / steps, hits / samples

    def test() -> tuple[float, float]:
        model.eval()
        total, hits = 0.0, 0
        with torch.set_grad_enabled(name == "sgd"):  # whose page records gradients here, too
            for image, label in test_loader:
                image, label = image.to(DEVICE), label.to(DEVICE)
                output = model(image)
                total += criterion(output, label).item()
                hits += (output.argmax(1) == label).sum().item()
        return total / len(test_loader), hits / len(test_set)

    return train, test, train_loader


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recipe", choices=RECIPES)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--log", type=Path, required=True)
    parser.add_argument("--epochs", type=int, help="default: the tutorial's")
    parser.add_argument("--warm-up", type=int, default=0, help="steps before the first epoch")
    parser.add_argument("--data-dir", metavar="DIR", help="default: all of MNIST")
    args = parser.parse_args()
    data = part_of_mnist()
    if args.data_dir:  # unpacking may change what glibc keeps, and so the speed
        data = contextlib.nullcontext(args.data_dir)
    with data as folder:
        train, test, train_loader = as_written(args.recipe, folder, args.seed)
    if args.warm_up:
        train(itertools.islice(train_loader, args.warm_up))
    for _ in range(args.epochs or RECIPES[args.recipe]["epochs"]):
        start = time.perf_counter()
        train_loss, _ = train(train_loader)
        valid_loss, valid_acc = test()
        record = {"train_loss": train_loss, "valid_loss": valid_loss, "valid_acc": valid_acc}
        log.append(args.log, [record | {"seconds": time.perf_counter() - start}])


if __name__ == "__main__":
    main()
