"""Removing and putting back a softmax changes nothing else."""

from inspect import signature

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from tfcompress.graph import copy_model
from tfcompress.keras2 import tf_keras, tfmot
from tfcompress.outputs import (
    AUGMENTATIONS,
    as_logits,
    divergence,
    ends_in_softmax,
    trainable_logits,
    two_classes,
    with_softmax,
)


def functional(*end):
    inputs = keras.Input((6, 6, 1))
    x = layers.Flatten()(layers.Conv2D(3, 3, activation="relu")(inputs))
    for layer in end:
        x = layer(x)
    return keras.Model(inputs, x, name="net")


def sequential(*end):
    return keras.Sequential([keras.Input((6, 6, 1)), layers.Conv2D(3, 3), layers.Flatten(), *end], name="net")


ENDS = {
    "fused": lambda: [layers.Dense(4, activation="softmax")],
    "activation": lambda: [layers.Dense(4), layers.Activation("softmax")],
    "layer": lambda: [layers.Dense(4), layers.Softmax()],
    "layer as an activation": lambda: [layers.Dense(4, activation=layers.Softmax())],
    "TensorFlow's": lambda: [layers.Dense(4, activation=tf.nn.softmax)],
    "named softmax": lambda: [layers.Dense(4, activation="softmax", name="softmax")],
    "before a cast": lambda: [layers.Dense(4), layers.Softmax(), layers.Activation("linear", dtype="float32")],
    "before a reshape": lambda: [
        layers.Dense(4),
        layers.Reshape((1, 1, 4)),
        layers.Activation("softmax"),
        layers.Reshape((4,)),
    ],
    "before a dropout": lambda: [layers.Dense(4), layers.Softmax(), layers.Dropout(0.5)],
    "fused, before a cast": lambda: [layers.Dense(4, activation="softmax"), layers.Activation("linear")],
}


@pytest.mark.parametrize("build", [functional, sequential])
@pytest.mark.parametrize("end", ENDS)
def test_softmax_is_removed_and_put_back(build, end, rng):
    model = build(*ENDS[end]())
    x = rng.random((5, 6, 6, 1), "float32")
    logits, had_softmax = as_logits(model)
    assert had_softmax and logits.name == "net" and ends_in_softmax(model) and not ends_in_softmax(logits)
    values = logits.predict(x, verbose=0)
    assert np.abs(values.sum(axis=1) - 1).max() > 1e-3
    np.testing.assert_allclose(with_softmax(logits).predict(x, verbose=0), model.predict(x, verbose=0), atol=1e-6)
    before = model.get_weights()
    logits.set_weights([0 * weights for weights in logits.get_weights()])
    assert all(np.array_equal(a, b) for a, b in zip(before, model.get_weights())), "the copy shares weights"


@pytest.mark.parametrize("softmax", [keras.ops.softmax, keras.activations.softmax])
def test_softmax_as_an_operation_is_removed(softmax, rng):
    inputs = keras.Input((6, 6, 1))
    logits = layers.Dense(4)(layers.Flatten()(inputs))
    without, had_softmax = as_logits(keras.Model(inputs, softmax(logits)))
    x = rng.random((5, 6, 6, 1), "float32")
    assert had_softmax
    np.testing.assert_array_equal(without.predict(x, verbose=0), keras.Model(inputs, logits).predict(x, verbose=0))


def test_softmax_is_seen_in_models_of_keras_2_and_of_tfmot():
    layers_2 = tf_keras.layers
    head = tf_keras.Sequential([layers_2.InputLayer((9,)), layers_2.Dense(4, activation="softmax")])
    inputs = tf_keras.Input((3, 3, 1))
    assert ends_in_softmax(tf_keras.Model(inputs, head(layers_2.Flatten()(inputs))))
    logits = tf_keras.Model(inputs, layers_2.Dense(4)(layers_2.Flatten()(inputs)))
    assert not ends_in_softmax(tfmot.quantization.keras.quantize_model(logits))
    for end in (layers_2.Softmax(), layers_2.Activation("softmax"), layers_2.Dense(4, activation="softmax")):
        model = tf_keras.Model(inputs, end(logits.outputs[0]))
        assert ends_in_softmax(model) and ends_in_softmax(tfmot.quantization.keras.quantize_model(model))


