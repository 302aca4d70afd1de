"""modern_mnist.py: its model, its distortion, its schedule, and that a resumed run ends as one that was not cut off."""

import common

import re
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from conftest import ROOT
from test_continue import epochs
from test_copies import pasted
from torch import nn
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.swa_utils import AveragedModel
from torch.utils.data import DataLoader, TensorDataset

import modern_mnist
from modern_mnist import distort

SMALL = ["--hidden", "8", "--batch-size", "50"]


@pytest.fixture
def images(digits):
    return common.to_float(digits[0][0][:300])


def test_the_columns_of_an_image_are_the_rows_of_its_transpose(images):
    """With the same weights for both, a transposed image changes nothing but which half of the features is whose."""
    model = modern_mnist.RowsAndColumns(8, 2, 10, 4)
    model.columns.load_state_dict(model.rows.state_dict())
    with torch.no_grad():
        weight = model.classifier.weight
        weight[:, 32:] = weight[:, :32]
        torch.testing.assert_close(model(images.mT), model(images))


@pytest.mark.parametrize(("lines", "steps"), [(1, 28), (2, 14), (4, 7), (28, 1)])
def test_steps_are_lines_from_top_to_bottom(lines, steps):
    model = modern_mnist.RowsAndColumns(3, 1, 10, lines)
    seen = {}
    for name in ("rows", "columns"):
        getattr(model, name).register_forward_pre_hook(lambda _, inputs, name=name: seen.update({name: inputs[0]}))
    image = torch.arange(784.0).view(1, 1, 28, 28)
    model(image)
    for name, expected in (("rows", image[0, 0]), ("columns", image[0, 0].T)):
        pixels = (seen[name] * 0.3081 + 0.1307).round()
        assert pixels.shape == (steps, 1, 28 * lines)
        assert torch.equal(pixels.view(28, 28), expected)


def test_every_window_is_read_row_by_row_with_the_same_weights():
    windows, x = modern_mnist.Windows(2, 5, 4, 3), torch.rand(3, 2, 10, 13)
    out = windows(x)
    assert out.shape == (3, 10, 3, 4)
    for row in range(3):
        for column in range(4):
            window = x[:, :, 3 * row : 3 * row + 4, 3 * column : 3 * column + 4]
            steps = torch.stack([window[:, :, k].transpose(1, 2).flatten(1) for k in range(4)])
            _, (h_n, _) = windows.lstm(steps)
            torch.testing.assert_close(out[:, :, row, column], torch.cat([*h_n], 1))


@pytest.mark.parametrize("windows", [False, True])
def test_no_images_have_no_outputs(windows):
    """A process's share of a short batch can be empty."""
    model = modern_mnist.RowsAndColumns(8, 1, 10, 1, windows)
    assert model(torch.zeros(0, 1, 28, 28)).shape == (0, 10)


def test_with_windows_rows_and_columns_are_those_of_their_map():
    model = modern_mnist.RowsAndColumns(8, 1, 10, 1, windows=True)
    seen = {}
    for name in ("windows", "rows", "columns"):
        getattr(model, name).register_forward_hook(
            lambda _, inputs, out, name=name: seen.update({name: (inputs[0], out)})
        )
    model(torch.rand(5, 1, 28, 28)).sum().backward()
    places = seen["windows"][1]
    assert places.shape == (5, 8, 3, 3)
    assert torch.equal(seen["rows"][0], places.permute(2, 0, 1, 3).flatten(2))
    assert torch.equal(seen["columns"][0], places.permute(3, 0, 1, 2).flatten(2))
    assert all(p.grad.abs().sum() > 0 for p in model.parameters())


def test_no_distortion_is_the_image_itself(images):
    torch.testing.assert_close(distort(images, torch.Generator(), 0.0), images, atol=1e-5, rtol=0)


