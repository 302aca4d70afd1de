"""The data sets, the loader and the lines about them, against torchvision and plain torch."""

import gzip
import hashlib
import os
import re
import shutil

import common

import pytest
import torch
from conftest import ROOT, refused, write_idx
from torch import nn
from torchvision import datasets
from torchvision.datasets import MNIST
from torchvision.transforms import Compose, Normalize, ToTensor

import mlp_mnist


def test_archives_are_the_official_ones():
    for archive, md5 in MNIST.resources:
        data = (ROOT / "data" / "MNIST" / "raw" / archive).read_bytes()
        assert hashlib.md5(data).hexdigest() == md5
        assert md5 in (ROOT / "data" / "README.md").read_text()


@pytest.mark.parametrize(
    ("normalize", "steps"),
    [(False, [ToTensor()]), (True, [ToTensor(), Normalize([0.5], [0.5])])],
)
def test_values_are_those_of_torchvisions_transforms(normalize, steps, tiny):
    images, labels = zip(*MNIST(tiny, train=False, transform=Compose(steps)))
    _, ours = common.read(tiny)
    loader = common.Loader(*ours, 110, normalize=normalize)
    ((batch, its_labels),) = loader
    assert batch.dtype == torch.float32
    assert torch.equal(batch, torch.stack(images))
    assert its_labels.tolist() == [*labels]


def numbered(n, size, generator=None):
    """A loader of n images, whose labels are their numbers."""
    images = torch.randint(256, (n, 28, 28), dtype=torch.uint8)
    return common.Loader(images, torch.arange(n), size, generator)


def order(loader):
    """The labels of a pass."""
    return torch.cat([labels for _, labels in loader]).tolist()


@pytest.mark.parametrize(
    ("n", "size", "sizes"),
    [
        (9, 4, [4, 4, 1]),
        (8, 4, [4, 4]),
        (3, 9, [3]),
        (1300, 300, [300, 300, 300, 300, 100]),
    ],
)
def test_every_image_comes_once_with_its_label(n, size, sizes):
    """In the short last batch, too."""
    loader = numbered(n, size, torch.Generator().manual_seed(1))
    assert len(loader) == len(sizes)
    assert [len(labels) for _, labels in loader] == sizes
    for images, labels in loader:
        assert torch.equal(images, common.to_float(loader.images[labels]))
    assert sorted(order(loader)) == list(range(n))


def test_only_a_generator_changes_the_order_epoch_by_epoch():
    assert order(numbered(900, 100)) == list(range(900))
    loader = numbered(900, 100, torch.Generator().manual_seed(1))
    first = order(loader)
    assert first != list(range(900))
    assert order(loader) != first


def test_loss_and_accuracy_are_means_over_images_not_over_batches():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(784, 10))
    criterion = nn.CrossEntropyLoss()
    images, labels = torch.rand(130, 1, 28, 28), torch.randint(10, (130,))
    loader = list(zip(images.split(64), labels.split(64)))  # 64, 64 and 2
    outputs = model(images)
    accuracy = (outputs.argmax(1) == labels).double().mean().item()
    expected = pytest.approx((criterion(outputs, labels).item(), accuracy))
    assert mlp_mnist.test(model, loader, criterion) == expected
    still = torch.optim.SGD(model.parameters(), 0.0)
    assert mlp_mnist.train(model, loader, criterion, still) == expected


@pytest.mark.parametrize("dataset", ["fashion-mnist", "kmnist"])
def test_another_data_set_has_its_own_classes(dataset, tiny, tmp_path, capsys):
    """The images are MNIST's."""
    kind = getattr(datasets, common.DATASETS[dataset])
    shutil.copytree(tiny / "MNIST", tmp_path / kind.__name__)
    flags = ["--dataset", dataset, "--data-dir", tmp_path, "--epochs", 1]
    _, (record,) = mlp_mnist.main(flags)
    printed = re.findall(r"The test accuracy of +(.+) is :", capsys.readouterr().out)
    assert printed == kind.classes
    assert record["dataset"] == dataset


