"""The scripts as a user calls them."""

import common

import json
import os
import re
import shutil
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from conftest import ROOT, TUTORIALS, call, has_bf16_lstm, start
from torchvision import transforms
from torchvision.datasets import MNIST

import lstm_mnist
import mlp_mnist
import modern_mnist

EPOCH = re.compile(
    r"Epoch (\d+)\. Train Loss: \d+\.\d{6}, Train Acc: [01]\.\d{6}, Valid Loss: \d+\.\d{6}, Valid Acc: [01]\.\d{6}, "
    r"Time \d\d:\d\d:\d\d"
)
SCRIPTS = {"mlp_mnist.py": mlp_mnist.main, "lstm_mnist.py": lstm_mnist.main, "modern_mnist.py": modern_mnist.main}


def results(text):
    """The lines of an output without what the clock decides."""
    return [re.sub(r", Time .*", "", line) for line in text.splitlines()]


@pytest.mark.parametrize(
    ("name", "epochs", "lr", "least"),
    [
        ("mlp", 5, 0.01, 0.80),
        pytest.param("sgd", 8, 0.3, 0.80, marks=pytest.mark.slow),
        ("last-hidden", 3, 0.001, 0.70),
        pytest.param("time-major", 4, 1, 0.70, marks=pytest.mark.slow),
        ("batch-first", 2, 0.001, 0.70),
    ],
)
def test_each_recipe_learns(name, epochs, lr, least, small, tmp_path):
    """On a tenth of the training images, to an accuracy that only a program that learns reaches."""
    main = mlp_mnist.main if name == "mlp" else lstm_mnist.main
    recipe = [] if name == "mlp" else ["--recipe", name]
    log = tmp_path / "log.jsonl"
    flags = ["--epochs", str(epochs), "--lr", str(lr), "--data-dir", str(small), "--log", str(log), "--device", "cpu"]
    main([*recipe, *flags])
    records = [json.loads(line) for line in log.read_text().splitlines()]
    assert [r["epoch"] for r in records] == list(range(epochs))
    assert records[-1]["valid_acc"] >= least
    assert records[-1]["train_loss"] < records[0]["train_loss"]