def centre(images):
    """The centre of mass of each image in pixels, `(N, 2)`."""
    places = torch.arange(28.0)
    mass = images.sum((1, 2, 3))
    return torch.stack([(images.sum((1, 3)) * places).sum(1) / mass, (images.sum((1, 2)) * places).sum(1) / mass], 1)


NONE = dict(turn=0.0, scale=0.0, shift=0.0, warp=0.0)


def test_distortion_differs_from_image_to_image_and_its_generator_decides_how(images):
    same = images[:1].expand(300, 1, 28, 28)
    once, again, other = (distort(same, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert torch.equal(once, again)
    assert not torch.equal(once, other)
    assert len({image.numpy().tobytes() for image in once}) == 300
    assert once.min() >= 0
    assert once.max() <= 1 + 1e-6
    assert F.cosine_similarity(once.mean(0).flatten(), same[0].flatten(), 0) > 0.8  # it stays that digit
    stronger = distort(same, torch.Generator().manual_seed(1), 3.0)
    assert (stronger - same).square().mean() > (once - same).square().mean()


def test_shift_moves_by_as_many_pixels_at_most_in_every_direction(images):
    moved = centre(distort(images, torch.Generator().manual_seed(1), **{**NONE, "shift": 3.0})) - centre(images)
    assert moved.abs().max() < 3.1
    assert (moved.amax(0) > 2.5).all()
    assert (moved.amin(0) < -2.5).all()


def test_turn_scale_and_warp_leave_the_middle_and_change_the_rest():
    """A cross of lines through the middle."""
    image = torch.zeros(200, 1, 28, 28)
    image[:, :, 13:15, 4:24] = image[:, :, 4:24, 13:15] = 1
    for name, size in (("turn", 20.0), ("scale", 0.2)):
        changed = distort(image, torch.Generator().manual_seed(1), **{**NONE, name: size})
        assert (centre(changed) - 13.5).abs().max() < 0.05
        assert (changed - image).square().mean() > 0.005
        mass = changed.sum((1, 2, 3)) / image[0].sum()
        assert 0.6 < mass.min() < mass.max() < 1.6
    warped = distort(image, torch.Generator().manual_seed(1), **{**NONE, "warp": 0.8})
    assert 0.1 < (centre(warped) - 13.5).std() < 0.8
    assert (warped - image).square().mean() > 0.005


def test_training_images_alone_are_distorted(tiny, monkeypatch, capsys):
    calls = []

    def seen(images, generator, strength):
        calls.append((len(images), strength))
        return images

    monkeypatch.setattr(modern_mnist, "distort", seen)
    modern_mnist.main(["--data-dir", str(tiny), "--epochs", "2", *SMALL, "--distortion", "0.7"])
    assert calls == [(250, 0.7)] * 2
    modern_mnist.main(["--data-dir", str(tiny), "--epochs", "2", *SMALL, "--distortion", "0"])
    assert len(calls) == 2
    capsys.readouterr()


def test_borders_are_continued_not_filled_with_grey():
    """Whatever the value: black is -1 where pixels are from -1 to 1, and clothes touch the border."""
    black = torch.full((9, 1, 28, 28), -1.0)
    torch.testing.assert_close(distort(black, torch.Generator().manual_seed(1)), black)


@pytest.mark.parametrize(
    ("flags", "length"),
    [([], 8), (["1"], 1), (["2"], 2), (["3"], 2), (["7"], 4), (["8"], 8), (["31"], 8), (["100"], 32), (["0"], 8)],
)
def test_network_and_rate_follow_the_epochs(flags, length, monkeypatch):
    monkeypatch.setattr(modern_mnist, "fit", lambda args: args)
    args = modern_mnist.main(["--epochs", *flags] if flags else [])
    assert args.windows is (length == 32)
    for name, value in modern_mnist.LENGTHS[length].items():
        assert getattr(args, name) == value
        own = {"lr": 0.5, "distortion": 0.25}.get(name, 7)
        if name != "windows":
            assert getattr(modern_mnist.main([f"--{name.replace('_', '-')}", str(own)]), name) == own
    model = modern_mnist.build(args)
    assert (model.rows.hidden_size, model.columns.num_layers, model.lines) == (args.hidden, args.layers, args.lines)


def test_windows_are_a_flag_as_well(monkeypatch, capsys):
    monkeypatch.setattr(modern_mnist, "fit", lambda args: args)
    assert modern_mnist.main(["--epochs", "1", "--windows", "--lines", "1"]).windows is True
    assert modern_mnist.main(["--epochs", "32", "--no-windows"]).windows is False
    for flags in (["--windows"], ["--epochs", "32", "--lines", "2"]):
        with pytest.raises(SystemExit) as stop:
            modern_mnist.main(flags)
        assert stop.value.code == 2
        assert "use --lines 1 or --no-windows" in capsys.readouterr().err


@pytest.mark.parametrize(("epochs", "line"), [("1", 0), ("32", 1)])
def test_a_model_loads_by_the_flags_that_the_docstring_names(epochs, line, tiny, tmp_path, capsys):
    file, flags = str(tmp_path / "m.pth"), ["--data-dir", str(tiny), "--dry-run", "--epochs"]
    _, history = modern_mnist.main([*flags, epochs, "--save-model", file])
    with pytest.raises(SystemExit, match="use the flags that it was trained with"):
        modern_mnist.main([*flags, "0", "--load-model", file])
    lines = re.findall(r"--epochs 0 --load-model m.pth (.*?) +#", modern_mnist.__doc__)
    modern_mnist.main([*flags, "0", "--load-model", file, *lines[line].split()])
    assert f"Test Loss: {history[-1]['valid_loss']:.6f}" in capsys.readouterr().out
    modern_mnist.main(["--epochs", epochs, "--load-model", file, "--predict", str(ROOT / "docs" / "seven.jpg")])
    assert re.search(r"seven.jpg: \d \(\d\.\d{3}\)\n$", capsys.readouterr().out)


@pytest.mark.parametrize("optimizer", ["SGD", "RMSprop"])
def test_another_optimizer_goes_through_the_same_cycle(optimizer, tiny, tmp_path, capsys):
    flags = ["--data-dir", str(tiny), *SMALL, "--optimizer", optimizer, "--checkpoint", str(tmp_path / "c.pt")]
    for _ in range(2):  # the second time it is complete
        _, history = modern_mnist.main([*flags, "--epochs", "2"])
    assert [r["optimizer"] for r in history] == [optimizer] * 2
    assert "complete, 2 epochs" in capsys.readouterr().out


def test_bfloat16_is_the_default_on_a_cpu_that_has_it(monkeypatch):
    args = SimpleNamespace(epochs=None, device=torch.device("cpu"))
    for fast in (True, False):
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda fast=fast: fast)
        assert modern_mnist.recipe(args)["bf16"] is fast
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    args.device = torch.device("cuda")  # whose autocast computes an LSTM in float16
    assert modern_mnist.recipe(args)["bf16"] is False


def test_smoothing_is_of_the_loss_that_is_trained_alone(tiny, capsys):
    flags = ["--data-dir", str(tiny), *SMALL, "--epochs", "2", "--average", "0"]
    (_, smooth), (_, plain) = (modern_mnist.main([*flags, "--smoothing", p]) for p in ("0.5", "0"))
    assert smooth[0]["train_loss"] != plain[0]["train_loss"]  # from the second step on
    assert smooth[0]["train_loss"] == pytest.approx(plain[0]["train_loss"], abs=0.1)  # both without smoothing
    capsys.readouterr()


def test_it_learns(small, capsys):
    _, history = modern_mnist.main(["--data-dir", str(small), "--epochs", "1", "--batch-size", "64"])
    assert history[-1]["valid_acc"] > 0.9
    capsys.readouterr()


def test_one_cycle_over_all_epochs(tiny, monkeypatch, capsys):
    """Up to the rate for a fifth of all steps, and down to next to nothing at the last."""
    rates, step = [], torch.optim.AdamW.step
    monkeypatch.setattr(
        torch.optim.AdamW, "step", lambda self: (rates.append(self.param_groups[0]["lr"]), step(self))[1]
    )
    modern_mnist.main(["--data-dir", str(tiny), "--epochs", "4", *SMALL, "--lr", "0.02"])
    assert len(rates) == 20
    top = rates.index(max(rates))
    assert (top, rates[0], max(rates)) == (3, pytest.approx(0.005), pytest.approx(0.02))
    assert rates[: top + 1] == sorted(rates[: top + 1])
    assert rates[top:] == sorted(rates[top:], reverse=True)
    assert rates[-1] == pytest.approx(0.02 / 16)
    capsys.readouterr()


class Cut(Exception):
    pass


@pytest.mark.parametrize(("done", "network"), [(1, []), (3, ["--windows", "--lines", "1"])])
def test_a_run_that_was_cut_off_ends_as_the_one_that_was_not(done, network, tiny, tmp_path, monkeypatch, capsys):
    """Weights, their average, learning rate and distortions, all to the last bit."""
    flags = ["--data-dir", str(tiny), "--epochs", "4", *SMALL, *network]
    model, _ = modern_mnist.main([*flags, "--checkpoint", str(tmp_path / "whole.pt")])
    whole = capsys.readouterr().out
    kept, end_epoch = ["--checkpoint", str(tmp_path / "c.pt")], common.Run.end_epoch

    def cut(run, tested):
        end_epoch(run, tested)
        if len(run.history) == done:
            raise Cut

    monkeypatch.setattr(common.Run, "end_epoch", cut)
    with pytest.raises(Cut):
        modern_mnist.main([*flags, *kept])
    monkeypatch.undo()
    first = capsys.readouterr().out
    resumed, _ = modern_mnist.main([*flags, *kept])
    second = capsys.readouterr().out
    assert epochs(first) + epochs(second) == epochs(whole)
    assert all(torch.equal(value, resumed.state_dict()[key]) for key, value in model.state_dict().items())
    a, b = (torch.load(tmp_path / name, weights_only=True) for name in ("whole.pt", "c.pt"))
    for part in ("model", "average"):
        assert all(torch.equal(value, b[part][key]) for key, value in a[part].items())
    assert a["optimizer"]["param_groups"] == b["optimizer"]["param_groups"]


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        (["--epochs", "3"], "epochs was 2, now 3"),
        (["--epochs", "4"], "epochs was 2, now 4"),  # said before what follows from it
        (["--smoothing", "0.1"], "smoothing was 0.05, now 0.1"),
        (["--hold-out", "50"], "hold_out was 0, now 50"),
        (["--distortion", "0.5"], "distortion was 0.6, now 0.5"),
        (["--average", "3"], "average was 15, now 3"),
        (["--windows", "--lines", "1"], "windows was False, now True"),
    ],
)
def test_a_checkpoint_of_another_schedule_is_refused(flags, line, tiny, tmp_path, capsys):
    usual = ["--data-dir", str(tiny), *SMALL, "--epochs", "2", "--checkpoint", str(tmp_path / "c.pt")]
    modern_mnist.main(usual)
    with pytest.raises(SystemExit, match=line):
        modern_mnist.main([*usual, *flags])
    capsys.readouterr()


