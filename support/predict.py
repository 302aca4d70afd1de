"""--predict: any picture of a digit brought to MNIST's form, and the model's answer to it."""

import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from PIL.JpegImagePlugin import JpegImageFile

from support import checkpoint, files

PIXELS = 90_000_000  # a picture of more is refused, unless it is a JPEG: those are decoded at an eighth of their size
JPEG_PIXELS = 400_000_000


def main(model: torch.nn.Module, args, to_float, names: list[str]) -> None:
    """Print `path: 7 (0.998)` for each picture of `--predict`, on stderr what is wrong with it; draw them for `--plot`.

    `to_float` turns pixels `(1, 28, 28)` from 0 to 255 into what the model was trained on. Raises SystemExit(1) if one
    has no answer.
    """
    checkpoint.load_model(args.load_model, model)
    model.eval()
    device, answers = next(model.parameters()).device, []
    for path in args.predict:
        try:
            image = read_picture(path)
            with torch.no_grad():
                probability = model(to_float((image[None] * 255).to(device))).softmax(1)[0].cpu()
            if not probability.isfinite().all():
                raise ValueError("the model's output is not finite; its weights are unusable")
        except Exception as error:  # a broken file can raise anything that its decoder does
            reason = (str(error).splitlines() or [type(error).__name__])[0].replace(f"{path}: [", "[")
            print(f"{files.shown(path)}: {reason}; give a picture of one digit", file=sys.stderr)
            continue
        print(f"{files.shown(path)}: {names[probability.argmax()]} ({probability.max():.3f})", flush=True)
        answers.append((files.shown(path.name), image, probability))
    if args.plot and answers:
        from support import plots

        if len(answers) > plots.MOST:
            print(f"{args.plot}: shows the first {plots.MOST} of {len(answers)} pictures", file=sys.stderr)
        plots.predictions(args.plot, answers[: plots.MOST], names)
    if len(answers) < len(args.predict):
        raise SystemExit(1)


def read_picture(path: Path) -> torch.Tensor:
    """A picture of one digit in MNIST's own form: float32 `(28, 28)`, light on dark, 0 to 1.

    Any size, mode and colours: ink is what differs from the border's colour. The ink's box is scaled into 20 × 20 with
    its proportions kept and placed by its centre of mass in 28 × 28, as MNIST's digits are (LeCun et al. 1998).
    Raises OSError or ValueError for what is not a picture or has no digit in it.
    """
    limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
    try:
        with Image.open(path) as picture:
            most = JPEG_PIXELS if isinstance(picture, JpegImageFile) else PIXELS
            if picture.width * picture.height > most:
                raise ValueError(f"has {picture.width} × {picture.height} pixels, too many")
            picture.draft(None, (560, 560))
            picture = ImageOps.exif_transpose(picture)
            picture = picture.convert("F" if picture.mode[0] in "IF" else "RGBA")
    finally:
        Image.MAX_IMAGE_PIXELS = limit
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
    digit = np.asarray(digit.resize([max(1, round(scale * side)) for side in digit.size], Image.Resampling.BILINEAR))
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
    colour, alpha = pixels[..., :3], pixels[..., 3:] / max(pixels[..., 3].max(), 1)  # a faint digit is a digit, too
    opaque = colour[alpha[..., 0] > 0.5]
    if len(opaque) == 0:
        return np.zeros_like(colour)
    ground = np.median(opaque, axis=0)
    if alpha.mean() < 0.5:
        ground = np.full(3, 255.0 if ground.mean() < 128 else 0.0, dtype=np.float32)
    return alpha * colour + (1 - alpha) * ground
