"""Sensitivity: a layer that matters and one that does not are told apart, and the ratios follow."""

import keras
import numpy as np
import pytest
from keras import layers

from tfcompress import prune_channels
from tfcompress.models import resnet
from tfcompress.surgery.sensitivity import Sensitivity, sensitivity


@pytest.fixture(scope="module")
def classifier():
    """A network that tells which of eight inputs is largest: "idle" feeds nothing, "busy" carries the answer."""
    inputs = keras.Input((8,))
    busy = layers.Dense(8, name="busy")(inputs)
    idle = layers.Dense(8, name="idle")(inputs)
    model = keras.Model(inputs, layers.Dense(8, name="logits")(layers.Concatenate()([busy, idle])))
    model.get_layer("busy").kernel.assign(np.eye(8))
    model.get_layer("logits").kernel.assign(np.concatenate([np.eye(8), np.zeros((8, 8))]))
    x = np.random.default_rng(0).random((400, 8))
    return model, x, x.argmax(axis=1)


@pytest.fixture(scope="module")
def measured(classifier):
    model, x, y = classifier
    return sensitivity(model, x, y[:, None], ratios=(0.25, 0.5))


def test_accuracy_falls_where_it_must(measured):
    assert measured.baseline == 1.0
    assert measured.accuracy["idle"] == {0.25: 1.0, 0.5: 1.0}
    for ratio, accuracy in measured.accuracy["busy"].items():  # the classes of removed channels are lost
        assert accuracy == pytest.approx(1 - ratio, abs=0.1)


def test_ratios_are_the_largest_harmless_ones(classifier, measured):
    assert measured.ratios(max_drop=0.01) == {"busy": 0.0, "idle": 0.5}
    assert measured.ratios(max_drop=0.4) == {"busy": 0.25, "idle": 0.5}
    pruned, _ = prune_channels(classifier[0], ratios=measured.ratios(max_drop=0.01))
    assert [layer.units for layer in pruned.layers if isinstance(layer, layers.Dense)] == [8, 4, 8]


def test_table_and_plot(measured, tmp_path):
    lines = str(measured).splitlines()
    assert lines[0].endswith("100.00%") and "-25%" in lines[1] and len(lines) == 5
    measured.plot(tmp_path / "sensitivity.png")
    assert (tmp_path / "sensitivity.png").read_bytes()[:4] == b"\x89PNG"
    with pytest.raises(ValueError, match="not supported"):
        measured.plot(tmp_path / "sensitivity.doc")
    assert [path.name for path in tmp_path.iterdir()] == ["sensitivity.png"]


def test_pixels_are_fractions(classifier):
    """A bias that decides for inputs of up to 1 is lost among those of up to 255."""
    model, x, y = classifier
    pixels = np.rint(255 * x).astype("uint8")
    model.get_layer("logits").bias.assign(10 * np.eye(8)[3])
    try:
        expected = np.mean(y == 3)
        assert sensitivity(model, pixels, y, ["idle"], (0.5,)).accuracy["idle"][0.5] == expected
    finally:
        model.get_layer("logits").bias.assign(np.zeros(8))


def test_what_is_no_classifier_or_would_see_black_images_is_refused():
    x, y = np.full((4, 6), 0.5), np.zeros(4, int)
    binary = keras.Sequential([keras.Input((6,)), layers.Dense(4), layers.Dense(1, activation="sigmoid")])
    with pytest.raises(ValueError, match="one number per class"):
        sensitivity(binary, x, y)
    whole = keras.Sequential([keras.Input((6,), dtype="uint8"), layers.Rescaling(1 / 255), layers.Dense(4, name="a")])
    whole.add(layers.Dense(2))
    with pytest.raises(ValueError, match=r"takes uint8, and fractions.*Received: float64 from 0\.5 to 0\.5"):
        sensitivity(whole, x, y)
    pixels = np.random.default_rng(0).integers(0, 256, (64, 6), "uint8")
    classes = whole.predict(pixels, verbose=0).argmax(-1)
    assert sensitivity(whole, pixels, classes, ["a"], (0.5,)).baseline == 1.0


def test_chosen_layers_of_a_network_with_zero_padded_shortcuts():
    x = np.zeros((2, 32, 32, 3), "float32")
    result = sensitivity(resnet(8), x, np.zeros(2), layers=["conv1", "stage2_block1_conv2"], ratios=(0.5,))
    assert list(result.accuracy) == ["conv1", "stage2_block1_conv2"]
    prune_channels(resnet(8), ratios={"conv1": 0.5, "stage2_block1_conv2": 0.25})  # two groups, no contradiction


def test_a_drop_of_just_as_much_is_harmless():
    assert Sensitivity(0.8, {"a": {0.1: 0.7, 0.5: 0.69}}).ratios(0.1) == {"a": 0.1}  # 0.8 - 0.1 > 0.7 in floats
