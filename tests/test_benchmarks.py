"""The benchmarks' counting, and that their commands run."""

import json
import shlex

import pytest
import torch
from conftest import ROOT, call, has_bf16_lstm

from support.saving import SCORES


@pytest.fixture
def speed(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import speed

    return speed


def test_products_are_all_that_an_lstm_has(speed, monkeypatch):
    done = []
    monkeypatch.setattr(torch, "mm", lambda a, b: done.append(2 * a.shape[0] * a.shape[1] * b.shape[1]))
    speed.products(speed.RECIPES["batch-first"], 100)()
    # Input and state of both layers: forward, gradient of the weights and of the input, but that of the images
    first, others = 28 * 28 * 512, 3 * 28 * 128 * 512
    assert sum(done) == 100 * 2 * (2 * first + 3 * others)


def test_part_of_mnist_reads_as_mnist(speed, tmp_path, digits):
    speed.write_part(tmp_path)
    for (images, labels), (part, marks), count in zip(digits, speed.common.read(tmp_path), speed.QUICK):
        assert part.equal(images[:count])
        assert marks.equal(labels[:count])


def test_accuracy_refuses_runs_that_do_not_belong_together(speed, tmp_path, monkeypatch, capsys):
    import accuracy

    log, own = tmp_path / "log.jsonl", dict.fromkeys(SCORES, 0.5)
    own |= dict(script="mlp_mnist.py", recipe="mlp", epoch=0, command="mlp_mnist.py --log-interval 0")
    log.write_text("".join(json.dumps({**own, "run": k, "seed": k, "device": f"cuda:{k}"}) + "\n" for k in (1, 2)))
    monkeypatch.setattr("sys.argv", ["accuracy.py", "--recipe", "mlp", "--seeds", "2", "--log", str(log)])
    with pytest.raises(SystemExit, match=f"^{log}: some of the runs are missing"):
        accuracy.main()
    assert capsys.readouterr().out == ""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "rows"),
    [
        ("speed.py --quick --rounds 1 --no-keras", 7),
        ("startup.py --rounds 1", 3),
        ("set_up.py --rounds 1 --recipe time-major", 2),
        ("accuracy.py --seeds 1 --recipe last-hidden", 1),
        ("busy.py --rounds 1 --seconds 1 --recipe last-hidden", 1),
        ("scale.py --rounds 1 --images 120000 --recipe mlp", 2),
        ("clock.py --log {log} --seeds 1 --lengths 1 --recipe last-hidden", 3),
        ("leave_out.py --log {log} --seeds 1 --epochs 1 --without 'several lines per step' columns 'one cycle'", 4),
    ],
)
def test_benchmark_prints_its_table(command, rows, tmp_path):
    program, *flags = shlex.split(command.format(log=tmp_path / "log.jsonl"))
    done = call(f"benchmarks/{program}", *flags)
    assert done.returncode == 0, done.stderr
    head, rule, *table = [line for line in done.stdout.splitlines() if line.startswith("|")]
    assert ("--bf16 is left out: " in done.stderr) is (program == "speed.py" and not has_bf16_lstm())
    assert len(table) == rows - ("--bf16 is left out: " in done.stderr)
    assert {line.count("|") for line in (head, rule, *table)} == {head.count("|")}
    assert all(cell.strip() for line in table for cell in line.split("|")[1:-1])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "begin"),
    [
        ("speed.py --products --rounds 1", "batch-first: its products alone take "),
        ("processes.py --rounds 1 --recipe sgd", "| recipe | batch | parameters | ms per step, 1 process | 2 |"),
        ("progress.py --rounds 1", "with the bar / without, medians of n = 4 epochs: "),
    ],
)
def test_benchmark_prints_its_line(command, begin):
    done = call(*f"benchmarks/{command}".split())
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(begin)
