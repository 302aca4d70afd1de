"""LSTMs that read an MNIST image by rows and by columns, trained the way one would today.

python modern_mnist.py                           # 8 epochs; network and rate follow --epochs
python modern_mnist.py --epochs 32 --members 4   # an ensemble of four: 99.70 ± 0.02 % (n = 5)
python modern_mnist.py --hold-out 10000          # for tuning: test on held-out training images

Test accuracy: 98.27 ± 0.09 % after 1 epoch (n = 10), 99.60 ± 0.04 % after 32 (n = 5); more in
docs/accuracy.md.
"""

import argparse
import math

import common  # first: it names a missing package in one line

import torch
import torch.nn.functional as F
from torch import nn
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn


class Windows(nn.Module):
    """One LSTM reads each of P × Q windows row by row.

    `(N, C, H, W)` to its final states `(N, 2 * hidden, P, Q)`.
    """

    def __init__(self, channels, hidden_dim, size, stride):
        super().__init__()
        self.size, self.stride = size, stride
        self.lstm = nn.LSTM(size * channels, hidden_dim, bidirectional=True)

    def forward(self, x):
        # (N, C, P, Q, size, size): the windows, each with its rows and columns
        windows = x.unfold(2, self.size, self.stride).unfold(3, self.size, self.stride)
        p, q = windows.shape[2:4]
        steps = windows.permute(4, 0, 2, 3, 5, 1)  # rows of a window are time steps
        steps = steps.flatten(4).flatten(1, 3)  # (size, N * P * Q, size * C)
        if x.device.type == "cpu" and not exporting():
            # In slices whose memory glibc keeps for reuse (support/parallel.py)
            slices = steps.split(512, 1)
        else:
            slices = [steps]
        finals = []
        for some in slices:
            _, (h_n, _) = self.lstm(some)
            finals.append(h_n)
        h_n = torch.cat(finals, 1)  # (2, N * P * Q, hidden)
        states = h_n.transpose(0, 1).flatten(1)  # (N * P * Q, 2 * hidden)
        return states.reshape(x.shape[0], p, q, -1).permute(0, 3, 1, 2)


def exporting() -> bool:
    """Whether the model is being exported; an export would fix the number of slices."""
    return torch.compiler.is_exporting() or torch.jit.is_tracing()


