"""An LSTM that reads an MNIST image as rows and as columns, trained the way you would train one today.

python modern_mnist.py                               # 8 epochs; network, rate and distortion follow --epochs
python modern_mnist.py --epochs 32 --members 4       # an ensemble of four networks: 99.70 ± 0.02 % (n = 5)
python modern_mnist.py --hold-out 10000 --lr 0.01    # for tuning: test on held-out training images

Test accuracy: 98.27 ± 0.09 % after 1 epoch (n = 10), 99.60 ± 0.04 % after 32 (n = 5); more in docs/accuracy.md.
"""

import argparse
import math
import time

import common
from common import Parallel

import torch
import torch.nn.functional as F
from torch import nn
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn


class Windows(nn.Module):
    """One LSTM reads each of P × Q windows row by row: `(N, C, H, W)` to its final states `(N, 2 * hidden, P, Q)`."""

    def __init__(self, channels, hidden_dim, size, stride):
        super().__init__()
        self.size, self.stride = size, stride
        self.lstm = nn.LSTM(size * channels, hidden_dim, bidirectional=True)

    def forward(self, x):
        windows = x.unfold(2, self.size, self.stride).unfold(3, self.size, self.stride)  # (N, C, P, Q, size, size)
        steps = windows.permute(4, 0, 2, 3, 5, 1)  # (size, N, P, Q, size, C)
        # On a CPU in slices, small enough that glibc keeps their memory for reuse
        slices = steps.flatten(4).flatten(1, 3).split(512 if x.device.type == "cpu" else 2**31, 1)
        h_n = torch.cat([self.lstm(part)[1][0] for part in slices], 1)
        return h_n.transpose(0, 1).flatten(1).unflatten(0, steps.shape[1:4]).permute(0, 3, 1, 2)


class RowsAndColumns(nn.Module):
    """Rows and columns, `lines` per time step, each read in both directions: `(N, 1, 28, 28)` to `(N, 10)`.

    With `windows` two LSTMs first turn the image into a 3 × 3 map, which is then read line by line.
    """

    def __init__(self, hidden_dim, n_layer, n_class, lines=2, windows=False):
        super().__init__()
        self.lines = 1 if windows else lines  # divides 28; two instead of one take half the time
        self.windows, size = nn.Identity(), 28 * self.lines
        if windows:
            first, second = max(1, hidden_dim // 4), max(1, hidden_dim // 2)
            self.windows = nn.Sequential(Windows(1, first, 7, 3), Windows(2 * first, second, 4, 2))  # 8 × 8, then 3 × 3
            size = 3 * 2 * second
        self.rows = nn.LSTM(size, hidden_dim, n_layer, bidirectional=True)
        self.columns = nn.LSTM(size, hidden_dim, n_layer, bidirectional=True)
        self.classifier = nn.Linear(8 * hidden_dim, n_class)

    def forward(self, x):
        x = self.windows((x - 0.1307) / 0.3081)  # mean and standard deviation of the training pixels
        pooled = []
        for lstm, image in ((self.rows, x), (self.columns, x.mT)):
            steps = image.transpose(1, 2).unflatten(1, (-1, self.lines)).flatten(2)  # (N, 1, 28, 28) to (N, 14, 2 * 28)
            out, (h_n, _) = lstm(steps.transpose(0, 1))  # (14, N, 2 * hidden), both directions side by side
            pooled += [out.amax(0), h_n[-2], h_n[-1]]  # the maximum over time, the final state of each direction
        return self.classifier(torch.cat(pooled, 1))


class Committee(nn.ModuleList):
    """An ensemble: in training image k is for network k modulo their number, else log-probabilities are averaged."""

    def forward(self, x):
        if not self.training:
            return torch.stack([network(x).log_softmax(1) for network in self]).mean(0)
        return torch.stack([network(x[k :: len(self)]) for k, network in enumerate(self)], 1).flatten(0, 1)


def distort(images, generator, strength=1.0, turn=10.0, scale=0.1, shift=1.5, warp=0.8):
    """Images `(N, 1, 28, 28)` as if written by other hands: rotated, slanted, scaled, shifted and warped.

    At strength 1 rotation and slant are up to `turn` degrees, scale 1 ± `scale` and the shift up to `shift` pixels. The
    elastic warp (after Simard 2003) moves a 5 × 5 grid by `warp` pixels (standard deviation), interpolated smoothly.
    """
    turn, shift = math.radians(turn), shift / 14  # 1 is half an image
    most = torch.tensor([turn, turn, scale, scale, shift, shift])[:, None]
    angle, slant, wide, high, right, down = (torch.rand(6, len(images), generator=generator) * 2 - 1) * most * strength
    sin, cos, wide, high = angle.sin(), angle.cos(), 1 + wide, 1 + high
    affine = torch.stack([wide * cos, slant - high * sin, right, wide * sin, high * cos, down], 1).view(-1, 2, 3)
    points = torch.randn(len(images), 2, 5, 5, generator=generator) * (strength * warp / 14)
    field = F.interpolate(points.to(images.device), 28, mode="bicubic", align_corners=True)
    grid = F.affine_grid(affine.to(images.device), images.shape, align_corners=False) + field.permute(0, 2, 3, 1)
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)