@pytest.mark.parametrize("script", SCRIPTS)
def test_dry_run_on_the_committed_data_from_another_folder(script, tmp_path):
    run = call(script, "--dry-run", cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    assert run.stderr == ""
    assert len(EPOCH.findall(run.stdout)) == 1
    size = {"mlp_mnist.py": 20, "lstm_mnist.py": 100, "modern_mnist.py": 1000}[script]
    assert re.search(rf"Test Accuracy \(Overall\): \d+\.\d\d% \(\d+/{size}\)\n$", run.stdout)


@pytest.mark.parametrize("script", SCRIPTS)
def test_one_epoch_as_a_process(script, tiny, tmp_path):
    run = call(script, "--epochs", 1, "--data-dir", tiny, "--log-interval", 1, "--device", "cpu", cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    lines = run.stdout.splitlines()
    assert re.search(r", [\d,]+ parameters, \w+ lr [\d.]+, batch \d+( in \d+ parts)?, 1 epoch, cpu, seed 1$", lines[0])
    own = {"mlp_mnist.py": 6, "lstm_mnist.py": 2}.get(script, 0)  # lines that the tutorial prints before
    running = [line for line in lines if re.fullmatch(r"\[1/1\] Loss: \d+\.\d{6}, Acc: [01]\.\d{6}", line)]
    assert lines[own + 1 : own + 1 + len(running)] == running
    steps, after = {"mlp_mnist.py": (13, 1), "lstm_mnist.py": (3, 2)}.get(script, (1, 0))
    assert len(running) == steps
    epoch = [k for k, line in enumerate(lines) if EPOCH.fullmatch(line)]
    assert epoch == [own + steps + after + 1]
    assert lines[-1] == lines[-1].strip()
    assert (
        len([line for line in lines if re.match(r"The test accuracy of  \d is : +(\d+%|None) \( ?\d+/ ?\d+\)$", line)])
        == 10
    )
    assert list(tmp_path.iterdir()) == []


def test_last_hidden_prints_the_accuracy_of_the_first_test_batch(tiny, capsys):
    lstm_mnist.main(["--recipe", "last-hidden", "--epochs", "2", "--data-dir", str(tiny), "--log-interval", "2"])
    lines = [x for x in capsys.readouterr().out.splitlines() if "accuracy:" in x]
    assert [x.split(":")[0] for x in lines] == ["0-1", "0-3", "1-1", "1-3"]
    assert all(re.fullmatch(r"\d-\d: accuracy:0\.\d+", x) for x in lines)


@pytest.mark.parametrize("script", SCRIPTS)
def test_seed_decides_every_number(script, tiny, capsys):
    def run(seed):
        SCRIPTS[script](["--epochs", "2", "--data-dir", str(tiny), "--seed", seed])
        return results(capsys.readouterr().out)[1:]

    first = run("7")
    assert run("7") == first
    assert run("8") != first


def test_all_recipes_end_in_a_table_and_equal_their_single_runs(tiny, capsys):
    lstm_mnist.main(["--recipe", "all", "--epochs", "1", "--data-dir", str(tiny)])
    out = capsys.readouterr().out
    table = out.splitlines()[-5:]
    assert table[0].split("  ")[0] == "recipe"
    assert [row.split()[0] for row in table[1:]] == list(lstm_mnist.RECIPES)
    assert all(re.fullmatch(r"\S+ +[\d,]+ +1 +\d+\.\d\d% +\d+\.\d\d", row) for row in table[1:])
    lstm_mnist.main(["--recipe", "time-major", "--epochs", "1", "--data-dir", str(tiny)])
    alone = results(capsys.readouterr().out)
    together = results(out)
    k = together.index(alone[0])
    assert together[k : k + len(alone)] == alone


@pytest.mark.parametrize("name", TUTORIALS)
def test_saved_model_scores_the_same_here_and_in_the_tutorials_class(name, tiny, tmp_path, capsys):
    main, recipe = (mlp_mnist.main, []) if name == "mlp" else (lstm_mnist.main, ["--recipe", name])
    file = tmp_path / "rnn.pth"
    common_flags = [*recipe, "--data-dir", str(tiny), "--device", "cpu"]
    main([*common_flags, "--epochs", "2", "--save-model", str(file)])
    trained = capsys.readouterr().out
    main([*common_flags, "--epochs", "0", "--load-model", str(file)])
    evaluated = capsys.readouterr().out
    end = trained[trained.rindex("Test Loss") :]
    assert evaluated.endswith(end)

    theirs = TUTORIALS[name]()
    theirs.load_state_dict(torch.load(file, weights_only=True), strict=True)
    steps = [transforms.ToTensor()] + [transforms.Normalize([0.5], [0.5])] * (name in ("sgd", "time-major"))
    data = MNIST(tiny, train=False, transform=transforms.Compose(steps))
    right = sum(theirs(x[None]).argmax(1).item() == y for x, y in data) if name != "time-major" else None
    if right is None:  # time-major's squeeze() breaks on a batch of one
        images, labels = zip(*data)
        right = (theirs(torch.stack(images)).argmax(1) == torch.tensor(labels)).sum().item()
    assert f"({right}/110)" in end


@pytest.mark.parametrize("cell", ["gru", "rnn", "equations"])
def test_cells_train_save_and_load(cell, tiny, tmp_path, capsys):
    file = tmp_path / "m.pth"
    flags = ["--cell", cell, "--recipe", "last-hidden", "--data-dir", str(tiny)]
    lstm_mnist.main([*flags, "--epochs", "1", "--save-model", str(file)])
    trained = capsys.readouterr().out
    assert f"LastHidden {cell}, " in trained
    lstm_mnist.main([*flags, "--epochs", "0", "--load-model", str(file)])
    assert capsys.readouterr().out.endswith(trained[trained.index("Test Loss") :])


def test_log_has_these_keys(tiny, tmp_path, capsys):
    file = tmp_path / "runs.jsonl"
    for _ in range(2):
        mlp_mnist.main(["--epochs", "2", "--data-dir", str(tiny), "--log", str(file), "--device", "cpu"])
    records = [json.loads(line) for line in file.read_text().splitlines()]
    assert [r["epoch"] for r in records] == [0, 1, 0, 1]
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("Epoch")]
    for r, line in zip(records, lines):
        assert {
            "script",
            "recipe",
            "seed",
            "device",
            "epoch",
            "train_loss",
            "train_acc",
            "valid_loss",
            "valid_acc",
        } < set(r)
        assert (r["script"], r["recipe"], r["seed"], r["device"]) == ("mlp_mnist.py", "mlp", 1, "cpu")
        assert isinstance(r["seconds"], float)
        assert 0 <= r["valid_acc"] <= 1
        assert f"Valid Loss: {r['valid_loss']:.6f}, Valid Acc: {r['valid_acc']:.6f}" in line


@pytest.mark.parametrize("script", SCRIPTS)
def test_bf16_trains_otherwise_and_about_as_well(script, small, tmp_path, capsys):
    if script != "mlp_mnist.py" and not has_bf16_lstm():
        pytest.skip("this CPU has no LSTM in bfloat16")
    scores = []
    for flags in (["--no-bf16"], ["--bf16"]):
        log, model = tmp_path / f"{len(scores)}.jsonl", tmp_path / "m.pth"
        files = ["--log", str(log), "--save-model", str(model)]
        SCRIPTS[script](["--epochs", "1", "--lr", "0.005", "--data-dir", str(small), *files, *flags])
        scores.append(json.loads(log.read_text()))
    capsys.readouterr()
    assert [r["bf16"] for r in scores] == [False, True]
    assert scores[0]["train_loss"] != scores[1]["train_loss"]
    assert scores[0]["train_loss"] == pytest.approx(scores[1]["train_loss"], rel=0.05)
    assert {value.dtype for value in torch.load(model, weights_only=True).values()} == {torch.float32}


@pytest.mark.parametrize("script", ["lstm_mnist.py", "modern_mnist.py"])
def test_bf16_says_where_the_device_cannot(script, tiny, monkeypatch):
    """As it is on a CPU without AVX512."""
    reason = "could not create a primitive descriptor for the LSTM forward propagation primitive"

    def forward(self, *_):
        raise RuntimeError(reason)

    flags = ["--epochs", "0", "--device", "cpu", "--data-dir", str(tiny), "--bf16"]
    SCRIPTS[script](flags)  # trains nothing
    monkeypatch.setattr(torch.nn.LSTM, "forward", forward)
    with pytest.raises(
        SystemExit, match=r"^--bf16: this model cannot .* on cpu \(for an LSTM .* AVX512\); leave it out$"
    ):
        SCRIPTS[script]([*flags, "--epochs", "1"])
    reason = "std::bad_alloc"
    with pytest.raises(SystemExit, match=f"^stopped: {reason}; lower --batch-size"):
        SCRIPTS[script]([*flags, "--epochs", "1"])


def test_bf16_is_refused_where_an_lstm_would_compute_in_float16(tiny, monkeypatch):
    """As cuDNN does under autocast, whatever type it is asked for."""
    forward = torch.nn.LSTM.forward

    def half(self, *inputs):
        output, state = forward(self, *(x.float() for x in inputs))
        return output.half(), state

    monkeypatch.setattr(torch.nn.LSTM, "forward", half)
    with pytest.raises(SystemExit, match=r"^--bf16: .*; leave it out$"):
        lstm_mnist.main(["--epochs", "1", "--device", "cpu", "--data-dir", str(tiny), "--bf16"])


@pytest.mark.parametrize("flags", [[], pytest.param(["--bf16"], marks=pytest.mark.slow)])
@pytest.mark.skipif(not shutil.which(os.environ.get("CXX", "g++")), reason="torch.compile needs a C++ compiler")
def test_compiled_steps_train_as_the_loop_does(flags, tiny, tmp_path, capsys):
    """250 images at 25 a batch; with a short last batch there would be a second graph to compile."""
    records, models = [], []
    for compiled in ([], ["--compile"]):
        log, model = tmp_path / f"{len(records)}.jsonl", tmp_path / f"{len(records)}.pth"
        files = ["--log", str(log), "--save-model", str(model)]
        settings = ["--epochs", "2", "--lr", "0.1", "--batch-size", "25", "--data-dir", str(tiny)]
        mlp_mnist.main([*settings, *files, *flags, *compiled])
        records.append(json.loads(log.read_text().splitlines()[-1]))
        models.append(torch.load(model, weights_only=True))
    capsys.readouterr()
    near = dict(rtol=0.05, atol=0.005) if flags else dict(rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(*models, **near)
    torch.manual_seed(1)
    assert not torch.allclose(models[0]["fc1.weight"], mlp_mnist.Net().state_dict()["fc1.weight"], atol=0.005)
    assert records[0]["train_loss"] == pytest.approx(records[1]["train_loss"], rel=0.02 if flags else 1e-4)


def test_the_compiled_step_is_the_loops_mathematics(tiny, monkeypatch, capsys):
    """The step as it is written, run without a compiler."""
    monkeypatch.setattr(torch, "compile", lambda step, **_: step)
    flags = ["--epochs", "2", "--data-dir", str(tiny)]
    (loop, _), (step, _) = mlp_mnist.main(flags), mlp_mnist.main([*flags, "--compile"])
    capsys.readouterr()
    torch.testing.assert_close(step.state_dict(), loop.state_dict(), rtol=1e-5, atol=1e-7)


def test_compiled_runs_in_one_process_do_not_add_up(tiny, monkeypatch, capsys):
    """Two graphs per learning rate, the second for the short last batch; torch allows a function eight."""
    compile = torch.compile
    monkeypatch.setattr(torch, "compile", lambda step, **options: compile(step, **options | {"backend": "eager"}))
    flags = ["--epochs", "1", "--batch-size", "100", "--compile", "--data-dir", str(tiny)]
    losses = [mlp_mnist.main([*flags, "--lr", f"0.0{n}"])[1][0]["train_loss"] for n in range(1, 6)]
    assert losses == sorted(losses, reverse=True)
    capsys.readouterr()


def test_compile_without_a_compiler_ends_in_one_line(tiny, tmp_path):
    env = {"CXX": str(tmp_path / "none"), "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache")}
    run = start("mlp_mnist.py", "--compile", "--data-dir", tiny, "--device", "cpu", env=env)
    _, err = run.communicate()
    assert run.returncode == 1
    errors = [line for line in err.splitlines() if "CUDA_HOME" not in line]  # torch's own, where CUDA has no GPU
    assert len(errors) == 1
    assert "No working C++ compiler" in errors[0]
    assert "omit --compile" in errors[0]


def test_compile_with_an_older_torch_ends_in_one_line(tiny, monkeypatch, capsys):
    monkeypatch.setattr(torch._dynamo, "config", object())
    with pytest.raises(SystemExit, match="--compile needs a newer torch than .*; omit --compile"):
        mlp_mnist.main(["--compile", "--data-dir", str(tiny)])


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (KeyboardInterrupt(), 130, "interrupted; no checkpoint was written (--checkpoint FILE)"),
        (KeyboardInterrupt("terminated", 143), 143, "terminated; no checkpoint was written"),
        (MemoryError(), "out of memory", "lower --batch-size"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), "can't allocate memory", "lower --batch-size"),
        (OSError(5, "Input/output error", "x.jsonl"), "x.jsonl", "stopped: "),
        (RuntimeError("could not create a primitive"), "create a primitive", "lower --batch-size"),
        (RuntimeError("std::bad_alloc"), "bad_alloc", "lower --batch-size"),
    ],
)
def test_what_stops_a_run_from_outside_gets_one_line(error, status, said, monkeypatch, capsys):
    def fail(*_):
        raise error

    monkeypatch.setattr(common, "loaders", fail)
    with pytest.raises(SystemExit) as end:
        mlp_mnist.main([])
    line = capsys.readouterr().err if isinstance(status, int) else str(end.value.code)
    assert end.value.code == status if isinstance(status, int) else status in line
    assert said in line
    assert len(line.splitlines()) == 1


