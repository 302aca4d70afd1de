"""The data set, the loader and the metrics, against torchvision and plain recomputation."""

import common

import hashlib
import re
import shutil
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torchvision import datasets, transforms
from torchvision.datasets import MNIST

import mlp_mnist
from support import plots

RAW = common.DATA_DIR / "MNIST" / "raw"


@pytest.mark.parametrize(("archive", "md5"), MNIST.resources)
def test_archives_are_the_official_ones(archive, md5):
    assert hashlib.md5((RAW / archive).read_bytes()).hexdigest() == md5
    assert md5 in (common.DATA_DIR / "README.md").read_text()


@pytest.mark.parametrize("centred", [False, True])
def test_values_are_those_of_torchvisions_transforms(centred, digits, unpacked):
    steps = [transforms.ToTensor(), transforms.Normalize([0.5], [0.5])]
    data = MNIST(unpacked, train=False, transform=transforms.Compose(steps if centred else steps[:1]))
    expected = torch.stack([image for image, _ in data])
    images, labels = digits[1]
    ours = torch.cat([batch for batch, _ in common.Loader(images, labels, 300, normalize=centred)])
    assert ours.shape == (10000, 1, 28, 28)
    assert ours.dtype == torch.float32
    assert torch.equal(ours, expected)
    assert torch.equal(labels, torch.tensor([label for _, label in data]))


def numbered(n, size, seed=None):
    """A loader of n images, each filled with its own index (modulo 256), which is its label too."""
    labels = torch.arange(n)
    images = labels.to(torch.uint8).view(n, 1, 1).repeat(1, 28, 28)
    generator = None if seed is None else torch.Generator().manual_seed(seed)
    return common.Loader(images, labels, size, generator)


def order(loader):
    return torch.cat([labels for _, labels in loader]).tolist()


@pytest.mark.parametrize("seed", [None, 1])
@pytest.mark.parametrize(("n", "size", "sizes"), [(10, 4, [4, 4, 2]), (9, 4, [4, 4, 1]), (8, 4, [4, 4]), (3, 9, [3])])
def test_every_batch_comes_the_short_last_one_too(n, size, sizes, seed):
    loader = numbered(n, size, seed)
    batches = list(loader)
    assert [len(labels) for _, labels in batches] == sizes
    assert len(loader) == len(sizes)
    for images, labels in batches:
        assert images.shape == (len(labels), 1, 28, 28)
        assert images.dtype == torch.float32
        assert torch.equal((images[:, 0, 0, 0] * 255).round().long(), labels % 256)
    assert sorted(order(loader)) == list(range(n))


def test_order_follows_the_seed_and_changes_each_epoch():
    a, b, c = numbered(1000, 7, 1), numbered(1000, 7, 1), numbered(1000, 7, 2)
    first, second = order(a), order(a)
    assert first != second
    assert [first, second] == [order(b), order(b)]
    assert order(c) != first
    assert sorted(second) == list(range(1000))


def test_without_a_generator_the_order_is_the_given_one():
    loader = numbered(100, 7)
    assert order(loader) == order(loader) == list(range(100))


def test_score_is_the_mean_over_samples_not_over_batches():
    torch.manual_seed(0)
    output, label = torch.randn(130, 10), torch.randint(10, (130,))
    seen = list(zip(output.split(64), label.split(64)))  # 64, 64 and 2
    loss, accuracy = common.score(seen)
    probability = output.double().exp() / output.double().exp().sum(1, keepdim=True)
    expected = sum(-probability[k, label[k]].log().item() for k in range(130)) / 130
    hits = sum(int(output[k].tolist().index(max(output[k].tolist())) == label[k]) for k in range(130))
    assert loss == pytest.approx(expected, rel=1e-6)
    assert accuracy == pytest.approx(hits / 130, abs=1e-7)
    by_batch = sum(F.cross_entropy(o, y).item() for o, y in seen) / 3
    assert abs(by_batch - loss) > 1e-3  # the tutorials' average is another number


def test_report_counts_digit_by_digit(capsys):
    label = torch.tensor([0] * 100 + [1] * 3 + [9])
    answer = label.clone()
    answer[0], answer[100] = 5, 2
    common.report([(F.one_hot(answer, 10).float(), label)])
    out = capsys.readouterr().out
    assert "The test accuracy of  0 is : 99% (99/100)\n" in out
    assert "The test accuracy of  1 is : 66% ( 2/ 3)\n" in out
    assert "The test accuracy of  2 is : None ( 0/ 0)\n" in out
    assert "The test accuracy of  9 is : 100% ( 1/ 1)\n" in out
    assert out.endswith("\nTest Accuracy (Overall): 98.08% (102/104)\n")
    assert re.match(r"Test Loss: \d\.\d{6}\n\n", out)


@pytest.fixture(params=["fashion-mnist", "kmnist"])
def other(request, tiny, tmp_path):
    """A data set's name, its classes and a data folder with it, in small; the images are MNIST's."""
    root = tmp_path / "root"
    shutil.copytree(tiny / "MNIST", root / common.DATASETS[request.param])
    return request.param, common.CLASSES[request.param], root


