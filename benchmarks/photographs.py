"""How many poorly photographed digits three models read right: about 3 minutes, with training.

python benchmarks/photographs.py

The photographs are made from MNIST's first test images: drawn with a thin pen on paper, with uneven
light, a dark corner or shadow, specks, the edge of something, blur and noise, as JPEG.
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


def thinned(on: np.ndarray, width: float) -> np.ndarray:
    """Strokes `(H, W)`, booleans, drawn again along their middle with a pen of this width."""
    depth = ndimage.distance_transform_edt(on)
    middle = depth > ndimage.uniform_filter(depth, 7) + 0.35  # a ridge
    middle &= depth > 0.6 * ndimage.maximum_filter(depth, 15)  # not one of a bump in the outline
    return ndimage.distance_transform_edt(~middle) < width / 2


def drawn(digit: np.ndarray, height: int, random: np.random.Generator) -> np.ndarray:
    """A test image with sharp, thin strokes, 0 to 1; 20 of its pixels become `height`."""
    fine = Image.fromarray(digit).resize((168, 168), Image.Resampling.BICUBIC)
    # A fortieth to a twentieth of the height; MNIST's strokes are an eighth
    thin = thinned(np.asarray(fine) > 127, random.uniform(3, 6))
    side = round(height * 28 / 20)
    picture = Image.fromarray(thin.astype(np.uint8) * 255)
    share = np.asarray(picture.resize((side, side), Image.Resampling.BICUBIC)) / 255
    return np.clip((share - 0.4) / 0.2, 0, 1)


def photograph(digit: np.ndarray, random: np.random.Generator) -> Image.Image:
    """A test image `(28, 28)` as a poor photograph of a digit in blue ink on paper."""
    share = drawn(digit, random.integers(200, 400), random)
    side = len(share)
    margins = random.integers(0, side // 3, 4)
    share = np.pad(share, (margins[:2], margins[2:]))
    height, width = share.shape
    y, x = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]

    angle = random.uniform(0, 2 * np.pi)  # of the light
    light = 0.8 + 0.15 * (np.cos(angle) * x + np.sin(angle) * y)
    if random.random() < 0.5:  # the lens darkens the corners
        light *= 1 - random.uniform(0.3, 0.6) * ((x**2 + y**2) / 2) ** 2
    else:  # a shadow lies over one of them
        across, down = random.choice([-1, 1], 2)
        light *= 1 - 0.6 / (1 + np.exp(-8 * (across * x + down * y - 1.2)))

    for _ in range(random.integers(3, 9)):  # specks
        centre_y, centre_x = random.uniform(-1, 1), random.uniform(-1, 1)
        radius = random.uniform(1, 5)
        far = np.hypot((y - centre_y) * height / 2, (x - centre_x) * width / 2)
        speck = np.clip(radius - far + 0.5, 0, 1)
        share = np.maximum(share, random.uniform(0.2, 1) * speck)
    # The edge of something, as a slanting band along one side or two
    for across in random.permutation([x, -x, y, -y])[: random.integers(1, 3)]:
        along = y if across is x else x
        band = across + 0.02 * random.uniform(-1, 1) * along > 1 - random.uniform(0.02, 0.08)
        share = np.maximum(share, random.uniform(0.2, 1) * band)

    paper, ink = np.array([235, 230, 215]), np.array([40, 60, 150])
    colour = light[..., None] * (paper + share[..., None] * (ink - paper))
    sharp = Image.fromarray(colour.astype(np.uint8))
    blurred = sharp.filter(ImageFilter.GaussianBlur(random.uniform(0.01, 0.025) * side))
    noisy = np.asarray(blurred, float) + random.normal(0, 4, colour.shape)
    return Image.fromarray(np.clip(noisy, 0, 255).round().astype(np.uint8))


def read(digits: torch.Tensor, folder: str) -> torch.Tensor:
    """Photographs of the digits `(n, 28, 28)`, as the models get them, `(n, 1, 28, 28)`."""
    images = []
    file = Path(folder, "photograph.jpg")
    for k, digit in enumerate(digits):
        photograph(digit.numpy(), np.random.default_rng([1, k])).save(file, quality=85)
        try:
            images.append(read_picture(file))
        except ValueError:  # no digit found: not read right
            images.append(torch.zeros(28, 28))
    return torch.stack(images)[:, None]


def main():
    parser = measuring.parser(__doc__, "--digits", 200, recipes=None)
    args = parser.parse_args()
    _, (digits, labels) = common.read(common.DEFAULTS["data_dir"])
    digits, labels = digits[: args.digits], labels[: args.digits]
    records = []
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        images = read(digits, folder)
        file = Path(folder, "model.pth")
        for command, build in COMMANDS.items():
            run([sys.executable, *command.split(), "--save-model", file])
            model = build()
            model_files.load(file, model)
            right = (model.eval()(images).argmax(1) == labels).sum().item()
            record = {"command": command, "n": len(labels), "right": right}
            print(f"{command}: {right} of {len(labels)}")
            records.append(measuring.described(record))
    measuring.replace("photographs", records, "command")


if __name__ == "__main__":
    main()
