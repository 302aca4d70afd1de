"""What the benchmarks share, and that their commands run."""

import itertools
import shlex

import common

import pytest
import torch
from conftest import ROOT, call


@pytest.fixture
def measuring(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import measuring

    return measuring


def test_part_of_mnist_reads_as_mnist(measuring, digits):
    with measuring.part_of_mnist(60, 10) as folder:
        parts = common.read(folder)
    for (images, labels), (part, marks), count in zip(digits, parts, (60, 10)):
        assert part.equal(images[:count])
        assert marks.equal(labels[:count])


def test_sides_take_turns(measuring):
    numbers = itertools.count(1)
    results = measuring.in_turn(2, lambda name: {"n": next(numbers)}, [("mlp",), ("sgd",)])
    assert results == {("mlp",): {"n": [1, 3]}, ("sgd",): {"n": [2, 4]}}


def test_steps_are_timed_until_it_is_enough(measuring):
    steps = []
    with pytest.raises(measuring.Enough):
        list(measuring.timed("abcd", steps, lambda _: len(steps) == 3))


def test_classifier_sees_only_the_features_that_are_left(measuring):
    from leave_out import Some

    classifier = Some(16, [1])
    outputs = classifier(torch.eye(16))  # a row for each feature
    assert outputs.any(1).nonzero().flatten().tolist() == [2, 3]


ROWS = {  # of the command's table
    "speed.py --quick --rounds 1": 7,
    "set_up.py --rounds 1 --recipe time-major": 1,
    "accuracy.py --seeds 1 --recipe last-hidden": 1,
    "busy.py --rounds 1 --seconds 1 --recipe last-hidden": 1,
    "clock.py --log LOG --seeds 1 --lengths 1 --recipe last-hidden": 3,
    "leave_out.py --log LOG --seeds 1 --epochs 1 --without columns 'one cycle'": 3,
    "ensemble.py FOLDER --seeds 2 --epochs 1": 2,
    "processes.py --rounds 1 --recipe sgd": 1,
}


@pytest.mark.slow
@pytest.mark.parametrize("command", ROWS)
def test_benchmark_prints_its_table(command, tmp_path):
    program, *flags = shlex.split(
        command.replace("LOG", str(tmp_path / "log.jsonl")).replace("FOLDER", str(tmp_path))
    )
    done = call(f"benchmarks/{program}", *flags)
    assert done.returncode == 0, done.stderr
    head, _, *table = [line for line in done.stdout.splitlines() if line.startswith("|")]
    rows = ROWS[command] - done.stderr.count(" is left out: ")
    assert [line.count("|") for line in table] == [head.count("|")] * rows