def test_a_fault_of_the_program_keeps_its_traceback(monkeypatch, capsys):
    def fail(*_):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setattr(common, "loaders", fail)
    with pytest.raises(RuntimeError, match="mat1"):
        mlp_mnist.main([])
    capsys.readouterr()


def test_mismatched_torchvision_ends_in_one_line(tmp_path, capfd):
    """And only where there is something to download: nothing else needs it."""
    (tmp_path / "torchvision").mkdir()
    (tmp_path / "torchvision" / "__init__.py").write_text(
        "raise RuntimeError('operator torchvision::nms does not exist')"
    )
    commands = [["--dry-run"], ["--dry-run", "--data-dir", tmp_path / "none"]]
    good, bad = (start("mlp_mnist.py", *flags, env={"PYTHONPATH": str(tmp_path)}) for flags in commands)
    assert (good.wait(), good.communicate()[1]) == (0, "")
    assert bad.wait() == 1
    err = bad.communicate()[1]
    assert len(err.splitlines()) == 1
    assert "operator torchvision::nms does not exist" in err
    assert "pip install" in err


def test_code_is_formatted_and_linted():
    for command in (["check"], ["format", "--check"]):
        ruff = subprocess.run([sys.executable, "-m", "ruff", *command, "."], cwd=ROOT, capture_output=True, text=True)
        assert ruff.returncode == 0, ruff.stdout + ruff.stderr


