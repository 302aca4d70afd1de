"""modern_mnist.py: its model, distortions and schedule, and runs that are cut off."""

import itertools

import common

import pytest
import torch
import torch.nn.functional as F
from conftest import refused

import modern_mnist
from modern_mnist import RowsAndColumns, Windows, distort

SMALL = ["--hidden", 8, "--batch-size", 50, "--data-dir"]  # five steps an epoch on the tiny data


@pytest.fixture
def images(digits):
    return common.to_float(digits[0][0][:300])


@pytest.mark.parametrize(("lines", "steps"), [(1, 24), (4, 6), (24, 1)])
def test_steps_are_lines_of_the_middle_from_top_to_bottom(lines, steps):
    model = RowsAndColumns(3, 1, 10, lines)
    seen = []
    for lstm in (model.rows, model.columns):
        lstm.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    image = torch.arange(784.0).view(1, 1, 28, 28)
    model(image)
    middle = image[0, 0, 2:26, 2:26]
    for pixels, expected in zip(seen, (middle, middle.T)):
        assert pixels.shape == (steps, 1, 24 * lines)
        assert torch.equal((pixels * 0.3081 + 0.1307).round().view(24, 24), expected)


def test_images_of_another_size_are_refused():
    """Of 32 × 32 pixels it would read a corner."""
    with pytest.raises(ValueError, match="32"):
        RowsAndColumns(3, 1, 10)(torch.rand(5, 1, 32, 32))


def test_in_evaluation_it_answers_for_images_shifted_by_a_pixel_too(images):
    model, answers = RowsAndColumns(3, 1, 10), []
    for by, along in ((0, 2), (1, 2), (-1, 2), (1, 3), (-1, 3)):
        shifted = images.roll(by, along)
        answers.append(model(shifted).log_softmax(1))  # training reads the middle alone
    torch.testing.assert_close(model.eval()(images), torch.stack(answers).mean(0))


def test_every_window_is_read_row_by_row_with_the_same_weights():
    windows, x = Windows(2, 5, 4, 3), torch.rand(6, 2, 10, 13)
    out = windows(x)
    assert out.shape == (6, 10, 3, 4)
    for row, column in itertools.product(range(3), range(4)):
        window = x[:, :, 3 * row : 3 * row + 4, 3 * column : 3 * column + 4]
        _, (h_n, _) = windows.lstm(window.permute(2, 0, 3, 1).flatten(2))
        torch.testing.assert_close(out[:, :, row, column], torch.cat([*h_n], 1))


def test_with_windows_rows_and_columns_are_those_of_their_map():
    model, seen = RowsAndColumns(8, 1, 10, 1, windows=True), []
    model.windows.register_forward_hook(lambda layer, inputs, out: seen.append(out))
    for layer in (model.rows, model.columns):
        layer.register_forward_pre_hook(lambda layer, inputs: seen.append(inputs[0]))
    model(torch.rand(5, 1, 28, 28))
    places, rows, columns = seen
    assert places.shape == (5, 8, 3, 3)
    assert torch.equal(rows, places.permute(2, 0, 1, 3).flatten(2))
    assert torch.equal(columns, places.permute(3, 0, 1, 2).flatten(2))


def exported(model, images):
    shapes = [{0: torch.export.Dim("batch")}]
    return torch.export.export(model, (images,), dynamic_shapes=shapes).module()


older = pytest.mark.skipif(torch.__version__ < "2.14", reason="torch 2.11 cannot export the LSTMs")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("export", [pytest.param(exported, marks=older), torch.jit.trace])
@pytest.mark.parametrize("windows", [False, True])
def test_it_can_be_exported_for_batches_of_any_size(export, windows, images):
    model = RowsAndColumns(8, 1, 10, 1, windows).eval()
    torch.testing.assert_close(export(model, images[:3])(images), model(images))


def test_distortion_differs_from_image_to_image_and_its_generator_decides_how(images):
    same = images[:1].expand(300, 1, 28, 28)
    once, again, other = (distort(same, torch.Generator().manual_seed(k)) for k in (1, 1, 2))
    assert torch.equal(once, again)
    assert not torch.equal(once, other)
    assert len(once.unique(dim=0)) == 300


