"""LSTMs that read an MNIST image by rows and by columns, trained the way one would today.

python modern_mnist.py                      # 8 epochs; network, optimizer and rate follow --epochs
python modern_mnist.py --hold-out 10000     # for tuning: test on held-out training images

Test accuracy: 99.11 ± 0.03 % after 2 epochs (n = 10), 99.62 ± 0.03 % after 8 (n = 5); more in
docs/accuracy.md.
"""

import argparse
import functools

import common  # first: it names a missing package in one line

import torch
import torch.nn.functional as F
from torch import nn
from torch.optim.lr_scheduler import LambdaLR


class Windows(nn.Module):
    """Reads each of P × Q windows row by row, all with the same LSTM.

    Maps `(N, C, H, W)` to the LSTM's final states `(N, 2 * hidden, P, Q)`.
    """

    def __init__(self, channels, hidden_dim, size, stride):
        super().__init__()
        self.size, self.stride = size, stride
        self.lstm = nn.LSTM(size * channels, hidden_dim, bias=False, bidirectional=True)

    def forward(self, x):
        # (N, C, P, Q, size, size): the windows, each with its rows and columns
        windows = x.unfold(2, self.size, self.stride).unfold(3, self.size, self.stride)
        p, q = windows.shape[2:4]
        steps = windows.permute(4, 0, 2, 3, 5, 1)  # rows of a window are time steps
        steps = steps.flatten(4).flatten(1, 3)  # (size, N * P * Q, size * C)
        _, (h_n, _) = self.lstm(steps)
        states = h_n.transpose(0, 1).flatten(1)  # (N * P * Q, 2 * hidden)
        return states.view(x.shape[0], p, q, -1).permute(0, 3, 1, 2)


class RowsAndColumns(nn.Module):
    """Rows and columns, each read in both directions: `(N, 1, 28, 28)` to `(N, 10)`.

    It reads 24 × 24 pixels; around them MNIST's images are mostly empty. A time step is `lines`
    rows or columns. With `windows` two LSTMs first turn the image into a 3 × 3 map, whose rows and
    columns are then read one at a time. In evaluation the outputs are the mean of the
    log-probabilities for all of `PLACES`; their softmax is the prediction. Raises ValueError for
    images of another size.
    """

    SIDE = 24
    PLACES = (2, 2), (1, 2), (3, 2), (2, 1), (2, 3)  # the crops' corners; training uses the first

    def __init__(self, hidden_dim, n_layer, n_class, lines=2, windows=False):
        super().__init__()
        if windows:
            lines = 1
            first, second = max(1, hidden_dim // 4), max(1, hidden_dim // 2)
            self.windows = nn.Sequential(
                Windows(1, first, size=6, stride=3),  # to 7 × 7
                Windows(2 * first, second, size=3, stride=2),  # to 3 × 3
            )
            size = 3 * 2 * second  # three places, two directions
        else:
            self.windows = nn.Identity()
            size = lines * self.SIDE
        self.lines = lines  # must divide 24; more of them: fewer steps
        self.rows = nn.LSTM(size, hidden_dim, n_layer, bias=False, bidirectional=True)
        self.columns = nn.LSTM(size, hidden_dim, n_layer, bias=False, bidirectional=True)
        self.classifier = nn.Linear(8 * hidden_dim, n_class, bias=False)

    def forward(self, x):
        if x.shape[2:] != (28, 28):
            raise ValueError(f"images are (N, 1, 28, 28), not {x.shape}")
        if self.training:
            return self.outputs(x, *self.PLACES[0])
        answers = [self.outputs(x, top, left).log_softmax(1) for top, left in self.PLACES]
        return torch.stack(answers).mean(0)

    def outputs(self, x, top, left):
        """The classifier's outputs for one crop."""
        x = x[..., top : top + self.SIDE, left : left + self.SIDE]
        x = (x - 0.1307) / 0.3081  # mean and standard deviation of MNIST's pixels
        x = self.windows(x)
        pooled = []
        for lstm, image in ((self.rows, x), (self.columns, x.mT)):
            # With two lines per step: (N, 1, 24, 24) to (N, 12, 2 * 24)
            steps = image.transpose(1, 2).unflatten(1, (-1, self.lines)).flatten(2)
            out, (h_n, _) = lstm(steps.transpose(0, 1))  # (12, N, 2 * hidden), both directions
            pooled += [out.amax(0), h_n[-2], h_n[-1]]  # maximum over time, final states
        return self.classifier(torch.cat(pooled, 1))


def distort(images, generator, strength=1.0, scale=0.1, shear=0.2, shift=1.5, warp=0.8):
    """Images `(N, 1, 28, 28)` as if written by other hands.

    At strength 1 an affine map scales by 1 ± `scale`, shears, and so rotates, by up to `shear`, and
    shifts by up to `shift` pixels. The elastic warp (after Simard 2003) moves a 5 × 5 grid by
    `warp` pixels (standard deviation), interpolated smoothly.
    """
    n = len(images)
    pixel = 2 / 28  # grid_sample: the image is from -1 to 1
    most = torch.tensor([[scale, shear, shift * pixel], [shear, scale, shift * pixel]])
    affine = (torch.rand(n, 2, 3, generator=generator) * 2 - 1) * most * strength
    affine += torch.eye(2, 3)
    moved = torch.randn(n, 2, 25, generator=generator) * warp * pixel * strength
    grid = torch.cat([affine, moved], 2).to(images.device) @ fields().to(images.device)
    grid = grid.view(n, 2, 28, 28).permute(0, 2, 3, 1)
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)


