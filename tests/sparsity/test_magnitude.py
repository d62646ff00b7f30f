"""Gradual magnitude pruning: the right weights go, at the right time, and training resumes exactly."""

import dataclasses

import keras
import numpy as np
import pytest
from keras import layers
from small_training import CONFIG as SHORT
from small_training import STILL, Interrupt, data, last_line_on_jax

import tfcompress as tfc
from tfcompress.models import lenet5
from tfcompress.sparsity import MagnitudePruning, allocate, prunable_kernels, sparsity_of
from tfcompress.training import CheckpointError, TrainingConfig, fit

CONFIG = dataclasses.replace(SHORT, epochs=3)


def small_net():
    keras.utils.set_random_seed(0)
    inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(8, 3, name="conv")(inputs)
    x = layers.BatchNormalization(name="bn")(x)
    x = layers.ReLU(name="relu")(x)
    x = layers.DepthwiseConv2D(3, name="depthwise")(x)
    return keras.Model(inputs, layers.Dense(5, name="dense")(layers.Flatten(name="flatten")(x)))


@pytest.mark.parametrize("precision", ["float32", "mixed_bfloat16"])
@pytest.mark.parametrize("allocation", ["lamp", "uniform"])
def test_sparsity_is_reached_and_the_source_is_left_alone(allocation, precision):
    source = small_net()
    before = source.get_weights()
    config = dataclasses.replace(CONFIG, precision=precision, weight_decay=1e-3)
    sparse = tfc.sparsify(source, 0.8, *data(), config, allocation=allocation)
    assert sparsity_of(sparse) == pytest.approx(0.8, abs=0.01)
    assert [type(layer) for layer in sparse.layers] == [type(layer) for layer in source.layers]
    assert [layer.name for layer in sparse.layers][1:] == [layer.name for layer in source.layers][1:]
    for old, new in zip(before, source.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)
    for name, (kernel,) in prunable_kernels(sparse).items():
        kept, old = np.asarray(kernel) != 0, np.asarray(source.get_layer(name).kernel)
        assert np.abs(np.asarray(kernel) - old)[kept].max() > 1e-3, name


def test_the_largest_pruned_weight_is_below_the_smallest_kept_one():
    source = small_net()
    sparse = tfc.sparsify(source, 0.5, *data(), STILL, allocation="uniform")
    for name in ("conv", "depthwise", "dense"):
        original = np.abs(source.get_layer(name).get_weights()[0])
        kept = sparse.get_layer(name).get_weights()[0] != 0
        assert kept.mean() == pytest.approx(0.5, abs=0.01)
        assert original[~kept].max() < original[kept].min()


