"""modern_mnist.py: its model, its distortion, its schedule, and that a resumed run ends as one that was not cut off."""

import argparse

import common

import pytest
import torch
import torch.nn.functional as F
from conftest import refused

import modern_mnist
from modern_mnist import Committee, RowsAndColumns, Windows, distort

SMALL = ["--hidden", "8", "--batch-size", "50", "--data-dir"]  # five steps an epoch on the tiny data


@pytest.fixture
def images(digits):
    return common.to_float(digits[0][0][:300])


@pytest.mark.parametrize(("lines", "steps"), [(1, 28), (4, 7), (28, 1)])
def test_steps_are_lines_from_top_to_bottom(lines, steps):
    model, seen = RowsAndColumns(3, 1, 10, lines), []
    for lstm in (model.rows, model.columns):
        lstm.register_forward_pre_hook(lambda _, inputs: seen.append((inputs[0] * 0.3081 + 0.1307).round()))
    image = torch.arange(784.0).view(1, 1, 28, 28)
    model(image)
    for pixels, expected in zip(seen, (image[0, 0], image[0, 0].T)):
        assert pixels.shape == (steps, 1, 28 * lines)
        assert torch.equal(pixels.view(28, 28), expected)


def test_every_window_is_read_row_by_row_with_the_same_weights():
    windows, x = Windows(2, 5, 4, 3), torch.rand(50, 2, 10, 13)  # 600 windows: read in two slices
    out = windows(x)
    assert out.shape == (50, 10, 3, 4)
    for row in range(3):
        for column in range(4):
            window = x[:, :, 3 * row : 3 * row + 4, 3 * column : 3 * column + 4]
            _, (h_n, _) = windows.lstm(torch.stack([window[:, :, k].transpose(1, 2).flatten(1) for k in range(4)]))
            torch.testing.assert_close(out[:, :, row, column], torch.cat([*h_n], 1))


def test_with_windows_rows_and_columns_are_those_of_their_map():
    model, seen = RowsAndColumns(8, 1, 10, 1, windows=True), []
    for layer in (model.windows, model.rows, model.columns):
        layer.register_forward_hook(lambda _, inputs, out: seen.append((inputs[0], out)))
    model(torch.rand(5, 1, 28, 28)).sum().backward()
    (_, places), (rows, _), (columns, _) = seen
    assert places.shape == (5, 8, 3, 3)
    assert torch.equal(rows, places.permute(2, 0, 1, 3).flatten(2))
    assert torch.equal(columns, places.permute(3, 0, 1, 2).flatten(2))
    assert all(p.grad.abs().sum() > 0 for p in model.parameters())


def test_members_of_a_committee_learn_from_a_batch_in_turn_and_all_answer():
    committee, x = Committee(RowsAndColumns(4, 1, 10) for _ in range(3)), torch.rand(9, 1, 28, 28)
    outputs = committee(x)
    for k, member in enumerate(committee):
        torch.testing.assert_close(outputs[k::3], member(x[k::3]))
    outputs[1::3].sum().backward()
    assert [any(p.grad.any() for p in member.parameters()) for member in committee] == [False, True, False]
    answers = torch.stack([member(x).log_softmax(1) for member in committee])
    torch.testing.assert_close(committee.eval()(x), answers.mean(0))


@pytest.mark.parametrize("parts", ["1", "3"])
def test_each_member_gets_every_image_once_whatever_the_parts(parts, tiny, monkeypatch, capsys):
    forward, seen = RowsAndColumns.forward, {}

    def spy(self, x):
        if torch.is_grad_enabled():
            seen.setdefault(self, []).extend(image.numpy().tobytes() for image in x)
        return forward(self, x)

    monkeypatch.setattr(RowsAndColumns, "forward", spy)
    modern_mnist.main([*SMALL, str(tiny), "--epochs", "1", "--members", "2", "--parts", parts, "--distortion", "0"])
    images = sorted(image.numpy().tobytes() for image in common.to_float(common.read(tiny)[0][0]))
    assert [sorted(each) for each in seen.values()] == [images] * 2