def train(model, loader, criterion, optimizer, scheduler, average, progress=None):
    """Train on the loader's batches; returns mean loss and accuracy over all images, each scored before its update."""
    model.train()
    total, correct, count = 0.0, 0, 0
    for images, labels in loader:
        outputs = model(images)
        loss = criterion(outputs, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()
        average.update_parameters(model)
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


RECIPE = dict(optimizer="AdamW", test_batch_size=1000, epochs=8, windows=False, smoothing=0.05, average=15, members=1)
LENGTHS = {  # from this many epochs on; chosen on held-out training images
    1: dict(hidden=64, layers=1, lines=4, batch_size=256, lr=0.02, distortion=0.0),
    2: dict(hidden=128, layers=1, lines=2, batch_size=256, lr=0.01, distortion=0.6),
    4: dict(hidden=128, layers=2, lines=2, batch_size=256, lr=0.01, distortion=0.6),
    8: dict(hidden=128, layers=2, lines=2, batch_size=512, lr=0.014, distortion=1.0),
    32: dict(hidden=128, layers=1, lines=1, windows=True, batch_size=512, lr=0.014, distortion=1.2),
}


def recipe(args):
    """The settings for `args.epochs` epochs, for the default number if that is None or 0, on `args.device`."""
    epochs = args.epochs or RECIPE["epochs"]
    cpu = args.device == "cpu" or (args.device == "auto" and not torch.accelerator.is_available())
    bf16 = cpu and torch.cpu._is_avx512_bf16_supported()  # where it is fast: two thirds of the time
    return RECIPE | LENGTHS[max(n for n in LENGTHS if n <= epochs)] | {"bf16": bf16, "total_epochs": epochs}


def main(argv=None):
    """Train, or predict (--predict); returns the averaged model and its history, a record per epoch."""
    parser = common.parser(__file__, __doc__)
    add, count, size = parser.add_argument, common.at_least(1), common.at_least(0, float)
    add("--hidden", type=count, metavar="N", help="units per layer and direction of the row and column LSTMs")
    add("--layers", type=count, metavar="N", help="layers of the row and column LSTMs")
    add("--lines", type=int, choices=[1, 2, 4, 7, 14, 28], help="rows, or columns, per time step (1 with windows)")
    add("--windows", action=argparse.BooleanOptionalAction, help="first read small windows (default from --epochs 32)")
    add("--members", type=count, metavar="N", help="networks in an ensemble, each trained on all images")
    add("--parts", type=count, metavar="N", help="CPU: parts of a batch (default: one per core)")
    add("--smoothing", type=common.at_least(0, float, 1), metavar="P", help="label smoothing")
    add("--distortion", type=size, metavar="S", help="how much to distort training images (0: none)")
    add("--average", type=common.at_least(0), metavar="N", help="average weights over ~1/N of the run; 0: off")
    args = common.parse(parser, argv, {"modern": recipe})
    if args.windows and args.lines != 1:
        parser.error("windows, the default from --epochs 32, are read a line at a time: use --lines 1 or --no-windows")
    torch.manual_seed(args.seed)
    shapes = [args.hidden, args.layers, 10, args.lines, args.windows], [args.hidden, 2, 10, 2]  # two kinds if windows
    networks = [RowsAndColumns(*shapes[k % 2 * args.windows]) for k in range(args.members)]
    model = (Committee(networks) if args.members > 1 else networks[0]).to(args.device)
    if args.predict:
        from support import predict

        return predict.main(args, model)
    transform = (lambda images, generator: distort(images, generator, args.distortion)) if args.distortion else None
    train_loader, test_loader = common.loaders(args, transform, args.members)  # each member in an order of its own
    steps = max(1, args.epochs * len(train_loader))
    decay = max(0.0, 1 - (args.average or steps) / steps)
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay))
    average.module.to(args.device)  # puts the copied weights of an LSTM into the one block that cuDNN wants
    smoothed, criterion = nn.CrossEntropyLoss(label_smoothing=args.smoothing), nn.CrossEntropyLoss()
    variant = common.OPTIMIZERS[args.optimizer]  # fused or foreach: the same update in fewer kernels
    optimizer = getattr(torch.optim, args.optimizer)(model.parameters(), lr=args.lr, **{variant: True})
    # One cycle, linearly up for a fifth of the steps, then linearly down to 0
    scheduler = LambdaLR(optimizer, lambda step: min(5 * (step + 1) / steps, 1.25 * (1 - step / steps), 1.0))
    state = dict(model=model, optimizer=optimizer, scheduler=scheduler, average=average, order=train_loader.generator)
    nets = [Parallel(each, args.parts, args.bf16) for each in networks]  # the same weights; split batches over cores
    means = [Parallel(each, args.parts) for each in (average.module if args.members > 1 else [average.module])]
    net, averaged = (Committee(each) if args.members > 1 else each[0] for each in (nets, means))
    # Prints the first line; --load-model and --checkpoint are read here. history: the epochs that are done already
    with common.session(args, state, train_loader, test_loader) as history:
        if not history:
            average.update_parameters(model)  # the first update copies, including what --load-model has just read
        for epoch in range(len(history), args.epochs):
            start = time.perf_counter()
            progress = common.progress(args, epoch, len(train_loader))
            train_loss, train_acc = train(net, train_loader, smoothed, optimizer, scheduler, average, progress)
            valid_loss, valid_acc = test(averaged, test_loader, criterion)
            common.end_epoch(args, state, history, start, train_loss, train_acc, valid_loss, valid_acc)
        common.finish(args, average.module, averaged, history, train_loader, test_loader)  # digit by digit; files
    return average.module, history


if __name__ == "__main__":
    common.run(main)