def test_sparsity_follows_the_cubic_ramp():
    """Zhu & Gupta 2017, eq. 1, with s_i = 0 and updates at every second step from 2 to 10."""
    model, seen = small_net(), []

    class Observe(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            seen.append(1 - np.mean(np.asarray(self.model.get_layer("dense").kernel) != 0))

    pruning = MagnitudePruning(model, allocate(model, 0.9, "uniform"), begin=2, end=11, updates=4)
    config = dataclasses.replace(CONFIG, epochs=2)
    fit(model, *data(), config, callbacks=[pruning, Observe()])
    assert len(seen) == 12
    for step, value in enumerate(seen, start=1):
        last_update = min(step - step % 2, 10)
        expected = 0.9 * (1 - (1 - (last_update - 2) / 8) ** 3) if step >= 2 else 0.0
        assert value == pytest.approx(expected, abs=0.005), step


@pytest.mark.parametrize("epochs_before", [1, 2])
def test_resumed_training_ends_with_the_same_bits(tmp_path, epochs_before):
    """An interruption in the middle of the ramp, and one behind it."""

    def train(folder, *callbacks):
        model = small_net()
        pruning = MagnitudePruning(model, allocate(model, 0.8), begin=1, end=9, updates=4)
        fit(model, *data(), CONFIG, directory=folder, callbacks=[pruning, *callbacks])
        return model

    whole = train(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "interrupted", Interrupt(epochs_before))
    resumed = train(tmp_path / "interrupted")
    assert sparsity_of(resumed) == pytest.approx(0.8, abs=0.01)
    for a, b in zip(whole.weights, resumed.weights, strict=True):
        np.testing.assert_array_equal(a, b, err_msg=a.path)


def test_directory_of_another_sparsity_is_refused(tmp_path):
    tfc.sparsify(small_net(), 0.5, *data(), CONFIG, directory=tmp_path)
    with pytest.raises(CheckpointError, match=r"sparsity 0\.5, now 0\.9"):
        tfc.sparsify(small_net(), 0.9, *data(), CONFIG, directory=tmp_path)
    assert sparsity_of(tfc.sparsify(small_net(), 0.5, *data(), CONFIG, directory=tmp_path)) == pytest.approx(
        0.5, abs=0.01
    )


def test_every_kernel_keeps_a_weight():
    keras.utils.set_random_seed(0)
    net = [keras.Input((8, 8, 3)), layers.SeparableConv2D(64, 1), layers.Flatten(), layers.Dense(5)]
    sparse = tfc.sparsify(keras.Sequential(net), 0.97, *data(), CONFIG, allocation="uniform")
    assert [int(np.count_nonzero(kernel)) for kernel in sparse.layers[0].weights[:2]] == [1, 6]


def test_pruning_again_keeps_the_zeros_there_are():
    half = tfc.sparsify(small_net(), 0.5, *data(), CONFIG)
    more = tfc.sparsify(half, 0.8, *data(), CONFIG, ramp=(0.5, 1.0))
    less = tfc.sparsify(half, 0.2, *data(), CONFIG)
    assert sparsity_of(more) == pytest.approx(0.8, abs=0.01)
    assert sparsity_of(less) == pytest.approx(0.5, abs=0.01)
    for name, (kernel,) in prunable_kernels(half).items():
        for other in (more, less):
            assert (np.asarray(prunable_kernels(other)[name][0])[np.asarray(kernel) == 0] == 0).all()


def test_nested_models_are_pruned():
    inner = small_net()
    inputs = keras.Input((8, 8, 3))
    model = keras.Model(inputs, layers.Dense(5, name="outer_dense")(inner(inputs)))
    sparse = tfc.sparsify(model, 0.7, *data(), CONFIG)
    assert sparsity_of(sparse) == pytest.approx(0.7, abs=0.01) and sparsity_of(model) == 0


def test_lenet_reaches_98_percent():
    x = np.random.default_rng(0).uniform(0, 1, (24, 28, 28, 1)).astype("float32")
    config = TrainingConfig(epochs=1, batch_size=8)
    assert sparsity_of(tfc.sparsify(lenet5(), 0.98, x, np.arange(24) % 10, config)) == pytest.approx(0.98, abs=1e-4)


@pytest.mark.slow
def test_jax_prunes_as_tensorflow_does():
    code = (
        "import numpy as np, keras; from keras import layers; import tfcompress as tfc;"
        "from tfcompress.sparsity import sparsity_of; from tfcompress.training import TrainingConfig;"
        "x = np.random.default_rng(0).uniform(0, 1, (96, 8, 8, 3)).astype('float32');"
        "model = keras.Sequential([layers.Input((8, 8, 3)), layers.Conv2D(8, 3), layers.Flatten(), layers.Dense(5)]);"
        "sparse = tfc.sparsify(model, 0.8, x, np.arange(96) % 5, TrainingConfig(epochs=3, batch_size=16));"
        "print(round(sparsity_of(sparse), 2))"
    )
    assert last_line_on_jax(code) == "0.8"


@pytest.mark.parametrize("ramp", [(0.6, 0.6), (0.5, 0.2), (-0.1, 0.5), (0.0, 1.1)])
def test_impossible_ramp_is_refused(ramp):
    with pytest.raises(ValueError, match="ramp must be two increasing fractions"):
        tfc.sparsify(small_net(), 0.5, *data(), CONFIG, ramp=ramp)
