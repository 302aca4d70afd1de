"""A feed-forward network for MNIST: 784 → 256 → 256 → 10, with ReLU, as in its tutorial (docs/tutorials.md).

python mlp_mnist.py                                  # SGD 0.01, batches of 20, 30 epochs
python mlp_mnist.py --epochs 5 --lr 0.1              # any entry of the recipe can be overridden
python mlp_mnist.py --save-model mlp.pth             # and later: --epochs 0 --load-model mlp.pth
"""

import time

import common
from common import Parallel

import torch
from torch import nn


class Net(nn.Module):
    """The tutorial's network: `(N, 1, 28, 28)` to `(N, 10)`."""

    def __init__(self):
        super().__init__()
        self.fc1 = nn.Linear(28 * 28, 256)
        self.fc2 = nn.Linear(256, 256)
        self.fc3 = nn.Linear(256, 10)
        self.relu = nn.ReLU()

    def forward(self, x):
        x = x.flatten(1)  # (N, 784)
        out = self.relu(self.fc1(x))
        out = self.relu(self.fc2(out))
        return self.fc3(out)


def train(model, loader, criterion, optimizer, progress=None):
    """Train on the loader's batches, on the model's device; returns loss and accuracy, the means over all images.

    Each batch is scored before its update. `progress(total, correct, count)`, if given, is called after each step.
    """
    model.train()
    total, correct, count = 0.0, 0, 0
    for images, labels in loader:
        outputs = model(images)
        loss = criterion(outputs, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        total += loss.detach() * len(labels)  # added up on the device: no step waits for a number
        correct += (outputs.argmax(1) == labels).sum()
        count += len(labels)
        if progress:
            progress(total, correct, count)  # updates the bar; prints a line every --log-interval steps
    return float(total) / count, float(correct) / count


def test(model, loader, criterion):
    """Evaluate without gradients; returns loss and accuracy, the means over all images."""
    model.eval()
    total, correct, count = 0.0, 0, 0
    with torch.no_grad():
        for images, labels in loader:
            outputs = model(images)
            total += criterion(outputs, labels) * len(labels)
            correct += (outputs.argmax(1) == labels).sum()
            count += len(labels)
    return float(total) / count, float(correct) / count


RECIPE = dict(
    optimizer="SGD", lr=0.01, batch_size=20, test_batch_size=20, epochs=30, parts=1,
    closing="epoch:{number} Training loss:{train_loss:.6f}\n",  # the tutorial's line, above the line per epoch
)  # fmt: skip


def main(argv=None):
    """Train, or predict (--predict); returns the model and its history, a record per epoch."""
    parser = common.parser(__file__, __doc__)
    parser.add_argument("--compile", action="store_true", help="torch.compile the training step (plain SGD only)")
    args = common.parse(parser, argv, {"mlp": RECIPE})  # the recipe's entries, each overridden by its flag
    if args.compile and args.optimizer != "SGD":
        parser.error(f"--compile trains with SGD, not with {args.optimizer}")
    torch.manual_seed(args.seed)
    model = Net().to(args.device)
    if args.predict:  # loads --load-model and classifies the pictures
        from support import predict

        return predict.main(args, model)
    train_loader, test_loader = common.loaders(args)  # MNIST's batches, on args.device; those for training shuffled
    criterion = nn.CrossEntropyLoss()
    variant = common.OPTIMIZERS[args.optimizer]  # fused or foreach: the same update in fewer kernels
    optimizer = getattr(torch.optim, args.optimizer)(model.parameters(), lr=args.lr, **{variant: True})
    state = dict(model=model, optimizer=optimizer, order=train_loader.generator)  # what --checkpoint saves
    # The same weights, computed in bfloat16 or over torchrun's processes
    net = Parallel(model, 1, args.bf16) if args.bf16 or common.WORLD > 1 else model
    train_epoch = train
    if args.compile:
        from support import compiled

        train_epoch = compiled.training(net, criterion)  # is called as train is
    # Prints the first line; --load-model and --checkpoint are read here. history: the epochs that are done already
    with common.session(args, state, train_loader, test_loader) as history:
        common.say(model)  # prints it, as the tutorial does
        for epoch in range(len(history), args.epochs):
            start = time.perf_counter()
            progress = common.progress(args, epoch, len(train_loader))
            train_loss, train_acc = train_epoch(net, train_loader, criterion, optimizer, progress)
            valid_loss, valid_acc = test(net, test_loader, criterion)  # "valid", as in a tutorial: the test set
            # Adds to the history; saves what the flags ask for; prints the line per epoch
            common.end_epoch(args, state, history, start, train_loss, train_acc, valid_loss, valid_acc)
        common.finish(args, model, net, history, train_loader, test_loader)  # digit by digit; model file, pictures
    return model, history


if __name__ == "__main__":
    common.run(main)
