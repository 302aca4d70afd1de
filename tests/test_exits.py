"""How a process ends: Ctrl-C at any moment, closed and broken streams, odd ways to start it."""

import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
from conftest import ROOT, start

from support import exits

SCRIPTS = ["mlp_mnist.py", "lstm_mnist.py"]
FULL = "No space left on device"


def usual():
    """In the child: Ctrl-C as in a terminal, whatever the parent made of it."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.mark.parametrize(
    ("script", "number", "how", "status"),
    [(SCRIPTS[0], signal.SIGINT, "interrupted", 130), (SCRIPTS[1], signal.SIGTERM, "terminated", 143)],
)
def test_a_signal_while_torch_is_imported(script, number, how, status, tmp_path):
    """With a torch that takes its time, so that the moment is certain."""
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text("import time\nprint('importing', flush=True)\ntime.sleep(60)\n")
    process = start(script, "--dry-run", env={"PYTHONPATH": str(tmp_path)}, preexec_fn=usual)
    assert process.stdout.readline() == "importing\n"
    process.send_signal(number)
    out, err = process.communicate()
    assert (process.returncode, out) == (status, "")
    assert err == f"{how} while starting; nothing was written\n"


@pytest.mark.parametrize("seconds", [0.3, pytest.param(0.8, marks=pytest.mark.slow), 1.5])
def test_ctrl_c_at_some_moment_of_the_start(seconds, tiny):
    process = start("mlp_mnist.py", "--data-dir", tiny, "--epochs", "100000", preexec_fn=usual)
    time.sleep(seconds)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate()
    assert process.returncode == 130
    assert len(err.splitlines()) == 1
    assert err.startswith("interrupted")


def test_an_impatient_ctrl_c(tiny):
    """Several within milliseconds: the first is answered, the others must not cut the answer short."""
    process = start("lstm_mnist.py", "--data-dir", tiny, "--epochs", "100000", preexec_fn=usual)
    for line in process.stdout:
        if line.startswith("Epoch"):
            break
    for _ in range(5):
        process.send_signal(signal.SIGINT)
        time.sleep(0.002)
    _, err = process.communicate()
    assert process.returncode == 130
    assert err == "interrupted; no checkpoint was written (--checkpoint FILE)\n"


def shell(text, tiny):
    """A command line in a shell, with each script and its data as `$M` and `$L`, and an environment of little else."""
    commands = {s[0].upper(): f"{sys.executable} {ROOT / s} --data-dir {tiny}" for s in SCRIPTS}
    commands["C"] = f"{sys.executable} {ROOT / 'compare.py'}"
    env = {"PATH": os.environ["PATH"], "OMP_NUM_THREADS": "1", **commands}
    return subprocess.run(["bash", "-c", text], env=env, capture_output=True, text=True)


@pytest.mark.parametrize(
    ("text", "status", "line"),
    [
        ("$M --dry-run > /dev/full", 1, FULL),
        ("PYTHONIOENCODING=ascii $M --help", 0, None),  # which has an arrow
        pytest.param("$L --dry-run > /dev/full", 1, FULL, marks=pytest.mark.slow),
        pytest.param("$M --help > /dev/full", 1, FULL, marks=pytest.mark.slow),
        pytest.param("$C --help > /dev/full", 1, FULL, marks=pytest.mark.slow),
        pytest.param("$C --help | true; exit ${PIPESTATUS[0]}", 141, None, marks=pytest.mark.slow),
        pytest.param("$M --help | true; exit ${PIPESTATUS[0]}", 141, None, marks=pytest.mark.slow),
        pytest.param("$M --dry-run 2>&-", 0, None, marks=pytest.mark.slow),
        ("$M --dry-run >&-", 0, None),
        pytest.param("$M --dry-run >&- 2>&-", 0, None, marks=pytest.mark.slow),
        ("$L --epochs 2000 --log-interval 1 | head -n 1 > /dev/null; exit ${PIPESTATUS[0]}", 141, None),
    ],
)
def test_streams_that_are_full_closed_or_broken(text, status, line, tiny):
    run = shell(text, tiny)
    assert run.returncode == status, run.stderr
    assert len(run.stderr.splitlines()) == (1 if line else 0), run.stderr
    assert line is None or line in run.stderr


def test_what_is_for_stderr_is_not_put_into_stdout(tiny, tmp_path):
    """Where stderr is closed, as by `2>&-`."""
    log = tmp_path / "log.jsonl"
    run = shell(f'$C "$M --epochs 1" --seeds 1 --format json --log {log} 2>&-', tiny)
    assert run.returncode == 0
    assert json.loads(run.stdout)[0]["name"] == "mlp"


def test_a_network_that_does_not_fit_into_memory():
    lower = "lower --batch-size or --test-batch-size or --hidden"
    with pytest.raises(SystemExit, match=lower), exits.clean(SimpleNamespace(hidden=1)):
        raise MemoryError


def test_ctrl_c_after_the_reader_of_both_streams_has_gone(tiny):
    """Under `2>&1 | tee file` Ctrl-C ends tee, too, and it may be gone first."""
    process = start(
        "mlp_mnist.py", "--data-dir", tiny, "--epochs", "100000", stderr=subprocess.STDOUT, preexec_fn=usual
    )
    for line in process.stdout:
        if line.startswith("Epoch"):
            break
    os.kill(process.pid, signal.SIGSTOP)
    process.stdout.close()
    process.send_signal(signal.SIGINT)
    os.kill(process.pid, signal.SIGCONT)
    assert process.wait() == 130


class Broken(io.StringIO):
    """A stream whose reader has gone."""

    def __init__(self, error):
        super().__init__()
        self.error = error

    def flush(self):
        if self.error:
            error, self.error = self.error, None
            raise error


@pytest.mark.parametrize(("error", "end"), [(BrokenPipeError(), 141), (OSError(28, FULL), f"stopped: .*{FULL}")])
def test_what_a_stream_still_holds_is_flushed_inside(error, end, monkeypatch):
    with pytest.raises(SystemExit) as stop, exits.clean():
        monkeypatch.setattr(sys, "stdout", Broken(error))
    assert stop.value.code == end if isinstance(end, int) else re.match(end, stop.value.code)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_inside_and_handlers_afterwards(number, capsys):
    before = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
    with pytest.raises(SystemExit) as stop, exits.clean():
        signal.raise_signal(number)
    assert stop.value.code == {signal.SIGINT: 130, signal.SIGTERM: 143}[number]
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == before
    assert len(capsys.readouterr().err.splitlines()) == 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_that_was_ignored_before_stays_ignored(number):
    """As a shell script has it for SIGINT and what it starts with `&`."""
    before = signal.signal(number, signal.SIG_IGN)
    try:
        assert exits.heard() == [each for each in exits.WAYS if each != number]
        with exits.clean():
            signal.raise_signal(number)
        assert signal.getsignal(number) is signal.SIG_IGN
    finally:
        signal.signal(number, before)


def test_a_checkpoint_that_was_asked_for_is_not_suggested(tmp_path, capsys):
    with pytest.raises(SystemExit), exits.clean(SimpleNamespace(checkpoint=tmp_path / "c.pt")):
        raise KeyboardInterrupt
    assert capsys.readouterr().err == "interrupted; no checkpoint was written\n"


def test_a_program_that_is_started_after_a_signal_can_be_ended(capsys):
    def stopped():
        try:
            signal.raise_signal(signal.SIGTERM)
        finally:
            children.append(subprocess.run(["sh", "-c", "kill -TERM $$; exit 0"]))

    children = []
    with pytest.raises(SystemExit), exits.clean():
        stopped()
    assert children[0].returncode == -signal.SIGTERM
    capsys.readouterr()


@pytest.mark.parametrize(("rank", "local", "line"), [
    (0, 0, "interrupted; no checkpoint was written (--checkpoint FILE)\n"),
    (1, 1, ""),
    (2, 0, "interrupted; what was saved is on rank 0's machine\n"),
])  # fmt: skip
def test_under_torchrun_one_process_per_machine_says_it(rank, local, line):
    code = f"""
import os, signal, sys
sys.path.insert(0, {str(ROOT)!r})
os.environ.update(TORCHELASTIC_RUN_ID="test", RANK="{rank}", LOCAL_RANK="{local}")
from support import exits
with exits.clean():
    signal.raise_signal(signal.SIGINT)
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (run.returncode, run.stderr) == (130, line)


@pytest.mark.parametrize("flag", ["-P", "-I"])
@pytest.mark.parametrize("script", SCRIPTS)
def test_a_python_that_does_not_look_beside_the_script(script, flag):
    """`python -I` and `PYTHONSAFEPATH=1`: Python itself says what it does not find."""
    if flag == "-P" and sys.version_info < (3, 11):
        pytest.skip("-P came with Python 3.11")
    run = subprocess.run([sys.executable, flag, ROOT / script, "--help"], capture_output=True, text=True)
    assert run.returncode == 1
    assert run.stderr.splitlines()[-1] == "ModuleNotFoundError: No module named 'common'"
