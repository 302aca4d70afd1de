"""The data sets, the loader and the lines about them, against torchvision and plain recomputation."""

import gzip
import hashlib
import os
import re
import shutil
from types import SimpleNamespace

import common

import pytest
import torch
from conftest import ROOT, refused
from torchvision import datasets, transforms
from torchvision.datasets import MNIST

import mlp_mnist
from support import plots


def test_archives_are_the_official_ones():
    for archive, md5 in MNIST.resources:
        assert hashlib.md5((ROOT / "data" / "MNIST" / "raw" / archive).read_bytes()).hexdigest() == md5
        assert md5 in (ROOT / "data" / "README.md").read_text()


@pytest.mark.parametrize("centred", [False, True])
def test_values_are_those_of_torchvisions_transforms(centred, digits, tiny):
    steps = [transforms.ToTensor(), transforms.Normalize([0.5], [0.5])]
    data = MNIST(tiny, train=False, transform=transforms.Compose(steps if centred else steps[:1]))
    images, labels = digits[1]
    ours = torch.cat([batch for batch, _ in common.Loader(images[:110], labels[:110], 30, normalize=centred)])
    assert ours.dtype == torch.float32
    assert torch.equal(ours, torch.stack([image for image, _ in data]))
    assert torch.equal(labels[:110], torch.tensor([label for _, label in data]))


def numbered(n, size, seed=None, **options):
    """A loader of n images, each filled with its own index (modulo 256), which is its label too."""
    labels = torch.arange(n)
    images = labels.to(torch.uint8).view(n, 1, 1).repeat(1, 28, 28)
    generator = None if seed is None else torch.Generator().manual_seed(seed)
    return common.Loader(images, labels, size, generator, **options)


@pytest.mark.parametrize("seed", [None, 1])
@pytest.mark.parametrize(
    ("n", "size", "orders", "sizes"),
    [(9, 4, 1, [4, 4, 1]), (8, 4, 1, [4, 4]), (3, 9, 1, [3]), (900, 700, 1, [700, 200]), (5, 4, 2, [4, 4, 2])],
)
def test_every_image_comes_once_with_its_label_in_the_short_last_batch_too(n, size, orders, sizes, seed):
    """And in other orders in each epoch, if there is a seed."""
    loader = numbered(n, size, seed, orders=orders)
    batches, again = list(loader), torch.cat([labels for _, labels in loader]).tolist()
    assert [len(labels) for _, labels in batches] == sizes
    assert len(loader) == len(sizes)
    for images, labels in batches:
        assert images.shape == (len(labels), 1, 28, 28)
        assert torch.equal((images[:, 0, 0, 0] * 255).round().long(), labels % 256)
    order = torch.cat([labels for _, labels in batches]).tolist()
    for k in range(orders):
        assert (sorted(order[k::orders]) if seed else order[k::orders]) == list(range(n))
    assert (again != order) == bool(seed)


def test_loss_and_accuracy_are_means_over_images_not_over_batches():
    torch.manual_seed(0)
    model, criterion = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(784, 10)), torch.nn.CrossEntropyLoss()
    images, labels = torch.rand(130, 1, 28, 28), torch.randint(10, (130,))
    loader = list(zip(images.split(64), labels.split(64)))  # 64, 64 and 2
    expected = criterion(model(images), labels).item(), (model(images).argmax(1) == labels).double().mean().item()
    assert mlp_mnist.test(model, loader, criterion) == pytest.approx(expected)
    still = torch.optim.SGD(model.parameters(), 0.0)
    assert mlp_mnist.train(model, loader, criterion, still) == pytest.approx(expected)


def test_the_end_counts_class_by_class(capsys):
    labels = torch.tensor([0] * 100 + [1] * 3 + [9])
    images = labels.view(-1, 1).repeat(1, 2)
    images[0], images[100] = 5, 2
    net = torch.nn.Module()
    net.forward = lambda x: torch.nn.functional.one_hot(x[:, 0], 10).float()
    args = SimpleNamespace(classes=common.CLASSES["mnist"], saving=None)
    common.finish(args, net, net, [], None, list(zip(images.split(40), labels.split(40))))
    out = capsys.readouterr().out
    assert re.match(r"Test Loss: \d\.\d{6}\n\n", out)
    assert "The test accuracy of  0 is : 99% (99/100)\n" in out
    assert "The test accuracy of  1 is : 66% ( 2/ 3)\n" in out
    assert "The test accuracy of  2 is : None ( 0/ 0)\n" in out
    assert "The test accuracy of  9 is : 100% ( 1/ 1)\n" in out
    assert out.endswith("\nTest Accuracy (Overall): 98.08% (102/104)\n")