def test_epoch_line_is_the_tutorials_to_the_letter():
    record = dict(epoch=9, train_loss=0.063089, train_acc=0.981093)
    record |= dict(valid_loss=0.066984, valid_acc=0.980716, seconds=9.97)
    assert common.epoch_line(record) == (
        "Epoch 9. Train Loss: 0.063089, Train Acc: 0.981093, "
        "Valid Loss: 0.066984, Valid Acc: 0.980716, Time 00:00:09"
    )
    assert common.epoch_line({**record, "seconds": 3725.0}).endswith("Time 01:02:05")


def loaders(tiny, *flags):
    """What the flags make of the tiny data."""
    flags = ["--data-dir", tiny, "--device", "cpu", *flags]
    return common.loaders(common.parse(mlp_mnist.flags(), flags, {"mlp": mlp_mnist.RECIPE}))


def test_held_out_images_are_the_last_and_are_not_trained_on(tiny):
    (images, labels), _ = common.read(tiny)
    train, test = loaders(tiny, "--hold-out", 60)
    assert torch.equal(train.images, images[:190])
    assert torch.equal(train.labels, labels[:190])
    assert torch.equal(test.images, images[190:])


def test_something_is_left_to_train_on(tiny):
    with pytest.raises(SystemExit, match="^--hold-out 250 leaves no images to train on; lower it$"):
        loaders(tiny, "--hold-out", 250)


@pytest.fixture
def no_download(monkeypatch):
    """A download would fail the test."""
    for name in common.DATASETS.values():
        monkeypatch.setattr(datasets, name, None)


@pytest.mark.parametrize(
    ("place", "packed"),
    [
        (lambda name: name, bytes),
        (lambda name: name.replace("-idx", ".idx"), bytes),
        (lambda name: f"{name}/{name}", bytes),
        (lambda name: f"{name}.gz", gzip.compress),
        (lambda name: name, gzip.compress),
    ],
    ids=["as torchvision", "Kaggle's names", "Kaggle's folders", "gzip", "gzip without suffix"],
)
def test_data_are_read_as_people_have_them(place, packed, tiny, tmp_path, no_download):
    for file in (tiny / "MNIST" / "raw").iterdir():
        new = tmp_path / "MNIST" / "raw" / place(file.name)
        new.parent.mkdir(parents=True, exist_ok=True)
        new.write_bytes(packed(file.read_bytes()))
    for ours, theirs in zip(common.read(tmp_path), common.read(tiny)):
        assert torch.equal(ours[0], theirs[0])
        assert torch.equal(ours[1], theirs[1])


@pytest.mark.parametrize(
    ("there", "missing", "held"),
    [
        ("train.csv", "train-images-idx3", "train.csv"),
        ("raw/train-images-idx3-ubyte", "train-images-idx3", "raw"),
        ("FashionMNIST/raw/x", "train-images-idx3", "FashionMNIST"),
        ("MNIST/processed/training.pt", "train-images-idx3", "MNIST"),
        ("MNIST/raw/train-images-idx3-ubyte", "train-labels-idx1", "MNIST"),
    ],
)
def test_what_was_looked_for_and_what_is_there_is_said(
    there, missing, held, tmp_path, no_download, capsys
):
    """And nothing is downloaded beside it."""
    (tmp_path / there).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / there).touch()
    before = sorted(tmp_path.rglob("*"))
    status, line = refused(mlp_mnist.main, ["--data-dir", tmp_path], capsys)
    remedy = "put the four files of MNIST there, or give the --data-dir that has them"
    file = tmp_path / "MNIST" / "raw" / f"{missing}-ubyte"
    assert line == f"{file}: is missing; {remedy} ({tmp_path} holds {held})\n"
    assert status == 1
    assert sorted(tmp_path.rglob("*")) == before