def test_a_distorted_image_stays_that_digit(images):
    same = images[:1].expand(300, 1, 28, 28)
    distorted = distort(same, torch.Generator().manual_seed(1))
    assert 0 <= distorted.min() <= distorted.max() <= 1 + 1e-6
    assert F.cosine_similarity(distorted.mean(0).flatten(), same[0].flatten(), 0) > 0.8


def test_a_distortion_is_that_of_affine_grid_and_an_interpolated_field(images):
    """As torch computes it for each image; the numbers drawn are the same."""
    images, generator = images[:5], torch.Generator().manual_seed(1)
    drawn = torch.rand(5, 2, 3, generator=generator) * 2 - 1
    affine = torch.eye(2, 3) + drawn * torch.tensor([[0.1, 0.2, 0.1], [0.2, 0.1, 0.1]])
    points = torch.randn(5, 2, 5, 5, generator=generator) * 0.1
    field = F.interpolate(points, 28, mode="bicubic", align_corners=True)
    grid = F.affine_grid(affine, images.shape, align_corners=False) + field.permute(0, 2, 3, 1)
    expected = F.grid_sample(images, grid, padding_mode="border", align_corners=False)
    once = distort(images, torch.Generator().manual_seed(1), shift=1.4, warp=1.4)
    torch.testing.assert_close(once, expected, atol=1e-4, rtol=0)


def test_no_distortion_leaves_images_as_they_are(images):
    torch.testing.assert_close(distort(images, torch.Generator(), 0.0), images, atol=1e-5, rtol=0)


NONE = dict(scale=0.0, shear=0.0, shift=0.0, warp=0.0)


@pytest.mark.parametrize("change", [{"shear": 0.4}, {"scale": 0.2}, {"warp": 0.8}])
def test_each_kind_of_distortion_changes_images(change, images):
    changed = distort(images, torch.Generator().manual_seed(1), **NONE | change)
    assert (changed - images).square().mean() > 0.005


def test_shift_moves_by_as_many_pixels_at_most():
    images = torch.zeros(300, 1, 28, 28)
    images[..., 14, 14] = 1
    moved = distort(images, torch.Generator().manual_seed(1), **NONE | {"shift": 3.0})
    places = torch.arange(28.0) - 14
    down, right = moved.sum((1, 3)) @ places, moved.sum((1, 2)) @ places
    for move in (down, right):
        assert 2.5 < move.max() < 3.1
        assert 2.5 < -move.min() < 3.1


@pytest.mark.parametrize(
    ("flags", "calls"),
    [
        (["--epochs", 2], [(250, 0.7)] * 2),
        (["--epochs", 2, "--distortion", 0], []),
    ],
)
def test_training_images_alone_are_distorted(flags, calls, tiny, monkeypatch):
    seen = []

    def note(images, generator, strength):
        seen.append((len(images), strength))
        return images

    monkeypatch.setattr(modern_mnist, "distort", note)
    modern_mnist.main([*SMALL, tiny, "--distortion", 0.7, *flags])
    assert seen == calls


@pytest.mark.parametrize(
    ("given", "length"),
    [({}, 8), ({"epochs": 0}, 8), ({"epochs": 1}, 1), ({"epochs": 7}, 4), ({"epochs": 100}, 8)],
)
def test_network_and_rate_follow_the_epochs(given, length, monkeypatch):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    settings = modern_mnist.recipe(given)
    expected = {"windows": False, **modern_mnist.LENGTHS[length]}
    assert {name: settings[name] for name in expected} == expected


@pytest.mark.parametrize(
    ("fast", "device", "bf16"),
    [(True, "cpu", True), (False, "cpu", False), (True, "cuda", False)],
)
def test_bfloat16_is_the_default_on_a_cpu_that_has_it(fast, device, bf16, monkeypatch):
    """CUDA's autocast computes an LSTM in float16."""
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: fast)
    assert modern_mnist.recipe({"device": device})["bf16"] is bf16