def test_a_damaged_average_is_refused(tiny, tmp_path, capsys):
    file = tmp_path / "c.pt"
    flags = ["--data-dir", str(tiny), *SMALL, "--epochs", "1", "--checkpoint", str(file)]
    modern_mnist.main(flags)
    content = torch.load(file, weights_only=True)
    content["average"]["module.classifier.bias"] += float("nan")
    torch.save(content, file)
    with pytest.raises(SystemExit, match=r"module\.classifier\.bias has values that are not finite"):
        modern_mnist.main(flags)
    capsys.readouterr()


def test_the_average_is_what_is_tested_saved_and_loaded(tiny, tmp_path, capsys):
    flags = ["--data-dir", str(tiny), *SMALL, "--layers", "1", "--average", "2"]
    files = ["--save-model", str(tmp_path / "m.pth"), "--checkpoint", str(tmp_path / "c.pt")]
    model, history = modern_mnist.main([*flags, "--epochs", "2", *files])
    saved = torch.load(tmp_path / "m.pth", weights_only=True)
    kept = torch.load(tmp_path / "c.pt", weights_only=True)
    for key, value in model.state_dict().items():
        assert torch.equal(value, saved[key])
        assert torch.equal(value, kept["average"]["module." + key])
    assert any(not torch.equal(saved[key], value) for key, value in kept["model"].items())
    images, labels = common.read(tiny)[1]
    assert history[-1]["valid_loss"] == pytest.approx(F.cross_entropy(model(common.to_float(images)), labels).item())
    assert kept["average"]["n_averaged"] == 1 + 2 * 5  # it starts as the model itself
    out = capsys.readouterr().out
    modern_mnist.main([*flags, "--epochs", "0", "--load-model", str(tmp_path / "m.pth")])
    report = re.findall(r"(?s)Test Loss.*", out)
    assert re.findall(r"(?s)Test Loss.*", capsys.readouterr().out) == report


