"""--predict: any picture of a digit is brought to MNIST's form and read as the original is."""

import common

import io
import os
import re

import numpy as np
import pytest
import torch
from conftest import call
from PIL import Image, ImageOps

import lstm_mnist
import mlp_mnist
from support import plots, predict

N = 120


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """The model file of an MLP that knows its digits: some 97 % of the test set."""
    file = tmp_path_factory.mktemp("model") / "mlp.pth"
    mlp_mnist.main(["--epochs", "2", "--lr", "0.2", "--batch-size", "50", "--save-model", str(file)])
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
    "as it is": (lambda d, k: d, "png", {}),
    "inverted": (lambda d, k: ImageOps.invert(d), "png", {}),
    "enlarged": (lambda d, k: d.resize((280, 280), Image.Resampling.BICUBIC), "png", {}),
    "off-centre": (on_canvas, "png", {}),
    "dark on light, off-centre, JPEG": (lambda d, k: ImageOps.invert(on_canvas(d, k)), "jpeg", {"quality": 50}),
    "without a margin": (lambda d, k: ImageOps.invert(d.crop(d.getbbox())), "png", {}),
    "coloured": (lambda d, k: coloured(on_canvas(d, k), BLUE, CREAM), "png", {}),
    "equally bright colours": (lambda d, k: coloured(on_canvas(d, k), RED, GREEN), "png", {}),
    "palette": (lambda d, k: coloured(on_canvas(d, k), BLUE, CREAM).quantize(16), "png", {}),
    "transparent, dark": (lambda d, k: transparent(on_canvas(d, k), 0), "png", {}),
    "transparent, light": (lambda d, k: transparent(on_canvas(d, k), 255), "png", {}),
    "grey with alpha": (lambda d, k: transparent(on_canvas(d, k), 0).convert("LA"), "png", {}),
    "16-bit": (lambda d, k: Image.fromarray(60000 - np.asarray(on_canvas(d, k)).astype(np.uint16) * 200), "png", {}),
    "1-bit": (lambda d, k: on_canvas(d, k).convert("1", dither=Image.Dither.NONE), "png", {}),
    "CMYK": (lambda d, k: coloured(on_canvas(d, k), BLUE, CREAM).convert("CMYK"), "jpeg", {"quality": 80}),
    "GIF": (lambda d, k: ImageOps.invert(on_canvas(d, k)), "gif", {}),
    "EXIF rotation": (lambda d, k: on_canvas(d, k).rotate(90, expand=True), "jpeg", {"quality": 90, "exif": TURNED}),
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


def test_mnists_own_image_comes_back_as_it_is(digits):
    same = 0
    for image in digits[1][0][:N]:
        file = io.BytesIO()
        Image.fromarray(image.numpy()).save(file, "png")
        same += ((predict.read_picture(file) - image / 255).abs().mean() < 0.005).item()
    assert same >= 0.97 * N


@pytest.mark.parametrize("name", ["mlp", "time-major"])
def test_predict_answers_in_order_and_names_what_is_no_picture(name, digits, trained, tiny, tmp_path, capsys):
    main, recipe, model = mlp_mnist.main, [], trained
    if name == "time-major":
        main, recipe, model = lstm_mnist.main, ["--recipe", name], tmp_path / "m.pth"
        main([*recipe, "--epochs", "1", "--data-dir", str(tiny), "--save-model", str(model)])
    paths = []
    for k in (3, 0, 2):
        paths.append(tmp_path / f"{k}.png")
        Image.fromarray(digits[1][0][k].numpy()).save(paths[-1])
    paths.insert(1, tmp_path / "notes.txt")
    paths[1].write_text("no picture")
    paths.insert(3, tmp_path / "missing.png")
    capsys.readouterr()
    with pytest.raises(SystemExit) as end:
        main([*recipe, "--load-model", str(model), "--plot", str(tmp_path / "p"), "--predict", *map(str, paths)])
    assert end.value.code == 1
    out, err = capsys.readouterr()
    answers = [re.fullmatch(r"(.+): (\d) \([01]\.\d{3}\)", line) for line in out.splitlines()]
    assert [a[1] for a in answers] == [str(tmp_path / f"{k}.png") for k in (3, 0, 2)]
    if name == "mlp":
        assert [int(a[2]) for a in answers] == digits[1][1][[3, 0, 2]].tolist()
    assert len(err.splitlines()) == 2
    assert "notes.txt" in err.splitlines()[0]
    assert "missing.png" in err.splitlines()[1]
    assert (tmp_path / "p" / "predictions.png").read_bytes().startswith(b"\x89PNG")


def test_predict_as_a_process_exits_0_when_all_were_read(digits, trained, tmp_path):
    Image.fromarray(digits[1][0][0].numpy()).resize((90, 90)).save(tmp_path / "seven.png")
    run = call("mlp_mnist.py", "--load-model", trained, "--predict", tmp_path / "seven.png")
    assert run.returncode == 0
    assert run.stderr == ""
    assert re.fullmatch(rf"{re.escape(str(tmp_path))}/seven\.png: 7 \([01]\.\d{{3}}\)\n", run.stdout)


