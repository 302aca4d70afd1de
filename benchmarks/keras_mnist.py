"""The Keras 3 side of speed.py: one recipe on one backend, an epoch to compile and warm up, then a timed one.

python benchmarks/keras_mnist.py jax data '{"hidden": [256, 256], "lstm": false, …}'

Imports no torch, so that it runs where only Keras is installed. The last line it prints is JSON.
"""

import gzip
import json
import os
import sys
import time
from pathlib import Path

if len(sys.argv) != 4:
    raise SystemExit(f"{__doc__}\nThree arguments: the backend, a data folder, the recipe; speed.py gives them.")
BACKEND, DATA_DIR, RECIPE = sys.argv[1], Path(sys.argv[2]), json.loads(sys.argv[3])
os.environ["KERAS_BACKEND"] = BACKEND  # Keras reads it when it is imported

import keras  # noqa: E402
import numpy as np  # noqa: E402
from keras import layers  # noqa: E402


def idx(name: str, header: int) -> np.ndarray:
    """The bytes of an IDX file after its header, from the archive or, where there is none, the unpacked file."""
    file = DATA_DIR / "MNIST" / "raw" / name
    packed = file.with_name(f"{name}.gz")
    data = gzip.decompress(packed.read_bytes()) if packed.exists() else file.read_bytes()
    return np.frombuffer(data, np.uint8, offset=header)


def read(part: str) -> tuple[np.ndarray, np.ndarray]:
    """Images float32 `(N, 28, 28)`, time steps in the middle, and labels of `train` or `t10k`."""
    images = idx(f"{part}-images-idx3-ubyte", 16).reshape(-1, 28, 28).astype(np.float32) / 255
    if RECIPE["normalize"]:
        images = (images - 0.5) / 0.5
    if RECIPE["columns"]:
        images = np.ascontiguousarray(images.transpose(0, 2, 1))
    return images, idx(f"{part}-labels-idx1-ubyte", 8).astype(np.int32)


def network() -> keras.Model:
    """The recipe's network, with Keras's own initial values."""
    if RECIPE["lstm"]:
        last = len(RECIPE["hidden"]) - 1
        body = [layers.LSTM(size, return_sequences=k < last) for k, size in enumerate(RECIPE["hidden"])]
    else:
        body = [layers.Flatten(), *(layers.Dense(size, "relu") for size in RECIPE["hidden"])]
    return keras.Sequential([layers.Input((28, 28)), *body, layers.Dense(10)])


def versions() -> str:
    """Keras, the backend and what the backend computes on."""
    if BACKEND == "jax":
        import jax as backend

        place = backend.devices()[0].platform
    else:
        import tensorflow as backend

        place = "gpu" if backend.config.list_physical_devices("GPU") else "cpu"
    return f"keras {keras.__version__} with {BACKEND} {backend.__version__} on the {place}"


def main():
    keras.utils.set_random_seed(1)
    train, test = read("train"), read("t10k")
    model = network()
    model.compile(
        optimizer=getattr(keras.optimizers, RECIPE["optimizer"])(RECIPE["lr"]),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    for _ in range(2):
        start = time.perf_counter()
        history = model.fit(
            *train,
            batch_size=RECIPE["batch_size"],
            validation_data=test,
            validation_batch_size=RECIPE["test_batch_size"],
            verbose=0,
        ).history
        seconds = time.perf_counter() - start
    print(json.dumps({"seconds": seconds, "accuracy": history["val_accuracy"][-1], "versions": versions()}))


if __name__ == "__main__":
    main()
