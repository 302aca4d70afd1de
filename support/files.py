"""Files tried before training and written atomically; a checkpoint, or compare.py's log, is locked while in use."""

import contextlib
import errno
import glob
import os
import stat
import uuid
import warnings
from pathlib import Path

import filelock

PICTURES = ["samples.png", "curves.png", "confusion.png", "mistakes.png", "predictions.png"]  # what --plot writes


def shown(path: Path) -> str:
    """A path as it can be printed: bytes of a name that are not UTF-8 come out as �."""
    return os.fsencode(path).decode(errors="replace")


def real(path: Path) -> Path:
    """Where a path leads through symbolic links: what they name is written, they stay. Raises OSError for a loop."""
    target = Path(os.path.realpath(path))
    if target.is_symlink():
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path))
    return target


@contextlib.contextmanager
def ready(runs: list):
    """Make sure before training that what the flags name can be written; keep the checkpoint to this run meanwhile.

    Raises SystemExit with one line.
    """
    args = runs[0]
    for file in filter(None, (args.save_model, args.checkpoint, args.log)):
        check_writable(file, appended=file is args.log)
    for folder in (run.plot for run in runs if run.plot):
        check_plot(folder, PICTURES)
    with lock(args.checkpoint) if args.checkpoint else contextlib.nullcontext():
        yield


def check_plot(folder: Path, names: list[str]) -> None:
    """See that the pictures can be drawn and written; SystemExit with one line if not."""
    try:
        from support import plots  # noqa: F401
    except Exception as error:  # not installed, or at odds with a setting of its own
        reason = " ".join(str(error).split())[:200]
        raise SystemExit(f"--plot: matplotlib cannot be imported ({reason}); fix that or omit --plot") from None
    for name in names:
        check_writable(folder / name)


def check_writable(path: Path, appended: bool = False) -> None:
    """Make the file's folder and see that the file can be written there; SystemExit with one line if not.

    Training can take hours; a path that cannot be written is better found before it.
    """
    try:
        target = real(path)
        if target.is_dir():
            raise SystemExit(f"{path}: is a folder; name a file in it")
        if target.exists() and not target.is_file():
            raise SystemExit(f"{path}: is not a regular file; name another")
        if target.exists():
            open(target, "ab").close()
        if not (appended and target.exists()):
            target.parent.mkdir(parents=True, exist_ok=True)
            with part(target) as trial:
                fill(trial, bytes(1 << 20))
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise SystemExit(f"{path}: cannot be written ({reason}); choose a path that can be") from None


@contextlib.contextmanager
def part(target: Path):
    """A file beside the target that no other writer has; gone at the end, unless it was renamed."""
    file = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.part")
    try:
        yield file
    finally:
        with contextlib.suppress(OSError, ValueError):
            file.unlink(missing_ok=True)


def fill(path: Path, data: bytes) -> None:
    """Write a new file, down to the disk."""
    with open(path, "xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def write(path: Path, data: bytes) -> None:
    """Replace a file's content atomically: written beside it, synced, renamed over it. Its mode stays.

    Raises SystemExit with one line where that fails; the old file is then untouched.
    """
    try:
        target = real(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        with part(target) as new:
            fill(new, data)
            if target.exists():
                new.chmod(stat.S_IMODE(target.stat().st_mode))
            os.replace(new, target)
    except OSError as error:
        raise SystemExit(f"{path}: cannot be written ({error.strerror}); what was there is untouched") from None
    with contextlib.suppress(OSError):  # a new name outlives a power cut once its folder is synced, where that works
        folder = os.open(target.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def lock_of(path: Path) -> Path:
    """The path of a file's lock file."""
    target = Path(os.path.realpath(path))
    return target.with_name(f".{target.name}.lock")


@contextlib.contextmanager
def lock(path: Path):
    """Lock a file for this process; SystemExit with one line where another run has it. A kill frees it.

    Two runs on one checkpoint would each take the other's epochs for their own.
    """
    target = real(path)
    name = lock_of(target)
    guard = filelock.FileLock(name)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # where locking is unsupported, the file's existence is the lock
            guard.acquire(timeout=0)
    except filelock.Timeout:
        raise SystemExit(f"{path}: another run is using it; wait for it, or remove {name} if there is none") from None
    try:
        for left in target.parent.glob(f".{glob.escape(target.name)}.{'[0-9a-f]' * 8}.part"):  # by a kill
            left.unlink(missing_ok=True)
        yield
    finally:
        with contextlib.suppress(OSError):
            name.unlink(missing_ok=True)
        guard.release()
