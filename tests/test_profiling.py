"""`profile` against the networks' published counts and against counts by hand."""

import keras
import pytest
from keras import layers

from tfcompress import profile
from tfcompress.models import densenet, lenet5, mobilenet, resnet, vgg16

PUBLISHED = {
    "lenet5": (lenet5, {}, 431_080, 2_293_000),
    "vgg16": (vgg16, {}, 14_991_946, 313_463_808),
    "vgg16-100": (vgg16, {"classes": 100}, 15_038_116, 313_509_888),
    "resnet20-A": (resnet, {"depth": 20}, 269_722, 40_551_040),
    "resnet20-B": (resnet, {"depth": 20, "shortcut": "B"}, 272_474, 40_813_184),
    "resnet56-A": (resnet, {"depth": 56}, 853_018, 125_485_696),
    "resnet56-B": (resnet, {"depth": 56, "shortcut": "B"}, 855_770, 125_747_840),
    "resnet110-A": (resnet, {"depth": 110}, 1_727_962, 252_887_680),
    "resnet110-B": (resnet, {"depth": 110, "shortcut": "B"}, 1_730_714, 253_149_824),
    "densenet40-16": (densenet, {}, 1_019_722, 264_812_928),
    "densenet40-24": (densenet, {"stem": 24}, 1_059_298, 282_917_328),
    "densenet40-bc": (densenet, {"bottleneck": True, "reduction": 0.5, "stem": 24}, 176_122, 72_365_352),
    "mobilenet": (
        mobilenet,
        {"input_shape": (224, 224, 3), "classes": 1000, "stem_strides": 2},
        4_231_976,
        568_740_352,
    ),
    "mobilenet-2x2": (mobilenet, {}, 3_217_226, 46_354_432),
    "mobilenet-4x4": (mobilenet, {"block2_strides": 1}, 3_217_226, 175_556_608),
}
PARAMS_OF_100_CLASSES = {
    ("A", 20): 275_572,
    ("B", 20): 278_324,
    ("A", 56): 858_868,
    ("B", 56): 861_620,
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_zoo_has_the_published_parameters_and_macs(name):
    build, arguments, params, macs = PUBLISHED[name]
    counted = profile(build(**arguments))
    assert (counted.params, counted.macs) == (params, macs)


@pytest.mark.parametrize("shortcut, depth", PARAMS_OF_100_CLASSES)
def test_resnet_parameters_with_100_classes(shortcut, depth):
    model = resnet(depth, classes=100, shortcut=shortcut)
    assert profile(model).params == PARAMS_OF_100_CLASSES[shortcut, depth]


@pytest.mark.parametrize(
    "arguments, params",
    [({}, 1_060_132), ({"stem": 24}, 1_100_428), ({"bottleneck": True, "reduction": 0.5, "stem": 24}, 188_092)],
)
def test_densenet_parameters_with_100_classes(arguments, params):
    assert profile(densenet(classes=100, **arguments)).params == params


def test_macs_of_each_kind_of_layer():
    inputs = keras.Input((8, 8, 6))
    x = layers.Conv2D(4, 3, strides=2, padding="same", groups=2, name="grouped")(inputs)
    x = layers.Conv2DTranspose(5, 3, strides=2, padding="same", name="transposed")(x)
    x = layers.DepthwiseConv2D(3, depth_multiplier=2, name="depthwise")(x)
    x = layers.SeparableConv2D(7, 3, name="separable")(x)
    outputs = layers.Dense(3, name="dense")(x)
    macs = {layer.name: layer.macs for layer in profile(keras.Model(inputs, outputs)).layers}
    assert macs == {
        "grouped": 3 * 3 * 3 * 4 * 16,
        "transposed": 3 * 3 * 4 * 5 * 16,
        "depthwise": 3 * 3 * 10 * 36,
        "separable": (3 * 3 * 10 + 10 * 7) * 16,
        "dense": 7 * 3 * 16,
    }


def test_shared_layer_counts_parameters_once_and_macs_per_call():
    inputs = keras.Input((4, 4, 8))
    shared = layers.Conv2D(8, 1, name="shared")
    counted = profile(keras.Model(inputs, shared(shared(inputs))))
    assert (counted.params, counted.macs) == (72, 2 * 64 * 16)


def test_nested_model_of_open_size_takes_the_size_of_the_call():
    inner = keras.Sequential([keras.Input((None, None, 3)), layers.Conv2D(4, 3, name="conv")], name="inner")
    inputs = keras.Input((10, 10, 3))
    counted = profile(keras.Model(inputs, inner(inputs)))
    assert [(layer.name, layer.macs) for layer in counted.layers] == [("inner/conv", 3 * 3 * 3 * 4 * 64)]


def test_open_size_has_no_macs():
    counted = profile(keras.Sequential([keras.Input((None, None, 3)), layers.Conv2D(4, 3)]))
    assert counted.params == 112
    assert counted.macs is None
    assert "?" in str(counted)


def test_statistics_are_no_parameters_and_frozen_layers_count():
    bn = layers.BatchNormalization(trainable=False)
    assert profile(keras.Sequential([keras.Input((5,)), bn])).params == 10


def test_table_has_a_row_per_layer_and_the_total():
    lines = str(profile(lenet5())).splitlines()
    assert len(lines) == 2 + 7 + 1
    assert "431,080" in lines[-1] and "2,293,000" in lines[-1]


def test_path_of_a_model_is_refused():
    with pytest.raises(ValueError, match=r"load_model` reads one from a file. Received: str 'm\.keras'"):
        profile("m.keras")


def test_subclassed_and_unbuilt_models_are_refused():
    class Subclassed(keras.Model):
        def call(self, x):
            return x

    with pytest.raises(ValueError, match="subclassed"):
        profile(Subclassed())
    with pytest.raises(ValueError, match="not built"):
        profile(keras.Sequential([layers.Dense(3)]))
