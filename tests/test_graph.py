"""Models inside a model, taken apart."""

import keras
import numpy as np
import pytest
from keras import layers

import tfcompress as tfc
from tfcompress.graph import inlined, is_nested_model

IMAGE = (8, 8, 3)


def base(name, image=IMAGE, **options):
    stack = [layers.Conv2D(4, 3, name="conv"), layers.BatchNormalization(name="norm"), layers.ReLU()]
    return keras.Sequential([keras.Input(image, **options), *stack], name=name)


def with_two_bases(x):
    return layers.Concatenate()([base("a")(x), base("b")(x)])


def with_own_names(x):
    return layers.BatchNormalization(name="norm")(layers.Conv2D(3, 1, name="conv")(base("a")(x)))


def with_base_in_base(x):
    inner = base("inner")
    start = keras.Input(IMAGE)
    return keras.Model(start, layers.Conv2D(2, 3, name="after")(inner(start)), name="outer")(x)


def called_twice(x):
    twice = base("twice")
    return layers.Add()([twice(x), twice(layers.ReLU()(x))])


def of_open_size(x):
    return base("open", (None, None, 3))(x)


def by_name(x):
    a, b = keras.Input(IMAGE, name="a"), keras.Input(IMAGE, name="b")
    merged = keras.Model({"b": b, "a": a}, {"y": layers.Conv2D(2, 3)(a), "x": layers.Conv2D(3, 3)(b)}, name="merge")
    outputs = merged({"a": x, "b": layers.ReLU()(x)})
    return [outputs["x"], outputs["y"]]


def shared_layer(x):
    conv = layers.Conv2D(3, 3, padding="same", name="shared")
    inner = keras.Sequential([keras.Input(IMAGE), conv, layers.ReLU()])
    return conv(inner(x))


def with_operators(x):
    return base("a")(1.0 - x / 127.5) * 2.0


def of_another_type(x):
    return base("a")(layers.Identity(dtype="float64")(x))


BUILDERS = {
    function.__name__: function
    for function in (
        with_two_bases,
        with_own_names,
        with_base_in_base,
        called_twice,
        of_open_size,
        by_name,
        shared_layer,
        with_operators,
        of_another_type,
    )
}


def random_weights(model, rng):
    model.set_weights([rng.uniform(0.5, 1.5, weight.shape) for weight in model.weights])


@pytest.mark.parametrize("name", BUILDERS)
def test_a_model_in_one_piece_computes_the_same(name, rng):
    inputs = keras.Input(IMAGE, name="image")
    model = keras.Model(inputs, BUILDERS[name](inputs), name="net")
    random_weights(model, rng)
    flat = inlined(model)
    assert not any(is_nested_model(layer) for layer in flat.layers)
    assert (flat.name, flat.inputs[0].name) == ("net", "image")
    assert flat.count_params() == model.count_params()
    x = rng.uniform(-1, 1, (4, *IMAGE)).astype("float32")
    expected, got = (keras.tree.flatten(part.predict(x, verbose=0)) for part in (model, flat))
    for a, b in zip(expected, got, strict=True):
        assert np.std(a) > 1e-3
        np.testing.assert_array_equal(a, b)
    flat.set_weights([0 * weight for weight in flat.get_weights()])
    assert all(np.any(weight) for weight in model.get_weights()), "the copy shares weights"


def test_layers_keep_their_names_where_they_can():
    def names(build):
        inputs = keras.Input(IMAGE)
        return [layer.name for layer in inlined(keras.Model(inputs, build(inputs))).layers if layer.weights]

    assert names(with_base_in_base) == ["conv", "norm", "after"]
    assert names(with_two_bases) == ["conv", "b_conv", "norm", "b_norm"]
    assert names(with_own_names) == ["a_conv", "a_norm", "conv", "norm"]


def test_frozen_stays_frozen():
    inner, other = base("inner"), base("other")
    inner.trainable = False
    other.get_layer("norm").gamma.trainable = False
    inputs = keras.Input(IMAGE)
    model = keras.Model(inputs, layers.Concatenate()([inner(inputs, training=False), other(inputs)]))
    flat = inlined(model)
    assert {variable.path for variable in flat.trainable_variables} == {
        f"{layer}/{weight}"
        for layer, weight in (("other_conv", "kernel"), ("other_conv", "bias"), ("other_norm", "beta"))
    }
    assert len(model.trainable_variables) == 3
    model.trainable = False
    assert not inlined(model).trainable_variables


def test_adapted_statistics_and_seeds_come_along(rng):
    x = rng.uniform(0, 9, (16, *IMAGE)).astype("float32")
    normalization = layers.Normalization()
    normalization.adapt(x)
    inner = keras.Sequential([keras.Input(IMAGE), normalization, layers.Dropout(0.5)])
    model = keras.Sequential([keras.Input(IMAGE), inner])
    np.testing.assert_array_equal(inlined(model).predict(x, verbose=0), model.predict(x, verbose=0))


def test_names_of_inputs_and_of_shared_layers_stay(rng):
    inside = keras.Input(IMAGE)
    shift = layers.Lambda(lambda x: x + 1, name="shift")
    inner = keras.Model(inside, shift(layers.Rescaling(2.0, name="image")(inside)), name="inner")
    inputs = keras.Input(IMAGE, name="image")
    model = keras.Model(inputs, inner(layers.ReLU(name="shift_0")(inputs)))
    flat = inlined(model)
    assert [layer.name for layer in flat.layers] == ["image", "shift_0", "inner_image", "shift"]
    assert inner.get_layer("shift") is shift
    x = rng.random((2, *IMAGE), "float32")
    np.testing.assert_array_equal(flat.predict(x, verbose=0), model.predict(x, verbose=0))


def test_inputs_of_another_rank_are_taken_as_keras_takes_them(rng):
    inner = keras.Sequential([keras.Input((8,)), layers.Dense(3)])
    inputs = keras.Input((8, 1))
    model = keras.Model(inputs, inner(inputs))
    x = rng.random((2, 8, 1), "float32")
    np.testing.assert_array_equal(inlined(model).predict(x, verbose=0), model.predict(x, verbose=0))


def test_a_layer_that_cannot_be_copied_is_named():
    class Scale(layers.Layer):
        def __init__(self, factor):
            super().__init__(name="scale")
            self.factor = factor

        def call(self, x):
            return x * self.factor

    inputs = keras.Input(IMAGE)
    with pytest.raises(tfc.UnsupportedLayerError, match=r"'scale'.*cannot be copied.*its get_config must return"):
        inlined(keras.Model(inputs, base("a")(Scale(2.0)(inputs))))


def test_a_model_of_one_piece_stays_itself():
    model = base("plain")
    assert inlined(model) is model
    assert inlined(model, lambda layer: isinstance(layer, layers.ReLU)) is not model
