"""A feed-forward network for MNIST: 784 → 256 → 256 → 10, as in the tutorial (docs/tutorials.md).

python mlp_mnist.py                                  # SGD 0.01, batches of 20, 30 epochs
python mlp_mnist.py --epochs 5 --lr 0.1              # any entry of the recipe can be overridden
python mlp_mnist.py --save-model mlp.pth             # and later: --epochs 0 --load-model mlp.pth
"""

import common  # first: it names a missing package in one line

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
    """Train for one epoch; return the mean loss and accuracy over all images.

    Each batch is scored before its update. `progress(total, correct, count)`, if given, is called
    after each step with the sums so far.
    """
    device = next(model.parameters()).device
    model.train()
    total, correct, count = 0.0, 0, 0
    for images, labels in loader:
        images, labels = images.to(device), labels.to(device)
        outputs = model(images)
        loss = criterion(outputs, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        total += loss.detach() * len(labels)  # .item() would make each step wait for the device
        correct += (outputs.argmax(1) == labels).sum()
        count += len(labels)
        if progress:
            progress(total, correct, count)
    return float(total) / count, float(correct) / count


def test(model, loader, criterion):
    """Evaluate without gradients; return the mean loss and accuracy over all images."""
    device = next((parameter.device for parameter in model.parameters()), "cpu")
    model.eval()
    total, correct, count = 0.0, 0, 0
    with torch.no_grad():
        for images, labels in loader:
            images, labels = images.to(device), labels.to(device)
            outputs = model(images)
            total += criterion(outputs, labels) * len(labels)
            correct += (outputs.argmax(1) == labels).sum()
            count += len(labels)
    return float(total) / count, float(correct) / count


def report(model, loader, criterion, classes):
    """Print the test loss, then the accuracy of each digit and of all, as the tutorial does."""
    device = next(model.parameters()).device
    test_loss, _ = test(model, loader, criterion)
    print(f"Test Loss: {test_loss:.6f}\n")
    class_correct = [0] * 10
    class_total = [0] * 10
    with torch.no_grad():
        for images, labels in loader:
            images, labels = images.to(device), labels.to(device)
            correct = model(images).argmax(1) == labels
            for label, is_correct in zip(labels.tolist(), correct.tolist()):
                class_correct[label] += is_correct
                class_total[label] += 1
    for name, correct, total in zip(classes, class_correct, class_total):
        percent = f"{100 * correct // total:2d}%" if total else "None"
        print(f"The test accuracy of {name:>2} is : {percent} ({correct:2d}/{total:2d})")
    correct, total = sum(class_correct), sum(class_total)
    print(f"\nTest Accuracy (Overall): {100 * correct / total:.2f}% ({correct}/{total})")


RECIPE = {
    "optimizer": "SGD",
    "lr": 0.01,
    "batch_size": 20,
    "test_batch_size": 20,
    "epochs": 30,
    "parts": 1,  # --compile needs whole batches
    "compile": False,
}


def flags():
    """This script's parser."""
    parser = common.parser(__file__, __doc__)
    about = "torch.compile the training step (plain SGD only)"
    parser.add_argument("--compile", action="store_true", help=about)
    return parser


def main(argv=None):
    """Train, or predict (--predict); returns the model and its history, a record per epoch."""
    args = common.parse(flags(), argv, {"mlp": RECIPE})
    torch.manual_seed(args.seed)
    model = Net().to(args.device)
    if args.predict:
        return common.predict(args, model)
    train_loader, test_loader = common.loaders(args)
    criterion = nn.CrossEntropyLoss()
    optimizer = common.optimizer(args, model)
    train_epoch = common.compiled_train(optimizer) if args.compile else train
    with common.Run(args, model, optimizer, train_loader, test_loader) as run:
        net, progress = run.net, run.progress
        print(model)
        for epoch in run.epochs:
            train_loss, train_acc = train_epoch(net, train_loader, criterion, optimizer, progress)
            print(f"epoch:{epoch + 1} Training loss:{train_loss:.6f}")
            valid_loss, valid_acc = test(net, test_loader, criterion)  # "valid": the test set
            run.end_epoch(train_loss, train_acc, valid_loss, valid_acc)
        report(net, test_loader, criterion, run.classes)
        run.finish(test)
    return model, run.history


if __name__ == "__main__":
    common.run(main)
