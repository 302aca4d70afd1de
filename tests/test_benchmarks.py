"""What the benchmarks share, and that their commands run."""

import itertools
import shlex

import common

import pytest
import torch
from conftest import ROOT, call

CAPABILITY = torch.backends.cpu.get_cpu_capability()


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


@pytest.fixture
def results(measuring, tmp_path, monkeypatch):
    """An empty folder of records."""
    monkeypatch.setattr(measuring, "RESULTS", tmp_path / "results")
    return measuring


def test_sides_take_turns(results):
    numbers = itertools.count(1)
    results.in_turn("n", 2, lambda name: {"seconds": next(numbers)}, [("mlp",), ("sgd",)])
    assert results.by_side("n") == {("mlp",): [1, 3], ("sgd",): [2, 4]}


def test_a_side_that_is_measured_again_replaces_what_was_kept_of_it(results):
    results.in_turn("n", 1, lambda name: {"n": 1}, [("mlp",), ("sgd",)])
    results.in_turn("n", 1, lambda name: {"n": 2}, [("sgd",)])
    assert [(record["side"], record["n"]) for record in results.kept("n")] == [
        (["mlp"], 1),
        (["sgd"], 2),
    ]


def test_a_recipe_that_is_measured_again_keeps_its_row(results):
    sides = [(name, side) for name in ("mlp", "sgd") for side in ("slow", "fast")]
    results.in_turn("n", 1, lambda *side: {"seconds": 1.0}, sides)
    results.in_turn("n", 1, lambda *side: {"seconds": 2.0}, sides[:2])
    rows = results.by_name("n", results.RECIPES, "slow", "fast").splitlines()[2:4]
    assert [row.split()[1] for row in rows] == ["mlp", "sgd"]


def test_the_last_two_sides_are_compared(results):
    seconds = {"other": 1.0, "slow": 6.0, "fast": 2.0}
    sides = [("mlp", side) for side in seconds]
    results.in_turn("n", 1, lambda _, side: {"seconds": seconds[side]}, sides)
    row = results.by_name("n", ["mlp"], *seconds).splitlines()[2]
    assert row == "| mlp | 1.00 | 6.00 | 2.00 | **3.00** |"


def test_ensembles_of_other_networks_have_no_row(results):
    """Whatever had no two layers was counted as the default network."""
    import ensemble

    for command in ("modern_mnist.py --epochs 8", "modern_mnist.py --epochs 8 --hidden 8"):
        record = {"commands": [command], "seeds": 2, "valid_acc": 0.5, "seconds": 1.0}
        results.keep("ensembles", [record], "commands")
    rows = ensemble.table().split("\n\n")[0].splitlines()[2:]
    assert rows == ["| 8 | 2 | 0 | 50.00 | 1.00 | 1 |"]


ROWS = {  # of the command's table
    "speed.py --quick --rounds 1": 5,
    "freed_memory.py --rounds 1 --commands 'modern_mnist.py --epochs 6'": 1,
    "busy.py --rounds 1 --recipe last-hidden": 1,
    "processes.py --rounds 1 --recipe sgd": 1,
}


@pytest.mark.slow
@pytest.mark.parametrize("command", ROWS)
def test_benchmark_prints_its_table(command, tmp_path):
    program, *flags = shlex.split(command)
    done = call(f"benchmarks/{program}", *flags, "--results", tmp_path / "results")
    assert done.returncode == 0, done.stderr
    head, _, *table = [line for line in done.stdout.splitlines() if line.startswith("|")]
    assert [line.count("|") for line in table] == [head.count("|")] * ROWS[command]


@pytest.mark.slow
@pytest.mark.skipif("AVX512" not in CAPABILITY, reason="--bf16 needs AVX512")
def test_a_faster_flag_has_a_row_of_its_own(tmp_path):
    flags = ["--quick", "--rounds", "1", "--faster", "--recipe", "batch-first"]
    done = call("benchmarks/speed.py", *flags, "--results", tmp_path)
    assert done.returncode == 0, done.stderr
    _, _, *rows = [line for line in done.stdout.splitlines() if line.startswith("|")]
    assert [row.split(" | ")[0] for row in rows] == ["| batch-first", "| batch-first --bf16"]


@pytest.mark.slow
def test_ensembles_share_no_network(tmp_path):
    flags = ["--commands", "modern_mnist.py --epochs 1", "--results", tmp_path]
    done = call("benchmarks/ensemble.py", tmp_path, "--seeds", "3", *flags)
    ensembles = [line.split(":")[0] for line in done.stdout.splitlines() if "of each" in line]
    assert ensembles == [
        "1 of each, from seed 1",
        "1 of each, from seed 2",
        "1 of each, from seed 3",
        "2 of each, from seed 1",
    ]


def test_a_run_is_measured_once(results, monkeypatch):
    import accuracy

    command = "mlp_mnist.py --epochs 1 --dry-run"
    monkeypatch.setattr("sys.argv", ["accuracy.py", "--seeds", "2", "--commands", command])
    accuracy.main()
    monkeypatch.setattr(results, "whole_run", None)
    accuracy.main()
    records = results.kept("runs")
    assert [(record["command"], record["seed"]) for record in records] == [
        (command, 1),
        (command, 2),
    ]
    assert records[0]["parameters"] == 269322
    assert 0 <= records[0]["valid_acc"] <= 1
    assert records[0]["seconds"] > 0


def test_multiply_adds_are_those_of_every_step(measuring):
    from tables import multiply_adds

    import lstm_mnist
    import mlp_mnist

    assert multiply_adds(mlp_mnist.Net()) == 784 * 256 + 256 * 256 + 256 * 10
    model = lstm_mnist.LastHidden(28, 64, 1, 10)
    assert multiply_adds(model) == 28 * 4 * 64 * (28 + 64) + 64 * 10


def test_the_pages_have_the_tables_of_the_records(measuring):
    """`python benchmarks/tables.py` finds nothing to change."""
    import tables

    for page in tables.PAGES:
        text = page.read_text(encoding="utf-8")
        assert tables.filled(text) == text, page.name