LINES = {  # what each tutorial prints in its first epoch, with N for a number
    "batch-first": [
        "epoch 1",
        "**********",
        "[1/2] Loss: N, Acc: N",
        "Finish 1 epoch, Loss: N, Acc: N",
        "Test Loss: N, Acc: N",
    ],
    "sgd": [],
    "last-hidden": ["0-1: accuracy:N", "0-3: accuracy:N"],
    "time-major": [],
    "mlp": ["epoch:1 Training loss:N"],
}
PER_EPOCH = "Epoch 0. Train Loss: N, Train Acc: N, Valid Loss: N, Valid Acc: N, Time 00:00:00"


@pytest.mark.parametrize("name", LINES)
def test_each_recipe_prints_its_tutorials_lines_in_their_order(name, tiny, capsys):
    main, recipe = (mlp_mnist.main, []) if name == "mlp" else (lstm_mnist.main, ["--recipe", name])
    flags = ["--log-interval", "2"] if name in ("batch-first", "last-hidden") else []
    _, history = main([*recipe, "--data-dir", str(tiny), "--epochs", "2", "--device", "cpu", *flags])
    out = capsys.readouterr().out
    if name == "mlp":  # its tutorial prints the model before anything else
        model = out[out.index("\n") + 1 : out.index("\n)\n") + 3]
        assert model == f"{mlp_mnist.Net()}\n"
        out = out.replace(model, "")
    lines = [re.sub(r"\d+\.\d+", "N", line) for line in out.splitlines()]
    assert lines[1 : lines.index(PER_EPOCH) + 1] == [*LINES[name], PER_EPOCH]
    first = history[0]
    if name == "mlp":
        assert f"epoch:1 Training loss:{first['train_loss']:.6f}\n" in out
    if name == "batch-first":
        assert f"Finish 1 epoch, Loss: {first['train_loss']:.6f}, Acc: {first['train_acc']:.6f}\n" in out
        assert f"Test Loss: {first['valid_loss']:.6f}, Acc: {first['valid_acc']:.6f}\n" in out