@functools.cache
def fields():
    """Fields whose weighted sum is a distortion, `(3 + 25, 28 * 28)`: x, y, 1, one per point.

    One matrix product replaces affine_grid and an interpolation per image.
    """
    middles = (torch.arange(28) + 0.5) / 14 - 1
    y, x = torch.meshgrid(middles, middles, indexing="ij")
    points = F.interpolate(torch.eye(25).view(25, 1, 5, 5), 28, mode="bicubic", align_corners=True)
    affine = torch.stack([x, y, torch.ones(28, 28)])
    return torch.cat([affine, points[:, 0]]).flatten(1)


def train(model, loader, criterion, optimizer, scheduler, progress=None):
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
        scheduler.step()
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


RECIPE = dict(
    epochs=8, batch_size=256, test_batch_size=1000, layers=1, windows=False, smoothing=0.05,
)  # fmt: skip
LENGTHS = {  # from this many epochs on; chosen on held-out training images
    1: dict(optimizer="AdamW", lr=0.03, hidden=32, lines=4, batch_size=384, distortion=0.0),
    2: dict(optimizer="AdamW", lr=0.01, hidden=64, lines=3, distortion=0.6),
    4: dict(optimizer="Muon", lr=0.02, hidden=128, lines=2, distortion=0.6),
    8: dict(optimizer="Muon", lr=0.02, hidden=128, lines=1, windows=True, distortion=0.7),
}
# Other than torch's defaults; fewer Newton-Schulz steps take less time
HYPERPARAMETERS = {"AdamW": {"betas": (0.7, 0.9)}, "Muon": {"ns_steps": 3}}
MODEL_FLAGS = ("hidden", "layers", "lines", "windows")  # these decide what the model is


def recipe(given):
    """The settings for the number of epochs and the device that the flags give."""
    epochs = given.get("epochs") or RECIPE["epochs"]
    device = given.get("device", "auto")
    cpu = device == "cpu" or (device == "auto" and not torch.accelerator.is_available())
    # A CPU with instructions for it trains faster in bfloat16
    bf16 = cpu and torch.cpu._is_avx512_bf16_supported()
    length = max(n for n in LENGTHS if n <= epochs)
    settings = {**RECIPE, **LENGTHS[length], "bf16": bf16, "total_epochs": epochs}
    slow = cpu and not bf16  # torch's Muon computes in bfloat16
    optimizer = given.get("optimizer", "AdamW" if slow else "Muon")
    if settings["optimizer"] == "Muon" and optimizer != "Muon":
        settings |= {"optimizer": "AdamW", "lr": 0.01}
    if settings["windows"]:
        settings["parts"] = max(4, common.CORES)  # an image is 49 windows: smaller parts
    return settings


def flags():
    """This script's parser."""
    parser = common.parser(__file__, __doc__, [*common.OPTIMIZERS, "Muon"])
    add = parser.add_argument
    add("--hidden", type=common.between(1, 4096), metavar="N", help="units per layer and direction")
    add("--layers", type=common.between(1, 100), metavar="N", help="stacked layers (windows: one)")
    add(
        "--lines",
        type=int,
        choices=[1, 2, 3, 4, 6, 8, 12, 24],
        help="rows, or columns, per time step",
    )
    add(
        "--windows",
        action=argparse.BooleanOptionalAction,
        help="read small windows first (default from --epochs 8)",
    )
    add("--smoothing", type=common.between(0, 1, float), metavar="P", help="label smoothing")
    add(
        "--distortion",
        type=common.between(0, 1000, float),
        metavar="S",
        help="how much to distort training images",
    )
    return parser


def one_cycle(step, steps):
    """The learning rate's factor: linearly up for a fifth of the steps, then down to 0."""
    return min(5 * (step + 1) / steps, 1.25 * (1 - step / steps), 1.0)


def main(argv=None):
    """Train, or predict (--predict); returns the model and its history."""
    parser = flags()
    args = common.parse(parser, argv, {"modern": recipe}, MODEL_FLAGS)
    if args.windows and args.lines != 1:
        parser.error("--windows (default from --epochs 8) needs --lines 1; or use --no-windows")
    torch.manual_seed(args.seed)
    model = RowsAndColumns(args.hidden, args.layers, 10, args.lines, args.windows).to(args.device)
    if args.predict:
        return common.predict(args, model)
    train_loader, test_loader = common.loaders(args)
    if args.distortion:
        train_loader.transform = functools.partial(distort, strength=args.distortion)
    steps = max(1, args.epochs * len(train_loader))
    smoothed = nn.CrossEntropyLoss(label_smoothing=args.smoothing)
    criterion = nn.CrossEntropyLoss()
    optimizer = common.optimizer(args, model, **HYPERPARAMETERS.get(args.optimizer, {}))
    scheduler = LambdaLR(optimizer, lambda step: one_cycle(step, steps))
    with common.Run(args, model, optimizer, train_loader, test_loader, scheduler=scheduler) as run:
        for _ in run.epochs:
            train_loss, train_acc = train(
                run.net, train_loader, smoothed, optimizer, scheduler, run.progress
            )
            valid_loss, valid_acc = test(run.net, test_loader, criterion)
            run.end_epoch(train_loss, train_acc, valid_loss, valid_acc)
        run.finish(test)
    return model, run.history


if __name__ == "__main__":
    common.run(main)
