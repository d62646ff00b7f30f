"""The translation to tf_keras computes the same function, or names the layer that it cannot take."""

import os
import subprocess
import sys

import keras
import numpy as np
import pytest
import tf_keras
from keras import layers

from tfcompress import UnsupportedLayerError
from tfcompress.keras2 import to_tf_keras
from tfcompress.keras2.activations import ACTIVATIONS
from tfcompress.models import lenet5


def random_weights(model, seed=0):
    """Gives every weight its own random value, so that exchanged roles (gamma and beta, mean and variance) show."""
    rng = np.random.default_rng(seed)
    for weight in model.weights:
        spread = 1 / np.sqrt(max(np.prod(weight.shape[:-1]), 1)) if len(weight.shape) > 1 else 0.3
        values = rng.normal(0, spread, weight.shape)
        positive = any(word in weight.path for word in ("variance", "gamma"))
        weight.assign(np.abs(values) + 0.7 if positive else values)
    return model


def assert_same_function(model, atol=1e-5):
    x = np.random.default_rng(1).uniform(0, 1, (3, *model.input_shape[1:])).astype("float32")
    expected, got = model.predict(x, verbose=0), to_tf_keras(model).predict(x, verbose=0)
    assert np.ptp(expected) > 1e-3, "a constant output would let anything pass"
    np.testing.assert_allclose(got, expected, atol=atol * max(1, np.abs(expected).max()))


def single(*stack, shape=(8, 8, 6)):
    inputs = keras.Input(shape)
    x = inputs
    for layer in stack:
        x = layer(x)
    return random_weights(keras.Model(inputs, x))


LAYERS = {
    "conv": lambda: [layers.Conv2D(5, 3, strides=2, padding="same", activation="relu")],
    "conv_grouped": lambda: [layers.Conv2D(6, 3, groups=3, dilation_rate=2, use_bias=False)],
    "conv_transpose": lambda: [layers.Conv2DTranspose(4, 3, strides=2)],
    "depthwise": lambda: [layers.DepthwiseConv2D(3, depth_multiplier=2)],
    "separable": lambda: [layers.SeparableConv2D(4, 3, depth_multiplier=2)],
    "dense": lambda: [layers.Flatten(), layers.Dense(7, activation="softmax")],
    "dense_on_images": lambda: [layers.Dense(7)],
    "batch_norm": lambda: [layers.BatchNormalization(epsilon=1e-2)],
    "batch_norm_without_gamma": lambda: [layers.BatchNormalization(scale=False)],
    "batch_norm_without_beta": lambda: [layers.BatchNormalization(center=False)],
    "layer_norm": lambda: [layers.LayerNormalization()],
    "max_pool": lambda: [layers.MaxPooling2D(2, strides=1, padding="same")],
    "average_pool": lambda: [layers.AveragePooling2D(1, 2)],
    "global_pools": lambda: [layers.GlobalAveragePooling2D(keepdims=True), layers.GlobalMaxPooling2D()],
    "option_a": lambda: [layers.Permute((3, 2, 1)), layers.ZeroPadding2D(((2, 1), (0, 0))), layers.Permute((3, 2, 1))],
    "crop_reshape": lambda: [layers.Cropping2D(1), layers.Reshape((36, 6))],
    "upsampling": lambda: [layers.UpSampling2D(2, interpolation="bilinear")],
    "dropout": lambda: [layers.Dropout(0.5), layers.SpatialDropout2D(0.5)],
    "rescaling": lambda: [layers.Rescaling([1.0, 2, 3, 4, 5, 6], offset=-1.0)],
    "normalization": lambda: [layers.Normalization(mean=[0.1] * 6, variance=np.arange(1.0, 7.0))],
    "normalization_adapted": lambda: [layers.Normalization()],
    "prelu": lambda: [layers.Conv2D(4, 1), layers.PReLU(shared_axes=(1, 2))],
    "relu_variants": lambda: [layers.Conv2D(4, 1), layers.ReLU(max_value=0.3, negative_slope=0.1, threshold=0.01)],
    "leaky_relu": lambda: [layers.Conv2D(4, 1), layers.LeakyReLU(0.17)],
    "elu_softmax": lambda: [layers.Conv2D(4, 1), layers.ELU(0.5), layers.Softmax()],
}