def test_running_line_is_of_the_samples_so_far(tiny, capsys):
    """At the end of an epoch it equals the epoch's own figures; a line cut short by --log-interval is of fewer."""
    _, history = lstm_mnist.main(["--epochs", "1", "--data-dir", str(tiny), "--log-interval", "1", "--device", "cpu"])
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("[1/1]")]
    assert lines[-1] == f"[1/1] Loss: {history[0]['train_loss']:.6f}, Acc: {history[0]['train_acc']:.6f}"
    assert len(set(lines)) == 3


@pytest.mark.parametrize("script", ["mlp_mnist.py", "lstm_mnist.py"])
@pytest.mark.parametrize("optimizer", ["SGD", "Adam", "AdamW", "Adadelta", "RMSprop"])
def test_any_optimizer_trains_at_the_rate_given(script, optimizer, tiny, tmp_path, capsys):
    log, kept = tmp_path / "log.jsonl", tmp_path / "c.pt"
    flags = ["--data-dir", str(tiny), "--optimizer", optimizer, "--lr", "0.01", "--log", str(log)]
    for epochs in ("2", "3"):
        SCRIPTS[script]([*flags, "--epochs", epochs, "--checkpoint", str(kept)])
    out = capsys.readouterr().out
    assert f", {optimizer} lr 0.01, " in out
    assert "resuming after epoch 1" in out
    records = [json.loads(line) for line in log.read_text().splitlines()]
    assert {(r["optimizer"], r["lr"]) for r in records} == {(optimizer, 0.01)}
    assert records[2]["train_loss"] < records[0]["train_loss"]