def odd_pictures(folder):
    """Files that are hard on a reader, `name: whether there may be an answer`."""
    picture = Image.fromarray(np.pad(np.full((60, 20), 255, np.uint8), 40))
    picture.save(folder / "whole.png")
    data = (folder / "whole.png").read_bytes()
    (folder / "truncated.png").write_bytes(data[: len(data) // 2])
    (folder / "empty.png").write_bytes(b"")
    Image.new("L", (1, 1), 255).save(folder / "pixel.png")
    Image.new("RGB", (50, 50), (9, 90, 200)).save(folder / "one-colour.png")
    Image.new("RGBA", (50, 50), (0, 0, 0, 0)).save(folder / "nothing.png")
    Image.new("1", (20000, 20000)).save(folder / "bomb.png")
    Image.new("1", (10000, 10000)).save(folder / "half-bomb.png")
    picture.save(folder / "animated.gif", save_all=True, append_images=[ImageOps.invert(picture)] * 3)
    (folder / "folder.png").mkdir()
    return {"whole.png", "animated.gif"}


HARD = {  # pictures that were refused or answered wrongly once, of a digit (28, 28) of bytes: what is saved
    "a telephone's": lambda d: Image.fromarray(255 - d).resize((12000, 9000), Image.Resampling.NEAREST),
    "a third of full opacity": lambda d: Image.fromarray(np.dstack([np.zeros((28, 28, 3), np.uint8), d // 3])),
    "floats": lambda d: Image.fromarray(d.astype(np.float32) / 255),
}


@pytest.mark.parametrize("kind", HARD)
def test_pictures_that_were_hard_once(kind, digits, trained, tmp_path, capsys):
    seven = digits[1][0][0].numpy()
    form = {"a telephone's": "jpg", "floats": "tiff"}.get(kind, "png")
    file = tmp_path / f"$x_{{$ {kind}.{form}"  # would be mathematics in a title of matplotlib's
    HARD[kind](seven).save(file)
    flags = ["--load-model", str(trained), "--plot", str(tmp_path / "p"), "--predict", str(file)]
    mlp_mnist.main(flags)
    out, err = capsys.readouterr()
    assert out.startswith(f"{file}: 7 (")
    assert err == ""
    assert (tmp_path / "p" / "predictions.png").exists()


def test_pictures_with_odd_names_and_values(digits, trained, tmp_path, capsys):
    """A name that is not UTF-8 is shown as far as it goes; a picture with inf or nan in it gets one line."""
    seven = digits[1][0][0].numpy()
    odd = os.fsdecode(os.fsencode(tmp_path) + b"/seven-\xff.png")
    Image.fromarray(seven).save(tmp_path / "seven.png")
    os.rename(tmp_path / "seven.png", odd)
    for name, value in (("inf", np.inf), ("nan", np.nan)):
        floats = seven.astype(np.float32)
        floats[3, 3] = value
        Image.fromarray(floats).save(tmp_path / f"{name}.tiff")
    names = [odd, tmp_path / "inf.tiff", tmp_path / "nan.tiff", odd]
    with pytest.raises(SystemExit) as end:
        mlp_mnist.main(["--load-model", str(trained), "--predict", *map(str, names)])
    assert end.value.code == 1
    out, err = capsys.readouterr()
    assert [line.split(": ")[0] for line in out.splitlines()] == [f"{tmp_path}/seven-\ufffd.png"] * 2
    assert [line.split(":")[0] for line in err.splitlines()] == [str(name) for name in names[1:3]]


def test_more_pictures_than_a_sheet_holds(digits, trained, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(plots, "MOST", 5)
    files = [tmp_path / f"{k}.png" for k in range(8)]
    for file, image in zip(files, digits[1][0]):
        Image.fromarray(image.numpy()).save(file)
    mlp_mnist.main(["--load-model", str(trained), "--plot", str(tmp_path / "p"), "--predict", *map(str, files)])
    out, err = capsys.readouterr()
    assert len(out.splitlines()) == 8
    assert err == f"{tmp_path / 'p'}: shows the first 5 of 8 pictures\n"
    assert Image.open(tmp_path / "p" / "predictions.png").height == 5 * 190


def test_weights_whose_answer_is_not_a_number(digits, trained, tiny, tmp_path, capsys):
    """Finite, as a file's must be, but of no use: neither --predict nor --epochs 0 shows nan as an answer."""
    state = {name: value * 1e20 for name, value in torch.load(trained, weights_only=True).items()}
    torch.save(state, tmp_path / "huge.pth")
    Image.fromarray(digits[1][0][0].numpy()).save(tmp_path / "seven.png")
    flags = ["--load-model", str(tmp_path / "huge.pth")]
    with pytest.raises(SystemExit) as end:
        mlp_mnist.main([*flags, "--predict", str(tmp_path / "seven.png")])
    assert end.value.code == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"{tmp_path / 'seven.png'}: the model's output is not finite")
    with pytest.raises(SystemExit, match="the test loss is not finite"):
        mlp_mnist.main([*flags, "--epochs", "0", "--data-dir", str(tiny)])
    assert "nan" not in capsys.readouterr().out


def test_odd_pictures_get_an_answer_or_one_line(trained, tmp_path, capsys):
    answered = odd_pictures(tmp_path)
    paths = sorted(tmp_path.iterdir())
    with pytest.raises(SystemExit) as end:
        mlp_mnist.main(["--load-model", str(trained), "--predict", *map(str, paths)])
    out, err = capsys.readouterr()
    assert end.value.code == 1
    assert {line.split(": ")[0].split("/")[-1] for line in out.splitlines()} == answered
    lines = [line for line in err.splitlines() if line]
    assert len(lines) == len(paths) - len(answered)
    for path in paths:
        if path.name not in answered:
            assert [line for line in lines if str(path) in line], path