class RowsAndColumns(nn.Module):
    """Rows and columns, each read in both directions: `(N, 1, 28, 28)` to `(N, 10)`.

    A time step is `lines` rows or columns. With `windows` two LSTMs first turn the image into a
    3 × 3 map, whose rows and columns are then read one at a time.
    """

    def __init__(self, hidden_dim, n_layer, n_class, lines=2, windows=False):
        super().__init__()
        if windows:
            self.lines = 1
            first, second = max(1, hidden_dim // 4), max(1, hidden_dim // 2)
            self.windows = nn.Sequential(
                Windows(1, first, size=7, stride=3),  # to 8 × 8
                Windows(2 * first, second, size=4, stride=2),  # to 3 × 3
            )
            size = 3 * 2 * second  # three places, two directions
        else:
            self.lines = lines  # must divide 28; two instead of one take half the time
            self.windows = nn.Identity()
            size = 28 * lines
        self.rows = nn.LSTM(size, hidden_dim, n_layer, bidirectional=True)
        self.columns = nn.LSTM(size, hidden_dim, n_layer, bidirectional=True)
        self.classifier = nn.Linear(8 * hidden_dim, n_class)

    def forward(self, x):
        x = (x - 0.1307) / 0.3081  # mean and standard deviation of the training pixels
        x = self.windows(x)
        pooled = []
        for lstm, image in ((self.rows, x), (self.columns, x.mT)):
            # With two lines per step: (N, 1, 28, 28) to (N, 14, 2 * 28)
            steps = image.transpose(1, 2).unflatten(1, (-1, self.lines)).flatten(2)
            out, (h_n, _) = lstm(steps.transpose(0, 1))  # (14, N, 2 * hidden), both directions
            pooled += [out.amax(0), h_n[-2], h_n[-1]]  # maximum over time, final states
        return self.classifier(torch.cat(pooled, 1))


class Committee(nn.ModuleList):
    """An ensemble: in training each member gets a share of the batch, else all answer for all.

    Of n members, member k gets the images k, k + n, k + 2n and so on; EnsembleLoader arranges them
    so. The answer is the mean of the log-probabilities.
    """

    def forward(self, x):
        if self.training:
            outputs = [member(x[k :: len(self)]) for k, member in enumerate(self)]
            return torch.stack(outputs, 1).flatten(0, 1)
        return torch.stack([member(x).log_softmax(1) for member in self]).mean(0)


class EnsembleLoader(common.Loader):
    """Batches for an ensemble: images for the members in turn, distorted if wanted.

    Each member gets every image once per epoch, in an order of its own.
    """

    def __init__(self, loader, members, distortion):
        size = members * loader.batch_size
        super().__init__(loader.images, loader.labels, size, loader.generator, loader.normalize)
        self.members = members
        if distortion:
            self.transform = lambda images, generator: distort(images, generator, distortion)

    def __len__(self):
        return math.ceil(self.members * len(self.labels) / self.batch_size)

    def order(self):
        orders = []
        for _ in range(self.members):
            orders.append(super().order())
        return torch.stack(orders, 1).flatten()


def distort(images, generator, strength=1.0, turn=10.0, scale=0.1, shift=1.5, warp=0.8):
    """Images `(N, 1, 28, 28)` as if written by other hands.

    At strength 1 rotation and slant are up to `turn` degrees, scale 1 ± `scale` and the shift up to
    `shift` pixels. The elastic warp (after Simard 2003) moves a 5 × 5 grid by `warp` pixels
    (standard deviation), interpolated smoothly.
    """
    n, device = len(images), images.device
    turn, shift = math.radians(turn), shift / 14  # affine_grid: half an image is 1
    most = torch.tensor([turn, turn, scale, scale, shift, shift])[:, None]
    drawn = (torch.rand(6, n, generator=generator) * 2 - 1) * most * strength
    angle, slant, width, height, right, down = drawn
    sin, cos = angle.sin(), angle.cos()
    width, height = 1 + width, 1 + height
    rows = [width * cos, slant - height * sin, right, width * sin, height * cos, down]
    affine = torch.stack(rows, 1).view(n, 2, 3).to(device)
    points = torch.randn(n, 2, 5, 5, generator=generator) * (strength * warp / 14)
    field = F.interpolate(points.to(device), 28, mode="bicubic", align_corners=True)
    grid = F.affine_grid(affine, images.shape, align_corners=False) + field.permute(0, 2, 3, 1)
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)


def train(model, loader, criterion, optimizer, scheduler, average, progress=None):
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
        average.update_parameters(model)
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
    optimizer="AdamW", test_batch_size=1000, epochs=8, windows=False, smoothing=0.05, average=15,
    members=1,
)  # fmt: skip
LENGTHS = {  # from this many epochs on; chosen on held-out training images
    1: dict(hidden=64, layers=1, lines=4, batch_size=256, lr=0.02, distortion=0.0),
    2: dict(hidden=128, layers=1, lines=2, batch_size=256, lr=0.01, distortion=0.6),
    4: dict(hidden=128, layers=2, lines=2, batch_size=256, lr=0.01, distortion=0.6),
    8: dict(hidden=128, layers=2, lines=2, batch_size=512, lr=0.014, distortion=1.0),
    32: dict(
        hidden=128, layers=1, lines=1, windows=True, batch_size=512, lr=0.014, distortion=1.2,
    ),
}  # fmt: skip
MODEL_FLAGS = ("hidden", "layers", "lines", "windows", "members")  # these decide what the model is


def recipe(given):
    """The settings for the number of epochs and the device that the flags give."""
    epochs = given.get("epochs") or RECIPE["epochs"]
    device = given.get("device", "auto")
    cpu = device == "cpu" or (device == "auto" and not torch.accelerator.is_available())
    # On a CPU with instructions for it, bfloat16 takes two thirds of the time
    bf16 = cpu and torch.cpu._is_avx512_bf16_supported()
    length = max(n for n in LENGTHS if n <= epochs)
    return {**RECIPE, **LENGTHS[length], "bf16": bf16, "total_epochs": epochs}