def test_without_a_rate_the_recipes_stays(tiny, capsys):
    _, history = mlp_mnist.main(["--data-dir", str(tiny), "--optimizer", "Adadelta", "--dry-run"])
    assert history[0]["lr"] == 0.01
    capsys.readouterr()


def test_hidden_and_layers_override_the_recipe(tiny, tmp_path, capsys):
    flags = ["--recipe", "last-hidden", "--hidden", "7", "--layers", "3", "--data-dir", str(tiny), "--epochs", "1"]
    model, history = lstm_mnist.main([*flags, "--checkpoint", str(tmp_path / "c.pt")])
    assert (model.rnn.hidden_size, model.rnn.num_layers, model.out.in_features) == (7, 3, 7)
    assert (history[0]["hidden"], history[0]["layers"]) == (7, 3)
    flags[3] = "8"
    with pytest.raises(SystemExit, match="hidden was 7, now 8"):
        lstm_mnist.main([*flags, "--checkpoint", str(tmp_path / "c.pt")])
    capsys.readouterr()


def test_every_entry_of_a_recipe_has_a_flag(capsys):
    args = SimpleNamespace(epochs=None, device=torch.device("cpu"))
    own = {"model", "opening", "running", "closing", "logged"}  # what makes it that tutorial's
    for script, recipes in zip(SCRIPTS, (mlp_mnist.RECIPES, lstm_mnist.RECIPES, {"modern": modern_mnist.recipe(args)})):
        with pytest.raises(SystemExit):
            SCRIPTS[script](["--help"])
        flags = set(re.findall(r"--[a-z0-9-]+", capsys.readouterr().out))
        entries = {name for recipe in recipes.values() for name in recipe} - own
        assert {f"--{name.replace('_', '-')}" for name in entries} <= flags


def test_compile_goes_with_sgd_alone(capsys):
    with pytest.raises(SystemExit) as stop:
        mlp_mnist.main(["--compile", "--optimizer", "Adam"])
    assert stop.value.code == 2
    assert "--compile goes with --optimizer SGD" in capsys.readouterr().err