@pytest.mark.parametrize("dataset", ["fashion-mnist", "kmnist"])
def test_another_data_set_has_its_own_classes_in_report_log_and_pictures(dataset, tiny, tmp_path, monkeypatch, capsys):
    """The images are MNIST's."""
    root, kind = tmp_path / "root", {"fashion-mnist": datasets.FashionMNIST, "kmnist": datasets.KMNIST}[dataset]
    shutil.copytree(tiny / "MNIST", root / kind.__name__)
    drawn = []
    monkeypatch.setattr(plots, "png", lambda figure: drawn.append(figure) or b"")
    flags = ["--dataset", dataset, "--data-dir", str(root), "--epochs", "1"]
    _, (record,) = mlp_mnist.main([*flags, "--plot", str(tmp_path / "p")])
    assert re.findall(r"The test accuracy of +(.+) is :", capsys.readouterr().out) == kind.classes
    assert record["dataset"] == dataset
    (axes,) = (axes for figure in drawn for axes in figure.axes if axes.get_xlabel() == "answer")
    assert [tick.get_text() for tick in axes.get_xticklabels()] == kind.classes


def test_what_is_missing_is_downloaded_whole_and_never_over_what_is_there(tiny, tmp_path, monkeypatch, capsys):
    class KMNIST:
        def __init__(self, root, download):
            assert not (tmp_path / "KMNIST").exists()
            shutil.copytree(tiny / "MNIST", f"{root}/KMNIST")

    monkeypatch.setattr(datasets, "KMNIST", KMNIST)
    flags = ["--dataset", "kmnist", "--data-dir", str(tmp_path), "--dry-run"]
    mlp_mnist.main(flags)
    assert [file.name for file in tmp_path.iterdir()] == ["KMNIST"]
    (tmp_path / "KMNIST" / "raw" / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(SystemExit, match="t10k-labels-idx1-ubyte"):
        mlp_mnist.main(flags)
    assert len([*(tmp_path / "KMNIST" / "raw").iterdir()]) == 3


def test_epoch_line_is_the_tutorials_to_the_letter():
    numbers = dict(epoch=9, train_loss=0.063089, train_acc=0.981093, valid_loss=0.066984, valid_acc=0.980716)
    assert common.epoch_line({**numbers, "seconds": 9.97}) == (
        "Epoch 9. Train Loss: 0.063089, Train Acc: 0.981093, Valid Loss: 0.066984, Valid Acc: 0.980716, Time 00:00:09"
    )
    assert common.epoch_line({**numbers, "seconds": 3725.0}).endswith("Time 01:02:05")


def test_held_out_images_are_the_last_and_are_not_trained_on(tiny, capsys):
    (images, labels), _ = common.read(tiny)
    sizes = dict(hold_out=60, batch_size=50, test_batch_size=50, seed=1, dry_run=False, normalize=False)
    args = SimpleNamespace(data_dir=tiny, dataset="mnist", device="cpu", **sizes)
    train, test = common.loaders(args)
    assert torch.equal(train.images, images[:190])
    assert torch.equal(test.images, images[190:])
    assert torch.equal(test.labels, labels[190:])
    args.hold_out = 250
    with pytest.raises(SystemExit, match="--hold-out 250 leaves no"):
        common.loaders(args)
    mlp_mnist.main(["--data-dir", str(tiny), "--epochs", "1", "--hold-out", "60"])
    assert capsys.readouterr().out.endswith("/60)\n")


def placed(where, name=str, packed=False, nested=False):
    """Builds a data folder: `where` the four files are in it, `name` what becomes of their names."""

    def build(tiny, root):
        for file in (tiny / "MNIST" / "raw").iterdir():
            new = root / where / name(file.name)
            new = new / new.name if nested else new
            new.parent.mkdir(parents=True, exist_ok=True)
            new.write_bytes(gzip.compress(file.read_bytes()) if packed else file.read_bytes())

    return build


def dotted(name):
    return name.replace("-idx", ".idx")


@pytest.mark.parametrize(
    "build",
    [
        placed("MNIST/raw"),
        placed("MNIST/raw", dotted),
        placed("MNIST/raw", nested=True),
        placed("MNIST/raw", lambda name: f"{name}.gz", packed=True),
        placed("MNIST/raw", packed=True),
    ],
    ids=["as torchvision", "Kaggle's names", "Kaggle's folders", "gzip", "gzip without suffix"],
)
def test_data_are_read_as_people_have_them(build, tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(datasets, "MNIST", None)  # what would download
    build(tiny, tmp_path)
    for ours, theirs in zip(common.read(str(tmp_path)), common.read(tiny)):
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs))


def without_test_files(tiny, root):
    placed("MNIST/raw")(tiny, root)
    for file in (root / "MNIST" / "raw").glob("t10k*"):
        file.unlink()


def touched(name):
    def build(_, root):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()

    return build


