"""--data-dir with somebody's own pictures, in train/0 to 9 and test/0 to 9."""

import shutil

import common

import pytest
import torch
from conftest import refused, train
from PIL import Image, ImageOps

import mlp_mnist
from support import folders, pictures


@pytest.fixture
def root(tiny, tmp_path):
    """The tiny data as folders of pictures."""
    for part, (images, labels) in zip(("train", "test"), common.read(tiny)):
        for k, image in enumerate(images):
            path = tmp_path / f"{part}/{labels[k]}/{k}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image.numpy()).save(path)
    return tmp_path


def test_mnists_digits_come_back_as_the_same_bytes_with_the_same_labels(root, tiny):
    for (images, labels), (theirs, their_labels) in zip(common.read(root), common.read(tiny)):
        pairs = sorted(zip(labels.tolist(), images.tolist()))
        assert pairs == sorted(zip(their_labels.tolist(), theirs.tolist()))


def test_the_order_is_mixed_but_always_the_same(root):
    (_, labels), _ = common.read(root)
    (_, again), _ = common.read(root)
    assert torch.equal(labels, again)
    assert len(labels[-25:].unique()) > 5  # those that --hold-out takes


@pytest.mark.parametrize("change", [ImageOps.invert, lambda digit: digit.resize((90, 60))])
def test_another_picture_is_read_as_predict_reads_it(change, root):
    path = root / "train/5/0.png"
    change(Image.open(path)).save(path)
    image = folders.as_bytes(path) / 255
    assert torch.allclose(image, pictures.read_picture(path), atol=0.002)  # half a byte's step


def test_other_files_are_left_out(root):
    (root / "train/0/notes.txt").touch()
    (root / "train/0/.DS_Store").touch()
    (_, labels), _ = common.read(root)
    assert len(labels) == 250


def test_pictures_that_cannot_be_read_are_one_line(root, capsys):
    (root / "train/0/empty.png").touch()
    (root / "train/5/EMPTY.JPG").touch()
    _, line = refused(mlp_mnist.main, ["--data-dir", root], capsys)
    assert line.startswith(f"{root / 'train/0/empty.png'}: ")
    assert f"; 2 of 252 pictures in {root / 'train'} cannot be read" in line


def test_a_set_without_any_picture_is_one_line(root, capsys):
    shutil.rmtree(root / "test")
    _, line = refused(mlp_mnist.main, ["--data-dir", root], capsys)
    assert line.startswith(f"{root / 'test'}: has no pictures")


def test_the_first_line_names_the_folder_and_the_counts(root, capsys):
    train("mlp", root, "--epochs", 0)
    assert f", 250 + 110 images of {root}\n" in capsys.readouterr().out


def test_a_class_may_have_no_pictures(root, capsys):
    shutil.rmtree(root / "train/7")
    shutil.rmtree(root / "test/7")
    train("mlp", root, "--epochs", 1)
    assert "The test accuracy of  7 is : None ( 0/ 0)\n" in capsys.readouterr().out


def test_a_model_trained_on_mnist_is_fine_tuned_on_fewer_images_than_a_batch(root, tiny, tmp_path):
    """To the same scores as on the same digits in MNIST's files."""
    file = tmp_path / "m.pth"
    _, (before,) = train("mlp", tiny, "--epochs", 1, "--save-model", file)
    flags = ["--epochs", 1, "--batch-size", 500, "--load-model", file]
    _, (mine,) = train("mlp", root, *flags)
    _, (mnists,) = train("mlp", tiny, *flags)
    assert mine["train_loss"] < before["train_loss"]
    assert mine["valid_loss"] == pytest.approx(mnists["valid_loss"], rel=1e-4)
