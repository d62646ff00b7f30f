"""Gradual magnitude pruning: the right weights go, at the right time, and training resumes exactly."""

import keras
import numpy as np
import pytest
from keras import layers

from tfcompress.keras2 import tf_keras, to_tf_keras
from tfcompress.models import lenet5
from tfcompress.sparsity import prune_wrap, pruning_callbacks, sparsity_of, strip


def small_net():
    keras.utils.set_random_seed(0)
    inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(8, 3, name="conv")(inputs)
    x = layers.BatchNormalization(name="bn")(x)
    x = layers.ReLU(name="relu")(x)
    x = layers.DepthwiseConv2D(3, name="depthwise")(x)
    return keras.Model(inputs, layers.Dense(5, name="dense")(layers.Flatten(name="flatten")(x)))


def data(count=96):
    rng = np.random.default_rng(0)
    return rng.uniform(0, 1, (count, 8, 8, 3)).astype("float32"), rng.integers(0, 5, count)


def train(model, epochs=3, initial_epoch=0, learning_rate=0.01):
    if model.optimizer is None:
        optimizer = tf_keras.optimizers.SGD(learning_rate, momentum=0.9)
        model.compile(optimizer, tf_keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    for epoch in range(initial_epoch, epochs):
        model.fit(
            *data(), 16, epochs=epoch + 1, initial_epoch=epoch, shuffle=False, verbose=0, callbacks=pruning_callbacks()
        )
    return model


@pytest.mark.parametrize("allocation", ["lamp", "uniform"])
def test_sparsity_is_reached_and_names_are_kept(allocation):
    source = small_net()
    before = source.get_weights()
    stripped = strip(train(prune_wrap(source, 0.8, begin_step=0, end_step=13, frequency=2, allocation=allocation)))
    assert sparsity_of(stripped) == pytest.approx(0.8, abs=0.01)
    assert [layer.name for layer in stripped.layers][1:] == [layer.name for layer in source.layers][1:]
    for old, new in zip(before, source.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


def test_stripped_equals_wrapped():
    wrapped = train(prune_wrap(small_net(), 0.6, begin_step=0, end_step=10, frequency=2))
    x = data()[0]
    np.testing.assert_allclose(strip(wrapped).predict(x, verbose=0), wrapped.predict(x, verbose=0), atol=1e-6)


def test_the_largest_pruned_weight_is_below_the_smallest_kept_one():
    source = small_net()
    # A learning rate of practically zero: the masks then show the magnitudes of the source.
    wrapped = prune_wrap(source, 0.5, begin_step=0, end_step=4, frequency=2, allocation="uniform")
    stripped = strip(train(wrapped, epochs=1, learning_rate=1e-12))
    for name in ("conv", "depthwise", "dense"):
        original = np.abs(source.get_layer(name).get_weights()[0])
        kept = stripped.get_layer(name).get_weights()[0] != 0
        assert kept.mean() == pytest.approx(0.5, abs=0.01)
        assert original[~kept].max() < original[kept].min()


def test_sparsity_follows_the_cubic_ramp():
    """Zhu & Gupta 2017, eq. 1, with s_i = 0 and updates every second step of steps 2 to 10."""
    wrapped = prune_wrap(small_net(), 0.9, begin_step=2, end_step=11, frequency=2, allocation="uniform")
    seen = []

    class Observe(tf_keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            mask = self.model.get_layer("prune_low_magnitude_dense").pruning_vars[0][1]
            seen.append(1 - float(np.mean(mask)))

    wrapped.compile("sgd", tf_keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    wrapped.fit(*data(192), 16, verbose=0, callbacks=[*pruning_callbacks(), Observe()])
    assert len(seen) == 12
    for step, value in enumerate(seen, start=1):
        last_update = min(step - step % 2, 10)
        expected = 0.9 * (1 - (1 - (last_update - 2) / 8) ** 3) if step >= 2 else 0.0
        assert value == pytest.approx(expected, abs=0.005), step


def test_resumed_training_ends_with_the_same_bits():
    def wrap():
        return prune_wrap(small_net(), 0.8, begin_step=2, end_step=16, frequency=2)

    whole = train(wrap(), epochs=3)
    interrupted = train(wrap(), epochs=1)
    resumed = wrap()
    resumed.compile(
        tf_keras.optimizers.SGD(0.01, momentum=0.9), tf_keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    )
    resumed.optimizer.build(resumed.trainable_variables)
    assert any("pruning_step" in v.name for v in resumed.variables)
    assert any("mask" in v.name for v in resumed.variables)
    for target, source in (
        (resumed.variables, interrupted.variables),
        (resumed.optimizer.variables, interrupted.optimizer.variables),
    ):
        for variable, value in zip(target, source, strict=True):
            variable.assign(value)
    train(resumed, epochs=3, initial_epoch=1)
    for a, b in zip(whole.variables, resumed.variables, strict=True):
        np.testing.assert_array_equal(a, b, err_msg=a.name)


def test_pruning_again_starts_from_the_zeros_there_are():
    half = strip(train(prune_wrap(small_net(), 0.5, begin_step=0, end_step=4, frequency=2), epochs=1))
    zeros = half.get_layer("dense").get_weights()[0] == 0
    more = strip(train(prune_wrap(half, 0.8, begin_step=0, end_step=10, frequency=1), learning_rate=1e-12))
    assert sparsity_of(more) == pytest.approx(0.8, abs=0.01)
    assert (more.get_layer("dense").get_weights()[0][zeros] == 0).all()


def test_nested_models_are_pruned():
    inner = small_net()
    inputs = keras.Input((8, 8, 3))
    model = keras.Model(inputs, layers.Dense(5, name="outer_dense")(inner(inputs)))
    stripped = strip(train(prune_wrap(model, 0.7, begin_step=0, end_step=10, frequency=2)))
    assert sparsity_of(stripped) == pytest.approx(0.7, abs=0.01)


def test_lenet_reaches_98_percent():
    model = lenet5()
    wrapped = prune_wrap(model, 0.98, begin_step=0, end_step=2, frequency=1)
    wrapped.compile("sgd", tf_keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    x = np.random.default_rng(0).uniform(0, 1, (24, 28, 28, 1)).astype("float32")
    wrapped.fit(x, np.arange(24) % 10, 8, verbose=0, callbacks=pruning_callbacks())
    assert sparsity_of(strip(wrapped)) == pytest.approx(0.98, abs=1e-4)


def test_ramp_without_an_update_is_refused():
    with pytest.raises(ValueError, match="at least one update"):
        prune_wrap(small_net(), 0.5, begin_step=0, end_step=50, frequency=100)


def test_tf_keras_models_are_not_changed():
    source = to_tf_keras(small_net())
    before = source.get_weights()
    train(prune_wrap(source, 0.5, begin_step=0, end_step=4, frequency=2), epochs=1)
    for old, new in zip(before, source.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)