def test_normalize_is_refused(capsys):
    """The network does so itself, for pixels from 0 to 1."""
    with pytest.raises(SystemExit) as stop:
        modern_mnist.main(["--normalize"])
    assert stop.value.code == 2
    assert "unrecognized arguments: --normalize" in capsys.readouterr().err


def test_without_an_average_the_model_itself_is_tested(tiny, tmp_path, capsys):
    flags = ["--data-dir", str(tiny), *SMALL, "--epochs", "2", "--average", "0"]
    model, _ = modern_mnist.main([*flags, "--checkpoint", str(tmp_path / "c.pt")])
    kept = torch.load(tmp_path / "c.pt", weights_only=True)["model"]
    assert all(torch.equal(value, kept[key]) for key, value in model.state_dict().items())
    capsys.readouterr()


def test_parts_decide_the_digits_and_threads_do_not(tiny, capsys):
    flags = ["--data-dir", str(tiny), "--epochs", "2", *SMALL, "--parts", "3"]
    losses = []
    before = torch.get_num_threads()
    for threads in (1, 2, 4):
        torch.set_num_threads(threads)
        _, history = modern_mnist.main(flags)
        losses.append([(r["train_loss"], r["valid_loss"]) for r in history])
    torch.set_num_threads(before)
    assert losses[0] == losses[1] == losses[2]
    assert history[0]["parts"] == 3
    capsys.readouterr()


@pytest.mark.parametrize("windows", [False, True])
def test_a_pasted_model_and_loop_train_with_torch_alone(windows, small):
    _, Model, train, test = pasted("modern_mnist.py", "Windows", "RowsAndColumns", "train", "test")
    (images, labels), (test_images, test_labels) = common.read(small)
    loader = DataLoader(TensorDataset(images[:2000, None] / 255, labels[:2000]), 64, shuffle=True)
    model = Model(32, 1, 10, 1, windows)
    average, optimizer = AveragedModel(model), torch.optim.AdamW(model.parameters(), 0.01)
    scheduler = LambdaLR(optimizer, lambda step: 1 - step / (2 * len(loader)))
    losses = [
        common.score(train(model, loader, nn.CrossEntropyLoss(), optimizer, scheduler, average))[0] for _ in range(2)
    ]
    assert losses[1] < losses[0]
    tested = test(average, DataLoader(TensorDataset(test_images[:, None] / 255, test_labels), 100))
    assert sum(len(labels) for _, labels in tested) == 1010
    assert not any(outputs.requires_grad for outputs, _ in tested)
