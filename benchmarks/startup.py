"""Seconds from the shell to a script's first training step, beside importing torch and torchvision alone.

python benchmarks/startup.py                # five rounds

In each round the programs take turns, in fresh processes. Each is timed until it prints a certain line, then killed: a
script its first step (`--log-interval 1`), the bare imports a word after them, so that no one's exit counts.
One round goes before, to fill the file cache.
"""

import argparse
import statistics
import subprocess
import sys
import time

from machine import COUNT, ROOT, machine

IMPORTS = "import torch, torchvision"
PROGRAMS = {  # what is started, and how the line begins that is waited for
    IMPORTS: (["-c", f"{IMPORTS}\nprint('done', flush=True)"], "done"),
    "first step of mlp_mnist.py": ([ROOT / "mlp_mnist.py", "--log-interval", "1"], "[1/30] Loss"),
    "first step of lstm_mnist.py": ([ROOT / "lstm_mnist.py", "--log-interval", "1"], "[1/5] Loss"),
}


def until(arguments: list, line: str) -> float:
    """Seconds from starting Python with these arguments until it prints a line that begins like this."""
    start = time.perf_counter()
    command = [sys.executable, *map(str, arguments)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        seen = any(printed.startswith(line) for printed in process.stdout)
        seconds = time.perf_counter() - start
        process.kill()
    if not seen:
        raise SystemExit(f"stopped: {' '.join(command)} did not print {line!r}")
    return seconds


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=COUNT, default=5, metavar="N", help="default: 5")
    args = parser.parse_args()
    taken = {name: [] for name in PROGRAMS}
    for _ in range(args.rounds + 1):
        for name, seconds in taken.items():
            seconds.append(until(*PROGRAMS[name]))
    base = statistics.median(taken[IMPORTS][1:])
    print("| until | median, s | min to max | more than the imports, s |\n| --- | --- | --- | --- |")
    for name, (_, *seconds) in taken.items():
        middle = statistics.median(seconds)
        print(f"| {name} | {middle:.2f} | {min(seconds):.2f} to {max(seconds):.2f} | {middle - base:.2f} |")
    print(f"\n{machine()}; n = {args.rounds}")


if __name__ == "__main__":
    main()
