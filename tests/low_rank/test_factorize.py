"""Low-rank factorization: full rank is the same function, lower ranks the best approximation, budgets to the digit."""

import os
import subprocess
import sys

import keras
import numpy as np
import pytest
from keras import layers

import tfcompress as tfc
from tfcompress.low_rank.decompose import energies, factors, rank_at
from tfcompress.models import lenet5


@pytest.fixture(autouse=True)
def in_float64():
    """Differences are those of the method, not of the arithmetic."""
    keras.utils.set_random_seed(0)
    keras.config.set_dtype_policy("float64")
    yield
    keras.config.set_dtype_policy("float32")


def network():
    """Every kind of layer that is factorized, in every kind of model, between some that are not."""
    image = keras.Input((12, 10, 3), name="image", dtype="float64")
    x = layers.Conv2D(8, 3, padding="same", activation="relu", name="same")(image)
    shared = layers.Conv2D(8, (3, 5), padding="same", use_bias=False, name="shared")
    x = layers.Add(name="sum")([shared(x), shared(layers.ReLU(name="relu")(x))])
    x = layers.Conv2D(12, (5, 3), strides=(2, 1), padding="valid", name="strided")(x)
    x = layers.Conv2D(10, 3, dilation_rate=(1, 2), padding="same", name="dilated")(x)
    x = layers.DepthwiseConv2D(3, padding="same", name="depthwise")(x)
    x = layers.Conv2D(12, 3, groups=2, padding="same", name="grouped")(x)
    x = layers.Conv2D(14, 1, activation="swish", name="pointwise")(x)
    inner = keras.Input(x.shape[1:], name="inner", dtype="float64")
    y = layers.Conv2D(14, 3, padding="same", name="same")(inner)
    x = keras.Model(inner, layers.BatchNormalization(name="norm")(y), name="block")(x)
    x = keras.Sequential([keras.Input(x.shape[1:], dtype="float64"), layers.Dense(9, name="pixels")], name="stack")(x)
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    x = keras.ops.multiply(x, 2.0)
    return keras.Model(image, layers.Dense(7, activation="softmax", name="scores")(x), name="mixed")


FULL_RANKS = {
    "same": 8,
    "shared": 8,
    "strided": 12,
    "dilated": 10,
    "pointwise": 12,
    "block/same": 14,
    "stack/pixels": 9,
    "scores": 7,
}
SPATIAL_RANKS = {"same": 9, "shared": 24, "strided": 36, "dilated": 30, "block/same": 42}


@pytest.mark.parametrize("scheme", ["channel", "spatial"])
def test_full_rank_is_the_same_function(rng, scheme):
    model, x = network(), rng.random((4, 12, 10, 3))
    ranks = {**FULL_RANKS, **(SPATIAL_RANKS if scheme == "spatial" else {})}
    thinner, plan = tfc.factorize(model, ranks=ranks, scheme=scheme)
    expected = model.predict(x, verbose=0)
    np.testing.assert_allclose(thinner.predict(x, verbose=0), expected, atol=1e-9)
    assert all(factor.energy == pytest.approx(1, abs=1e-12) for factor in plan.factors.values())
    assert {name: factor.rank for name, factor in plan.factors.items()} == ranks
    assert thinner.output_names == model.output_names and thinner.name == model.name
    first = thinner.get_layer("strided_low_rank")
    assert first.activation is keras.activations.linear and not first.use_bias
    first.kernel.assign(np.asarray(first.kernel)[..., ::-1])  # the control: other channels, another function
    assert np.abs(thinner.predict(x, verbose=0) - expected).max() > 1e-3


def test_shared_layer_stays_shared():
    thinner, _ = tfc.factorize(network(), ranks={"shared": 2})
    assert [len(thinner.get_layer(name)._inbound_nodes) for name in ("shared_low_rank", "shared")] == [2, 2]


