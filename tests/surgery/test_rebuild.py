"""The rebuilt network is a plain Keras model with the original's weights, sliced."""

import functools
import os
import subprocess
import sys
import textwrap

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers
from law import lifelike, run

from tfcompress import apply_plan, as_logits, factorize, plan_pruning, prune_channels, recalibrate
from tfcompress.errors import UnsupportedLayerError
from tfcompress.graph import copy_model
from tfcompress.models import resnet
from tfcompress.surgery import ChannelGraph
from tfcompress.surgery.rebuild import rebuild
from tfcompress.training.fast import training_clone


@pytest.fixture(scope="module")
def net():
    model = resnet(8)
    return lifelike(model, np.random.default_rng(0).random((16, 32, 32, 3)))


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(1).random((8, 32, 32, 3)).astype("float32")


def test_removing_nothing_is_the_identity(net, images):
    same, plan = prune_channels(net, ratios={"conv1": 0.0})
    assert [layer.get_config() for layer in same.layers] == [layer.get_config() for layer in net.layers]
    for a, b in zip(same.get_weights(), net.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(run(same, [images])[0], run(net, [images])[0])
    assert plan.before == plan.after


def test_kept_weights_are_slices_of_the_originals(net):
    pruned, plan = prune_channels(net, "random", ratio=0.5)
    stem, inside = plan.kept["conv1"], plan.kept["stage1_block1_conv1"]
    for name, index in [
        ("conv1", np.ix_(range(3), range(3), range(3), stem)),
        ("stage1_block1_conv1", np.ix_(range(3), range(3), stem, inside)),
        ("stage1_block1_conv2", np.ix_(range(3), range(3), inside, stem)),
    ]:
        np.testing.assert_array_equal(pruned.get_layer(name).kernel, np.array(net.get_layer(name).kernel)[index])
    for old, new in zip(net.get_layer("conv1_bn").weights, pruned.get_layer("conv1_bn").weights):
        np.testing.assert_array_equal(new, np.array(old)[stem])
    last = plan.kept["stage3_block1_conv2"]
    np.testing.assert_array_equal(pruned.get_layer("logits").kernel, np.array(net.get_layer("logits").kernel)[last])


def test_the_original_is_untouched_and_names_stay(net):
    before = net.get_weights()
    pruned, _ = prune_channels(net, ratio=0.5)
    for a, b in zip(before, net.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    assert [layer.name for layer in pruned.layers] == [layer.name for layer in net.layers]
    assert pruned.name == net.name
    assert all(type(layer).__module__.startswith("keras.") for layer in pruned.layers)


def test_reloads_where_tfcompress_was_never_imported(net, images, tmp_path):
    pruned, _ = prune_channels(net, ratio=0.5)
    pruned.save(tmp_path / "pruned.keras")
    np.savez(tmp_path / "data.npz", x=images, y=run(pruned, [images])[0])
    program = """
        import sys, keras, numpy as np
        model = keras.models.load_model("pruned.keras")
        data = np.load("data.npz")
        np.testing.assert_allclose(model.predict(data["x"], verbose=0), data["y"], atol=1e-4)
        assert not any(name.startswith("tfcompress") for name in sys.modules)
    """
    environment = {**os.environ, "PYTHONPATH": ""}
    subprocess.run([sys.executable, "-c", textwrap.dedent(program)], cwd=tmp_path, env=environment, check=True)


def test_trains(images):
    pruned, _ = prune_channels(resnet(8), ratio=0.5)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    pruned.compile(keras.optimizers.Adam(0.01), loss, jit_compile=False)
    history = pruned.fit(images, np.arange(8), epochs=12, verbose=0)
    assert history.history["loss"][-1] < 0.8 * history.history["loss"][0]


@pytest.mark.parametrize("sequential", [False, True])
def test_compiled_model_gives_an_uncompiled_one(sequential):
    model = keras.Sequential([keras.Input((6,)), layers.Dense(8, name="a"), layers.Dense(3)])
    if not sequential:
        model = keras.Model(model.inputs, model.outputs)
    model.compile("adam", "mse")
    pruned, _ = prune_channels(model, ratio=0.5)
    assert not pruned.compiled
    assert isinstance(pruned, keras.Sequential) == sequential
    assert pruned(np.ones((2, 6))).shape == (2, 3)


def test_dictionaries_of_inputs_and_outputs_stay():
    a, b = keras.Input((4,), name="a"), keras.Input((5,), name="b")
    x = layers.Add()([layers.Dense(6)(a), layers.Dense(6)(b)])
    model = keras.Model({"a": a, "b": b}, {"y": layers.Dense(2)(x)})
    model.compile("sgd", "mse")
    pruned, _ = prune_channels(model, ratio=0.5)
    assert pruned({"a": np.ones((1, 4)), "b": np.ones((1, 5))})["y"].shape == (1, 2)


def test_open_height_and_width():
    inputs = keras.Input((None, None, 3))
    x = layers.Conv2D(8, 3, padding="same")(layers.Conv2D(8, 3)(inputs))
    x = layers.Add()([x, layers.Conv2D(8, 1)(x)])
    model = keras.Model(inputs, layers.Dense(2)(layers.GlobalAveragePooling2D()(x)))
    pruned, plan = prune_channels(model, ratio=0.5)
    assert pruned(np.ones((1, 11, 9, 3))).shape == (1, 2)
    assert plan.after.macs is None and plan.macs_reduction is None
    assert "MACs" not in str(plan)
    with pytest.raises(ValueError, match="fixed input size"):
        plan_pruning(model, macs_reduction=0.5)


def test_fixed_batch():
    inputs = keras.Input(batch_shape=(4, 8, 8, 3))
    x = layers.Flatten()(layers.Conv2D(8, 3)(inputs))
    pruned, _ = prune_channels(keras.Model(inputs, layers.Dense(2)(x)), ratio=0.5)
    assert pruned.input_shape == (4, 8, 8, 3)
    assert pruned(np.ones((4, 8, 8, 3))).shape == (4, 2)


def test_mixed_precision_stays():
    policy = keras.dtype_policies.DTypePolicy("mixed_bfloat16")
    inputs = keras.Input((8, 8, 3))
    x = layers.BatchNormalization(dtype=policy)(layers.Conv2D(8, 3, dtype=policy)(inputs))
    model = keras.Model(inputs, layers.Dense(2, dtype="float32")(layers.GlobalAveragePooling2D()(x)))
    pruned, _ = prune_channels(model, ratio=0.5)
    assert [layer.compute_dtype for layer in pruned.layers] == [layer.compute_dtype for layer in model.layers]
    assert pruned.layers[1].kernel.dtype == "float32"


def test_trainable_flags_stay():
    inner = keras.Sequential([keras.Input((6,)), layers.Dense(8), layers.Dense(8)], name="inner")
    model = keras.Sequential([keras.Input((6,)), inner, layers.Dense(8), layers.Dense(2)])
    inner.layers[0].trainable = False
    model.layers[1].trainable = False
    pruned, _ = prune_channels(model, ratio=0.5)
    assert [layer.trainable for layer in pruned.layers] == [True, False, True]
    assert [layer.trainable for layer in pruned.layers[0].layers] == [False, True]
    inner.trainable = False
    inner.layers[1].trainable = True
    pruned, _ = prune_channels(model, ratio=0.5)
    assert [layer.trainable for layer in pruned.layers[0].layers] == [False, True]
    assert len(pruned.trainable_weights) == len(model.trainable_weights)


def test_weight_that_is_frozen_by_itself_stays_so():
    model = keras.Sequential([keras.Input((6,)), layers.Dense(8), layers.Dense(2)])
    model.layers[0].kernel.trainable = False
    pruned, _ = prune_channels(model, ratio=0.5)
    assert [weight.trainable for weight in pruned.weights] == [False, True, True, True]


def test_batch_renormalization_gets_narrower():
    inputs = keras.Input((6, 6, 3))
    x = layers.BatchNormalization(renorm=True, name="norm")(layers.Conv2D(8, 3, name="a")(inputs))
    model = keras.Model(inputs, layers.Conv2D(2, 1)(layers.ReLU()(x)))
    pruned, plan = prune_channels(model, ratios={"a": 0.5})
    before, after = model.get_layer("norm"), pruned.get_layer("norm")
    for name in ("gamma", "beta", "moving_mean", "moving_variance", "moving_stddev", "renorm_mean", "renorm_stddev"):
        np.testing.assert_array_equal(getattr(after, name), np.array(getattr(before, name))[plan.kept["a"]])
    x = np.random.default_rng(0).random((64, 6, 6, 3), "float32")
    recalibrate(pruned, x)
    outputs = np.array(pruned.get_layer("a")(x)).reshape(-1, 4)
    assert after.renorm
    for name, expected in (
        *(("moving_mean", outputs.mean(0)), ("renorm_mean", outputs.mean(0)), ("moving_variance", outputs.var(0))),
        *((name, np.sqrt(outputs.var(0) + after.epsilon)) for name in ("moving_stddev", "renorm_stddev")),
    ):
        np.testing.assert_allclose(getattr(after, name), expected, rtol=1e-2)


def test_initializers_that_hold_the_weights():
    matrix = np.random.default_rng(0).normal(size=(20, 10)).astype("float32")
    embedding = layers.Embedding(20, 10, embeddings_initializer=keras.initializers.Constant(matrix), name="embedding")
    model = keras.Sequential([keras.Input((5,)), embedding, layers.Flatten(), layers.Dense(3)])
    pruned, plan = prune_channels(model, ratio=0.5)
    np.testing.assert_array_equal(pruned.get_layer("embedding").embeddings, matrix[:, plan.kept["embedding"]])


def test_subclassed_models_are_refused():
    class Subclassed(keras.Model):
        def call(self, x):
            return x

    with pytest.raises(ValueError, match="subclassed"):
        prune_channels(Subclassed(), ratio=0.5)


def test_adapted_normalization_keeps_its_statistics():
    x = 100 + 50 * np.random.default_rng(0).random((16, 8, 8, 3), dtype="float32")
    normalization = layers.Normalization()
    normalization.adapt(x)
    stack = [layers.Conv2D(8, 3, name="conv"), layers.BatchNormalization(), layers.Flatten(), layers.Dense(4)]
    model = keras.Sequential([keras.Input((8, 8, 3)), normalization, *stack])
    expected = model.predict(x, verbose=0)
    pruned, _ = prune_channels(model, ratios={"conv": 0.0})
    with training_clone(model) as trained:
        assert trained is not model
        for clone in (pruned, as_logits(model)[0], trained):
            np.testing.assert_allclose(clone.predict(x, verbose=0), expected, atol=1e-5)


def test_recalibrate_measures_the_statistics():
    inputs = keras.Input((5,))
    x = layers.BatchNormalization(name="first")(inputs)
    x = layers.BatchNormalization(name="frozen", trainable=False)(layers.Dropout(0.5)(x))
    model = keras.Model(inputs, x)
    x = np.random.default_rng(0).normal(3, 2, (97, 5))
    recalibrate(model, x, batch_size=32)
    first, frozen = model.get_layer("first"), model.get_layer("frozen")
    np.testing.assert_allclose(first.moving_mean, x.mean(axis=0), rtol=1e-4)
    variance = x[:96].reshape(3, 32, 5).var(axis=1).mean(axis=0) * 96 / 97  # The last batch is one example.
    np.testing.assert_allclose(first.moving_variance, variance, rtol=1e-4)
    assert first.momentum == 0.99
    np.testing.assert_array_equal(frozen.moving_mean, np.zeros(5))
    with pytest.raises(ValueError, match="empty"):
        recalibrate(model, x[:0])
    pixels = np.random.default_rng(0).integers(0, 256, (96, 5), "uint8")
    recalibrate(model, pixels, batch_size=96)
    np.testing.assert_allclose(first.moving_mean, pixels.mean(axis=0) / 255, rtol=1e-4)


@pytest.mark.parametrize("batch_size", [256, 32])
def test_recalibrate_averages_all_calls_of_a_shared_layer(batch_size):
    inner = keras.Input((4,))
    shared = keras.Model(inner, layers.BatchNormalization(name="norm")(inner))
    a, b = keras.Input((4,)), keras.Input((4,))
    model = keras.Model([a, b], [shared(a), shared(b)])
    rng = np.random.default_rng(0)
    x = [rng.normal(0, 1, (256, 4)), rng.normal(10, 2, (256, 4))]
    recalibrate(model, x, batch_size=batch_size)
    norm = shared.get_layer("norm")
    np.testing.assert_allclose(norm.moving_mean, np.mean(x, axis=(0, 1)), rtol=1e-4)
    batches = np.reshape(x, (2, -1, batch_size, 4))
    np.testing.assert_allclose(norm.moving_variance, batches.var(axis=2).mean(axis=(0, 1)), rtol=1e-4)


def test_recalibrate_does_not_augment():
    inputs = keras.Input((8, 8, 3))
    x = layers.GaussianNoise(1.0)(layers.RandomRotation(0.5)(layers.RandomFlip()(inputs)))
    model = keras.Model(inputs, layers.BatchNormalization()(layers.Conv2D(4, 3, name="conv")(x)))
    images = np.random.default_rng(0).random((16, 8, 8, 3), dtype="float32")
    recalibrate(model, images)
    signals = np.array(model.get_layer("conv")(images))
    np.testing.assert_allclose(model.layers[-1].moving_variance, signals.var(axis=(0, 1, 2)), rtol=1e-4)


def test_recalibrate_refuses_fractions_for_integers():
    model = keras.Sequential([keras.Input((4,), dtype="uint8"), layers.Rescaling(1 / 255), layers.BatchNormalization()])
    pixels = np.random.default_rng(0).integers(0, 256, (64, 4), "uint8")
    with pytest.raises(ValueError, match="takes uint8, and fractions would be cut off"):
        recalibrate(model, pixels / 255)
    for same in (pixels, pixels.astype("float32")):
        recalibrate(model, same)
        np.testing.assert_allclose(model.layers[-1].moving_mean, (pixels / 255).mean(0), atol=1e-6)


def test_recalibrate_takes_dictionaries_by_name():
    """Where the model was built from a list, sorted keys are another order."""
    z, a = keras.Input((3,), name="z"), keras.Input((3,), name="a")
    norms = [layers.BatchNormalization(name=f"norm_{x.name}") for x in (z, a)]
    model = keras.Model([z, a], layers.Add()([norm(x) for norm, x in zip(norms, (z, a))]))
    rng = np.random.default_rng(0)
    x = {"a": rng.random((64, 3), dtype="float32") + 5, "z": rng.random((64, 3), dtype="float32")}
    recalibrate(model, x, batch_size=64)
    for norm, name in zip(norms, "za"):
        np.testing.assert_allclose(norm.moving_mean, x[name].mean(axis=0), rtol=1e-4)
    with pytest.raises(ValueError, match=r"each input, z, a\. Received: a"):
        recalibrate(model, {"a": x["a"]})
    with pytest.raises(ValueError, match=r"each input, z, a\. Received: 1 arrays"):
        recalibrate(model, x["a"])


def test_recalibrate_after_pruning_restores_the_scale_of_the_signals(net, images):
    pruned, _ = prune_channels(net, ratio=0.5)
    deep = keras.Model(pruned.inputs, pruned.get_layer("stage3_block1_conv2_bn").output)

    def spread():
        gamma = np.array(pruned.get_layer("stage3_block1_conv2_bn").gamma)
        return np.abs(np.log(np.std(run(deep, [images])[0], axis=(0, 1, 2)) / gamma)).mean()

    before = spread()
    recalibrate(pruned, images)
    assert spread() < 0.3 * before


def test_applied_plan_equals_pruned_model(net):
    pruned, plan = prune_channels(net, ratio=0.3)
    for a, b in zip(apply_plan(net, plan).get_weights(), pruned.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_dictionary_goes_to_the_inputs_of_its_names(rng):
    """Keras finds the inputs of a model in a model by name, in whatever order it was built with."""
    left, away = (keras.Input((8, 8, 6), name=name) for name in ("left", "away"))
    branches = [layers.Conv2D(5, 3, name="c")(left), layers.BatchNormalization(name="norm")(away)[:, 1:-1, 1:-1]]
    inner = keras.Model([left, away], layers.Concatenate()(branches), name="inner")
    x = keras.Input((8, 8, 3))
    u, v = (layers.Conv2D(6, 3, padding="same", name=name)(x) for name in "uv")
    model = keras.Model(x, layers.Dense(4)(layers.Flatten()(inner({"left": u, "away": v}))))
    model.get_layer("v").bias.assign(np.full(6, 50))
    images = rng.normal(size=(16, 8, 8, 3)).astype("float32")
    pruned, plan = prune_channels(model, "l1", ratio=0.5)
    old, new = (net.get_layer("inner").get_layer("c").kernel.numpy() for net in (model, pruned))
    np.testing.assert_array_equal(new, old[:, :, plan.kept["u"]][..., plan.kept["inner/c"]])
    recalibrate(model, images)
    assert model.get_layer("inner").get_layer("norm").moving_mean.numpy().min() > 40


def leaky_relu(x):
    """Named as one of Keras', with another slope."""
    return keras.ops.leaky_relu(x, 0.01)


@pytest.mark.parametrize("activation", [leaky_relu, tf.nn.silu, lambda x: 3 * keras.ops.relu(x)])
@pytest.mark.parametrize("nested", [False, True])
def test_functions_of_ones_own_stay_activations(rng, activation, nested):
    parts = [
        layers.Conv2D(4, 3, activation=activation),
        layers.Activation(activation),
        layers.Lambda(lambda x: 2 * x, name="double"),
    ]
    parts = [keras.Sequential([keras.Input((8, 8, 3)), *parts], name="inner")] if nested else parts
    model = keras.Sequential([keras.Input((8, 8, 3)), *parts, layers.Flatten(), layers.Dense(3), layers.Softmax()])
    images = rng.normal(size=(4, 8, 8, 3)).astype("float32")
    logits, _ = as_logits(model)
    graph = ChannelGraph(model, skip=["inner/double" if nested else "double"])
    whole = rebuild(graph, np.ones(len(graph.frozen), bool))
    thin, _ = factorize(model, energy=0.9999999)
    for copy in (whole, thin, keras.Sequential([logits, layers.Softmax()])):
        np.testing.assert_allclose(copy(images), model(images), atol=1e-5)
    with training_clone(model) as clone:
        assert clone is not model
        np.testing.assert_allclose(clone(images), model(images), atol=1e-5)


def test_what_no_configuration_describes_is_named():
    relu6 = functools.partial(keras.activations.relu, max_value=6)
    first = layers.Conv2D(4, 3, activation=relu6, name="first")
    model = keras.Sequential([keras.Input((8, 8, 3)), first, layers.Flatten(), layers.Dense(3)])
    with pytest.raises(UnsupportedLayerError, match=r"'first' \(Conv2D\): cannot be copied .*register_keras_ser"):
        prune_channels(model, ratio=0.5)


def test_noise_of_a_shape_of_its_own_gets_narrower(rng):
    x = keras.Input((8, 8, 3))
    noisy = layers.Dropout(0.5, noise_shape=(None, 1, 1, 8))(layers.Conv2D(8, 3, padding="same")(x))
    pruned, _ = prune_channels(keras.Model(x, layers.Dense(4)(layers.Flatten()(noisy))), ratio=0.5)
    assert pruned(rng.normal(size=(2, 8, 8, 3)), training=True).shape == (2, 4)
    assert [layer.noise_shape for layer in pruned.layers if isinstance(layer, layers.Dropout)] == [(None, 1, 1, 4)]


def test_recalibrate_takes_grey_images_without_their_channel(rng):
    model = keras.Sequential([keras.Input((8, 8, 1)), layers.BatchNormalization()])
    images = rng.normal(size=(64, 8, 8)).astype("float32") + 3
    recalibrate(model, images)
    np.testing.assert_allclose(model.layers[0].moving_mean, [images.mean()], rtol=1e-5)
    for wrong in (images.reshape(64, 64), tf.data.Dataset.from_tensors(images)):
        with pytest.raises(ValueError, match=r"takes an array of shape \(N, 8, 8, 1\). Received"):
            recalibrate(model, wrong)


class Block(layers.Layer):
    """As many users write one: its configuration is what Keras makes of the arguments, which lack the name."""

    def __init__(self, **arguments):
        super().__init__(**arguments)
        self.dense, self.norm = layers.Dense(6), layers.BatchNormalization()

    def build(self, shape):
        self.dense.build(shape)
        self.norm.build((*shape[:-1], 6))

    def call(self, x, training=None):
        return self.norm(self.dense(x), training=training)


def test_layer_of_ones_own_keeps_its_name_and_what_is_frozen_in_it():
    block = Block(name="block")
    model = keras.Sequential([keras.Input((6,)), block, layers.Dense(8), layers.Dense(3)])
    block.norm.trainable = False
    pruned, _ = prune_channels(model, ratio=0.5, skip=["block"])
    twin = pruned.get_layer("block")
    assert (twin.dense.trainable, twin.norm.trainable) == (True, False)
    copy = copy_model(model).get_layer("block")
    assert (copy.dense.trainable, copy.norm.trainable) == (True, False)


class Scales(layers.Layer):
    def __init__(self, count=1, **arguments):
        super().__init__(**arguments)
        self.scales = [self.add_weight(shape=(), initializer="ones") for _ in range(count)]

    def get_config(self):
        return {"name": self.name}

    def call(self, x):
        return x * sum(self.scales)


def test_configuration_that_lacks_an_argument_is_named():
    model = keras.Sequential([keras.Input((6,)), Scales(2, name="scales"), layers.Dense(8), layers.Dense(3)])
    with pytest.raises(
        UnsupportedLayerError, match=r"'scales' \(Scales\): has 2 weights, and a copy.* 1: .*get_config"
    ):
        prune_channels(model, ratio=0.5, skip=["scales"])


@pytest.mark.parametrize("kind", ["IntegerLookup", "TextVectorization"])
def test_adapted_vocabulary_stays(kind):
    text = kind == "TextVectorization"
    lookup = layers.TextVectorization(output_sequence_length=2) if text else layers.IntegerLookup()
    words = np.array([["red fish"], ["blue fish"]]) if text else np.array([[7, 9], [5, 9]])
    lookup.adapt(words)
    inputs = keras.Input(words.shape[1:], dtype="string" if text else "int64")
    x = layers.Dense(8, name="dense")(layers.Flatten()(layers.Embedding(9, 4)(lookup(inputs))))
    model = keras.Model(inputs, layers.Dense(3)(x))
    pruned, _ = prune_channels(model, ratio=0.5)
    assert pruned.get_layer("dense").units == 4
    known = pruned.get_layer(lookup.name)(keras.ops.convert_to_tensor(words) if not text else words)
    np.testing.assert_array_equal(known, lookup(words))
    assert np.asarray(known).max() > 2  # none of them is unknown
