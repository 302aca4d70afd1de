"""LSTMs that read an MNIST image as 28 steps of 28 pixels, the way four tutorials do (docs/tutorials.md).

python lstm_mnist.py                                 # two layers of 128, batch first, Adam, 5 epochs
python lstm_mnist.py --recipe time-major             # columns as time steps, Adadelta, 10 epochs
python lstm_mnist.py --recipe all --cell gru         # every recipe, one after the other, then a table
python lstm_mnist.py --save-model rnn.pth            # and later: --epochs 0 --load-model rnn.pth
"""

import common  # first: from here on Ctrl-C ends in one line, also while torch is being imported

import torch
from torch import nn


class BatchFirst(nn.Module):
    """Rows as time steps, batch first, the last step of the output: `(N, 1, 28, 28)` to `(N, 10)`."""

    def __init__(self, in_dim, hidden_dim, n_layer, n_class, cell=nn.LSTM):
        super().__init__()
        self.lstm = cell(in_dim, hidden_dim, n_layer, batch_first=True)
        self.classifier = nn.Linear(hidden_dim, n_class)

    def forward(self, x):
        out, _ = self.lstm(x.squeeze(1))  # (N, 28, 28) to (N, 28, hidden)
        out = out[:, -1, :]  # (N, hidden): the last step has seen all rows
        return self.classifier(out)


class LastHidden(nn.Module):
    """Rows as time steps, batch first, the last layer's final hidden state: `(N, 1, 28, 28)` to `(N, 10)`."""

    def __init__(self, in_dim, hidden_dim, n_layer, n_class, cell=nn.LSTM):
        super().__init__()
        self.rnn = cell(in_dim, hidden_dim, n_layer, batch_first=True)
        self.out = nn.Linear(hidden_dim, n_class)

    def forward(self, x):
        output, state = self.rnn(x.squeeze(1))  # output (N, 28, hidden)
        h_n = state[0] if isinstance(state, tuple) else state  # an LSTM's state is (h_n, c_n), the others' is h_n
        return self.out(h_n[-1])  # h_n (layers, N, hidden), batch first or not; h_n[-1] equals output[:, -1, :]


class TimeMajor(nn.Module):
    """Columns as time steps, left to right, time-major: `(N, 1, 28, 28)` to `(N, 10)`."""

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
    of shape `(layers, N, hidden)`. One direction, no dropout.
    """

    def forward(self, x, state=None):
        x = x.transpose(0, 1) if self.batch_first else x
        zeros = x.new_zeros(self.num_layers, x.size(1), self.hidden_size)
        h_0, c_0 = (zeros, zeros) if state is None else state
        h_n, c_n = [], []
        for (U, W, b_ih, b_hh), h, c in zip(self.all_weights, h_0, c_0):  # layer by layer
            output = []
            for x_t in x:
                # PyTorch has two biases per gate and stacks the gates' rows in the order i, f, g, o; its g is a here
                i, f, a, o = (x_t @ U.T + b_ih + h @ W.T + b_hh).chunk(4, dim=1)
                i, f, a, o = i.sigmoid(), f.sigmoid(), a.tanh(), o.sigmoid()
                c = c * f + i * a
                h = o * c.tanh()
                output.append(h)
            x = torch.stack(output)  # the next layer's input
            h_n.append(h)
            c_n.append(c)
        return x.transpose(0, 1) if self.batch_first else x, (torch.stack(h_n), torch.stack(c_n))


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


CELLS = {"lstm": nn.LSTM, "gru": nn.GRU, "rnn": nn.RNN, "equations": EquationsLSTM}
# opening, running, closing: what a tutorial prints before an epoch, every log_interval steps (0: never), after it
RECIPES = {
    "batch-first": dict(
        model=BatchFirst, hidden=128, layers=2, optimizer="Adam", lr=0.001, batch_size=100, test_batch_size=100,
        epochs=5, normalize=False, log_interval=300,
        opening="epoch {number}\n**********",
        closing="Finish {number} epoch, Loss: {train_loss:.6f}, Acc: {train_acc:.6f}\n"
        "Test Loss: {valid_loss:.6f}, Acc: {valid_acc:.6f}",
    ),
    "sgd": dict(
        model=BatchFirst, hidden=50, layers=2, optimizer="SGD", lr=0.1, batch_size=64, test_batch_size=128,
        epochs=30, normalize=True, log_interval=0,
    ),
    "last-hidden": dict(
        model=LastHidden, hidden=64, layers=1, optimizer="Adam", lr=0.001, batch_size=50, test_batch_size=1000,
        epochs=3, normalize=False, log_interval=50, running="{epoch}-{step}: accuracy:{first_batch}",
    ),
    "time-major": dict(
        model=TimeMajor, hidden=100, layers=2, optimizer="Adadelta", lr=0.1, batch_size=64, test_batch_size=128,
        epochs=10, normalize=True, log_interval=0,
    ),
}  # fmt: skip


def build(args):
    """The recipe's model, initialized from the seed."""
    torch.manual_seed(args.seed)
    return args.model(28, args.hidden, args.layers, 10, CELLS[args.cell]).to(args.device)


def fit(args):
    """Train one recipe; returns the model and its history, a record per epoch."""
    model = build(args)
    train_loader, test_loader = common.loaders(args)
    criterion = nn.CrossEntropyLoss()
    optimizer = common.optimizer(model, args)
    run = common.Run(args, model, optimizer, train_loader, test_loader)  # prints the first line; may load a file
    common.in_parts(model, args)  # faster on several cores, above all on busy ones
    model = common.in_processes(model, train_loader)  # the same model, unless torchrun started several processes
    for _ in run.epochs():
        for batches in run.batches():  # an epoch's batches in pieces; lines are printed between them
            run.trained += train(model, batches, criterion, optimizer)
        run.end_epoch(test(model, test_loader))  # prints, saves
    return run.finish(test(model, test_loader))


def main(argv=None):
    """Train, or --predict; returns `(model, history)`, a list of such pairs for several recipes."""
    parser = common.parser(__file__, __doc__)
    add, count = parser.add_argument, common.number(int, 1)
    add("--recipe", nargs="+", choices=[*RECIPES, "all"], default=["batch-first"], help="default: batch-first")
    add("--cell", choices=CELLS, default="lstm", help="default: lstm; equations: the LSTM written out from its gates")
    add("--hidden", type=count, metavar="N", help="units per layer")
    add("--layers", type=count, metavar="N", help="stacked recurrent layers")
    add("--parts", type=count, metavar="N", help="CPU: parts of a batch, of 16 images or more (default: one per core)")
    runs = common.parse(parser, argv, RECIPES)
    with common.session(runs):
        if runs[0].predict:
            return common.predict(build(runs[0]), runs[0])
        return common.summary(runs, [fit(args) for args in runs])


if __name__ == "__main__":
    main()
