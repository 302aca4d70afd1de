"""Atomic writes, one run per file, and checks before training."""

import contextlib
import os
import stat
import sys
import time
import uuid
from pathlib import Path

import filelock


def write(path: Path, data: bytes) -> None:
    """Replace a file's content atomically: write beside it, sync, rename over it.

    Symbolic links and the mode are kept. If that fails, raises SystemExit, and the old file is
    untouched.
    """
    target = Path(os.path.realpath(path))
    new = beside(target)
    try:
        with open(new, "wb") as file:
            file.write(data)
            os.fsync(file.fileno())
        if target.exists():
            new.chmod(stat.S_IMODE(target.stat().st_mode))
        replace(new, target)
    except OSError as error:
        reason = f"cannot be written ({error.strerror}); what was there is untouched"
        raise SystemExit(f"{path}: {reason}") from None
    finally:
        with contextlib.suppress(OSError):
            new.unlink()


def replace(new: Path, target: Path) -> None:
    """Rename a file over another; on Windows wait up to 2 s for a virus scanner that reads one."""
    if sys.platform == "win32":
        for _ in range(20):
            try:
                os.replace(new, target)
                return
            except PermissionError:
                time.sleep(0.1)
    os.replace(new, target)


def beside(target: Path) -> Path:
    """An unused name in the same folder, within which a rename is atomic."""
    return target.with_name(f".{uuid.uuid4().hex[:12]}.part")


def check_writable(path: Path) -> None:
    """Make the file's folder and see that `write` will work; SystemExit with one line if not."""
    target = Path(os.path.realpath(path))
    new = beside(target)
    try:
        exists = target.exists()
        if exists and not target.is_file():
            raise SystemExit(f"{path}: is not a regular file; name another")
        target.parent.mkdir(parents=True, exist_ok=True)
        open(target, "ab").close()
        if not exists:
            target.unlink()
        new.touch()  # write() needs a second file beside it
        new.unlink()
    except OSError as error:
        reason = f"cannot be written ({error.strerror}); choose a path that can be"
        raise SystemExit(f"{path}: {reason}") from None


def conflict(written: list[tuple[str, Path]], read: list[tuple[str, Path]]) -> str:
    """Two flags that name one file, or one inside the other's; "" if none do.

    Both lists hold `(flag, path)`; two flags may read one file.
    """
    for k, (flag, path) in enumerate(written):
        real = Path(os.path.realpath(path))
        for other_flag, other in [*written[:k], *read]:
            other_real = Path(os.path.realpath(other))
            if real == other_real:
                return f"{other_flag} and {flag} both name {path}; give each a file of its own"
            if real in other_real.parents or other_real in real.parents:
                what = f"{other_flag} {other} and {flag} {path}"
                return f"{what}: one is in the other, which is a file; name another"
    return ""


@contextlib.contextmanager
def locked(path: Path, seconds: float = 0):
    """Lock a file; SystemExit with one line if another run holds it for so long (-1: for ever).

    Two runs on one checkpoint would take each other's epochs for their own. A kill frees the lock.
    """
    target = Path(os.path.realpath(path))
    name = target.with_name(f".{target.name}.lock")
    lock = filelock.FileLock(name)
    try:
        lock.acquire(timeout=seconds)
    except filelock.Timeout:
        reason = "another run is using it; wait for it, or name another"
        raise SystemExit(f"{path}: {reason}") from None
    except OSError as error:  # such as another user's lock
        reason = f"cannot be locked ({error.strerror}); remove it, or name another"
        raise SystemExit(f"{name}: {reason}") from None
    try:
        yield
    finally:
        with contextlib.suppress(PermissionError):  # on Windows, where filelock removes it
            name.unlink(missing_ok=True)
        lock.release()