@pytest.mark.parametrize("scheme", ["channel", "spatial"])
def test_lower_rank_is_the_best_approximation(rng, scheme):
    kernel = rng.normal(size=(3, 5, 4, 6))
    energy = energies(kernel, scheme)
    assert len(energy) == (6 if scheme == "channel" else 12)
    for rank in (1, 3, len(energy)):
        first, second = factors(kernel, scheme, rank)
        product = np.einsum("hwck,xykf->hwcf" if scheme == "channel" else "hxck,ywkf->hwcf", first, second)
        lost = np.sum((kernel - product) ** 2) / np.sum(kernel**2)
        assert lost == pytest.approx(1 - energy[rank - 1], abs=1e-12)
        # Eckart & Young: no other matrix of this rank is nearer; least squares on random columns is one.
        other = rng.normal(size=(60, rank)) if scheme == "channel" else rng.normal(size=(12, rank))
        matrix = kernel.transpose(0, 2, 1, 3).reshape(12, 30) if scheme == "spatial" else kernel.reshape(60, 6)
        fitted = other @ np.linalg.lstsq(other, matrix, rcond=None)[0]
        assert np.sum((matrix - fitted) ** 2) / np.sum(kernel**2) >= lost - 1e-12
    assert rank_at(energy, 0.0) == 1 and rank_at(energy, 1.0) == len(energy)
    rank = rank_at(energy, 0.5)
    assert energy[rank - 1] >= 0.5 > energy[rank - 2]


def test_kernel_without_energy():
    zeros = np.zeros((4, 3))
    assert rank_at(energies(zeros, "channel"), 0.9) == 1 and not np.any(factors(zeros, "channel", 1)[0])


@pytest.mark.parametrize("target", [0.1, 0.35, 0.6])
@pytest.mark.parametrize("what", ["macs", "params"])
def test_budget_is_the_smallest_cut_at_or_above(what, target):
    model = network()
    # By channel, parameters and MACs of a layer shrink alike, so that one energy means one network.
    scheme = "channel" if what == "params" else None
    thinner, plan = tfc.factorize(model, **{f"{what}_reduction": target}, scheme=scheme)
    assert plan.before == tfc.profile(model) and plan.after == tfc.profile(thinner)
    # Every layer keeps the energy of the one that keeps least; a little more of it, and the target is missed.
    least = min(factor.energy for factor in plan.factors.values() if factor)
    assert tfc.factorize(model, energy=least, scheme=scheme)[1].factors == plan.factors
    more = tfc.factorize(model, energy=least + 1e-9, scheme=scheme)[1]
    assert getattr(more, f"{what}_reduction") < target <= getattr(plan, f"{what}_reduction")


def test_parameters_of_both_schemes_count():
    """Where columns and rows have fewer parameters than pixels and channels, a budget of parameters takes them."""
    model = keras.Sequential([keras.Input((8, 8, 24)), layers.Conv2D(24, 3, name="a"), layers.Conv2D(24, 3, name="b")])
    thinner, plan = tfc.factorize(model, params_reduction=0.5)
    assert {factor.scheme for factor in plan.factors.values()} == {"spatial"}
    saved = sum(9 * 24 * 24 - factor.rank * (3 * 24 + 3 * 24) for factor in plan.factors.values())
    assert tfc.profile(model).params - tfc.profile(thinner).params == saved
    least = min(factor.energy for factor in plan.factors.values())
    more = tfc.factorize(model, energy=least + 1e-9)[1]
    assert more.params_reduction < 0.5 <= plan.params_reduction


def test_layers_whose_macs_would_rise_stay_whole():
    """With strides, the column runs over the whole width: fewer parameters, more MACs."""
    model = keras.Sequential(
        [keras.Input((32, 32, 16)), layers.Conv2D(32, 3, strides=(1, 4), padding="same", name="wide"), layers.Dense(32)]
    )
    assert tfc.factorize(model, ranks={"wide": 20}, scheme="spatial")[1].macs_reduction < 0
    _, plan = tfc.factorize(model, params_reduction=0.5, scheme="spatial")
    assert plan.params_reduction >= 0.5 and plan.macs_reduction > 0


