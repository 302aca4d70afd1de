"""How a run ends when it is stopped from outside: in one line, with a status that says what it was."""

import contextlib
import os
import signal
import sys
import threading
from pathlib import Path

WAYS = {signal.SIGINT: ("interrupted", 130), signal.SIGTERM: ("terminated", 143)}
OUT_OF_MEMORY = ["memory", "bad_alloc", "could not create a primitive"]  # in what torch raises then


def quit_at_once(number, _) -> None:
    """End while the imports run: nothing has been written yet, and a traceback out of them helps nobody."""
    how, status = WAYS[number]
    with contextlib.suppress(OSError):
        os.write(2, b"" if quiet else f"{how} while starting; nothing was written\n".encode())
    os._exit(status)


def heard() -> list:
    """The signals that end this process: not those that a shell has a background job ignore."""
    return [number for number in WAYS if signal.getsignal(number) is not signal.SIG_IGN]


torchrun = "TORCHELASTIC_RUN_ID" in os.environ
quiet = torchrun and os.environ["LOCAL_RANK"] != "0"  # one process speaks for all that torchrun started on its machine
program = Path(getattr(sys.modules["__main__"], "__file__", None) or "notebook").resolve()
if program.parent == Path(__file__).resolve().parents[1] and program.name.endswith(("_mnist.py", "compare.py")):
    sys.stderr = sys.stderr or open(os.devnull, "w")  # noqa: SIM115  closed: print would take stdout instead
    with contextlib.suppress(AttributeError):  # a notebook's %run
        sys.stdout.reconfigure(errors="replace")  # not every terminal's encoding has "→", or a file's name
    for each in heard():
        signal.signal(each, quit_at_once)


def flush() -> None:
    """Write out what stdout and stderr still hold; raises OSError where that fails.

    Such a stream leads nowhere from then on: the interpreter would fail at it once more and end with status 120.
    """
    for stream in filter(None, (sys.stderr, sys.stdout)):
        try:
            stream.flush()
        except OSError:
            with contextlib.suppress(OSError, ValueError):  # ValueError: a notebook's stream is not a file
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
            flush()
            raise


@contextlib.contextmanager
def clean(args=None):
    """End what stops a run from outside in one line: Ctrl-C with status 130, SIGTERM with 143, a closed pipe with 141.

    A machine that fails (memory, a full disk, no compiler) ends it with status 1. What was saved stays.
    """
    before = {}

    def stop(number, _):
        for each in heard():  # the second Ctrl-C of an impatient user must not cut the ending short
            signal.signal(each, lambda *_: None)  # a program started now would inherit SIG_IGN
        raise KeyboardInterrupt(*WAYS[number])

    if threading.current_thread() is threading.main_thread():  # Python handles signals in no other
        before = {number: signal.signal(number, stop) or signal.SIG_DFL for number in heard()}
    try:
        yield
        flush()
    except KeyboardInterrupt as error:
        how, status = error.args or WAYS[signal.SIGINT]
        saved = getattr(args, "checkpoint", None)
        remedy = f"no checkpoint was written{'' if saved else ' (--checkpoint FILE)'}"
        if saved and saved.exists():
            remedy = f"{getattr(args, 'resume', 'rerun the same command')} to resume from {saved}"
        elif torchrun and os.environ["RANK"] != "0":
            remedy = "what was saved is on rank 0's machine"
        if before.get(signal.SIGINT) is quit_at_once:
            # the process ends here; on its way out Python removes handlers of its own, but not SIG_IGN
            before = dict.fromkeys(before, signal.SIG_IGN)
        with contextlib.suppress(OSError):  # stderr may lead to a process that has ended, too
            print("" if quiet else f"{how}; {remedy}\n", end="", file=sys.stderr)
        with contextlib.suppress(OSError):
            flush()
        raise SystemExit(status) from None
    except OSError as error:
        with contextlib.suppress(OSError):
            flush()
        reason = error if error.filename else f"the output cannot be written ({error.strerror})"
        raise SystemExit(141 if isinstance(error, BrokenPipeError) else f"stopped: {reason}") from None
    except (MemoryError, RuntimeError) as error:
        reason = (str(error).splitlines() or ["out of memory"])[0]
        if isinstance(error, MemoryError) or any(words in reason for words in OUT_OF_MEMORY):
            more = " or --hidden" if hasattr(args, "hidden") else ""
            raise SystemExit(f"stopped: {reason}; lower --batch-size or --test-batch-size{more}") from None
        if getattr(args, "compile", False) and "ompile" in str(error):
            raise SystemExit(f"stopped: {reason}; --compile needs a C++ compiler such as g++; omit --compile") from None
        raise
    finally:
        for number, handler in before.items():
            usual = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
            signal.signal(number, usual if handler is quit_at_once else handler)
