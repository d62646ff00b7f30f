"""The zoo's networks: what they accept, refuse and return (their counts are in tests/test_profiling.py)."""

import numpy as np
import pytest
from keras import layers

from tfcompress.models import densenet, mobilenet, resnet


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


@pytest.mark.parametrize(
    "build, message",
    [
        (lambda: resnet(21), "depth=21"),
        (lambda: resnet(20, shortcut="C"), "shortcut='C'"),
        (lambda: densenet(depth=41), "depth=41"),
        (lambda: densenet(reduction=0.0), "reduction=0.0"),
    ],
)
def test_bad_arguments_are_named(build, message):
    with pytest.raises(ValueError, match=message):
        build()