def test_a_cpu_without_bfloat16_is_spared_muon(monkeypatch):
    """A step of it took two seconds there, since torch computes it in bfloat16."""
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    settings = modern_mnist.recipe({"epochs": 8, "device": "cpu"})
    assert (settings["optimizer"], settings["lr"]) == ("AdamW", 0.01)
    assert modern_mnist.recipe({"epochs": 8, "device": "cuda"})["optimizer"] == "Muon"


def test_muon_where_it_is_asked_for_has_its_own_rate(monkeypatch):
    """Without bfloat16 it got AdamW's."""
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    assert modern_mnist.recipe({"device": "cpu", "optimizer": "Muon"})["lr"] == 0.02


def test_another_optimizer_does_not_get_muons_rate(monkeypatch):
    """`--optimizer AdamW` trained with 0.02, twice its own."""
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    assert modern_mnist.recipe({"epochs": 8, "optimizer": "AdamW"})["lr"] == 0.01


def test_the_training_loss_is_smoothed_and_the_valid_loss_is_not(tiny):
    """At a rate of next to nothing, on one batch, both are of the untrained model."""
    flags = ["--epochs", 1, "--batch-size", 250, "--distortion", 0, "--lr", 1e-30]
    command = ["--data-dir", tiny, *flags, "--smoothing", 0.5, "--no-bf16"]
    model, (record,) = modern_mnist.main(command)
    (images, labels), (test_images, test_labels) = common.read(tiny)
    test_outputs = model(common.to_float(test_images))
    outputs = model.train()(common.to_float(images))
    smoothed = F.cross_entropy(outputs, labels, label_smoothing=0.5).item()
    assert record["train_loss"] == pytest.approx(smoothed, rel=1e-5)
    plain = F.cross_entropy(test_outputs, test_labels).item()
    assert record["valid_loss"] == pytest.approx(plain, rel=1e-5)


def test_one_cycle_over_all_epochs(tiny, monkeypatch):
    """Up to the rate for a fifth of all steps, and down to next to nothing at the last."""
    rates, step = [], torch.optim.SGD.step

    def note(self):
        rates.append(self.param_groups[0]["lr"])
        step(self)

    monkeypatch.setattr(torch.optim.SGD, "step", note)
    modern_mnist.main([*SMALL, tiny, "--epochs", 4, "--lr", 0.02, "--optimizer", "SGD"])
    up = [0.005, 0.01, 0.015, 0.02]
    assert rates == pytest.approx(up + [0.02 * n / 16 for n in range(16, 0, -1)])


def test_a_run_that_was_cut_off_ends_as_the_one_that_was_not(tiny, tmp_path, monkeypatch, capsys):
    """Weights, learning rate and distortions, all to the last bit."""
    flags = [*SMALL, tiny, "--epochs", 3, "--windows", "--lines", 1, "--optimizer", "Muon"]
    _, history = modern_mnist.main([*flags, "--checkpoint", tmp_path / "whole.pt"])
    end_epoch = common.Run.end_epoch

    def cut(self, *scores):
        end_epoch(self, *scores)
        raise KeyboardInterrupt

    command = [*flags, "--checkpoint", tmp_path / "c.pt"]
    monkeypatch.setattr(common.Run, "end_epoch", cut)
    with pytest.raises(KeyboardInterrupt):
        modern_mnist.main(command)
    monkeypatch.undo()
    status, line = refused(modern_mnist.main, [*command, "--epochs", 4], capsys)
    assert (status, "epochs was 3, now 4" in line) == (1, True)  # not what follows from it
    _, again = modern_mnist.main(command)
    assert capsys.readouterr().out.count("\nEpoch ") == 2
    assert [r["valid_loss"] for r in again] == [r["valid_loss"] for r in history]
    whole, resumed = (torch.load(tmp_path / name)["state"] for name in ("whole.pt", "c.pt"))
    torch.testing.assert_close(resumed, whole, rtol=0, atol=0)