def test_frozen_layers_are_trained_and_named(capsys):
    model = sequential(layers.Dense(4))
    model.layers[0].trainable = False
    logits, _ = trainable_logits(model)
    assert f"net: 1 frozen layers are trained, too: {model.layers[0].name}" in capsys.readouterr().err
    assert all(layer.trainable for layer in logits.layers) and not model.layers[0].trainable
    trainable_logits(logits)
    assert capsys.readouterr().err == ""


ONE_NUMBER = {
    "sigmoid": lambda: [layers.Dense(1, activation="sigmoid")],
    "layer": lambda: [layers.Dense(1, use_bias=False), layers.Activation("sigmoid")],
    "before a cast": lambda: [layers.Dense(1), layers.Activation("sigmoid"), layers.Activation("linear")],
    "inside": lambda: [keras.Sequential([keras.Input((48,)), layers.Dense(1, activation="sigmoid")])],
    "logit": lambda: [layers.Dense(1), layers.Dropout(0.5)],
}


@pytest.mark.parametrize("end", ONE_NUMBER)
def test_one_number_for_two_classes_becomes_two(end, rng, capsys):
    model = functional(*ONE_NUMBER[end]())
    x = rng.random((5, 6, 6, 1), "float32")
    logits, had_softmax = trainable_logits(model)
    assert had_softmax == (end != "logit") and logits.output_shape == (None, 2)
    assert "net: its one output becomes two" in capsys.readouterr().err
    p = model.predict(x, verbose=0)[:, 0]
    p = 1 / (1 + np.exp(-p)) if end == "logit" else p
    assert np.std(p) > 1e-3
    np.testing.assert_allclose(with_softmax(logits).predict(x, verbose=0), np.stack([1 - p, p], 1), atol=1e-6)
    assert two_classes(logits) is logits


def test_softmax_inside_an_inner_model_is_removed(rng):
    inner = keras.Sequential([keras.Input((9,)), layers.Dense(4), layers.Softmax()], name="inner")
    inputs = keras.Input((3, 3, 1))
    model = keras.Model(inputs, inner(layers.Flatten()(inputs)))
    logits, had_softmax = as_logits(model)
    x = rng.random((5, 3, 3, 1), "float32")
    assert had_softmax and logits.output._keras_history.operation.name == inner.layers[0].name
    np.testing.assert_allclose(with_softmax(logits).predict(x, verbose=0), model.predict(x, verbose=0), atol=1e-6)


def test_augmentation_is_left_out_and_named(rng, capsys):
    pipeline = layers.Pipeline([layers.RandomZoom(0.1), layers.RandomContrast(0.1)], name="all")
    augment = keras.Sequential([keras.Input((6, 6, 1)), layers.RandomFlip(name="flipped"), layers.RandomRotation(0.2)])
    end = [layers.Conv2D(3, 3), layers.Flatten(), layers.Dense(4)]
    model = keras.Sequential([keras.Input((6, 6, 1)), augment, pipeline, layers.RandomCrop(6, 6), *end], name="net")
    logits, _ = trainable_logits(model)
    assert "flipped, random_rotation, all left out" in capsys.readouterr().err
    kinds = [type(layer).__name__ for layer in logits._flatten_layers(include_self=False)]
    assert kinds.count("Identity") == 3 and "RandomCrop" in kinds and "RandomFlip" not in kinds
    x = rng.random((5, 6, 6, 1), "float32")
    np.testing.assert_array_equal(logits.predict(x, verbose=0), model.predict(x, verbose=0))


@pytest.mark.parametrize("kind", AUGMENTATIONS, ids=lambda kind: kind.__name__)
def test_augmentations_change_nothing_outside_training(kind, rng):
    arguments = {"RandomPosterization": {"value_range": (0, 255), "factor": 4}, "RandomInvert": {}}
    one = {name: 0.3 for name in ("factor", "height_factor", "width_factor") if name in signature(kind).parameters}
    x = rng.uniform(0, 255, (2, 8, 8, 3)).astype("float32")
    np.testing.assert_array_equal(kind(**arguments.get(kind.__name__, one))(x, training=False), x)


