"""A small network and its files, made once."""

import keras
import numpy as np
import pytest
from keras import layers

import tfcompress as tfc


@pytest.fixture(scope="package")
def small_model():
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((12, 12, 1), name="image"),
            layers.Conv2D(8, 3, name="conv1", activation="relu"),
            layers.MaxPooling2D(2, name="pool1"),
            layers.Conv2D(16, 3, name="conv2"),
            layers.Flatten(name="flatten"),
            layers.Dense(32, name="fc1", activation="relu"),
            layers.Dense(10, name="logits"),
        ]
    )
    return model


@pytest.fixture(scope="package")
def small_images():
    return np.random.default_rng(0).integers(0, 256, (257, 12, 12, 1), np.uint8)


@pytest.fixture(scope="package")
def small_files(small_model, small_images, tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    calibration = np.float32(small_images[:50] / 255)
    return {
        precision: tfc.export_tflite(small_model, folder / f"{precision}.tflite", precision, calibration).path
        for precision in ("float32", "float16", "dynamic", "int8", "int16x8")
    }
