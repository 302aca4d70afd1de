"""What the measurements share: the scripts on the path, how often to measure, comparisons, and the machine's name."""

import contextlib
import os
import platform
import sys
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import common  # noqa: E402

COUNT = common.number(int, 1)  # an argparse type


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
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    place = f"{name}, {cores} cores, {torch.backends.cpu.get_cpu_capability()}"
    if torch.accelerator.is_available() and torch.cuda.is_available():
        place = torch.cuda.get_device_name()
    return f"{place}; torch {torch.__version__}, Python {platform.python_version()}"