@pytest.mark.parametrize("scheme", ["channel", "spatial"])
def test_channels_first_is_counted(scheme):
    model = keras.Sequential(
        [keras.Input((4, 12, 9)), layers.Conv2D(6, 3, strides=2, data_format="channels_first", name="conv")]
    )
    _, plan = tfc.factorize(model, ranks={"conv": 2}, scheme=scheme)
    columns, rows = 5 * 9 * 3 * 4, 5 * 4 * 3 * 6  # 12x9 pixels become 5x4
    assert plan.after.macs == 2 * (columns + rows if scheme == "spatial" else 20 * (36 + 6))


def test_no_layer_gets_dearer():
    model = network()
    _, plan = tfc.factorize(model, energy=0.999)
    assert set(plan.factors) == set(FULL_RANKS) and None in plan.factors.values()
    assert plan.after.macs <= plan.before.macs
    thinner, nothing = tfc.factorize(model, energy=1 - 1e-12)
    assert set(nothing.factors.values()) == {None} and nothing.after == nothing.before
    for a, b in zip(model.get_weights(), thinner.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_cheapest_scheme():
    """A first layer of 3 channels has little to gain from thin columns; where both sides are wide, they halve it."""
    model = keras.Sequential([keras.Input((8, 8, 3)), layers.Conv2D(64, 3, name="a"), layers.Conv2D(64, 3, name="b")])
    _, plan = tfc.factorize(model, ranks={"a": 4, "b": 4})
    assert [factor.scheme for factor in plan.factors.values()] == ["channel", "spatial"]
    # a: 6x6 positions of 27 + 64 weights; b: 4x6 of a column, 4x4 of a row, 192 weights each.
    assert plan.after.macs == 4 * (36 * (27 + 64) + 24 * 192 + 16 * 192)
    assert plan.after.params == 4 * (27 + 64) + 64 + 4 * (192 + 192) + 64


def test_skip_and_energy():
    _, plan = tfc.factorize(network(), energy=0.8, skip=("scores", "block", "relu"))
    assert set(plan.factors) == set(FULL_RANKS) - {"scores", "block/same"}
    assert all(factor.energy >= 0.8 for factor in plan.factors.values() if factor)


def test_open_size_counts_parameters():
    image = keras.Input((None, None, 3))
    x = layers.GlobalAveragePooling2D()(layers.Conv2D(16, 3, name="conv")(image))
    model = keras.Model(image, layers.Dense(5, name="scores")(x))
    _, plan = tfc.factorize(model, energy=0.7)
    assert plan.factors["conv"].energy >= 0.7 and plan.macs_reduction is None
    assert 0 < plan.params_reduction < 1 and "MACs" not in str(plan)
    with pytest.raises(ValueError, match="fixed input size"):
        tfc.factorize(model, macs_reduction=0.5)


def test_table():
    _, plan = tfc.factorize(lenet5(), ranks={"conv2": 10, "fc1": 32})
    assert [line.split() for line in str(plan).splitlines()[2:]] == [
        ["conv2", "spatial", "10", "100", f"{plan.factors['conv2'].energy:.2%}"],
        ["fc1", "channel", "32", "500", f"{plan.factors['fc1'].energy:.2%}"],
        [],
        ["cost", "before", "after", "removed"],
        ["----------", "---------", "-------", "-------"],
        ["parameters", "431,080", "51,180", "88.1%"],
        ["MACs", "2,293,000", "590,600", "74.2%"],
    ]


def test_settings_of_the_layer_are_kept(tmp_path):
    model = keras.Sequential(
        [
            keras.Input((6,)),
            layers.Dense(6, name="hidden_low_rank"),
            layers.Dense(
                8,
                name="hidden",
                kernel_initializer=keras.initializers.Constant(np.ones((6, 8))),
                kernel_constraint="unit_norm",
                kernel_regularizer="l2",
                activity_regularizer="l1",
                trainable=False,
            ),
        ]
    )
    thinner, _ = tfc.factorize(model, ranks={"hidden": 3})
    assert [layer.name for layer in thinner.layers] == ["hidden_low_rank", "hidden_low_rank_", "hidden"]
    first, second = thinner.layers[1:]
    assert first.kernel_constraint is None is second.kernel_constraint
    assert first.activity_regularizer is None and second.activity_regularizer is not None
    assert first.kernel_regularizer and second.kernel_regularizer and not first.trainable and not second.trainable
    thinner.save(tmp_path / "thin.keras")
    x = np.ones((2, 6))
    again = keras.models.load_model(tmp_path / "thin.keras")
    np.testing.assert_array_equal(again.predict(x, verbose=0), thinner.predict(x, verbose=0))


def test_what_is_frozen_stays_frozen():
    model = network()
    model.get_layer("block").trainable = False
    model.get_layer("block").get_layer("norm").trainable = True
    model.get_layer("strided").trainable = False
    thinner, _ = tfc.factorize(model, ranks={"block/same": 3, "strided": 3, "same": 3})
    block = thinner.get_layer("block")
    flags = {layer.name: layer.trainable for layer in (*thinner.layers, *block.layers)}
    assert not any(flags[name] for name in ("block", "strided", "strided_low_rank"))
    assert flags["norm"] and flags["dilated"]
    # Inside the block, the first layer is named as outside of it: each model has names of its own.
    assert not block.get_layer("same").trainable and not block.get_layer("same_low_rank").trainable
    assert thinner.get_layer("same_low_rank").trainable
    model.trainable = False
    assert not tfc.factorize(model, ranks={"same": 3})[0].trainable


def test_weight_that_is_frozen_by_itself_stays_so():
    model = keras.Sequential([keras.Input((6,)), layers.Dense(8, name="a"), layers.Dense(8, name="b")])
    model.get_layer("a").kernel.trainable = False
    model.get_layer("b").bias.trainable = False
    thinner, _ = tfc.factorize(model, ranks={"a": 2})
    flags = {weight.path.partition("/")[2]: weight.trainable for weight in thinner.weights}
    assert flags == {
        "a_low_rank/kernel": False,
        "a/kernel": False,
        "a/bias": True,
        "b/kernel": True,
        "b/bias": False,
    }


def test_compiled_and_normalizing_models():
    """A loss of one's own stops Keras' copy of a compiled model; Normalization computes with a copy of its weights."""
    norm = layers.Normalization()
    norm.adapt(np.array([[1.0, 3.0], [5.0, 4.0]]))
    model = keras.Sequential([keras.Input((2,)), norm, layers.Dense(4, name="dense")])
    model.compile(loss=lambda target, output: output)
    x = np.array([[2.0, 7.0]])
    for original in (model, keras.Model(model.inputs, model.outputs)):
        thinner, _ = tfc.factorize(original, ranks={"dense": 2})
        np.testing.assert_allclose(thinner.predict(x, verbose=0), model.predict(x, verbose=0), atol=1e-12)


def test_activation_with_weights_keeps_its_layer_whole(rng):
    model = keras.Sequential(
        [keras.Input((6,)), layers.Dense(8, activation=layers.PReLU(), name="a"), layers.Dense(8, name="b")]
    )
    x = rng.normal(size=(4, 6))
    model.predict(x, verbose=0)
    model.layers[0].activation.alpha.assign(np.full(8, 3.0))
    thinner, plan = tfc.factorize(model, ranks={"b": 8})
    assert list(plan.factors) == ["b"]
    np.testing.assert_allclose(thinner.predict(x, verbose=0), model.predict(x, verbose=0), atol=1e-12)


def test_quantized_layers_are_refused():
    keras.config.set_dtype_policy("float32")
    model = keras.Sequential([keras.Input((6,)), layers.Dense(8, name="a"), layers.Dense(8, name="b")])
    model.quantize("int8")
    with pytest.raises(tfc.UnsupportedLayerError, match=r"Layer 'a' .* is quantized"):
        tfc.factorize(model, energy=0.5)


def test_kernels_must_be_finite():
    model = keras.Sequential([keras.Input((6,)), layers.Dense(8, name="a")])
    model.layers[0].kernel.assign(np.full((6, 8), np.nan))
    with pytest.raises(ValueError, match="The kernel of layer 'a' holds NaN"):
        tfc.factorize(model, energy=0.5)


def test_int8_file(tmp_path, rng):
    keras.config.set_dtype_policy("float32")
    image = keras.Input((16, 16, 3))
    x = layers.Conv2D(32, 3, padding="same", name="conv1")(image)
    x = layers.ReLU()(layers.BatchNormalization()(x))
    x = layers.Conv2D(32, 3, padding="same", activation="relu", name="conv2")(x)
    model = keras.Model(image, layers.Dense(10, name="scores")(layers.GlobalAveragePooling2D()(x)))
    thinner, _ = tfc.factorize(model, ranks={"conv2": 12, "conv1": 6})
    x = rng.random((64, 16, 16, 3), dtype="float32")
    files = {
        name: tfc.export_tflite(each, tmp_path / f"{name}.tflite", "int8", x)
        for name, each in (("whole", model), ("thin", thinner))
    }
    assert files["thin"].bytes < files["whole"].bytes
    noise = tfc.compare(thinner, files["thin"].path, x).layers[-1]
    assert noise.snr > 20


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "Give exactly one of energy, macs_reduction, params_reduction, ranks. Received: none"),
        ({"energy": 0.5, "macs_reduction": 0.5}, "exactly one"),
        ({"energy": 1.0}, r"energy must be a number in \(0, 1\). Received: energy=1.0"),
        ({"params_reduction": 0.0}, r"params_reduction must be a number in \(0, 1\)"),
        ({"macs_reduction": 0.99}, "cannot be reached: rank 1 everywhere removes 8"),
        ({"energy": 0.5, "scheme": "tucker"}, "scheme must be one of spatial, channel, or None. Received: 'tucker'"),
        ({"energy": "0.5"}, r"energy must be a number in \(0, 1\). Received: energy='0.5'"),
        ({"energy": float("nan")}, "Received: energy=nan"),
        ({"energy": 0.5, "skip": ("stridded",)}, "skip names a layer .* not have: 'stridded'. .* is 'strided'"),
        ({"energy": 0.5, "skip": "strided"}, "skip must be a list of layer names. Received: 'strided'"),
        ({"ranks": ["scores"]}, r"ranks must be a dict .* Received: \['scores'\]"),
        ({"ranks": {"stridded": 1}}, "ranks names a layer that the model does not have: 'stridded'"),
        ({"ranks": {"grouped": 1}}, "ranks names a layer that cannot be factorized: 'grouped'. There are same, shared"),
        ({"ranks": {"block/same": 1}, "skip": ("block",)}, "ranks names a layer of skip: 'block/same'"),
        ({"ranks": {"scores": True}}, "Received: True"),
        ({"ranks": {"scores": None}}, "Received: None"),
        ({"ranks": {"scores": 8}}, r"ranks\['scores'\] must be an integer from 1 to 7. Received: 8"),
        ({"ranks": {"scores": 1.5}}, "Received: 1.5"),
        ({"ranks": {"scores": 0}}, "Received: 0"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        tfc.factorize(network(), **arguments)


def test_nothing_to_factorize():
    model = keras.Sequential([keras.Input((8, 8, 4)), layers.DepthwiseConv2D(3)])
    with pytest.raises(ValueError, match="the model has no layer that can be factorized"):
        tfc.factorize(model, macs_reduction=0.5)
    assert tfc.factorize(model, energy=0.5)[1].factors == {}
    pooling = keras.Sequential([keras.Input((8, 8, 4)), layers.MaxPooling2D()])
    _, plan = tfc.factorize(pooling, energy=0.5)
    assert (plan.params_reduction, plan.macs_reduction) == (0.0, 0.0) and "0.0%" in str(plan)


def test_jax_imports_no_tensorflow_and_computes_the_same():
    program = """
import sys, keras, numpy as np, tfcompress as tfc
from tfcompress.models import lenet5
tfc.factorize
assert keras.backend.backend() == "jax" and "tensorflow" not in sys.modules
model = lenet5()
x = np.random.default_rng(0).random((4, 28, 28, 1), "float32")
thinner, plan = tfc.factorize(model, energy=0.9999999)
np.testing.assert_allclose(thinner(x), model(x), atol=1e-4)
assert tfc.factorize(model, params_reduction=0.9)[1].params_reduction >= 0.9
"""
    environment = {**os.environ, "KERAS_BACKEND": "jax", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
