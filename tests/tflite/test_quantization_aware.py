"""Models of TF-MOT: their own ranges, the names they had before."""

import numpy as np
import pytest
from tf_keras import layers

import tfcompress as tfc
from tfcompress.keras2 import tf_keras, tfmot


def _trained(images, epochs=2):
    tf_keras.utils.set_random_seed(0)
    inputs = layers.Input((12, 12, 1), name="image")
    x = layers.Conv2D(8, 3, use_bias=False, name="conv1")(inputs)
    x = layers.BatchNormalization(name="bn1")(x)
    x = layers.MaxPooling2D(2, name="pool1")(layers.ReLU(name="relu1")(x))
    model = tf_keras.Model(inputs, layers.Dense(10, name="logits")(layers.Flatten(name="flatten")(x)))
    model = tfmot.quantization.keras.quantize_model(model)
    model.compile("sgd", tf_keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.fit(images, np.arange(len(images)) % 10, epochs=epochs, batch_size=64, shuffle=False, verbose=0)
    return model


@pytest.fixture(scope="module")
def images(small_images):
    images = np.float32(small_images / 255)
    images[0], images[1] = 0, 1
    return images


@pytest.fixture(scope="module")
def model(images):
    return _trained(images)


@pytest.mark.parametrize("softmax", [False, True])
def test_int8_without_calibration(model, images, tmp_path, softmax):
    file = tfc.export_tflite(model, tmp_path / "m.tflite", softmax=softmax)
    comparison = tfc.compare(model, file.path, images[:64])
    assert [layer.name for layer in comparison.layers] == ["relu1", "pool1", "flatten", "logits"]
    assert min(layer.snr for layer in comparison.layers) > 25
    assert tfc.evaluate_tflite(file.path, images, model.predict(images, verbose=0).argmax(-1)) > 0.9


def test_other_precisions_are_refused(model, images, tmp_path):
    for precision in ("float16", "dynamic", "int16x8"):
        with pytest.raises(ValueError, match="A QAT model is exported as int8"):
            tfc.export_tflite(model, tmp_path / "m.tflite", precision, images)


def test_range_seen_in_training_is_checked(images, tmp_path):
    centred = images * 2 - 1
    model = _trained(centred, epochs=1)
    with pytest.raises(ValueError, match="Give a QAT model the range that it was trained on"):
        tfc.export_tflite(model, tmp_path / "m.tflite")
    assert list(tmp_path.iterdir()) == []
    assert tfc.export_tflite(model, tmp_path / "m.tflite", calibration=centred).precision == "int8"