@pytest.mark.parametrize("kind", LAYERS)
def test_layer_computes_the_same(kind):
    assert_same_function(single(*LAYERS[kind]()))


def test_dropout_drops_in_training_only():
    model = to_tf_keras(single(layers.Dropout(0.5), layers.BatchNormalization()))
    ones = np.ones((4, *model.input_shape[1:]), "float32")
    dropout = tf_keras.Model(model.input, model.layers[1].output)
    np.testing.assert_array_equal(dropout(ones), ones)
    assert 0.3 < (dropout(ones, training=True).numpy() == 0).mean() < 0.7


def test_nested_model_called_in_inference_stays_so():
    inputs = keras.Input((5,))
    inner = keras.Model(inputs, layers.BatchNormalization(name="norm")(inputs))
    outer = keras.Input((5,))
    model = to_tf_keras(keras.Model(outer, layers.Dense(2)(inner(outer, training=False))))
    model(np.full((4, 5), 7, "float32"), training=True)
    assert not next(w for w in model.weights if "moving_mean" in w.name).numpy().any()


@pytest.mark.parametrize("name", sorted(ACTIVATIONS))
def test_activation_computes_the_same(name):
    inputs = keras.Input((6,))
    model = keras.Model(inputs, layers.Activation(name)(layers.Rescaling(9.0, -4.5)(inputs)))
    assert_same_function(model)


@pytest.mark.parametrize("merge", ["Add", "Subtract", "Multiply", "Average", "Maximum", "Minimum", "Concatenate"])
def test_merge_computes_the_same(merge):
    inputs = keras.Input((5, 5, 4))
    branches = [layers.Conv2D(3, 1)(inputs), layers.Conv2D(3, 1)(inputs)]
    assert_same_function(random_weights(keras.Model(inputs, getattr(layers, merge)()(branches))))


def test_operators_compute_the_same():
    inputs = keras.Input((5, 5, 4))
    a, b = layers.Conv2D(3, 1)(inputs), layers.Conv2D(3, 1)(inputs)
    assert_same_function(random_weights(keras.Model(inputs, (a + 3.0) * (0.5 * b) + a)))
    c = (1 - a) - (b - np.float32(0.25)) / 4
    assert_same_function(random_weights(keras.Model(inputs, c * np.float64(2) - a)))


@pytest.mark.parametrize("operation", [lambda x: x * np.ones(4, "float32"), lambda x: 1 / x, lambda x: x / (x + 1)])
def test_operators_without_counterpart_are_named(operation):
    inputs = keras.Input((5, 5, 4))
    with pytest.raises(UnsupportedLayerError, match="takes two tensors, or one and a number"):
        to_tf_keras(keras.Model(inputs, operation(inputs)))


def test_shared_layers_stay_shared_and_nested_models_nested():
    shared = layers.Conv2D(4, 3, padding="same", name="shared")
    inner_inputs = keras.Input((6, 6, 4))
    inner = keras.Model(inner_inputs, layers.BatchNormalization(name="bn")(shared(inner_inputs)), name="inner")
    inputs = keras.Input((6, 6, 4))
    model = random_weights(keras.Model(inputs, layers.Dense(2)(inner(inner(layers.ReLU()(inputs))))))
    assert_same_function(model)
    legacy = to_tf_keras(model)
    assert isinstance(legacy.get_layer("inner"), tf_keras.Model)
    assert sum(np.prod(w.shape) for w in legacy.weights) == model.count_params()


