"""Equal ranges of depthwise channels: the same function in floats, and far less noise in the int8 file."""

import keras
import numpy as np
import pytest
from keras import layers

import tfcompress as tfc
from tfcompress.keras2 import to_tf_keras
from tfcompress.quantization import aware_training
from tfcompress.quantization.aware_training import calibrate, quantize_wrap
from tfcompress.quantization.equalize import equalize_depthwise

IMAGES = np.random.default_rng(0).uniform(0, 1, (128, 12, 12, 3)).astype("float32")


@pytest.fixture(scope="module")
def model():
    """Depthwise channels whose weights differ as much as those of trained MobileNets; one of them is dead."""
    rng = np.random.default_rng(0)
    keras.utils.set_random_seed(0)
    inputs = x = keras.Input((12, 12, 3))
    for bias, scale in ((False, True), (True, True), (False, False)):
        x = layers.ReLU(6.0)(layers.BatchNormalization()(layers.Conv2D(16, 1, use_bias=False)(x)))
        depthwise = layers.DepthwiseConv2D(3, padding="same", use_bias=bias)
        x = layers.ReLU(6.0)(layers.BatchNormalization(scale=scale)(depthwise(x)))
        kernel = rng.normal(size=(3, 3, 16, 1)) * np.exp(1.5 * rng.normal(size=(16, 1)))
        kernel[..., 3, :] = 0
        depthwise.set_weights([kernel, *([rng.normal(size=16)] if bias else [])])
    model = keras.Model(inputs, layers.Dense(5, name="logits")(layers.GlobalAveragePooling2D()(x)))
    tfc.recalibrate(model, IMAGES, batch_size=32)
    return model


def test_function_stays_and_ranges_are_equal(model):
    source = to_tf_keras(model)
    equalized = equalize_depthwise(source)
    np.testing.assert_allclose(equalized(IMAGES), source(IMAGES), atol=1e-4)
    kernels = [w for w in equalized.weights if "depthwise_kernel" in w.name]
    spreads = [np.unique(np.abs(w).max(axis=(0, 1)).round(5)).size for w in kernels]
    # The dead channel stays at zero; without a gamma to take it back, nothing is scaled.
    assert spreads == [2, 2, 16]


def test_without_depthwise_nothing_is_copied():
    plain = to_tf_keras(keras.Sequential([keras.Input((4, 4, 3)), layers.Conv2D(2, 3), layers.BatchNormalization()]))
    assert equalize_depthwise(plain) is plain


def test_less_noise_in_the_file(model, tmp_path, monkeypatch):
    def noise(path):
        wrapped = quantize_wrap(model)
        calibrate(wrapped, IMAGES, batch_size=32)
        file = tfc.export_tflite(wrapped, path)
        return tfc.compare(model, file.path, IMAGES[:32]).layers[-1].snr

    equalized = noise(tmp_path / "equalized.tflite")
    monkeypatch.setattr(aware_training, "equalize_depthwise", lambda model: model)
    assert equalized > noise(tmp_path / "as_it_is.tflite") + 6
