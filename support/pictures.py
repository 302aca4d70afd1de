"""Any picture of a digit, brought to MNIST's form."""

import warnings
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFilter, ImageOps

# Formats of pixels; for others, such as EPS, Pillow starts a program that runs what is in the file
FORMATS = "BMP DIB GIF ICO JPEG JPEG2000 PCX PNG PPM SGI TGA TIFF WEBP AVIF".split()


def open_picture(path: Path) -> Image.Image:
    """A picture, not yet decoded; OSError for what is not a regular file of pixels."""
    path = Path(path)
    if path.exists() and not path.is_file():
        raise OSError("is not a regular file")  # reading from a pipe could wait for ever
    Image.init()
    return Image.open(path, formats=[name for name in FORMATS if name in Image.OPEN])


def read_picture(path: Path) -> torch.Tensor:
    """A picture of one digit in MNIST's own form: float32 `(28, 28)`, light on dark, 0 to 1.

    Any size, mode and colours: ink is what stands out from the paper around it. The ink's box is
    scaled into 20 × 20 with its proportions kept and placed by its centre of mass in 28 × 28, as
    MNIST's digits are (LeCun et al. 1998). Raises OSError or ValueError for what is not a picture,
    or has no digit in it.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # an error says what is wrong with a damaged file
        with open_picture(path) as picture:
            picture.draft(None, (560, 560))  # decodes a large JPEG at an eighth of its size
            picture = ImageOps.exif_transpose(picture)
            picture = picture.convert("F" if picture.mode[0] in "IF" else "RGBA")
    picture.thumbnail((560, 560))
    pixels = np.asarray(picture, dtype=np.float32)
    if not np.isfinite(pixels).all():
        raise ValueError("has pixels that are not finite")
    if pixels.ndim == 2:
        pixels = pixels[..., None]
    else:
        pixels = on_one_ground(pixels)
    digit = box(without_specks(ink_on_paper(pixels)))
    if max(digit.size) > 30:  # a smaller one is drawn as MNIST's are
        digit = as_with_a_thick_pen(digit)
    digit = ImageOps.contain(digit, (20, 20), Image.Resampling.BILINEAR)
    corner = []
    for axis in (0, 1):
        weights = np.sum(digit, axis)
        centre = np.average(np.arange(len(weights)), weights=weights)
        corner.append(int(np.clip(round(14 - centre), 0, 28 - len(weights))))
    image = Image.new("F", (28, 28))
    image.paste(digit, corner)
    return torch.tensor(np.asarray(image) / np.max(image))


def on_one_ground(pixels: np.ndarray) -> np.ndarray:
    """RGBA `(H, W, 4)` as `(H, W, 3)`, or where most is transparent as its alpha, `(H, W, 1)`."""
    colour, alpha = pixels[..., :3], pixels[..., 3:]
    alpha = alpha / max(alpha.max(), 1)  # a faint digit is a digit, too
    if alpha.mean() < 0.5:  # what is opaque is the digit, whatever its colour
        return alpha
    ground = np.median(colour[alpha[..., 0] > 0.5], axis=0)
    return alpha * colour + (1 - alpha) * ground


def ink_on_paper(colour: np.ndarray) -> np.ndarray:
    """How much ink there is at each pixel of `(H, W, C)`: `(H, W)`, 0 to 1.

    Raises ValueError for a single colour.
    """
    colour = colour / max(np.abs(colour).max(), 1e-30)
    ink = np.zeros(colour.shape[:2], np.float32)
    for channel in np.moveaxis(colour, 2, 0):
        difference = channel - filtered(channel, ImageFilter.MedianFilter(15))
        ink += channel * (difference**3).sum()  # its sign: is ink brighter or darker?
    # shadows and uneven light are wider than strokes: they pass these two filters, strokes do not
    ink -= filtered(ink, ImageFilter.MinFilter(9), ImageFilter.MaxFilter(9))
    ink -= 4 * np.percentile(np.abs(ink), 25)  # paper is never quite even, and a quarter is paper
    down, across = len(ink) // 8, len(ink[0]) // 8
    darkest = ink[down : len(ink) - down, across : len(ink[0]) - across].max()  # but for a frame
    if not darkest > 0:
        raise ValueError("is a single colour: it shows no digit")
    return np.clip(ink / darkest, 0, 1)


def filtered(channel: np.ndarray, *filters) -> np.ndarray:
    """What filters leave of `(H, W)` when it is made small, 30 pixels at most, as `(H, W)`."""
    small = Image.fromarray(channel)
    small.thumbnail((30, 30))
    for each in filters:
        small = small.filter(each)
    return np.asarray(small.resize(channel.shape[::-1]))


def without_specks(ink: np.ndarray) -> Image.Image:
    """Ink `(H, W)` without small parts, and without what touches the border if more is left."""
    image = Image.fromarray(ink)
    small = image.copy()
    small.thumbnail((140, 140))
    on = np.pad(np.asarray(small) > 0.15, 1, constant_values=True)
    parts = Image.fromarray(-on.astype(np.int32))
    count = 0
    for y, x in np.argwhere(on).tolist():
        if parts.getpixel((x, y)) < 0:
            count += 1  # 1 is the border and what touches it
            ImageDraw.floodfill(parts, (x, y), count)
    part = np.asarray(parts)[1:-1, 1:-1]
    sizes = np.bincount(part.ravel(), minlength=3)
    sizes[0] = 0
    if sizes[2:].max() > 0.05 * sizes[1]:
        sizes[1] = 0
    kept = sizes > 0.04 * sizes.max()
    mask = Image.fromarray(kept[part].astype(np.float32)).filter(ImageFilter.MaxFilter(3))
    return Image.fromarray(ink * np.asarray(mask.resize(image.size)))


def box(image: Image.Image) -> Image.Image:
    """The part of an image that has ink."""
    return image.crop(Image.fromarray(np.asarray(image) > 0.15).getbbox())


def as_with_a_thick_pen(digit: Image.Image) -> Image.Image:
    """A digit with strokes that are white and, in MNIST's 20 pixels, about two wide at least."""
    ink = np.asarray(digit)
    ink = np.clip((ink / np.percentile(ink[ink > 0.15], 70) - 0.2) / 0.6, 0, 1)
    digit = ImageOps.contain(box(Image.fromarray(ink)), (100, 100))
    digit = ImageOps.expand(digit, 5)
    while np.sum(digit.filter(ImageFilter.MinFilter(7))) < 0.3 * np.sum(digit):
        digit = digit.filter(ImageFilter.MaxFilter(3))
    return box(digit)