def flags():
    """This script's parser."""
    parser = common.parser(__file__, __doc__)
    add = parser.add_argument
    size = common.between(0, 1000, float)
    switch = argparse.BooleanOptionalAction
    add("--hidden", type=common.between(1, 4096), metavar="N", help="units per layer and direction")
    add("--layers", type=common.between(1, 100), metavar="N", help="layers of rows' and columns'")
    add("--lines", type=int, choices=[1, 2, 4, 7, 14, 28], help="rows, or columns, per time step")
    add("--windows", action=switch, help="read small windows first (default from --epochs 32)")
    add("--members", type=common.between(1, 100), metavar="N", help="networks in an ensemble")
    add("--smoothing", type=common.between(0, 1, float), metavar="P", help="label smoothing")
    add("--distortion", type=size, metavar="S", help="how much to distort training images")
    add(
        "--average",
        type=common.between(0, 10**9),
        metavar="N",
        help="weights over ~1/N of the run; 0: off",
    )
    return parser


def build(args):
    """The network, or an ensemble; with windows, every second member goes without."""
    members = []
    for k in range(args.members):
        if args.windows and k % 2 == 1:
            member = RowsAndColumns(args.hidden, 2, 10, lines=2)  # as for 8 epochs
        else:
            member = RowsAndColumns(args.hidden, args.layers, 10, args.lines, args.windows)
        members.append(member)
    return Committee(members) if args.members > 1 else members[0]


def in_parts(model, parts, bf16=False):
    """The same weights, each batch computed in parts; in an ensemble, each member's share."""
    if isinstance(model, Committee):
        return Committee(common.Parallel(member, parts, bf16) for member in model)
    return common.Parallel(model, parts, bf16)


def one_cycle(step, steps):
    """The learning rate's factor: linearly up for a fifth of the steps, then down to 0."""
    return min(5 * (step + 1) / steps, 1.25 * (1 - step / steps), 1.0)


def main(argv=None):
    """Train, or predict (--predict); returns the averaged model and its history."""
    parser = flags()
    args = common.parse(parser, argv, {"modern": recipe}, MODEL_FLAGS)
    if args.windows and args.lines != 1:
        what = "with windows, the default from --epochs 32, lines are read one at a time"
        parser.error(f"{what}: use --lines 1 or --no-windows")
    torch.manual_seed(args.seed)
    model = build(args).to(args.device)
    if args.predict:
        return common.predict(args, model)
    train_loader, test_loader = common.loaders(args)
    train_loader = EnsembleLoader(train_loader, args.members, args.distortion)
    steps = max(1, args.epochs * len(train_loader))
    decay = max(0.0, 1 - (args.average or steps) / steps)
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay))
    averaged = average.module.to(
        args.device
    )  # puts an LSTM's copied weights into cuDNN's one block
    smoothed = nn.CrossEntropyLoss(label_smoothing=args.smoothing)
    criterion = nn.CrossEntropyLoss()
    optimizer = common.optimizer(args, model)
    scheduler = LambdaLR(optimizer, lambda step: one_cycle(step, steps))
    net = in_parts(model, args.parts, args.bf16)
    test_net = in_parts(averaged, args.parts)
    states = {"scheduler": scheduler, "average": average}
    with common.Run(args, model, optimizer, train_loader, test_loader, net, **states) as run:
        if not run.history:
            average.update_parameters(model)  # the first copies, also what --load-model has set
        for _ in run.epochs:
            train_loss, train_acc = train(
                net, train_loader, smoothed, optimizer, scheduler, average, run.progress
            )
            valid_loss, valid_acc = test(test_net, test_loader, criterion)
            run.end_epoch(train_loss, train_acc, valid_loss, valid_acc)
        run.finish(averaged, test_net, test)
    return averaged, run.history


if __name__ == "__main__":
    common.run(main)
