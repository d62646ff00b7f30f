"""What tests train on where any images do, how they interrupt it, and how they run on JAX."""

import dataclasses
import os
import subprocess
import sys

import keras
import numpy as np

from tfcompress.training import TrainingConfig

CONFIG = TrainingConfig(epochs=2, batch_size=16, learning_rate=0.01)
# A learning rate of practically zero: what is left is made of the weights of the source.
STILL = dataclasses.replace(CONFIG, learning_rate=1e-12)


def data(count=96):
    rng = np.random.default_rng(0)
    return rng.uniform(0, 1, (count, 8, 8, 3)).astype("float32"), rng.integers(0, 5, count)


class Interrupt(keras.callbacks.Callback):
    """Stops a training after so many epochs."""

    def __init__(self, epochs=1):
        super().__init__()
        self._epochs = epochs

    def on_epoch_begin(self, epoch, logs=None):
        if epoch == self._epochs:
            raise KeyboardInterrupt


def last_line_on_jax(code):
    """The last line that a program prints with the JAX backend."""
    environment = {**os.environ, "KERAS_BACKEND": "jax"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1]
