"""LSTMs that read an image as 28 steps of 28 pixels, as four tutorials do (docs/tutorials.md).

python lstm_mnist.py                           # two layers of 128, batch first, Adam, 5 epochs
python lstm_mnist.py --recipe time-major       # columns as time steps, Adadelta, 10 epochs
python lstm_mnist.py --recipe sgd --cell gru   # any recipe with another recurrent layer
python lstm_mnist.py --save-model rnn.pth      # and later: --epochs 0 --load-model rnn.pth
"""

import common  # first: it names a missing package in one line

import torch
from torch import nn


class BatchFirst(nn.Module):
    """Rows as time steps, the last step of the output: `(N, 1, 28, 28)` to `(N, 10)`.

    Used by `batch-first` and `sgd`.
    """

    def __init__(self, in_dim, hidden_dim, n_layer, n_class, cell=nn.LSTM):
        super().__init__()
        self.lstm = cell(in_dim, hidden_dim, n_layer, batch_first=True)
        self.classifier = nn.Linear(hidden_dim, n_class)

    def forward(self, x):
        x = x.squeeze(1)  # (N, 28, 28): rows are time steps
        out, _ = self.lstm(x)  # (N, 28, hidden); the initial state is zeros
        out = out[:, -1, :]  # (N, hidden): the last step has seen all rows
        return self.classifier(out)


class LastHidden(nn.Module):
    """Rows as time steps, the last layer's final hidden state: `(N, 1, 28, 28)` to `(N, 10)`.

    Used by `last-hidden`.
    """

    def __init__(self, in_dim, hidden_dim, n_layer, n_class, cell=nn.LSTM):
        super().__init__()
        self.rnn = cell(in_dim, hidden_dim, n_layer, batch_first=True)
        self.out = nn.Linear(hidden_dim, n_class)

    def forward(self, x):
        x = x.squeeze(1)  # (N, 28, 28): rows are time steps
        output, state = self.rnn(x)  # output (N, 28, hidden)
        h_n = state[0] if isinstance(state, tuple) else state  # an LSTM's state is (h_n, c_n)
        # h_n is (layers, N, hidden), batch first or not; h_n[-1] equals output[:, -1, :]
        return self.out(h_n[-1])


class TimeMajor(nn.Module):
    """Columns as time steps, left to right: `(N, 1, 28, 28)` to `(N, 10)`.

    Used by `time-major`.
    """

    def __init__(self, in_dim, hidden_dim, n_layer, n_class, cell=nn.LSTM):
        super().__init__()
        self.rnn = cell(in_dim, hidden_dim, n_layer)
        self.classifier = nn.Linear(hidden_dim, n_class)

    def forward(self, x):
        x = x.squeeze(1)  # (N, 28, 28)
        x = x.permute(2, 0, 1)  # (28, N, 28): columns are time steps
        out, _ = self.rnn(x)  # (28, N, hidden); the initial state is zeros
        out = out[-1, :, :]  # (N, hidden)
        return self.classifier(out)


class EquationsLSTM(nn.LSTM):
    """`nn.LSTM` with its forward pass written out from the gates' equations.

    Hochreiter & Schmidhuber 1997, Gers 2000. Parameters, arguments and results are those of
    `nn.LSTM`, for batches, one direction, with biases, without dropout.
    """

    def forward(self, x, state=None):
        if self.batch_first:
            x = x.transpose(0, 1)  # (T, N, in)
        if state is None:
            zeros = x.new_zeros(self.num_layers, x.size(1), self.hidden_size)
            state = zeros, zeros
        h_n, c_n = [], []
        for weights, h, c in zip(self.all_weights, *state):  # layer by layer
            U, W, b_ih, b_hh = weights  # the tutorial's letters: U is weight_ih, W is weight_hh
            output = []
            for x_t in x:
                # PyTorch has two biases per gate and stacks the gates as i, f, g, o; its g is the
                # tutorial's a
                i, f, a, o = (x_t @ U.T + b_ih + h @ W.T + b_hh).chunk(4, dim=1)
                i, f, a, o = i.sigmoid(), f.sigmoid(), a.tanh(), o.sigmoid()
                c = c * f + i * a
                h = o * c.tanh()
                output.append(h)
            x = torch.stack(output)  # the next layer's input
            h_n.append(h)
            c_n.append(c)
        if self.batch_first:
            x = x.transpose(0, 1)
        return x, (torch.stack(h_n), torch.stack(c_n))


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


