"""What the progress bar costs: epochs of mlp_mnist.py, whose steps are the shortest, with it and without, in turn.

python benchmarks/progress.py [--rounds N]             # default: 3 rounds of 4 epochs each way; POSIX only

The bar is drawn on a pseudo-terminal that is read as fast as it fills. The first epoch of a process does not count.
"""

import argparse
import fcntl
import json
import os
import pty
import statistics
import struct
import subprocess
import sys
import tempfile
import termios
import threading
from pathlib import Path

from machine import COUNT, ROOT, machine

EPOCHS = 5


def drain(terminal: int) -> None:
    """Read a terminal to its end."""
    try:
        while os.read(terminal, 1 << 16):
            pass
    except OSError:  # the other side is closed
        pass


def seconds(bar: bool) -> list[float]:
    """The seconds of each epoch but the first, with the bar or without."""
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder, "run.jsonl")
        command = [sys.executable, "mlp_mnist.py", "--epochs", str(EPOCHS), "--log", str(log)]
        terminal, end = pty.openpty()
        fcntl.ioctl(end, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))
        reader = threading.Thread(target=drain, args=(terminal,))
        reader.start()
        errors = end if bar else subprocess.DEVNULL
        subprocess.run(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=errors, check=True)
        os.close(end)
        reader.join()
        os.close(terminal)
        return [json.loads(line)["seconds"] for line in log.read_text().splitlines()][1:]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=COUNT, default=3, metavar="N", help="default: 3")
    args = parser.parse_args()
    times = {True: [], False: []}
    for turn in range(args.rounds):
        for bar in (True, False) if turn % 2 else (False, True):
            times[bar] += seconds(bar)
    ratio = statistics.median(times[True]) / statistics.median(times[False])
    ranges = [f"{min(t):.2f} to {max(t):.2f} s" for t in (times[True], times[False])]
    print(f"with the bar / without, medians of n = {len(times[True])} epochs: {ratio:.3f} ({' against '.join(ranges)})")
    print(machine())


if __name__ == "__main__":
    main()
