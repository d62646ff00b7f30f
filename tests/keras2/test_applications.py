"""All of keras.applications translates, and most of it can be quantized."""

import keras
import numpy as np
import pytest

from tfcompress import UnsupportedLayerError
from tfcompress.keras2 import to_tf_keras
from tfcompress.quantization.aware_training import quantize_wrap

NETWORKS = {
    "ConvNeXtTiny": 64,
    "DenseNet121": 64,
    "EfficientNetB0": 64,
    "EfficientNetV2B0": 64,
    "InceptionResNetV2": 96,
    "InceptionV3": 96,
    "MobileNet": 64,
    "MobileNetV2": 64,
    "MobileNetV3Small": 64,
    "NASNetMobile": 64,
    "ResNet50": 64,
    "ResNet50V2": 64,
    "VGG16": 64,
    "Xception": 96,
}


def build(name):
    """The network with the BatchNorm statistics of its input, so that the signal reaches the output."""
    size = NETWORKS[name]
    model = getattr(keras.applications, name)(
        weights=None, input_shape=(size, size, 3), include_top=False, pooling="avg"
    )
    images = np.random.default_rng(0).uniform(0, 1, (4, size, size, 3))
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.momentum = 0.0
    model(images, training=True)
    return model, images


@pytest.fixture
def double_precision():
    """Builds models in float64: in float32, rounding alone moves InceptionResNetV2's outputs by 5e-4."""
    policy = keras.config.dtype_policy()
    keras.config.set_dtype_policy("float64")
    yield
    keras.config.set_dtype_policy(policy)


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_application_computes_the_same(name, double_precision):
    model, images = build(name)
    expected, got = model.predict(images, verbose=0), to_tf_keras(model).predict(images, verbose=0)
    assert got.dtype == np.float64
    assert np.std(expected) > 1e-3
    # tf_keras's Rescaling rounds its factor to float32; 40 of them in InceptionResNetV2 add up to 1.1e-5.
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-4 * np.abs(expected).max())


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in NETWORKS if name != "ConvNeXtTiny"])
def test_application_can_be_quantized(name):
    model, _ = build(name)
    assert quantize_wrap(model).output_shape == model.output_shape


@pytest.mark.slow
def test_what_stops_convnext_is_named():
    with pytest.raises(UnsupportedLayerError, match=r"convnext_tiny_\w*layernorm.*LayerNormalization"):
        quantize_wrap(build("ConvNeXtTiny")[0])
