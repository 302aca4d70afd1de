"""--predict: any picture of a digit is brought to MNIST's form and read as the original is."""

import io
import re

import common

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

import mlp_mnist
from support import predict

N = 120


@pytest.fixture(scope="session")
def trained(small, tmp_path_factory):
    """The model file of an MLP that knows its digits: some 93 % of the test set."""
    file = tmp_path_factory.mktemp("model") / "mlp.pth"
    flags = ["--epochs", "6", "--lr", "0.2", "--batch-size", "50", "--data-dir", str(small)]
    mlp_mnist.main([*flags, "--save-model", str(file)])
    return file


def on_canvas(digit, k):
    """The digit four times as large, somewhere on a larger ground."""
    canvas = Image.new("L", (260, 210), 0)
    canvas.paste(digit.resize((112, 112), Image.Resampling.BICUBIC), (k * 37 % 148, k * 53 % 98))
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
    light = np.linspace(150, 215, share.shape[1])[None] + np.random.default_rng(k).normal(0, 4, share.shape)
    return Image.fromarray(np.clip(light * (1 - share) + 40 * share, 0, 255).astype(np.uint8))


BLUE, CREAM, RED, GREEN = (30, 40, 160), (250, 240, 180), (200, 30, 30), (30, 110, 30)
TURNED = Image.Exif()
TURNED[0x112] = 6  # "turn by 90 degrees to see it upright"
KINDS = {  # name: (picture of digit number k, format, options)
    "off-centre": (on_canvas, "png", {}),
    "dark on light, off-centre, JPEG": (lambda d, k: ImageOps.invert(on_canvas(d, k)), "jpeg", {"quality": 50}),
    "without a margin": (lambda d, k: ImageOps.invert(d.crop(d.getbbox())), "png", {}),
    "equally bright colours": (lambda d, k: coloured(on_canvas(d, k), RED, GREEN), "png", {}),
    "palette": (lambda d, k: coloured(on_canvas(d, k), BLUE, CREAM).quantize(16), "png", {}),
    "transparent, dark": (lambda d, k: transparent(on_canvas(d, k), 0), "png", {}),
    "16-bit": (lambda d, k: Image.fromarray(60000 - np.asarray(on_canvas(d, k)).astype(np.uint16) * 200), "png", {}),
    "CMYK": (lambda d, k: coloured(on_canvas(d, k), BLUE, CREAM).convert("CMYK"), "jpeg", {"quality": 80}),
    "EXIF rotation": (lambda d, k: on_canvas(d, k).rotate(90, expand=True), "jpeg", {"quality": 90, "exif": TURNED}),
    "faint": (
        lambda d, k: Image.fromarray(np.dstack([np.zeros((28, 28, 3), np.uint8), np.asarray(d) // 3])),
        "png",
        {},
    ),
    "floats": (lambda d, k: Image.fromarray(np.asarray(d, np.float32) / 255), "tiff", {}),
    "photographed": (lambda d, k: photographed(on_canvas(d, k), k), "jpeg", {"quality": 80}),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_picture_is_read_as_the_original_image(kind, digits, trained):
    """At least 97 % agreement over the first test images."""
    make, form, options = KINDS[kind]
    model = mlp_mnist.Net()
    model.load_state_dict(torch.load(trained, weights_only=True))
    images = digits[1][0][:N]
    read = []
    for k, image in enumerate(images):
        file = io.BytesIO()
        make(Image.fromarray(image.numpy()), k).save(file, form, **options)
        try:
            read.append(predict.read_picture(file))
        except ValueError:  # counts as disagreement
            read.append(torch.full((28, 28), torch.nan))
    with torch.no_grad():
        expected = model(common.to_float(images, False)).argmax(1)
        output = model(torch.stack(read)[:, None])
    agree = (output.argmax(1) == expected) & output.isfinite().all(1)
    assert agree.float().mean() >= 0.97


def answers_to(capsys, model, *paths, flags=()):
    """What --predict prints for these pictures, of which some are none: its lines on stdout and those on stderr."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as end:
        mlp_mnist.main(["--load-model", str(model), *flags, "--predict", *map(str, paths)])
    assert end.value.code == 1
    return (text.splitlines() for text in capsys.readouterr())


def test_odd_pictures_get_an_answer_or_one_line(trained, tmp_path, capsys):
    picture = Image.fromarray(np.pad(np.full((60, 20), 255, np.uint8), 40))
    picture.save(tmp_path / "whole.png")
    data = (tmp_path / "whole.png").read_bytes()
    (tmp_path / "truncated.png").write_bytes(data[: len(data) // 2])
    (tmp_path / "empty.png").write_bytes(b"")
    Image.new("L", (1, 1), 255).save(tmp_path / "pixel.png")
    Image.new("RGBA", (50, 50), (0, 0, 0, 0)).save(tmp_path / "nothing.png")
    Image.new("1", (20000, 20000)).save(tmp_path / "bomb.png")
    picture.save(tmp_path / "animated.gif", save_all=True, append_images=[ImageOps.invert(picture)] * 3)
    (tmp_path / "folder.png").mkdir()
    for value in ("inf", "nan"):
        Image.fromarray(np.pad(np.float32([[value]]), 9)).save(tmp_path / f"{value}.tiff")
    paths, answered = sorted(tmp_path.iterdir()), ["animated.gif", "whole.png"]
    out, err = answers_to(capsys, trained, *paths)
    assert [line.split(": ")[0].split("/")[-1] for line in out] == answered
    assert [line.split(": ")[0] for line in err] == [str(path) for path in paths if path.name not in answered]


def test_answers_come_in_order_and_are_drawn(digits, trained, tmp_path, capsys):
    paths = [tmp_path / f"{k} $x_{{$.png" for k in (3, 0, 2)]  # would be mathematics in a title of matplotlib's
    for k, path in zip((3, 0, 2), paths):
        Image.fromarray(digits[1][0][k].numpy()).save(path)
    paths.insert(1, tmp_path / "notes.txt")
    paths[1].write_text("no picture")
    out, (line,) = answers_to(capsys, trained, *paths, paths[0], flags=["--plot", str(tmp_path / "p")])
    answers = [re.fullmatch(r"(.+): (\d) \([01]\.\d{3}\)", line).groups() for line in out]
    expected = [(str(tmp_path / f"{k} $x_{{$.png"), str(digits[1][1][k].item())) for k in (3, 0, 2, 3)]
    assert answers == expected
    assert line.startswith(f"{paths[1]}: ")
    assert Image.open(tmp_path / "p" / "predictions.png").height == 4 * 190
    mlp_mnist.main(["--load-model", str(trained), "--predict", str(paths[0])])  # all can be read: status 0
    assert capsys.readouterr().out == f"{out[0]}\n"
