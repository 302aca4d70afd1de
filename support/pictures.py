"""Any picture of a digit, brought to MNIST's form."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps

# Formats of pixels alone: of others, such as EPS, Pillow has parts executed
FORMATS = ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM", "ICO", "TGA", "PCX")


def read_picture(path: Path) -> torch.Tensor:
    """A picture of one digit in MNIST's own form: float32 `(28, 28)`, light on dark, 0 to 1.

    Any size, mode and colours: ink is what differs from the border's colour. The ink's box is scaled into 20 × 20 with
    its proportions kept and placed by its centre of mass in 28 × 28, as MNIST's digits are (LeCun et al. 1998).
    Raises OSError or ValueError for what is not a picture or has no digit in it.
    """
    with Image.open(path, formats=FORMATS) as picture:
        picture.draft(None, (560, 560))  # decodes a large JPEG at an eighth of its size
        picture = ImageOps.exif_transpose(picture)
        picture = picture.convert("F" if picture.mode[0] in "IF" else "RGBA")
    picture.thumbnail((560, 560))
    pixels = np.asarray(picture, dtype=np.float32)
    if not np.isfinite(pixels).all():
        raise ValueError("has pixels that are not finite")
    colour = pixels[..., None] if pixels.ndim == 2 else on_one_ground(pixels)
    border = np.concatenate([colour[0], colour[-1], colour[:, 0], colour[:, -1]])
    ground = np.median(border, axis=0)
    ink = np.linalg.norm(colour - ground, axis=-1)
    # paper is never quite even: within twice the border's median deviation it is background
    ink = np.clip(ink - 2 * np.median(np.linalg.norm(border - ground, axis=-1)), 0, None)
    if not ink.max() > 0:
        raise ValueError("is a single colour: it shows no digit")
    ink /= ink.max()
    rows, columns = (np.flatnonzero((ink > 0.15).any(axis)) for axis in (1, 0))
    digit = Image.fromarray(ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1])
    scale = 20 / max(digit.size)
    digit = np.asarray(
        digit.resize(
            [max(1, round(scale * side)) for side in digit.size], Image.Resampling.BILINEAR
        )
    )
    digit = digit / digit.max()
    top, left = (
        int(np.clip(round(14 - (digit.sum(1 - axis) @ np.arange(n)) / digit.sum()), 0, 28 - n))
        for axis, n in enumerate(digit.shape)
    )
    image = torch.zeros(28, 28)
    image[top : top + digit.shape[0], left : left + digit.shape[1]] = torch.from_numpy(digit)
    return image


def on_one_ground(pixels: np.ndarray) -> np.ndarray:
    """RGBA `(H, W, 4)` over a ground of one colour, as `(H, W, 3)`.

    Where most is opaque the ground is its usual colour; else what is opaque is the digit, and the ground contrasts.
    """
    colour, alpha = (
        pixels[..., :3],
        pixels[..., 3:] / max(pixels[..., 3].max(), 1),
    )  # a faint digit is a digit, too
    opaque = colour[alpha[..., 0] > 0.5]
    if len(opaque) == 0:
        return np.zeros_like(colour)
    ground = np.median(opaque, axis=0)
    if alpha.mean() < 0.5:
        ground = np.full(3, 255.0 if ground.mean() < 128 else 0.0, dtype=np.float32)
    return alpha * colour + (1 - alpha) * ground
