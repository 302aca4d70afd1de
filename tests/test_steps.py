"""What an LSTM knows after each step of an image, and how --plot draws it."""

import common

import pytest
import torch
from conftest import train
from PIL import Image, ImageOps
from torch import nn

from lstm_mnist import CELLS, BatchFirst, LastHidden, TimeMajor
from support import plots, steps

ALONG = {BatchFirst: 2, LastHidden: 2, TimeMajor: 3}  # which dimension of images has the steps


@pytest.mark.parametrize("kind", ALONG)
@pytest.mark.parametrize("cell", CELLS.values())
def test_a_steps_answer_is_that_of_a_model_that_reads_no_further(kind, cell):
    model = kind(28, 8, 2, 10, cell)
    images = torch.rand(5, 1, 28, 28)
    answers = steps.after_each_step(model, images)
    for k in range(28):
        torch.testing.assert_close(answers[k], model(images.narrow(ALONG[kind], 0, k + 1)))
    assert not common.has_hooks(model)


@pytest.mark.parametrize("kind", ALONG)
def test_only_time_major_reads_columns(kind):
    assert steps.reads_columns(kind(28, 8, 1, 10)) is (kind is TimeMajor)


def test_a_model_that_reads_in_both_directions_has_no_steps():
    model = BatchFirst(28, 8, 1, 10)
    model.lstm = nn.LSTM(28, 4, batch_first=True, bidirectional=True)
    assert steps.after_each_step(model, torch.rand(2, 1, 28, 28)) is None


@pytest.fixture
def figures(monkeypatch):
    """What --plot draws, without the time that rendering takes."""
    figures = []
    monkeypatch.setattr(plots, "png", lambda figure: figures.append(figure) or b"")
    return figures


@pytest.mark.parametrize(
    ("recipe", "label"), [("last-hidden", "rows read"), ("time-major", "columns read")]
)
def test_plot_draws_the_accuracy_on_images_cut_after_each_step(
    recipe, label, tiny, tmp_path, figures
):
    flags = ["--epochs", 3, "--optimizer", "Adam", "--lr", 0.01, "--no-normalize"]
    model, _ = train(recipe, tiny, *flags, "--plot", tmp_path)
    assert (tmp_path / "steps.png").exists()
    axes = figures[-1].axes[-1]
    assert axes.get_xlabel() == label
    _, (images, labels) = common.read(tiny)
    for k, percent in enumerate(axes.lines[0].get_ydata()):
        cut = common.to_float(images).narrow(ALONG[type(model)], 0, k + 1)
        right = (model(cut).argmax(1) == labels).sum().item()
        assert percent == pytest.approx(100 * right / 110)


@pytest.mark.parametrize("recipe", ["mlp", "modern"])
def test_other_models_have_no_steps(recipe, tiny, tmp_path, figures):
    train(recipe, tiny, "--dry-run", "--plot", tmp_path)
    assert not (tmp_path / "steps.png").exists()


def test_predict_draws_the_steps_in_a_third_column(tiny, tmp_path, figures):
    one, file = tmp_path / "1.png", tmp_path / "m.pth"
    ImageOps.expand(Image.new("L", (2, 9)), 9, fill="white").save(one)
    train("time-major", tiny, "--epochs", 0, "--save-model", file)
    train("time-major", tiny, "--load-model", file, "--predict", one, "--plot", tmp_path)
    _, bars, known = figures[0].axes
    heights = [bar.get_height() for bar in bars.patches]
    assert known.images[0].get_array()[:, -1].tolist() == pytest.approx(heights, abs=1e-5)


def test_predictions_without_steps_have_two_columns():
    answer = "1.png", torch.rand(28, 28), torch.rand(10)
    assert len(plots.predictions([answer], range(10), [], False).axes) == 2
