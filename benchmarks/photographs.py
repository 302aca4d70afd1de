"""How many poorly photographed digits three models read right: about 2 minutes, with training.

python benchmarks/photographs.py

The photographs are made from MNIST's first test images: drawn with a thin pen on paper, with uneven
light, a dark corner or shadow, specks, the edge of something, blur and noise, as JPEG.
"""

import importlib
import tempfile
from pathlib import Path

import measuring
import numpy as np
from measuring import common, torch
from PIL import Image, ImageFilter
from scipy import ndimage

from support.pictures import read_picture

COMMANDS = ["lstm_mnist.py", "mlp_mnist.py --epochs 5 --lr 0.1", "modern_mnist.py --epochs 2"]


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

    specks = random.random(share.shape) < 6 / share.size  # some six
    specks = ndimage.maximum_filter(specks, random.integers(3, 10))
    share = np.maximum(share, random.uniform(0.2, 1) * specks)
    edge = random.permutation([x, -x, y, -y])[0] > 1 - random.uniform(0.02, 0.08)  # of something
    share = np.maximum(share, random.uniform(0.2, 1) * edge)

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
    with tempfile.TemporaryDirectory() as folder:
        images = read(digits, folder)
    records = []
    for command in COMMANDS:
        program, *flags = command.split()
        script = importlib.import_module(program.removesuffix(".py"))
        model, _ = script.main([*flags, "--device", "cpu"])
        with torch.no_grad():
            right = (model.eval()(images).argmax(1) == labels).sum().item()
        records.append({"command": command, "n": len(labels), "right": right})
    measuring.keep("photographs", records, "command")
    print(*records, sep="\n")  # below what the scripts print


if __name__ == "__main__":
    main()
