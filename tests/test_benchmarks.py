"""The benchmarks' counting, and that their commands run."""

import shlex

import pytest
import torch
from conftest import ROOT, call


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


TABLES = {
    "speed.py --quick --rounds 1 --no-keras": 7,
    "startup.py --rounds 1": 3,
    "set_up.py --rounds 1 --recipe time-major": 2,
    "accuracy.py --seeds 1 --recipe last-hidden": 1,
    "busy.py --rounds 1 --seconds 1 --recipe last-hidden": 1,
    "scale.py --rounds 1 --images 120000 --recipe mlp": 2,
    "clock.py --log LOG --seeds 1 --lengths 1 --recipe last-hidden": 3,
    "leave_out.py --log LOG --seeds 1 --epochs 1 --without 'several lines per step' columns 'one cycle'": 4,
    "processes.py --rounds 1 --recipe sgd": 1,
    "speed.py --products --rounds 1": "batch-first: its products alone take ",
    "progress.py --rounds 1": "with the bar / without, medians of n = 4 epochs: ",
}


@pytest.mark.slow
@pytest.mark.parametrize("command", TABLES)
def test_benchmark_prints_its_table_or_line(command, tmp_path):
    program, *flags = shlex.split(command.replace("LOG", str(tmp_path / "log.jsonl")))
    done, expected = call(f"benchmarks/{program}", *flags), TABLES[command]
    assert done.returncode == 0, done.stderr
    if isinstance(expected, str):
        assert done.stdout.startswith(expected)
        return
    head, rule, *table = [line for line in done.stdout.splitlines() if line.startswith("|")]
    assert len(table) == expected - ("--bf16 is left out: " in done.stderr)
    assert {line.count("|") for line in (head, rule, *table)} == {head.count("|")}
    assert all(cell.strip() for line in table for cell in line.split("|")[1:-1])
