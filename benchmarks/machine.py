"""What the measurements share: the scripts on the path, how often to measure, comparisons, and the machine's name."""

import contextlib
import os
import platform
import subprocess
import sys
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import common  # noqa: E402

COUNT = common.at_least(1)  # an argparse type
DEVICE = torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")


class Enough(Exception):
    """As much as is measured."""


def run(command: list[str]) -> str:
    """What a program prints in a process of its own; SystemExit with the end of its errors where it fails."""
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{done.stderr[-2000:]}\nstopped: the process above failed: {' '.join(command)}")
    return done.stdout


def compared(commands, seeds: int, log: Path, *flags: str) -> list[dict]:
    """compare.py's rows for these commands, without the table that it prints."""
    import compare  # here: it brings scipy, which no process that is measured should load

    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        return compare.main([*commands, "--seeds", str(seeds), "--log", str(log), *flags])


def machine() -> str:
    """CPU model and cores (or the GPU), Python and torch, as one phrase."""
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        name = next((x.split(":", 1)[1].strip() for x in cpuinfo.read_text().splitlines() if "model name" in x), name)
    place = f"{name}, {common.CORES} cores, {torch.backends.cpu.get_cpu_capability()}"
    if torch.cuda.is_available():
        place = torch.cuda.get_device_name()
    return f"{place}; torch {torch.__version__}, Python {platform.python_version()}"