CELLS = {"lstm": nn.LSTM, "gru": nn.GRU, "rnn": nn.RNN, "equations": EquationsLSTM}
RECIPES = {  # a tutorial's model, and its settings: the defaults of the flags
    "batch-first": dict(
        model=BatchFirst, cell="lstm", hidden=128, layers=2, optimizer="Adam", lr=0.001,
        batch_size=100, test_batch_size=100, epochs=5, normalize=False, log_interval=300,
    ),
    "sgd": dict(
        model=BatchFirst, cell="lstm", hidden=50, layers=2, optimizer="SGD", lr=0.1,
        batch_size=64, test_batch_size=128, epochs=30, normalize=True,
    ),
    "last-hidden": dict(
        model=LastHidden, cell="lstm", hidden=64, layers=1, optimizer="Adam", lr=0.001,
        batch_size=50, test_batch_size=1000, epochs=3, normalize=False, log_interval=50,
    ),
    "time-major": dict(
        model=TimeMajor, cell="lstm", hidden=100, layers=2, optimizer="Adadelta", lr=0.1,
        batch_size=64, test_batch_size=128, epochs=10, normalize=True,
    ),
}  # fmt: skip
MODEL_FLAGS = ("recipe", "cell", "hidden", "layers")  # these decide what the model is


def flags():
    """This script's parser."""
    parser = common.parser(__file__, __doc__)
    add = parser.add_argument
    add("--recipe", choices=RECIPES, help="a tutorial's settings (default: batch-first)")
    add("--cell", choices=CELLS, help="default: lstm; equations: an LSTM written out gate by gate")
    add("--hidden", type=common.between(1, 4096), metavar="N", help="units per layer")
    add("--layers", type=common.between(1, 100), metavar="N", help="stacked recurrent layers")
    return parser


class Run(common.Run):
    """A run that prints `last-hidden`'s own line during training."""

    def line(self, loss, acc):
        """For `last-hidden`: epoch-step, both from 0, and the accuracy on the first test batch."""
        if self.args.recipe != "last-hidden":
            return super().line(loss, acc)
        first_batch = next(iter(self.loaders[1]))
        _, accuracy = test(self.net, [first_batch], nn.CrossEntropyLoss())
        self.net.train()  # after test's eval()
        return f"{len(self.history)}-{self.step - 1}: accuracy:{accuracy}"


def main(argv=None):
    """Train, or predict (--predict); returns the model and its history, a record per epoch."""
    args = common.parse(flags(), argv, RECIPES, MODEL_FLAGS)
    torch.manual_seed(args.seed)
    model = args.model(28, args.hidden, args.layers, 10, CELLS[args.cell]).to(args.device)
    if args.predict:
        return common.predict(args, model)
    train_loader, test_loader = common.loaders(args)
    criterion = nn.CrossEntropyLoss()
    optimizer = common.optimizer(args, model)
    with Run(args, model, optimizer, train_loader, test_loader) as run:
        for epoch in run.epochs:
            if args.recipe == "batch-first":
                print(f"epoch {epoch + 1}\n**********")
            train_loss, train_acc = train(run.net, train_loader, criterion, optimizer, run.progress)
            valid_loss, valid_acc = test(run.net, test_loader, criterion)  # "valid": the test set
            if args.recipe == "batch-first":
                print(f"Finish {epoch + 1} epoch, Loss: {train_loss:.6f}, Acc: {train_acc:.6f}")
                print(f"Test Loss: {valid_loss:.6f}, Acc: {valid_acc:.6f}")
            run.end_epoch(train_loss, train_acc, valid_loss, valid_acc)
        run.finish(test)
    return model, run.history


if __name__ == "__main__":
    common.run(main)