def test_a_file_is_no_data_folder(tmp_path, no_download, capsys):
    file = tmp_path / "mnist.npz"
    file.touch()
    _, line = refused(mlp_mnist.main, ["--data-dir", file], capsys)
    assert line == f"--data-dir takes a folder, and {file} is a file\n"


@pytest.mark.parametrize("below", ["", "x"])
def test_a_folder_that_may_not_be_entered_is_one_line(below, tmp_path, no_download, capsys):
    private = tmp_path / "private"
    private.mkdir(mode=0)
    if os.access(private, os.R_OK):
        pytest.skip("this user, root perhaps, may enter any folder")
    root = private / below
    _, line = refused(mlp_mnist.main, ["--data-dir", root], capsys)
    reason = "cannot be read (Permission denied); give a --data-dir that can be"
    assert line == f"{root / 'MNIST' / 'raw'}: {reason}\n"


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("train-labels-idx1", torch.arange(250) % 10 + 18, "has labels up to 27, not 9"),
        ("t10k-labels-idx1", torch.zeros(9), "holds (9,), not a label for each of 110 images"),
        ("train-images-idx3", torch.zeros(250, 27, 28), "holds (250, 27, 28), not (N, 28, 28)"),
    ],
)
def test_a_file_that_is_not_of_the_set_is_named(
    name, content, reason, tiny, tmp_path, no_download, capsys
):
    shutil.copytree(tiny, tmp_path, dirs_exist_ok=True)
    file = tmp_path / "MNIST" / "raw" / f"{name}-ubyte"
    write_idx(file, content)
    status, line = refused(mlp_mnist.main, ["--data-dir", tmp_path], capsys)
    assert line == f"{file}: {reason}; put the set's own file there\n"
    assert status == 1


@pytest.mark.parametrize("there", [["MNIST"], ["KMNIST", "MNIST"]])
def test_a_set_is_downloaded_beside_torchvisions_and_appears_whole(
    there, tiny, tmp_path, monkeypatch, capsys
):
    """An empty folder of its name ended in AttributeError."""
    meanwhile = []

    def download(root, download):
        shutil.copytree(tiny / "MNIST", f"{root}/KMNIST")
        meanwhile.extend(os.listdir(tmp_path))

    monkeypatch.setattr(datasets, "KMNIST", download)
    for name in there:
        (tmp_path / name).mkdir()
    mlp_mnist.main(["--dataset", "kmnist", "--data-dir", tmp_path, "--dry-run"])
    assert sorted(meanwhile) == there
    assert sorted(os.listdir(tmp_path)) == ["KMNIST", "MNIST"]


@pytest.mark.parametrize(("root", "named"), [("empty", "empty/MNIST"), ("typo", "typo")])
def test_without_a_network_one_line_names_the_folder_and_nothing_is_made(
    root, named, tmp_path, monkeypatch, capsys
):
    def offline(*_):
        raise OSError("no network")

    monkeypatch.setattr(datasets.utils, "download_url", offline)
    (tmp_path / "empty").mkdir()
    _, line = refused(mlp_mnist.main, ["--data-dir", tmp_path / root], capsys)
    assert line.startswith(f"{tmp_path / named}: does not exist, and MNIST cannot be downloaded ")
    assert "no network" in line
    assert [*tmp_path.rglob("*")] == [tmp_path / "empty"]


def test_the_first_line_says_which_data(tiny, monkeypatch, capsys):
    monkeypatch.chdir(tiny)
    mlp_mnist.main("--data-dir . --epochs 0")
    assert ", 250 + 110 images of MNIST\n" in capsys.readouterr().out


def test_a_dry_run_is_a_batch_of_the_committed_data_from_any_folder(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    mlp_mnist.main("--dry-run --device cpu")
    out = capsys.readouterr().out
    assert f", 1 epoch, cpu, seed 1, 20 + 20 images of {ROOT / 'data' / 'MNIST'}\n" in out
    assert out.count("\nEpoch ") == 1
    assert os.listdir() == []