def test_layer_inside_and_outside_of_a_model_is_named():
    shared = layers.Dense(4, name="shared")
    base = keras.Sequential([keras.Input((4,)), shared], name="base")
    inputs = keras.Input((4,))
    model = keras.Model(inputs, layers.Dense(2)(shared(base(inputs))))
    with pytest.raises(ValueError, match="calls shared both inside and outside"):
        copy_model(model)


def test_compiled_model_inside_does_not_stop_a_copy(rng):
    """Its loss, one's own, plays no part."""
    base = keras.Sequential([keras.Input((4,)), layers.Dense(3)], name="base")
    base.compile(loss=lambda target, output: output)
    model = keras.Sequential([keras.Input((4,)), base, layers.Dense(2)])
    copy = copy_model(model, recursive=True)
    assert base.compiled and not copy.get_layer("base").compiled
    x = rng.random((2, 4), "float32")
    np.testing.assert_array_equal(copy.predict(x, verbose=0), model.predict(x, verbose=0))


def test_logits_stay(rng):
    model = functional(layers.Dense(4))
    x = rng.random((5, 6, 6, 1), "float32")
    logits, had_softmax = as_logits(model)
    assert not had_softmax and logits is not model
    np.testing.assert_array_equal(logits.predict(x, verbose=0), model.predict(x, verbose=0))


def test_what_is_no_classifier_is_refused():
    with pytest.raises(ValueError, match="ends in a sigmoid"):
        as_logits(functional(layers.Dense(4, activation="sigmoid")))
    with pytest.raises(ValueError, match="ends in a sigmoid"):
        inputs = keras.Input((3,))
        as_logits(keras.Model(inputs, keras.ops.sigmoid(inputs)))
    with pytest.raises(ValueError, match="ends in a sigmoid"):
        inner = keras.Sequential([keras.Input((3,)), layers.Activation("sigmoid")], name="inner")
        as_logits(keras.Sequential([keras.Input((3,)), layers.Dense(3), inner]))
    for end in (
        [layers.Dense(1, activation="tanh")],
        [layers.Dense(1, activation="relu"), layers.Activation("sigmoid")],
    ):
        with pytest.raises(ValueError, match=r"output shape \(None, 1\)\. Two classes are two outputs"):
            as_logits(functional(*end))
    with pytest.raises(ValueError, match="ends in a sigmoid"):
        as_logits(functional(layers.Dense(4, activation="sigmoid"), layers.Reshape((4,))))
    with pytest.raises(ValueError, match="changes the shape behind its softmax"):
        as_logits(functional(layers.Reshape((1, 48)), layers.Softmax(), layers.Flatten()))
    with pytest.raises(ValueError, match=r"A Keras 3 model is expected\. Received: tf_keras"):
        as_logits(tf_keras.Sequential([tf_keras.Input((3,)), tf_keras.layers.Dense(2)]))
    with pytest.raises(ValueError, match=r"output shape \(None, 4, 4, 3\)"):
        as_logits(keras.Sequential([keras.Input((6, 6, 1)), layers.Conv2D(3, 3)]))
    a, b = keras.Input((4,)), keras.Input((4,))
    with pytest.raises(ValueError, match="2 inputs and 1 outputs"):
        as_logits(keras.Model([a, b], layers.Dense(2)(layers.Add()([a, b]))))
    with pytest.raises(ValueError, match="not built"):
        as_logits(keras.Sequential([layers.Dense(3)]))


def test_divergence_is_that_of_kullback_and_leibler():
    certain, undecided = np.log([[0.9, 0.1], [0.2, 0.8]]), np.zeros((2, 2))
    expected = np.mean([0.9 * np.log(1.8) + 0.1 * np.log(0.2), 0.2 * np.log(0.4) + 0.8 * np.log(1.6)])
    assert divergence(certain, undecided) == pytest.approx(expected)
    # Logits mean the same, whatever is added to all of an example's.
    assert divergence(certain, certain + np.array([[5], [-1000]])) == pytest.approx(0, abs=1e-12)
    assert divergence(undecided, certain) > expected
    assert np.isnan(divergence(certain, np.full((2, 2), np.nan)))
