"""LSTMs that read an MNIST image as 28 steps of 28 pixels, the way four tutorials do (docs/tutorials.md).

python lstm_mnist.py                                 # two layers of 128, batch first, Adam, 5 epochs
python lstm_mnist.py --recipe time-major             # columns as time steps, Adadelta, 10 epochs
python lstm_mnist.py --recipe sgd --cell gru         # any recipe with another recurrent layer
python lstm_mnist.py --save-model rnn.pth            # and later: --epochs 0 --load-model rnn.pth
"""

import itertools
import time

import common
from common import Parallel

import torch
from torch import nn


class BatchFirst(nn.Module):
    """Rows as time steps, the last step of the output (`batch-first`, `sgd`): `(N, 1, 28, 28)` to `(N, 10)`."""

    def __init__(self, in_dim, hidden_dim, n_layer, n_class, cell=nn.LSTM):
        super().__init__()
        self.lstm = cell(in_dim, hidden_dim, n_layer, batch_first=True)
        self.classifier = nn.Linear(hidden_dim, n_class)

    def forward(self, x):
        out, _ = self.lstm(x.squeeze(1))  # (N, 28, 28) to (N, 28, hidden), from an initial state of zeros
        out = out[:, -1, :]  # (N, hidden): the last step has seen all rows
        return self.classifier(out)


class LastHidden(nn.Module):
    """Rows as time steps, the last layer's final hidden state (`last-hidden`): `(N, 1, 28, 28)` to `(N, 10)`."""

    def __init__(self, in_dim, hidden_dim, n_layer, n_class, cell=nn.LSTM):
        super().__init__()
        self.rnn = cell(in_dim, hidden_dim, n_layer, batch_first=True)
        self.out = nn.Linear(hidden_dim, n_class)

    def forward(self, x):
        output, state = self.rnn(x.squeeze(1))  # output (N, 28, hidden)
        h_n = state[0] if isinstance(state, tuple) else state  # an LSTM's state is (h_n, c_n), the others' is h_n
        return self.out(h_n[-1])  # h_n (layers, N, hidden), batch first or not; h_n[-1] equals output[:, -1, :]


class TimeMajor(nn.Module):
    """Columns as time steps, left to right (`time-major`): `(N, 1, 28, 28)` to `(N, 10)`."""

    def __init__(self, in_dim, hidden_dim, n_layer, n_class, cell=nn.LSTM):
        super().__init__()
        self.rnn = cell(in_dim, hidden_dim, n_layer)
        self.classifier = nn.Linear(hidden_dim, n_class)

    def forward(self, x):
        x = x.squeeze(1)  # (N, 1, 28, 28) to (N, 28, 28)
        x = x.permute(2, 0, 1)  # the last dimension, the columns, comes first: (28, N, 28)
        out, _ = self.rnn(x)  # (28, N, hidden), from an initial state of zeros
        out = out[-1, :, :]  # (N, hidden)
        return self.classifier(out)


class EquationsLSTM(nn.LSTM):
    """`nn.LSTM` with its forward pass written out from the gates' equations (Hochreiter & Schmidhuber 1997, Gers 2000).

    The parameters are `nn.LSTM`'s own: `(N, T, in)` or time-major `(T, N, in)` to `output, (h_n, c_n)` with h_n and c_n
    of shape `(layers, N, hidden)`. One direction, with biases, without dropout.
    """

    def forward(self, x, state=None):
        x = x.transpose(0, 1) if self.batch_first else x
        zeros = x.new_zeros(self.num_layers, x.size(1), self.hidden_size)
        h_0, c_0 = (zeros, zeros) if state is None else state
        h_n, c_n = [], []
        for (U, W, b_ih, b_hh), h, c in zip(self.all_weights, h_0, c_0):  # per layer: U is weight_ih, W is weight_hh
            output = []
            for x_t in x:
                # PyTorch has two biases per gate and stacks the gates as i, f, g, o; its g is the tutorial's a
                i, f, a, o = (x_t @ U.T + b_ih + h @ W.T + b_hh).chunk(4, dim=1)
                i, f, a, o = i.sigmoid(), f.sigmoid(), a.tanh(), o.sigmoid()
                c = c * f + i * a
                h = o * c.tanh()
                output.append(h)
            x = torch.stack(output)  # the next layer's input
            h_n.append(h)
            c_n.append(c)
        return (x.transpose(0, 1) if self.batch_first else x), (torch.stack(h_n), torch.stack(c_n))


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