def test_classes_are_torchvisions_and_stand_in_report_log_and_pictures(other, tmp_path, monkeypatch, capsys):
    dataset, names, root = other
    if dataset == "fashion-mnist":
        assert names == datasets.FashionMNIST.classes
    else:
        assert names == datasets.KMNIST.classes
    drawn, draw = [], plots.confusion
    monkeypatch.setattr(plots, "confusion", lambda *args: drawn.append(draw(*args)) or drawn[0])
    flags = ["--dataset", dataset, "--data-dir", str(root), "--epochs", "1", "--plot", str(tmp_path / "p")]
    _, (record,) = mlp_mnist.main([*flags, "--log", str(tmp_path / "l.jsonl")])
    report = re.findall(r"The test accuracy of +(.+) is :", capsys.readouterr().out)
    assert report == names
    assert record["dataset"] == dataset
    (axes,) = (axes for axes in drawn[0].axes if axes.get_xlabel() == "answer")
    assert [tick.get_text() for tick in axes.get_xticklabels()] == names


def test_a_model_goes_to_another_data_set_and_a_checkpoint_does_not(other, tiny, tmp_path, capsys):
    dataset, _, root = other
    files = ["--save-model", str(tmp_path / "m.pth"), "--checkpoint", str(tmp_path / "c.pt")]
    mlp_mnist.main(["--epochs", "1", "--data-dir", str(tiny), *files])
    flags = ["--dataset", dataset, "--data-dir", str(root)]
    mlp_mnist.main([*flags, "--epochs", "0", "--load-model", str(tmp_path / "m.pth")])
    with pytest.raises(SystemExit, match=f"c.pt: dataset was mnist, now {dataset}; use"):
        mlp_mnist.main([*flags, "--epochs", "2", "--checkpoint", str(tmp_path / "c.pt")])
    capsys.readouterr()


@pytest.mark.parametrize("dataset", common.DATASETS)
def test_without_a_network_one_line_names_the_files_and_their_folder(dataset, tmp_path, monkeypatch):
    def offline(*_):
        raise OSError("no network")

    monkeypatch.setattr(datasets.utils, "download_url", offline)
    with pytest.raises(SystemExit) as stopped:
        mlp_mnist.main(["--dataset", dataset, "--data-dir", str(tmp_path)])
    line = str(stopped.value.code)
    assert "\n" not in line
    assert "no network" in line
    for part in ("train", "t10k"):
        for kind in ("images-idx3", "labels-idx1"):
            assert f"{part}-{kind}-ubyte.gz" in line
    assert line.endswith(f"into {tmp_path / common.DATASETS[dataset] / 'raw'}")


def test_epoch_line_is_the_tutorials_to_the_letter():
    numbers = dict(epoch=9, train_loss=0.063089, train_acc=0.981093, valid_loss=0.066984, valid_acc=0.980716)
    assert common.epoch_line({**numbers, "seconds": 9.97}) == (
        "Epoch 9. Train Loss: 0.063089, Train Acc: 0.981093, Valid Loss: 0.066984, Valid Acc: 0.980716, Time 00:00:09"
    )
    assert common.epoch_line({**numbers, "seconds": 3725.0}).endswith("Time 01:02:05")


def test_denormals_are_flushed_in_every_thread():
    """In a process of its own, since threads take the mode when they start."""
    code = (
        "import common, torch; from types import SimpleNamespace as N; torch.set_num_threads(4)\n"
        "run = N(save_model=None, checkpoint=None, log=None, plot=None, device=torch.device('meta'))\n"
        "with common.session([run]): print((torch.full((1 << 22,), 1e-30) * 1e-10).count_nonzero().item())"
    )
    out = subprocess.run([sys.executable, "-c", code], cwd=common.DATA_DIR.parent, capture_output=True, text=True)
    assert out.stdout == "0\n", out.stderr


def test_held_out_images_are_the_last_and_are_not_trained_on(tiny, capsys):
    (images, labels), (test_images, _) = common.read(tiny)
    args = SimpleNamespace(data_dir=tiny, dataset="mnist", hold_out=60, batch_size=50, test_batch_size=50, seed=1)
    args.dry_run, args.normalize, args.device = False, False, torch.device("cpu")
    train, test = common.loaders(args)
    assert torch.equal(train.images, images[:190])
    assert torch.equal(test.images, images[190:])
    assert torch.equal(torch.cat([y for _, y in test]), labels[190:])
    args.hold_out = 0
    assert torch.equal(common.loaders(args)[1].images, test_images)
    for most in (250, 60000):
        args.hold_out = most
        with pytest.raises(SystemExit, match=f"--hold-out {most} leaves no training images"):
            common.loaders(args)
    _, (record,) = mlp_mnist.main(["--data-dir", str(tiny), "--epochs", "1", "--hold-out", "60"])
    assert record["hold_out"] == 60
    assert capsys.readouterr().out.endswith("/60)\n")
