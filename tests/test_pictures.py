"""--predict: any picture of a digit is brought to MNIST's form and read as the original is."""

import os
import re

import common

import numpy as np
import pytest
import torch
from conftest import ROOT
from PIL import Image, ImageOps

import mlp_mnist
from support import pictures

N = 80


@pytest.fixture(scope="session")
def trained(small, tmp_path_factory):
    """The model file of an MLP that knows its digits: some 93 % of the test set."""
    file = tmp_path_factory.mktemp("model") / "mlp.pth"
    flags = ["--epochs", "6", "--lr", "0.2", "--batch-size", "50", "--data-dir", str(small)]
    mlp_mnist.main([*flags, "--save-model", str(file)])
    return file


def on_canvas(digit, k):
    """The digit three times as large, somewhere on a larger ground."""
    canvas = Image.new("L", (195, 158), 0)
    canvas.paste(digit.resize((84, 84), Image.Resampling.BICUBIC), (k * 37 % 111, k * 53 % 74))
    return canvas


def coloured(grey, ink, ground):
    share = np.asarray(grey, dtype=float)[..., None] / 255
    return Image.fromarray((share * ink + (1 - share) * ground).round().astype(np.uint8))


def transparent(grey, ink):
    alpha = np.asarray(grey)
    return Image.fromarray(np.dstack([np.full((*alpha.shape, 3), ink, np.uint8), alpha]))


def photographed(grey, k):
    """Dark on paper that is lit from one side, with the sensor's noise."""
    share = np.asarray(grey, dtype=float) / 255
    light = np.linspace(150, 215, share.shape[1])[None] + np.random.default_rng(k).normal(
        0, 4, share.shape
    )
    return Image.fromarray(np.clip(light * (1 - share) + 40 * share, 0, 255).astype(np.uint8))


