"""A hash of the trained weights of each recipe and of modern_mnist.py: about 2 minutes.

python benchmarks/bits.py > before.txt
python benchmarks/bits.py | diff before.txt -          # after a change that should change nothing

One or two epochs each. Hashes are those of one kind of CPU, one version of torch and two parts.
"""

import hashlib
import sys
import tempfile
from pathlib import Path

from measuring import PROGRAMS, run, torch

COMMANDS = [[*words, "--epochs", "1"] for words in PROGRAMS.values()]
COMMANDS += [
    "lstm_mnist.py --recipe last-hidden --cell gru --epochs 1".split(),
    "modern_mnist.py --epochs 1".split(),
    "modern_mnist.py --epochs 2".split(),
    "modern_mnist.py --epochs 1 --windows --lines 1 --hold-out 50000".split(),
]


def main():
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "model.pth")
        for words in COMMANDS:
            run([sys.executable, *words, "--device", "cpu", "--parts", "2", "--save-model", file])
            state = torch.load(file)
            digest = hashlib.sha256()
            for tensor in state.values():
                digest.update(tensor.numpy().tobytes())
            print(digest.hexdigest()[:16], *words, flush=True)


if __name__ == "__main__":
    main()