CELLS = {"lstm": nn.LSTM, "gru": nn.GRU, "rnn": nn.RNN, "equations": EquationsLSTM}
# What a tutorial prints: opening before each epoch, running every log_interval steps (0: never; by default "[1/5] Loss:
# 0.802155, Acc: 0.727267"), closing after each epoch, above the line per epoch. number counts from 1, epoch from 0.
RECIPES = {
    "batch-first": dict(
        model=BatchFirst, hidden=128, layers=2, optimizer="Adam", lr=0.001, batch_size=100, test_batch_size=100,
        epochs=5, normalize=False, log_interval=300,
        opening="epoch {number}\n**********\n",
        closing="Finish {number} epoch, Loss: {train_loss:.6f}, Acc: {train_acc:.6f}\n"
        "Test Loss: {valid_loss:.6f}, Acc: {valid_acc:.6f}\n",
    ),
    "sgd": dict(
        model=BatchFirst, hidden=50, layers=2, optimizer="SGD", lr=0.1, batch_size=64, test_batch_size=128,
        epochs=30, normalize=True,
    ),
    "last-hidden": dict(
        model=LastHidden, hidden=64, layers=1, optimizer="Adam", lr=0.001, batch_size=50, test_batch_size=1000,
        epochs=3, normalize=False, log_interval=50, running="{epoch}-{step}: accuracy:{first_batch}",
    ),
    "time-major": dict(
        model=TimeMajor, hidden=100, layers=2, optimizer="Adadelta", lr=0.1, batch_size=64, test_batch_size=128,
        epochs=10, normalize=True,
    ),
}  # fmt: skip


def main(argv=None):
    """Train, or predict (--predict); returns the model and its history, a record per epoch."""
    parser = common.parser(__file__, __doc__)
    add, natural = parser.add_argument, common.at_least(1)
    add("--recipe", choices=RECIPES, default="batch-first", help="a tutorial's settings (default: batch-first)")
    add("--cell", choices=CELLS, default="lstm", help="default: lstm; equations: the LSTM written out from its gates")
    add("--hidden", type=natural, metavar="N", help="units per layer")
    add("--layers", type=natural, metavar="N", help="stacked recurrent layers")
    add("--parts", type=natural, metavar="N", help="CPU: parts of a batch, of 16 images at least (default: one a core)")
    args = common.parse(parser, argv, RECIPES)  # each entry overridden by its flag
    torch.manual_seed(args.seed)
    model = args.model(28, args.hidden, args.layers, 10, CELLS[args.cell]).to(args.device)
    if args.predict:  # loads --load-model and classifies the pictures
        from support import predict

        return predict.main(args, model)
    train_loader, test_loader = common.loaders(args)  # MNIST's batches, on args.device; those for training shuffled
    criterion = nn.CrossEntropyLoss()
    variant = common.OPTIMIZERS[args.optimizer]  # fused or foreach: the same update in fewer kernels
    optimizer = getattr(torch.optim, args.optimizer)(model.parameters(), lr=args.lr, **{variant: True})
    state = dict(model=model, optimizer=optimizer, order=train_loader.generator)  # what --checkpoint saves
    net = Parallel(model, args.parts, args.bf16)  # the same weights; splits batches over the CPU's cores

    def first_batch():
        """The accuracy on the first test batch, which `last-hidden` prints while it trains."""
        _, accuracy = test(net, itertools.islice(test_loader, 1), criterion)
        net.train()  # after test's eval()
        return accuracy

    # Prints the first line; --load-model and --checkpoint are read here. history: the epochs that are done already
    with common.session(args, state, train_loader, test_loader) as history:
        for epoch in range(len(history), args.epochs):
            start = time.perf_counter()
            progress = common.progress(args, epoch, len(train_loader), first_batch)
            train_loss, train_acc = train(net, train_loader, criterion, optimizer, progress)
            valid_loss, valid_acc = test(net, test_loader, criterion)  # "valid", as in the tutorials: the test set
            # Adds to the history; saves what the flags ask for; prints the line per epoch
            common.end_epoch(args, state, history, start, train_loss, train_acc, valid_loss, valid_acc)
        common.finish(args, model, net, history, train_loader, test_loader)  # digit by digit; model file, pictures
    return model, history


if __name__ == "__main__":
    common.run(main)