def test_sequential_keeps_names_and_weights():
    model = keras.Sequential([keras.Input((6,), name="features"), layers.Dense(3, name="head")])
    legacy = to_tf_keras(model)
    assert [layer.name for layer in legacy.layers] == ["features", "head"]
    np.testing.assert_array_equal(legacy.get_layer("head").kernel, model.get_layer("head").kernel)


def test_several_inputs_and_outputs_keep_their_order():
    a, b = keras.Input((3,), name="a"), keras.Input((2,), name="b")
    model = keras.Model([a, b], [layers.Dense(2)(b), layers.Dense(4)(a)])
    x = [np.ones((1, 3), "float32"), np.ones((1, 2), "float32")]
    for expected, got in zip(model.predict(x, verbose=0), to_tf_keras(model).predict(x, verbose=0), strict=True):
        np.testing.assert_allclose(got, expected, atol=1e-6)


def test_training_settings_survive():
    inputs = keras.Input((6,))
    dense = layers.Dense(3, kernel_regularizer=keras.regularizers.L2(0.1), kernel_constraint="max_norm", name="d")
    dense.trainable = False
    translated = to_tf_keras(keras.Model(inputs, dense(inputs))).get_layer("d")
    assert not translated.trainable
    assert translated.kernel_regularizer.l2 == pytest.approx(0.1)
    assert type(translated.kernel_constraint).__name__ == "MaxNorm"


def test_lenet_computes_the_same_and_leaves_the_source_alone():
    model = random_weights(lenet5())
    before = model.get_weights()
    assert_same_function(model)
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


class Unknown(layers.Layer):
    def call(self, x):
        return x


@pytest.mark.parametrize(
    "layer",
    [Unknown(name="odd"), layers.RMSNormalization(name="odd"), layers.Activation(lambda x: x, name="odd")],
    ids=["custom", "keras3_only", "lambda_activation"],
)
def test_unknown_layer_is_named(layer):
    with pytest.raises(UnsupportedLayerError, match="'odd'"):
        to_tf_keras(single(layer))


def test_a_sum_is_called_twice_and_one_of_three_in_pairs():
    inputs = keras.Input((6, 6, 4))
    twice = layers.Add(name="twice")
    x = twice([twice([inputs, inputs]), layers.ReLU(name="relu")(inputs)])
    model = keras.Model(inputs, layers.Add(name="three")([x, inputs, layers.ReLU(name="again")(x)]))
    assert_same_function(model)
    names = [layer.name for layer in to_tf_keras(model).layers]
    assert {"twice", "twice_1", "three_first2", "three"} <= set(names)


@pytest.mark.parametrize("name", ["my conv", "_conv", "conv:0"])
def test_names_that_tf_keras_does_not_take_are_refused(name):
    with pytest.raises(UnsupportedLayerError, match=f"{name!r}.*one of letters, digits"):
        to_tf_keras(single(layers.Conv2D(2, 3, name=name)))


def test_subclassed_and_unbuilt_models_are_refused():
    class Subclassed(keras.Model):
        def call(self, x):
            return x

    for model in (Subclassed(), keras.Sequential([layers.Dense(2)])):
        with pytest.raises(ValueError, match="subclassed or has not been built"):
            to_tf_keras(model)
    with pytest.raises(ValueError, match="Received: str"):
        to_tf_keras("model")


@pytest.mark.parametrize(("chosen", "library"), [(None, "keras"), ("1", "tf_keras"), ("0", "keras")])
def test_the_door_leaves_tf_keras_choice_to_the_user(chosen, library):
    code = (
        "import os, tfcompress, sys; assert 'tensorflow' not in sys.modules;"
        "import tfcompress.keras2, tensorflow as tf;"
        f"assert tf.keras.Model.__module__.split('.')[0] == '{library}', tf.keras.Model.__module__;"
        f"assert os.environ.get('TF_USE_LEGACY_KERAS') == {chosen!r}"
    )
    environment = {key: value for key, value in os.environ.items() if key != "TF_USE_LEGACY_KERAS"}
    environment |= {"TF_USE_LEGACY_KERAS": chosen} if chosen else {}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)
