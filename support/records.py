"""What the flags about files ask for around a training run: load, resume, save after each epoch, draw.

And logs, written and read back.
"""

import contextlib
import errno
import json
import os
import sys
import uuid
from pathlib import Path

from support import checkpoint, files


def begin(run) -> None:
    """Bring a `common.Run` to where `--load-model` or `--checkpoint` have it start, and its log with it.

    Raises SystemExit with one line where a file does not fit.
    """
    args = run.args
    run.settings |= {"load_model": None, "run": uuid.uuid4().hex[:12]}
    if args.log or args.checkpoint:
        run.settings["data"] = checkpoint.fingerprint(run.train_loader, run.test_loader)
    if args.load_model:
        run.settings["load_model"] = checkpoint.load_model(args.load_model, run.model)
    if args.checkpoint and args.checkpoint.exists():
        checkpoint.resume(args.checkpoint, run)
        done = len(run.history)
        state = f"resuming after epoch {done - 1}" if done < args.epochs else f"complete, {done} epochs"
        print(f"{files.shown(args.checkpoint)}: {state}", flush=True)
        if args.log:
            complete_log(args.log, run.history)


def save_epoch(run) -> None:
    """Keep the epoch that `run.history` ends with: first in the checkpoint, then in the log."""
    if run.args.checkpoint:
        checkpoint.save(run.args.checkpoint, checkpoint.state(run))
    if run.args.log:
        append(run.args.log, run.history[-1:])


def end(run, tested: list, names: list[str]) -> None:
    """Write the model and the pictures; `tested` is `[(outputs (B, 10), labels (B,)), …]` over the test loader."""
    if run.args.save_model:
        checkpoint.save(run.args.save_model, run.result.state_dict())
    if run.args.plot:
        from support import plots

        plots.run(run, tested, names)


def complete_log(path: Path, history: list[dict]) -> None:
    """Append what a log lacks of a resumed run: a kill may have come between checkpoint and log."""
    have = {(r.get("run"), r["epoch"]) for run in (read(path) if path.exists() else ()) for r in run}
    append(path, [r for r in history if (r["run"], r["epoch"]) not in have])


def append(path: Path, records: list[dict]) -> None:
    """Append records to a file, one JSON object per line, in a single write: all of it or nothing.

    Raises OSError. A last line that was cut short stays a line of its own.
    """
    data = "".join(json.dumps(r) + "\n" for r in records).encode()
    file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o666)
    try:
        with contextlib.suppress(ImportError, OSError):  # Windows has no flock, some network file systems refuse it
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX)  # until it is closed
        size = os.fstat(file).st_size
        if size and data:
            os.lseek(file, size - 1, os.SEEK_SET)
            data = data if os.read(file, 1) == b"\n" else b"\n" + data
        if os.write(file, data) < len(data):
            os.ftruncate(file, size)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from None
    finally:
        os.close(file)


def read(log: Path) -> list[list[dict]]:
    """The runs in a log, each a list of its epochs' records; what is not a record is named on stderr and left out.

    Raises SystemExit with one line for a file that cannot be read.
    """
    try:
        lines = log.read_text(encoding="utf-8-sig", errors="replace").splitlines()
    except OSError as error:
        raise SystemExit(f"{log}: cannot be read ({error}); name a file that --log wrote") from None
    runs, odd = {}, []
    for number, line in enumerate(lines, 1):
        try:
            record = json.loads(line)
            if not is_record(record):
                raise ValueError
        except (ValueError, OverflowError, RecursionError):
            odd.append(number)
        else:
            run = record.get("run"), record["script"], record["recipe"], record["seed"]
            record |= {name: float(record[name]) for name in checkpoint.SCORES}
            runs.setdefault(run, {}).setdefault(record["epoch"], record)  # the same epoch twice is one
    if odd:
        few = ", ".join(map(str, odd[:5])) + (" …" if len(odd) > 5 else "")
        print(f"{log}: skipped what is not an epoch's record: line {few}", file=sys.stderr)
    return [[epochs[k] for k in sorted(epochs)] for epochs in runs.values()]


def is_record(record) -> bool:
    """Whether it is what `--log` writes: names, whole numbers, scores that can be added up, plain settings."""
    return (
        isinstance(record, dict)
        and all(type(record.get(name)) is str for name in ("script", "recipe"))
        and all(type(record.get(name)) is int for name in ("seed", "epoch"))
        and type(record.get("parameters", 0)) is int
        and all(type(record.get(name)) in (int, float) and abs(record[name]) < 1e100 for name in checkpoint.SCORES)
        and all(value is None or isinstance(value, (str, int, float)) for value in record.values())
    )
