"""Who becomes how sparse: totals are met, LAMP ranks as published."""

import keras
import numpy as np
import pytest
from keras import layers

from tfcompress.keras2 import to_tf_keras
from tfcompress.models import lenet5
from tfcompress.quantization.aware_training import quantize_wrap
from tfcompress.sparsity import allocate, prunable_kernels, sparsity_of


def total(model, shares):
    sizes = {name: sum(np.size(k) for k in kernels) for name, kernels in prunable_kernels(model).items()}
    return sum(shares[name] * sizes[name] for name in sizes) / sum(sizes.values())


@pytest.mark.parametrize(
    ("allocation", "sparsity"),
    [
        *((name, sparsity) for name in ("uniform", "lamp") for sparsity in (0.0, 0.5, 0.95)),
        *(({"conv1": 0.0, "logits": 0.5}, sparsity) for sparsity in (0.5, 0.95)),
    ],
)
def test_shares_add_up_to_the_total(allocation, sparsity):
    model = lenet5()
    shares = allocate(model, sparsity, allocation)
    assert set(shares) == {"conv1", "conv2", "fc1", "logits"}
    assert total(model, shares) == pytest.approx(sparsity, abs=1e-5)
    if isinstance(allocation, dict):
        assert {name: shares[name] for name in allocation} == allocation


@pytest.mark.parametrize("sparsity", [0.81, 0.83, 0.95, 0.97])
def test_result_is_an_allocation(sparsity):
    model = keras.Sequential([keras.Input((7,)), keras.layers.Dense(9), keras.layers.Dense(3)])
    shares = allocate(model, sparsity)
    assert allocate(model, sparsity, shares) == shares


def test_lamp_matches_its_definition():
    """Scores by hand: layer a has w^2 = 1, 4, 4 -> 1/9, 4/8, 1; layer b has 1, 2, 9 -> 1/12, 2/11, 1."""
    model = keras.Sequential([keras.Input((1,)), layers.Dense(3, use_bias=False, name="a")])
    inputs = keras.Input((1,))
    a, b = layers.Dense(3, name="a", use_bias=False), layers.Dense(3, name="b", use_bias=False)
    model = keras.Model(inputs, [a(inputs), b(inputs)])
    a.set_weights([np.array([[2.0, -1.0, 2.0]])])
    b.set_weights([np.sqrt([[9.0, 1.0, 2.0]])])
    for count, expected in [(1, (0, 1)), (2, (1, 1)), (3, (1, 2)), (4, (2, 2))]:
        shares = allocate(model, count / 6)
        assert (round(3 * shares["a"]), round(3 * shares["b"])) == expected


def test_lamp_never_empties_a_layer():
    model = lenet5()
    model.get_layer("conv1").set_weights([w * 1e-6 for w in model.get_layer("conv1").get_weights()])
    assert max(allocate(model, 0.999).values()) < 1


def test_lamp_spares_the_small_first_layer():
    shares = allocate(lenet5(), 0.9)
    assert shares["conv1"] < 0.6 < 0.89 < shares["fc1"]


@pytest.mark.parametrize("sparsity", [1.0, -0.1, 1.4, float("nan")])
def test_sparsity_outside_the_range_is_quoted(sparsity):
    with pytest.raises(ValueError, match=rf"\[0, 1\). Received: {sparsity}"):
        allocate(lenet5(), sparsity)


def test_impossible_allocations_are_refused():
    model = lenet5()
    with pytest.raises(ValueError, match="names 'conv9'; the prunable layers are conv1"):
        allocate(model, 0.5, {"conv9": 0.5})
    with pytest.raises(ValueError, match="cannot be reached"):
        allocate(model, 0.9, {"fc1": 0.1})
    with pytest.raises(ValueError, match="cannot be reached"):
        allocate(model, 0.1, {"fc1": 0.9})
    with pytest.raises(ValueError, match="'magic'"):
        allocate(model, 0.5, "magic")


def test_model_without_prunable_layers_is_refused():
    frozen = lenet5()
    frozen.trainable = False
    with pytest.raises(ValueError, match=r"no weights to prune.*Received: conv1, conv2, fc1, logits\. Set trainable"):
        allocate(frozen, 0.5)
    recurrent = keras.Sequential([keras.Input((4, 3)), layers.LSTM(2, name="lstm")])
    with pytest.raises(ValueError, match="Received: lstm"):
        allocate(recurrent, 0.5)
    with pytest.raises(ValueError, match="Received: no kernels"):
        allocate(keras.Sequential([keras.Input((4, 3)), layers.Flatten()]), 0.5)
    assert allocate(frozen, 0.0) == {}


def test_frozen_layers_count():
    model = lenet5()
    for name in ("conv1", "fc1"):
        model.get_layer(name).kernel.assign(0 * model.get_layer(name).kernel)
    expected = sparsity_of(model)
    assert expected == pytest.approx((500 + 400_000) / 430_500)
    model.get_layer("fc1").trainable = False
    assert sparsity_of(model) == sparsity_of(to_tf_keras(model)) == expected
    assert set(prunable_kernels(model)) == {"conv1", "conv2", "logits"}
    assert sparsity_of(quantize_wrap(model)) == expected


def test_fixed_convolutions_of_quantization_do_not_count():
    inputs = keras.Input((6, 6, 4))
    x = layers.BatchNormalization()(layers.Rescaling(2.0)(inputs))
    model = keras.Model(inputs, layers.Conv2D(2, 1, kernel_initializer="zeros")(layers.ReLU()(x)))
    assert sparsity_of(quantize_wrap(model)) == sparsity_of(model) == 1


def test_sparsity_counts_kernels_only_in_both_frameworks():
    inputs = keras.Input((6, 6, 4))
    x = layers.DepthwiseConv2D(3, name="depthwise")(inputs)
    x = layers.BatchNormalization()(x)
    model = keras.Model(inputs, layers.Dense(8, name="dense")(x))
    assert sparsity_of(model) == 0.0, "zero biases and beta do not count"
    dense = model.get_layer("dense")
    kernel = dense.kernel.numpy()
    kernel[:, :4] = 0
    dense.set_weights([kernel, np.zeros(8)])
    assert sparsity_of(model) == pytest.approx(16 / (36 + 32))
    assert sparsity_of(to_tf_keras(model)) == sparsity_of(model)
