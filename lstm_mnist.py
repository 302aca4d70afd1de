"""LSTMs that read an MNIST image as 28 steps of 28 pixels, four tutorials' ways.

python lstm_mnist.py                                 # 004: two layers of 128, batch first, Adam, 5 epochs
python lstm_mnist.py --recipe time-major             # 001: columns as time steps, Adadelta, 10 epochs
python lstm_mnist.py --recipe all --cell gru         # every recipe one after the other, then a table
python lstm_mnist.py --save-model rnn.pth            # and later: --epochs 0 --load-model rnn.pth
"""

import time

import torch
from torch import nn
from tqdm import tqdm

import checkpoint
import common
import mnist


class EquationsLSTM(nn.Module):
    """`nn.LSTM` written out from 004's gate equations (Hochreiter & Schmidhuber 1997, with Gers' forget gate).

    Same parameters, shapes, initial values and results: `(N, T, in)` or time-major `(T, N, in)` to
    `output, (h_n, c_n)` with h_n and c_n of shape `(layers, N, hidden)`.
    """

    def __init__(self, input_size: int, hidden_size: int, num_layers: int = 1, batch_first: bool = False):
        super().__init__()
        self.hidden_size, self.num_layers, self.batch_first = hidden_size, num_layers, batch_first
        bound = hidden_size**-0.5
        for k in range(num_layers):
            # the gates' rows stand in PyTorch's order i, f, g, o; g is the text's a, and each gate has two biases
            shapes = {"weight_ih": (input_size if k == 0 else hidden_size,), "weight_hh": (hidden_size,)}
            for name, columns in {**shapes, "bias_ih": (), "bias_hh": ()}.items():
                values = torch.empty(4 * hidden_size, *columns).uniform_(-bound, bound)
                self.register_parameter(f"{name}_l{k}", nn.Parameter(values))

    def forward(self, x: torch.Tensor, state=None):
        x = x.transpose(0, 1) if self.batch_first else x
        zeros = x.new_zeros(self.num_layers, x.size(1), self.hidden_size)
        h_0, c_0 = (zeros, zeros) if state is None else state
        h_n, c_n = [], []
        for k, (h, c) in enumerate(zip(h_0, c_0)):
            U, W = getattr(self, f"weight_ih_l{k}"), getattr(self, f"weight_hh_l{k}")
            b = getattr(self, f"bias_ih_l{k}") + getattr(self, f"bias_hh_l{k}")
            output = []
            for x_t in x:
                i, f, a, o = (h @ W.T + x_t @ U.T + b).chunk(4, dim=1)
                i, f, a, o = i.sigmoid(), f.sigmoid(), a.tanh(), o.sigmoid()
                c = c * f + i * a
                h = o * c.tanh()
                output.append(h)
            x = torch.stack(output)
            h_n.append(h)
            c_n.append(c)
        return x.transpose(0, 1) if self.batch_first else x, (torch.stack(h_n), torch.stack(c_n))


CELLS = {"lstm": nn.LSTM, "gru": nn.GRU, "rnn": nn.RNN, "equations": EquationsLSTM}


class BatchFirst(nn.Module):
    """004 and 000: rows as time steps, batch first, the last step of the output. `(N, 1, 28, 28)` to `(N, 10)`."""

    def __init__(self, in_dim, hidden_dim, n_layer, n_class, cell=nn.LSTM):
        super().__init__()
        self.lstm = cell(in_dim, hidden_dim, n_layer, batch_first=True)
        self.classifier = nn.Linear(hidden_dim, n_class)

    def forward(self, x):
        out, _ = self.lstm(x.squeeze(1))
        return self.classifier(out[:, -1, :])


class LastHidden(nn.Module):
    """002: rows as time steps, batch first, the last layer's final hidden state. `(N, 1, 28, 28)` to `(N, 10)`."""

    def __init__(self, in_dim, hidden_dim, n_layer, n_class, cell=nn.LSTM):
        super().__init__()
        self.rnn = cell(in_dim, hidden_dim, n_layer, batch_first=True)
        self.out = nn.Linear(hidden_dim, n_class)

    def forward(self, x):
        _, state = self.rnn(x.squeeze(1))
        h_n = state[0] if isinstance(state, tuple) else state  # an LSTM's state is (h_n, c_n), the others' h_n
        return self.out(h_n[-1])


class TimeMajor(nn.Module):
    """001: columns as time steps, left to right, time-major `(28, N, 28)`. `(N, 1, 28, 28)` to `(N, 10)`."""

    def __init__(self, in_dim, hidden_dim, n_layer, n_class, cell=nn.LSTM):
        super().__init__()
        self.rnn = cell(in_dim, hidden_dim, n_layer)
        self.classifier = nn.Linear(hidden_dim, n_class)

    def forward(self, x):
        out, _ = self.rnn(x.squeeze(1).permute(2, 0, 1))
        return self.classifier(out[-1])