def wide_labels(tiny, root):
    placed("MNIST/raw")(tiny, root)
    (root / "MNIST/raw/train-labels-idx1-ubyte").write_bytes(bytes([0, 0, 12, 1, 0, 0, 0, 250]) + bytes(1000))


MISPLACED = {
    "flat": (placed("."), "", "put the four files of MNIST into ROOT/MNIST/raw (ROOT holds t10k-images-idx3-ubyte, "),
    "flat, Kaggle's": (placed(".", dotted), "", "(ROOT holds t10k-images.idx3-ubyte, "),
    "flat, in folders": (placed(".", nested=True), "", "(ROOT holds t10k-images-idx3-ubyte/t10k-images-idx3-ubyte, "),
    "without raw": (placed("MNIST"), "", "MNIST into ROOT/MNIST/raw (ROOT holds MNIST/t10k-images-idx3-ubyte, "),
    "one level too deep": (placed("MNIST/raw"), "MNIST", "give --data-dir ROOT"),
    "two levels too deep": (placed("MNIST/raw"), "MNIST/raw", "give --data-dir ROOT"),
    "one level too shallow": (placed("sets/MNIST/raw"), "", "give --data-dir ROOT/sets"),
    "two levels too shallow": (placed("a/b/MNIST/raw"), "", "give --data-dir ROOT/a/b"),
    "in small letters": (placed("mnist/raw"), "", "(ROOT holds mnist/raw/t10k-images-idx3-ubyte, "),
    "without MNIST": (placed("raw"), "", "(ROOT holds raw/t10k-images-idx3-ubyte, "),
    "old torchvision's": (touched("MNIST/processed/training.pt"), "", "(ROOT holds MNIST/processed/training.pt)"),
    "training files alone": (without_test_files, "", "ROOT/MNIST/raw/t10k-images-idx3-ubyte: is missing; put the four"),
    "an archive of arrays": (touched("mnist.npz"), "", "(ROOT holds mnist.npz)"),
    "that archive itself": (touched("mnist.npz"), "mnist.npz", "takes a folder, and ROOT/mnist.npz is a file"),
    "tables": (touched("train.csv"), "", "(ROOT holds train.csv)"),
    "labels as QMNIST has them": (
        wide_labels,
        "",
        "idx1-ubyte: cannot be read (it is not an IDX file of bytes, but int32)",
    ),
    "another set": (
        touched("FashionMNIST/raw/x"),
        "",
        "; ROOT holds FashionMNIST; give another --data-dir, or --dataset",
    ),
}


@pytest.mark.parametrize("name", MISPLACED)
def test_data_of_another_place_or_form_are_named_and_nothing_is_downloaded(name, tiny, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(datasets, "MNIST", None)  # what would download
    build, given, expected = MISPLACED[name]
    build(tiny, tmp_path)
    before = sorted(tmp_path.rglob("*"))
    status, line = refused(mlp_mnist.main, ["--data-dir", tmp_path / given], capsys)
    assert status == 1
    assert expected.replace("ROOT", str(tmp_path)) in line
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read any folder")
def test_a_folder_that_may_not_be_read_is_one_line(tmp_path, capsys):
    (tmp_path / "private").mkdir(mode=0)
    (tmp_path / "train.csv").touch()
    for root, expected in ((tmp_path, "(ROOT holds train.csv)"), (tmp_path / "private" / "x", "does not exist")):
        _, line = refused(mlp_mnist.main, ["--data-dir", root], capsys)
        assert expected.replace("ROOT", str(tmp_path)) in line


@pytest.mark.parametrize("dataset", common.DATASETS)
def test_without_a_network_one_line_names_the_folder_and_nothing_is_made(dataset, tmp_path, monkeypatch, capsys):
    def offline(*_):
        raise OSError("no network")

    monkeypatch.setattr(datasets.utils, "download_url", offline)
    (tmp_path / "empty").mkdir()
    for root, named in ((tmp_path / "empty", common.DATASETS[dataset]), (tmp_path / "typo", "")):
        status, line = refused(mlp_mnist.main, ["--data-dir", root, "--dataset", dataset], capsys)
        assert (status, line.startswith(f"{root / named}: does not exist"), "no network" in line) == (1, True, True)
    assert [*tmp_path.rglob("*")] == [tmp_path / "empty"]


def test_the_first_line_says_which_data(tiny, monkeypatch, capsys):
    mlp_mnist.main(["--data-dir", str(tiny), "--epochs", "0"])
    assert f", 250 + 110 images of {tiny / 'MNIST'}\n" in capsys.readouterr().out
    monkeypatch.chdir(ROOT)
    mlp_mnist.main(["--dry-run"])
    assert ", 20 + 20 images of data/MNIST\n" in capsys.readouterr().out
