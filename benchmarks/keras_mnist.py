"""Keras's side of speed.py: a recipe on one backend, an epoch to compile, then a timed one.

python benchmarks/keras_mnist.py jax data '{"hidden": 256, "layers": 2, "lstm": false, …}'

Imports no torch, so that it runs where only Keras is installed. The last line it prints is JSON.
"""

import importlib
import json
import os
import sys
import time
from pathlib import Path

BACKEND, DATA_DIR, RECIPE = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
os.environ["KERAS_BACKEND"] = BACKEND  # Keras reads it when it is imported

import keras  # noqa: E402
import numpy as np  # noqa: E402
from keras import layers  # noqa: E402


def idx(name: str, header: int) -> np.ndarray:
    """The bytes of an unpacked IDX file after its header."""
    return np.fromfile(Path(DATA_DIR, "MNIST", "raw", name), np.uint8, offset=header)


def read(part: str) -> tuple[np.ndarray, np.ndarray]:
    """Images float32 `(N, 28, 28)`, read by rows, and labels of `train` or `t10k`."""
    images = idx(f"{part}-images-idx3-ubyte", 16).reshape(-1, 28, 28).astype(np.float32) / 255
    if RECIPE["normalize"]:
        images = (images - 0.5) / 0.5
    return images, idx(f"{part}-labels-idx1-ubyte", 8).astype(np.int32)


def network() -> keras.Model:
    """The recipe's network, with Keras's own initial values."""
    hidden, last = RECIPE["hidden"], RECIPE["layers"] - 1
    body = [] if RECIPE["lstm"] else [layers.Flatten()]
    for k in range(RECIPE["layers"]):
        if RECIPE["lstm"]:
            body.append(layers.LSTM(hidden, return_sequences=k < last))
        else:
            body.append(layers.Dense(hidden, "relu"))
    return keras.Sequential([layers.Input((28, 28)), *body, layers.Dense(10)])


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
    version = importlib.import_module(BACKEND).__version__
    device = keras.distribution.list_devices()[0]
    versions = f"keras {keras.__version__} with {BACKEND} {version} on {device}"
    accuracy = history["val_accuracy"][-1]
    print(json.dumps({"seconds": seconds, "accuracy": accuracy, "versions": versions}))


if __name__ == "__main__":
    main()
