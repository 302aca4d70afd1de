"""A feed-forward network for MNIST: 784 → 256 → 256 → 10, with ReLU, as in its tutorial (docs/tutorials.md).

python mlp_mnist.py                                  # SGD 0.01, batches of 20, 30 epochs
python mlp_mnist.py --epochs 5 --lr 0.1              # any entry of the recipe can be overridden
python mlp_mnist.py --save-model mlp.pth             # and later: --epochs 0 --load-model mlp.pth
"""

import common  # first: from here on Ctrl-C ends in one line, also while torch is being imported

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
        out = x.flatten(1)  # (N, 784)
        out = self.relu(self.fc1(out))
        out = self.relu(self.fc2(out))
        return self.fc3(out)


def train(model, loader, criterion, optimizer):
    """Train on the loader's batches; returns `[(outputs (B, 10), labels (B,)), …]`, computed before each update."""
    model.train()
    seen = []
    for images, labels in loader:
        outputs = model(images)
        loss = criterion(outputs, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        seen.append((outputs.detach(), labels))
    return seen


def test(model, loader):
    """Evaluate without gradients; returns `[(outputs (B, 10), labels (B,)), …]`."""
    model.eval()
    with torch.no_grad():
        return [(model(images), labels) for images, labels in loader]


RECIPES = {
    "mlp": dict(
        optimizer="SGD", lr=0.01, batch_size=20, test_batch_size=20, epochs=30, normalize=False, log_interval=0,
        closing="epoch:{number} Training loss:{train_loss:.6f}",
    ),
}  # fmt: skip


def build(args):
    """The network, initialized from the seed."""
    torch.manual_seed(args.seed)
    return Net().to(args.device)


def fit(args):
    """Train as the flags say; returns the model and its history, a record per epoch."""
    model = build(args)
    train_loader, test_loader = common.loaders(args)
    criterion = nn.CrossEntropyLoss()
    optimizer = common.optimizer(model, args)
    run = common.Run(args, model, optimizer, train_loader, test_loader)  # prints the first line; may load a file
    print(model, flush=True)  # as the tutorial does
    model = common.in_processes(model, train_loader)  # the same model, unless torchrun started several processes
    train_batches = train
    if args.compile:
        from support import compiled

        train_batches = compiled.training(model, criterion, args.lr)
    for _ in run.epochs():
        for batches in run.batches():  # an epoch's batches in pieces; lines are printed between them
            run.trained += train_batches(model, batches, criterion, optimizer)
        run.end_epoch(test(model, test_loader))  # prints, saves
    return run.finish(test(model, test_loader))


def main(argv=None):
    """Train, or --predict; returns `(model, history)`."""
    parser = common.parser(__file__, __doc__)
    parser.set_defaults(recipe=["mlp"])
    parser.add_argument("--compile", action="store_true", help="compile the training step (SGD only)")
    (args,) = common.parse(parser, argv, RECIPES)
    if args.compile and args.optimizer != "SGD":
        parser.error(f"--compile goes with --optimizer SGD, not {args.optimizer}")
    with common.session([args]):
        return common.predict(build(args), args) if args.predict else fit(args)


if __name__ == "__main__":
    main()
