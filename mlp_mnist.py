"""A feed-forward network reads MNIST: 784 to 256 to 256 to 10, with ReLU (003).

python mlp_mnist.py                                  # SGD 0.01, batches of 20, 30 epochs
python mlp_mnist.py --epochs 5 --lr 0.1              # any entry of the recipe can be overridden
python mlp_mnist.py --save-model mlp.pth             # and later: --epochs 0 --load-model mlp.pth

The tutorial never shuffles; here the training images come in a fresh order each epoch.
"""

import time

import torch
from torch import nn

import checkpoint
import common


class Net(nn.Module):
    """003's network: `(N, 1, 28, 28)` to `(N, 10)`."""

    def __init__(self):
        super().__init__()
        self.fc1 = nn.Linear(28 * 28, 256)
        self.fc2 = nn.Linear(256, 256)
        self.fc3 = nn.Linear(256, 10)

    def forward(self, x):
        x = x.flatten(1)
        x = torch.relu(self.fc1(x))
        x = torch.relu(self.fc2(x))
        return self.fc3(x)


RECIPE = dict(  # 003
    optimizer="SGD", lr=0.01, batch_size=20, test_batch_size=20, epochs=30, normalize=False, log_interval=0,
)  # fmt: skip


def train(args):
    """Train the network and print what the tutorial prints."""
    recipe = common.override(RECIPE, args)
    torch.manual_seed(args.seed)
    model = Net().to(args.device)
    if args.load_model:
        checkpoint.load_model(args.load_model, model)
    train_loader, test_loader = common.loaders(recipe, args)
    criterion = nn.CrossEntropyLoss()
    optimizer = common.optimizer(recipe.optimizer, model, recipe.lr)
    run = common.describe(__file__, "mlp", model, recipe, args)
    valid = None

    for epoch in range(recipe.epochs):
        start = time.perf_counter()
        model.train()
        seen = []
        for step, (image, label) in enumerate(train_loader, 1):
            output = model(image)
            loss = criterion(output, label)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            seen.append((output.detach(), label))
            if recipe.log_interval and step % recipe.log_interval == 0:
                print(common.running(epoch, recipe.epochs, step, seen, model, test_loader))
        valid = common.evaluate(model, test_loader)
        record = common.record(run, epoch, seen, valid, start)
        print(common.epoch_line(record))
        if args.log:
            common.append_log(args.log, [record])

    common.report(valid or common.evaluate(model, test_loader))
    if args.save_model:
        checkpoint.save_model(args.save_model, model)


def main(argv=None):
    args = common.parser(__doc__).parse_args(argv)
    common.set_up(args)
    torch.set_num_threads(1)  # products this small are slower, and their times erratic, when cores share them
    train(args)


if __name__ == "__main__":
    main()
