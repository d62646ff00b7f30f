"""Soft pruning: the zeros are those of the plan, removing them changes nothing, and an interruption neither."""

import keras
import numpy as np
import pytest
from keras import layers
from small_training import Interrupt

import tfcompress as tfc
from tfcompress.training import SoftPruning, TrainingConfig, fit

CONFIG = TrainingConfig(epochs=3, batch_size=32, learning_rate=0.05)


@pytest.fixture
def data(digits):
    return digits.x_train[:192], digits.y_train[:192]


def network():
    keras.utils.set_random_seed(0)
    inputs = keras.Input((28, 28, 1))
    x = layers.Conv2D(8, 5, strides=4, name="stem")(inputs)
    x = shortcut = layers.ReLU()(layers.BatchNormalization(momentum=0.8)(x))
    x = layers.Conv2D(12, 3, padding="same", use_bias=False, name="first")(x)
    x = layers.ReLU()(layers.BatchNormalization(momentum=0.8)(x))
    x = layers.Conv2D(8, 3, padding="same", use_bias=False, name="second")(x)
    x = layers.Add()([layers.BatchNormalization(momentum=0.8)(x), shortcut])
    return keras.Model(inputs, layers.Dense(10, name="logits")(layers.GlobalAveragePooling2D()(layers.ReLU()(x))))


def train(folder, data, *callbacks):
    model = network()
    soft = SoftPruning(model, "l2", folder / "plan.json", ratio=0.5)
    fit(model, *data, CONFIG, directory=folder, callbacks=[soft, *callbacks])
    return model, soft.plan


def test_removing_the_zeros_changes_nothing(data, tmp_path):
    model, plan = train(tmp_path, data)
    assert {name: len(kept) for name, kept in plan.kept.items()} == {"stem": 4, "first": 6, "second": 4, "logits": 10}
    for name in ("stem", "first", "second"):
        used = np.flatnonzero(np.abs(np.asarray(model.get_layer(name).kernel)).sum((0, 1, 2)))
        np.testing.assert_array_equal(used, plan.kept[name])
    x = data[0][:64] / np.float32(255)
    expected = model.predict(x, verbose=0)
    np.testing.assert_allclose(tfc.apply_plan(model, plan).predict(x, verbose=0), expected, atol=1e-5)
    other = tfc.prune_channels(model, "random", ratio=0.5).model.predict(x, verbose=0)
    assert np.abs(other - expected).max() > 0.1


@pytest.mark.parametrize("kind", ["depthwise", "separable", "pre-activation", "nested"])
def test_removing_the_zeros_changes_nothing_behind_any_batch_norm(data, tmp_path, kind):
    keras.utils.set_random_seed(0)

    def norm():
        return layers.BatchNormalization(momentum=0.8, beta_initializer="uniform")

    x = inputs = keras.Input((28, 28, 1))
    x = layers.ReLU()(norm()(layers.Conv2D(8, 5, strides=4, name="stem")(norm()(x))))
    if kind == "depthwise":
        x = layers.ReLU()(norm()(layers.DepthwiseConv2D(3, bias_initializer="ones")(x)))
        x = layers.Conv2D(12, 1, name="last")(x)
    elif kind == "separable":
        x = layers.SeparableConv2D(12, 3, bias_initializer="ones", name="last")(x)
    elif kind == "pre-activation":
        x = layers.Add()([x, layers.Conv2D(8, 3, padding="same", name="last")(layers.ReLU()(norm()(x)))])
        x = layers.ReLU()(norm()(layers.Concatenate()([x, x])))
    else:
        part = [keras.Input((6, 6, 8)), layers.Conv2D(12, 3, name="last"), norm(), layers.ReLU()]
        x = keras.Sequential(part, name="part")(x)
    model = keras.Model(inputs, layers.Dense(10)(layers.GlobalAveragePooling2D()(x)))
    soft = SoftPruning(model, "l2", tmp_path / "plan.json", ratio=0.5)
    fit(model, *data, CONFIG, callbacks=[soft])
    x = data[0][:64] / np.float32(255)
    expected = model.predict(x, verbose=0)
    smaller = tfc.apply_plan(model, soft.plan)
    assert smaller.count_params() < 0.8 * model.count_params() and np.ptp(expected) > 0.1
    np.testing.assert_allclose(smaller.predict(x, verbose=0), expected, atol=1e-5)
    means = [np.asarray(v) for v in model.weights if v.name == "moving_mean"]
    assert all(mean.any() for mean in means)


def test_zeroed_filters_are_trained_on(data, tmp_path):
    """Between the ends of two epochs every filter moves away from zero, and another choice is possible."""
    norms = []
    watch = keras.callbacks.LambdaCallback(
        on_train_batch_end=lambda batch, logs: norms.append(
            np.linalg.norm(np.asarray(watch.model.get_layer("first").kernel), axis=(0, 1)).min()
        )
    )
    train(tmp_path, data, watch)
    assert len(norms) == 18 and min(norms) > 1e-4


def test_interrupted_soft_pruning_ends_the_same(data, tmp_path):
    model, plan = train(tmp_path / "whole", data)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "parts", data, Interrupt())
    resumed, same = train(tmp_path / "parts", data)
    assert same.to_json() == plan.to_json()
    for a, b in zip(resumed.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    # A finished training is read back with its plan.
    assert train(tmp_path / "whole", data)[1].to_json() == plan.to_json()