def first_test_batch(epoch, epochs, step, seen, model, loader) -> str:
    """002's line within an epoch: accuracy on the first test batch (there: the first 1000 images)."""
    images, labels = next(iter(loader))
    with torch.no_grad():
        accuracy = (model(images).argmax(1) == labels).float().mean().item()
    return f"{epoch}-{step - 1}: accuracy:{accuracy:.3g}"


RECIPES = {
    "batch-first": dict(  # 004
        model=BatchFirst, hidden=128, layers=2, optimizer="Adam", lr=0.001, batch_size=100, test_batch_size=100,
        epochs=5, normalize=False, log_interval=300, log_line=common.running,
    ),
    "sgd": dict(  # 000
        model=BatchFirst, hidden=50, layers=2, optimizer="SGD", lr=0.1, batch_size=64, test_batch_size=128,
        epochs=30, normalize=True, log_interval=0, log_line=common.running,
    ),
    "last-hidden": dict(  # 002
        model=LastHidden, hidden=64, layers=1, optimizer="Adam", lr=0.001, batch_size=50, test_batch_size=1000,
        epochs=3, normalize=False, log_interval=50, log_line=first_test_batch,
    ),
    "time-major": dict(  # 001
        model=TimeMajor, hidden=100, layers=2, optimizer="Adadelta", lr=0.1, batch_size=64, test_batch_size=128,
        epochs=10, normalize=True, log_interval=0, log_line=common.running,
    ),
}  # fmt: skip


def train(name, args):
    """Train one recipe and print what its tutorial prints; return its row of the comparison."""
    recipe = common.override(RECIPES[name], args)
    torch.manual_seed(args.seed)
    model = recipe.model(28, recipe.hidden, recipe.layers, 10, CELLS[args.cell]).to(args.device)
    if args.load_model:
        checkpoint.load_model(args.load_model, model)
    if args.predict:
        answers = mnist.predict(model, args.predict, recipe.normalize)
        if args.plot:
            import plots

            plots.predictions(args.plot, answers)
        raise SystemExit(len(answers) < len(args.predict))
    train_loader, test_loader = mnist.loaders(recipe, args)
    criterion = nn.CrossEntropyLoss()
    optimizer = common.optimizer(recipe.optimizer, model, recipe.lr)
    autocast = common.autocast(args)
    run = common.describe(__file__, name, model, recipe, args, cell=args.cell)
    history, valid = [], None
    if args.checkpoint:
        run, history = checkpoint.resume(args.checkpoint, run, model, optimizer, train_loader.generator, recipe.epochs)
        if args.log:
            common.complete_log(args.log, history)

    for epoch in range(len(history), recipe.epochs):
        start = time.perf_counter()
        model.train()
        seen = []
        for step, (image, label) in enumerate(common.progress(train_loader, epoch, seen), 1):
            with autocast():
                output = model(image)
                loss = criterion(output, label)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            seen.append((output.detach(), label))
            if recipe.log_interval and step % recipe.log_interval == 0:
                tqdm.write(recipe.log_line(epoch, recipe.epochs, step, seen, model, test_loader))
        valid = common.evaluate(model, test_loader)
        history.append(common.record(run, epoch, seen, valid, start))
        if args.checkpoint:
            checkpoint.save_checkpoint(args.checkpoint, model, optimizer, train_loader.generator, run, history)
        if args.log:
            common.append_log(args.log, history[-1:])
        print(common.epoch_line(history[-1]))

    valid = valid or common.evaluate(model, test_loader)
    common.report(valid)
    if args.save_model:
        checkpoint.save(args.save_model, model.state_dict())
    if args.plot:
        import plots

        plots.run(args.plot, train_loader, test_loader, history, valid)
    return run, history


def main(argv=None):
    parser = common.parser(__doc__)
    parser.add_argument(
        "--recipe", nargs="+", choices=[*RECIPES, "all"], default=["batch-first"], help="one or several"
    )
    parser.add_argument(
        "--cell", choices=CELLS, default="lstm", help="equations: the LSTM written out from 004's gates"
    )
    args = common.parse(parser, argv)
    names = list(RECIPES) if "all" in args.recipe else list(dict.fromkeys(args.recipe))
    if len(names) > 1 and (args.save_model or args.load_model or args.checkpoint or args.predict):
        parser.error("--save-model, --load-model, --checkpoint and --predict go with one --recipe, not several")
    with common.clean_exit(args):
        common.set_up(args)
        rows = [train(name, args) for name in names]
        if len(rows) > 1:
            common.table(rows)


if __name__ == "__main__":
    main()