BLUE, CREAM, RED, GREEN = (30, 40, 160), (250, 240, 180), (200, 30, 30), (30, 110, 30)
TURNED = Image.Exif()
TURNED[0x112] = 6  # "turn by 90 degrees to see it upright"
KINDS = {  # name: (picture of digit number k, format, options)
    "off-centre": (on_canvas, "png", {}),
    "dark on light, off-centre, JPEG": (
        lambda d, k: ImageOps.invert(on_canvas(d, k)),
        "jpeg",
        {"quality": 50},
    ),
    "without a margin": (lambda d, k: ImageOps.invert(d.crop(d.getbbox())), "png", {}),
    "equally bright colours": (lambda d, k: coloured(on_canvas(d, k), RED, GREEN), "png", {}),
    "palette": (lambda d, k: coloured(on_canvas(d, k), BLUE, CREAM).quantize(16), "png", {}),
    "transparent, dark": (lambda d, k: transparent(on_canvas(d, k), 0), "png", {}),
    "16-bit": (
        lambda d, k: Image.fromarray(60000 - np.asarray(on_canvas(d, k)).astype(np.uint16) * 200),
        "png",
        {},
    ),
    "CMYK": (
        lambda d, k: coloured(on_canvas(d, k), BLUE, CREAM).convert("CMYK"),
        "jpeg",
        {"quality": 80},
    ),
    "EXIF rotation": (
        lambda d, k: on_canvas(d, k).rotate(90, expand=True),
        "jpeg",
        {"quality": 90, "exif": TURNED},
    ),
    "faint": (lambda d, k: transparent(d.point(lambda value: value // 3), 0), "png", {}),
    "floats": (lambda d, k: Image.fromarray(np.asarray(d, np.float32) / 255), "tiff", {}),
    "photographed": (lambda d, k: photographed(on_canvas(d, k), k), "jpeg", {"quality": 80}),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_picture_is_read_as_the_original_image(kind, digits, trained, tmp_path):
    make, form, options = KINDS[kind]

    def save(image, k, file):
        make(Image.fromarray(image), k).save(file, form, **options)

    originals, as_pictures = right(save, N, digits, trained, tmp_path / "picture")
    assert as_pictures >= originals - 2


def test_a_poor_photograph_is_read_as_the_original_image(digits, trained, tmp_path, monkeypatch):
    """Of digits on paper with a dark corner, a frame or specks, most were misread."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    from photographs import photograph

    def save(image, k, file):
        photograph(image, np.random.default_rng([2, k])).save(file, "jpeg", quality=85)

    originals, as_pictures = right(save, 40, digits, trained, tmp_path / "picture")
    assert as_pictures >= originals - 2


def right(save, n, digits, trained, file) -> tuple[int, int]:
    """How many of the first n test images are read right, as they are and as pictures."""
    model = mlp_mnist.Net()
    model.load_state_dict(torch.load(trained, weights_only=True))
    images, labels = digits[1][0][:n], digits[1][1][:n]
    read = []
    for k, image in enumerate(images):
        save(image.numpy(), k, file)
        read.append(pictures.read_picture(file))
    counts = []
    for batch in (common.to_float(images), torch.stack(read)[:, None]):
        with torch.no_grad():
            answers = model(batch).argmax(1)
        counts.append((answers == labels).sum().item())
    return tuple(counts)


def test_only_formats_of_pixels_are_opened(tmp_path):
    """An EPS named .png was given to Ghostscript, which runs the program in it."""
    picture = tmp_path / "seven.png"
    Image.new("RGB", (50, 50)).save(picture, "eps")
    with pytest.raises(OSError, match="cannot identify image file"):
        pictures.read_picture(picture)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no pipes with a name")
def test_a_pipe_is_refused(tmp_path):
    """Reading it waited for ever."""
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(OSError, match="is not a regular file"):
        pictures.read_picture(tmp_path / "pipe.png")


def test_a_cut_tiff_is_one_line(trained, tmp_path, capfd, recwarn):
    picture = tmp_path / "cut.tiff"
    Image.effect_noise((80, 80), 50).save(picture)
    picture.write_bytes(picture.read_bytes()[:3000])
    with pytest.raises(SystemExit):
        mlp_mnist.main(["--load-model", trained, "--predict", picture])
    assert len(capfd.readouterr().err.splitlines()) == 1
    assert len(recwarn) == 0


def test_answers_come_in_order_and_are_drawn_and_what_has_none_is_a_line(
    digits, trained, tmp_path, capsys
):
    odd, picture = tmp_path / "odd", Image.fromarray(np.pad(np.full((60, 20), 255, np.uint8), 40))
    (odd / "folder.png").mkdir(parents=True)
    picture.save(odd / "whole.png")
    data = (odd / "whole.png").read_bytes()
    (odd / "truncated.png").write_bytes(data[: len(data) // 2])
    (odd / "empty.png").write_bytes(b"")
    (odd / "notes.txt").write_text("no picture")
    Image.new("L", (1, 1), 255).save(odd / "pixel.png")
    Image.new("RGBA", (50, 50), (0, 0, 0, 0)).save(odd / "nothing.png")
    Image.new("1", (20000, 20000)).save(odd / "bomb.png")
    picture.save(odd / "animated.gif", save_all=True, append_images=[ImageOps.invert(picture)] * 3)
    for value in ("inf", "nan"):
        Image.fromarray(np.pad(np.float32([[value]]), 9)).save(odd / f"{value}.tiff")
    usual = {
        tmp_path / f"{k} $x_{{$.png": k for k in (3, 0, 2)
    }  # would be mathematics in a title of matplotlib's
    for path, k in usual.items():
        Image.fromarray(digits[1][0][k].numpy()).save(path)
    first, *others = usual
    paths = [first, *sorted(odd.iterdir()), *others, first]
    with pytest.raises(SystemExit) as end:
        mlp_mnist.main(["--load-model", trained, "--plot", tmp_path / "p", "--predict", *paths])
    assert end.value.code == 1
    out, err = (text.splitlines() for text in capsys.readouterr())
    answers = [re.fullmatch(r"(.+): (\d) \([01]\.\d{3}\)", line).groups() for line in out]
    answered = [
        path for path in paths if path in usual or path.name in ("animated.gif", "whole.png")
    ]
    assert [path for path, _ in answers] == [str(path) for path in answered]
    assert all(
        int(answer) == digits[1][1][usual[path]]
        for path, (_, answer) in zip(answered, answers)
        if path in usual
    )
    assert [line.split(": ")[0] for line in err] == [
        str(path) for path in paths if path not in answered
    ]
    assert Image.open(tmp_path / "p" / "predictions.png").height == pytest.approx(
        len(answered) * 190, abs=1
    )
    mlp_mnist.main(["--load-model", trained, "--predict", first])  # all can be read: status 0
    assert capsys.readouterr().out == f"{out[0]}\n"
