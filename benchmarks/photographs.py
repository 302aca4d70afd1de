"""How many photographed digits are read right, by what is wrong with them: about 4 minutes.

python benchmarks/photographs.py --digits 35           # of each kind; default: 100

Three models are trained first. The photographs are made from MNIST's first test images: drawn
large, dark on paper, with a camera's noise, as JPEG. The first row is those images themselves.
"""

import sys
import tempfile
from pathlib import Path

import measuring
import numpy as np
from measuring import common, lstm_mnist, run, torch
from PIL import Image, ImageFilter
from scipy import ndimage

import mlp_mnist
import modern_mnist
from support import model_files
from support.pictures import read_picture

COMMANDS = {
    "lstm_mnist.py": lambda: lstm_mnist.BatchFirst(28, 128, 2, 10),
    "mlp_mnist.py --epochs 5 --lr 0.1": mlp_mnist.Net,
    "modern_mnist.py --epochs 2": lambda: modern_mnist.RowsAndColumns(64, 1, 10, 3),
}
KINDS = {  # what is wrong with the photographs of each kind
    "large": set(),
    "thin pen": {"thin"},
    "light from one side": {"side"},
    "dark corners": {"corners"},
    "specks": {"specks"},
    "a frame's edge": {"edge"},
    "blue ink": {"blue"},
    "blurred": {"blurred"},
    "all of these": {"thin", "side", "corners", "specks", "edge", "blue", "blurred"},
}


def thinned(on: np.ndarray, width: float) -> np.ndarray:
    """Strokes `(H, W)`, booleans, drawn again along their middle with a pen of this width."""
    depth = ndimage.distance_transform_edt(on)
    middle = depth > ndimage.uniform_filter(depth, 7) + 0.35  # a ridge
    middle &= depth > 0.6 * ndimage.maximum_filter(depth, 15)  # not one of a bump in the outline
    return ndimage.distance_transform_edt(~middle) < width / 2


def drawn(digit: np.ndarray, height: int, thin: bool, random: np.random.Generator) -> np.ndarray:
    """A test image with sharp strokes, 0 to 1; 20 of its pixels become `height`."""
    picture = Image.fromarray(digit)
    if thin:  # strokes of a fortieth to a twentieth of the height; MNIST's are an eighth
        fine = np.asarray(picture.resize((168, 168), Image.Resampling.BICUBIC)) > 127
        fine = thinned(fine, random.uniform(3, 6))
        picture = Image.fromarray(fine.astype(np.uint8) * 255)
    side = round(height * 28 / 20)
    share = np.asarray(picture.resize((side, side), Image.Resampling.BICUBIC)) / 255
    return np.clip((share - 0.4) / 0.2, 0, 1)


def photograph(digit: np.ndarray, faults: set, random: np.random.Generator) -> Image.Image:
    """A test image `(28, 28)` as a photograph of a digit on paper with these faults."""
    share = drawn(digit, random.integers(200, 400), "thin" in faults, random)
    side = len(share)
    margins = random.integers(0, side // 3, 4)
    share = np.pad(share, (margins[:2], margins[2:]))
    height, width = share.shape
    y, x = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
    light = np.ones_like(share)
    if "side" in faults:
        angle = random.uniform(0, 2 * np.pi)
        light *= 0.8 + 0.15 * (np.cos(angle) * x + np.sin(angle) * y)
    if "corners" in faults:  # of the lens, or a shadow over one of them
        if random.random() < 0.5:
            light *= 1 - random.uniform(0.3, 0.6) * ((x**2 + y**2) / 2) ** 2
        else:
            across, down = random.choice([-1, 1], 2)
            light *= 1 - 0.6 / (1 + np.exp(-8 * (across * x + down * y - 1.2)))
    if "specks" in faults:
        for _ in range(random.integers(3, 9)):
            centre_y, centre_x = random.uniform(-1, 1), random.uniform(-1, 1)
            radius = random.uniform(1, 5)
            far = np.hypot((y - centre_y) * height / 2, (x - centre_x) * width / 2)
            speck = np.clip(radius - far + 0.5, 0, 1)
            share = np.maximum(share, random.uniform(0.2, 1) * speck)
    if "edge" in faults:  # a slanting band along one side or two
        for across in random.permutation([x, -x, y, -y])[: random.integers(1, 3)]:
            along = y if across is x else x
            band = across + 0.02 * random.uniform(-1, 1) * along > 1 - random.uniform(0.02, 0.08)
            share = np.maximum(share, random.uniform(0.2, 1) * band)
    paper = np.array([235, 230, 215])
    ink = np.array([40, 60, 150] if "blue" in faults else [45, 45, 50])
    colour = light[..., None] * (paper + share[..., None] * (ink - paper))
    if "blurred" in faults:
        sharp = Image.fromarray(colour.astype(np.uint8))
        blur = ImageFilter.GaussianBlur(random.uniform(0.01, 0.025) * side)
        colour = np.asarray(sharp.filter(blur), float)
    colour = colour + random.normal(0, 4, colour.shape)
    return Image.fromarray(np.clip(colour, 0, 255).round().astype(np.uint8))


def trained(folder: str) -> list[torch.nn.Module]:
    """The three models, trained by their scripts."""
    models = []
    file = Path(folder, "model.pth")
    for command, build in COMMANDS.items():
        run([sys.executable, *command.split(), "--save-model", file])
        model = build()
        model_files.load(file, model)
        models.append(model.eval())
    return models


def read(faults: set, digits: torch.Tensor, folder: str) -> torch.Tensor:
    """Photographs of the digits `(n, 28, 28)` with these faults, as the models get them."""
    images = []
    file = Path(folder, "photograph.jpg")
    for k, digit in enumerate(digits):
        picture = photograph(digit.numpy(), faults, np.random.default_rng([1, k]))
        picture.save(file, quality=85)
        try:
            images.append(read_picture(file))
        except ValueError:  # no digit found: not read right
            images.append(torch.zeros(28, 28))
    return torch.stack(images)[:, None]


def table() -> str:
    """A row per kind."""
    rows = []
    records = measuring.kept("photographs")
    for record in records:
        shares = [f"{100 * right / record['n']:.1f}" for right in record["right"]]
        rows.append([record["kind"], record["n"], *shares])
    names = [f"`{command}`, %" for command in COMMANDS]
    return measuring.table(["photographs", "n", *names], rows, records)


def main():
    parser = measuring.parser(__doc__, "--digits", 100, recipes=None)
    args = parser.parse_args()
    _, (digits, labels) = common.read(common.DEFAULTS["data_dir"])
    digits, labels = digits[: args.digits], labels[: args.digits]
    records = []
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        models = trained(folder)
        inputs = {"as MNIST has them": common.to_float(digits)}
        for kind, faults in KINDS.items():
            inputs[kind] = read(faults, digits, folder)
        for kind, images in inputs.items():
            right = [(model(images).argmax(1) == labels).sum().item() for model in models]
            record = {"kind": kind, "n": len(labels), "right": right}
            records.append(measuring.described(record))
    measuring.replace("photographs", records, "kind")
    print(table())


if __name__ == "__main__":
    main()