def centre(images):
    """The centre of mass of each image in pixels, `(N, 2)`."""
    places, mass = torch.arange(28.0), images.sum((1, 2, 3))
    return torch.stack([(images.sum((1, 3)) * places).sum(1) / mass, (images.sum((1, 2)) * places).sum(1) / mass], 1)


def test_distortion_differs_from_image_to_image_and_its_generator_decides_how(images):
    same = images[:1].expand(300, 1, 28, 28)
    once, again, other = (distort(same, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert torch.equal(once, again)
    assert not torch.equal(once, other)
    assert len({image.numpy().tobytes() for image in once}) == 300
    assert 0 <= once.min() <= once.max() <= 1 + 1e-6
    assert F.cosine_similarity(once.mean(0).flatten(), same[0].flatten(), 0) > 0.8  # it stays that digit
    stronger = distort(same, torch.Generator().manual_seed(1), 3.0)
    assert (stronger - same).square().mean() > (once - same).square().mean()
    torch.testing.assert_close(distort(images, torch.Generator(), 0.0), images, atol=1e-5, rtol=0)


def test_shift_moves_by_as_many_pixels_at_most(images):
    none = dict(turn=0.0, scale=0.0, shift=0.0, warp=0.0)
    moved = centre(distort(images, torch.Generator().manual_seed(1), **{**none, "shift": 3.0})) - centre(images)
    assert moved.abs().max() < 3.1
    assert (moved.amax(0) > 2.5).all()
    assert (moved.amin(0) < -2.5).all()
    for part, size in (("turn", 20.0), ("scale", 0.2), ("warp", 0.8)):
        changed = distort(images, torch.Generator().manual_seed(1), **{**none, part: size})
        assert (changed - images).square().mean() > 0.005


def test_training_images_alone_are_distorted(tiny, monkeypatch, capsys):
    calls = []
    monkeypatch.setattr(modern_mnist, "distort", lambda x, generator, strength: calls.append((len(x), strength)) or x)
    modern_mnist.main([*SMALL, str(tiny), "--epochs", "2", "--distortion", "0.7"])
    assert calls == [(250, 0.7)] * 2
    modern_mnist.main([*SMALL, str(tiny), "--epochs", "2", "--distortion", "0"])
    assert len(calls) == 2
    modern_mnist.main([*SMALL, str(tiny), "--epochs", "1", "--distortion", "0.7", "--members", "3"])
    assert calls[2:] == [(750, 0.7)]  # every image for each member


@pytest.mark.parametrize(
    ("flags", "length"),
    [([], 8), (["1"], 1), (["2"], 2), (["3"], 2), (["7"], 4), (["8"], 8), (["31"], 8), (["100"], 32), (["0"], 8)],
)
def test_network_and_rate_follow_the_epochs(flags, length, monkeypatch):
    parsed = []
    monkeypatch.setattr(common, "loaders", lambda args, *_: parsed.append(args) or 1 / 0)
    own = {"lr": 0.5, "distortion": 0.25, "hidden": 7, "layers": 7}
    for new in ({}, own):
        more = [f"--{name.replace('_', '-')}={value}" for name, value in new.items()]
        with pytest.raises(ZeroDivisionError):
            modern_mnist.main([*["--epochs"] * len(flags), *flags, *more])
    expected = {"windows": length == 32, **modern_mnist.LENGTHS[length]}
    assert [vars(args) | new == vars(args) for args, new in zip(parsed, (expected, expected | own))] == [True, True]


def test_bfloat16_is_the_default_on_a_cpu_that_has_it(monkeypatch):
    for fast in (True, False):
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda fast=fast: fast)
        for device, has in (("cpu", fast), ("cuda", False)):  # whose autocast computes an LSTM in float16
            assert modern_mnist.recipe(argparse.Namespace(epochs=None, device=device))["bf16"] is has


def test_the_training_loss_is_the_smoothed_criterions_and_the_valid_loss_is_plain(tiny, capsys):
    """At a rate of next to nothing, on one batch, both are of the untrained model."""
    flags = ["--data-dir", str(tiny), "--epochs", "1", "--batch-size", "250", "--distortion", "0", "--lr", "1e-30"]
    model, (record,) = modern_mnist.main([*flags, "--smoothing", "0.5", "--no-bf16"])
    losses = []
    for (images, labels), smoothing in zip(common.read(tiny), (0.5, 0.0)):
        with torch.no_grad():
            losses.append(F.cross_entropy(model(common.to_float(images)), labels, label_smoothing=smoothing).item())
    assert [record["train_loss"], record["valid_loss"]] == pytest.approx(losses, rel=1e-5)
    assert f"Train Loss: {record['train_loss']:.6f}" in capsys.readouterr().out


def test_one_cycle_over_all_epochs(tiny, monkeypatch, capsys):
    """Up to the rate for a fifth of all steps, and down to next to nothing at the last."""
    rates, step = [], torch.optim.SGD.step
    monkeypatch.setattr(torch.optim.SGD, "step", lambda self: rates.append(self.param_groups[0]["lr"]) or step(self))
    modern_mnist.main([*SMALL, str(tiny), "--epochs", "4", "--lr", "0.02", "--optimizer", "SGD"])
    assert len(rates) == 20
    assert rates[:4] == pytest.approx([0.005, 0.01, 0.015, 0.02])
    assert rates[4:] == pytest.approx([0.02 * n / 16 for n in range(16, 0, -1)])


def test_a_run_that_was_cut_off_ends_as_the_one_that_was_not(tiny, tmp_path, monkeypatch, capsys):
    """Weights, their average, learning rate and distortions, all to the last bit."""
    flags = [*SMALL, str(tiny), "--epochs", "3", "--windows", "--lines", "1", "--members", "2"]
    model, history = modern_mnist.main([*flags, "--checkpoint", str(tmp_path / "whole.pt")])
    kept, end_epoch = ["--checkpoint", str(tmp_path / "c.pt")], common.end_epoch

    def cut(args, state, so_far, *scores):
        end_epoch(args, state, so_far, *scores)
        if len(so_far) == 1:
            raise ZeroDivisionError

    monkeypatch.setattr(common, "end_epoch", cut)
    with pytest.raises(ZeroDivisionError):
        modern_mnist.main([*flags, *kept])
    monkeypatch.undo()
    status, line = refused(modern_mnist.main, [*flags, *kept, "--epochs", "4"], capsys)
    assert (status, "epochs was 3, now 4" in line) == (1, True)  # said before what follows from it
    resumed, again = modern_mnist.main([*flags, *kept])
    assert capsys.readouterr().out.count("\nEpoch ") == 2
    assert [{**r, "seconds": 0, "run": 0} for r in again] == [{**r, "seconds": 0, "run": 0} for r in history]
    a, b = (torch.load(tmp_path / name, weights_only=True)["state"] for name in ("whole.pt", "c.pt"))
    torch.testing.assert_close(b, a, rtol=0, atol=0)
    assert a.keys() == {"model", "average", "optimizer", "scheduler", "order", "random"}
    torch.testing.assert_close(resumed.state_dict(), model.state_dict(), rtol=0, atol=0)


def test_the_average_is_what_is_tested_saved_and_trained_further(tiny, tmp_path, capsys):
    flags = [*SMALL, str(tiny), "--layers", "1", "--average", "2"]
    files = ["--save-model", str(tmp_path / "m.pth"), "--checkpoint", str(tmp_path / "c.pt")]
    model, history = modern_mnist.main([*flags, "--epochs", "2", *files])
    saved = torch.load(tmp_path / "m.pth", weights_only=True)
    kept = torch.load(tmp_path / "c.pt", weights_only=True)["state"]
    for key, value in model.state_dict().items():
        assert torch.equal(value, saved[key])
        assert torch.equal(value, kept["average"]["module." + key])
    assert any(not torch.equal(saved[key], value) for key, value in kept["model"].items())
    images, labels = common.read(tiny)[1]
    assert history[-1]["valid_loss"] == pytest.approx(F.cross_entropy(model(common.to_float(images)), labels).item())
    assert kept["average"]["n_averaged"] == 1 + 2 * 5  # it starts as the model itself
    again, _ = modern_mnist.main([*flags, "--epochs", "1", "--load-model", str(tmp_path / "m.pth"), "--lr", "1e-30"])
    torch.testing.assert_close(again.state_dict(), model.state_dict())  # a new average starts there
