"""The zoo's networks: what they accept, refuse and return (their counts are in tests/test_profiling.py)."""

import keras
import numpy as np
import pytest
from keras import layers

from tfcompress.models import deepen, densenet, mobilenet, resnet


def test_zero_padded_shortcut_is_subsampling_between_zero_channels():
    model = resnet(8)
    shortcut = {layer.name: layer for layer in model.layers if "stage2_block1_shortcut" in layer.name}
    x = np.random.default_rng(0).normal(size=(2, 32, 32, 16)).astype("float32")
    y = x
    for layer in shortcut.values():
        y = layer(y)
    expected = np.pad(x[:, ::2, ::2], [(0, 0), (0, 0), (0, 0), (8, 8)])
    np.testing.assert_array_equal(np.asarray(y), expected)


def test_networks_end_in_logits():
    for model in (resnet(8), densenet(depth=7), mobilenet(alpha=0.25)):
        assert isinstance(model.layers[-1], layers.Dense)
        assert model.layers[-1].activation.__name__ == "linear"
        assert model.output_shape == (None, 10)


@pytest.mark.parametrize("shortcut", ["A", "B"])
def test_deeper_resnet_differs_by_the_square_of_its_steps(shortcut, rng):
    """Blocks are steps of an integration: with branches half as large, more steps differ a quarter as much."""
    keras.utils.set_random_seed(0)
    shallow = resnet(14, classes=3, shortcut=shortcut)
    x = rng.random((4, 32, 32, 3), dtype="float32")

    def difference(size, divided=True):
        for layer in shallow.layers:
            if layer.name.endswith("_conv2_bn"):
                layer.gamma.assign(np.full(layer.gamma.shape, size))
                layer.beta.assign(np.linspace(-size, 2 * size, layer.beta.shape[0]))
        deeper = deepen(shallow, 38)
        if not divided:
            for layer in deeper.layers:
                if layer.name.endswith("_conv2_bn"):
                    layer.beta.assign(np.linspace(-size, 2 * size, layer.beta.shape[0]))
        return np.abs(np.asarray(deeper(x) - shallow(x))).max()

    assert difference(0.01) / difference(0.005) == pytest.approx(4, rel=0.3)
    # The control: where the constant parts are whole in every step, the difference is of their size.
    assert difference(0.01, divided=False) / difference(0.005, divided=False) == pytest.approx(2, rel=0.3)


def test_blocks_are_repeated_evenly():
    shallow = resnet(26)
    for i, layer in enumerate(layer for layer in shallow.layers if layer.name.endswith("_conv1")):
        layer.set_weights([np.full(layer.kernel.shape, i, "float32")])
    deeper = deepen(shallow, 50)
    assert [layer.name for layer in deeper.layers] == [layer.name for layer in resnet(50).layers]
    numbers = [float(layer.kernel[0, 0, 0, 0]) for layer in deeper.layers if layer.name.endswith("_conv1")]
    assert numbers == [0, 1, 1, 1, 2, 2, 3, 3, 4, 5, 5, 5, 6, 6, 7, 7, 8, 9, 9, 9, 10, 10, 11, 11]


@pytest.mark.parametrize(
    "build, message",
    [
        (lambda: resnet(21), "depth=21"),
        (lambda: resnet(20, shortcut="C"), "shortcut='C'"),
        (lambda: deepen(resnet(8), 20), "'resnet8', with less than two blocks in each stage, and depth=20"),
        (lambda: deepen(resnet(20), 20), "with 3 blocks in each stage, and depth=20"),
        (lambda: deepen(resnet(20), 30), "depth=30"),
        (lambda: deepen(mobilenet(alpha=0.25), 20), "deepen takes a ResNet"),
        (lambda: densenet(depth=41), "depth=41"),
        (lambda: densenet(reduction=0.0), "reduction=0.0"),
    ],
)
def test_bad_arguments_are_named(build, message):
    with pytest.raises(ValueError, match=message):
        build()
