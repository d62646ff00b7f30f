"""Binary weights: signs times the mean of each filter, gradients that pass them, and plain models and files of them."""

import dataclasses

import keras
import numpy as np
import pytest
from keras import layers
from small_training import CONFIG, STILL, Interrupt, data, last_line_on_jax

import tfcompress as tfc
from tfcompress.quantization.binary import _binary_class
from tfcompress.training import CheckpointError, TrainingConfig, accuracy, fit


def small_net():
    keras.utils.set_random_seed(0)
    inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(6, 3, name="first")(inputs)
    x = layers.Conv2D(8, 3, use_bias=False, name="conv")(x)
    x = layers.BatchNormalization(name="bn")(x)
    x = layers.ReLU(name="relu")(x)
    x = layers.DepthwiseConv2D(3, name="depthwise")(x)
    x = layers.SeparableConv2D(7, 1, name="separable")(x)
    x = layers.Conv2DTranspose(5, 3, strides=2, name="transpose")(x)
    x = layers.Dense(9, name="dense")(layers.Flatten(name="flatten")(x))
    return keras.Model(inputs, layers.Dense(5, name="logits")(x))


def filters_first(model, name):
    """The kernel of a layer as (filters, weights of one)."""
    layer = model.get_layer(name)
    kernel = np.asarray(layer.pointwise_kernel if name == "separable" else layer.kernel)
    return np.moveaxis(kernel, -2 if name == "transpose" else -1, 0).reshape(layer.output.shape[-1], -1)


BINARY = ("conv", "separable", "transpose", "dense")


def test_weights_are_the_signs_times_the_mean_of_each_filter():
    """Rastegari et al. 2016, eq. 6."""
    source = small_net()
    result = tfc.binarize(source, *data(), STILL)
    for name in BINARY:
        weights = filters_first(source, name)
        expected = np.sign(weights) * np.abs(weights).mean(axis=1, keepdims=True)
        np.testing.assert_allclose(filters_first(result, name), expected, rtol=1e-5, err_msg=name)


@pytest.mark.parametrize("precision", ["float32", "mixed_bfloat16"])
def test_training_leaves_a_plain_model_with_binary_weights(tmp_path, precision):
    source, (x, y) = small_net(), data()
    before = source.get_weights()
    config = dataclasses.replace(CONFIG, precision=precision)
    result = tfc.binarize(source, x, y, config, validation=(x, y), directory=tmp_path)
    assert [type(layer) for layer in result.layers] == [type(layer) for layer in source.layers]
    for old, new in zip(before, source.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)
    still = tfc.binarize(source, x, y, STILL)
    for name in BINARY:
        weights = filters_first(result, name)
        np.testing.assert_array_equal(np.abs(weights), np.abs(weights[:, :1]) * np.ones_like(weights), err_msg=name)
        assert np.abs(weights[:, 0]).min() > 0
        assert np.abs(weights - filters_first(still, name)).max() > 1e-6, name
    for name in ("first", "logits"):
        assert len(np.unique(np.abs(result.get_layer(name).get_weights()[0]))) > 40
    assert len(np.unique(np.abs(result.get_layer("depthwise").get_weights()[0]))) == 72
    # What was measured during the training is what is left.
    measured = float((tmp_path / "history.csv").read_text().splitlines()[-1].split(",")[4])
    assert accuracy(result, x, y) == pytest.approx(measured, abs=0.001 if precision == "float32" else 0.05)


@pytest.mark.parametrize(
    "layer",
    [layers.Conv2D(4, 3), layers.Dense(4), layers.Conv2DTranspose(4, 3), layers.SeparableConv2D(4, 3, use_bias=True)],
    ids=lambda layer: type(layer).__name__,
)
def test_gradients_pass_the_signs_but_not_of_weights_beyond_one(layer, rng):
    """Algorithm 1 of BinaryConnect: the gradient at the binary weights is that of the float ones."""
    import tensorflow as tf

    x = tf.constant(rng.normal(size=(2, 6, 6, 3)).astype("float32"))
    layer.build(x.shape)
    kernel = next(w for w in layer.weights if w.name in ("kernel", "pointwise_kernel"))
    kernel.assign(rng.normal(size=kernel.shape))
    binary = _binary_class(type(layer)).from_config(layer.get_config())
    binary.build(x.shape)
    binary.set_weights(layer.get_weights())
    beyond = np.abs(kernel) > 1
    axes = tuple(i for i in range(len(kernel.shape)) if kernel.shape[i] != 4)
    kernel.assign(np.sign(kernel) * np.abs(kernel).mean(axes, keepdims=True))
    gradients = []
    for candidate in (layer, binary):
        with tf.GradientTape() as tape:
            outputs = candidate(x)
            loss = tf.reduce_sum(outputs**2)
        gradients.append((outputs, *tape.gradient(loss, [v.value for v in candidate.trainable_variables])))
    position = 1 + [v.name for v in layer.trainable_variables].index(kernel.name)
    for i, (a, b) in enumerate(zip(*gradients, strict=True)):
        expected = np.where(beyond, 0, a) if i == position else a
        np.testing.assert_allclose(b, expected, rtol=1e-4, atol=1e-3)
    assert 0 < beyond.mean() < 1


def test_digits_are_learned_with_binary_weights(digits):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((28, 28, 1))
    x = layers.Conv2D(8, 5, strides=2, activation="relu")(inputs)
    for _ in range(2):
        x = layers.ReLU()(layers.BatchNormalization()(layers.Conv2D(16, 3, strides=2, use_bias=False)(x)))
    model = keras.Model(inputs, layers.Dense(10)(layers.Flatten()(x)))
    config = TrainingConfig(epochs=5, optimizer="adam", learning_rate=0.01, batch_size=64)
    result = tfc.binarize(model, digits.x_train, digits.y_train, config)
    assert accuracy(result, digits.x_test, digits.y_test) > 0.9


def test_an_int8_file_holds_the_weights_in_a_bit_each(tmp_path, digits):
    keras.utils.set_random_seed(0)
    hidden = [layers.Dense(256, activation="relu", name=name) for name in ("first", "second")]
    model = keras.Sequential([keras.Input((28, 28, 1)), layers.AveragePooling2D(4), layers.Flatten(), *hidden])
    model.add(layers.Dense(10, name="logits"))
    images, labels = digits.x_train[:320], digits.y_train[:320]
    result = tfc.binarize(model, images, labels, CONFIG)
    calibration = images[:100] / np.float32(255)
    sizes = [tfc.export_tflite(m, tmp_path / "model.tflite", "int8", calibration).gzip_bytes for m in (model, result)]
    # 65,536 weights of the second layer, of about 7 bits before.
    assert sizes[0] - sizes[1] > 65_536 * 5 / 8
    assert tfc.evaluate_tflite(tmp_path / "model.tflite", images, labels) == pytest.approx(
        accuracy(result, images, labels), abs=0.03
    )


def test_layers_of_nested_models_are_binary_or_skipped():
    inner = small_net()
    inputs = keras.Input((8, 8, 3))
    model = keras.Model(inputs, layers.Dense(5, name="outer")(inner(inputs)))
    result = tfc.binarize(model, *data(), STILL).get_layer(inner.name)
    assert all(np.ptp(np.abs(filters_first(result, name)), axis=1).max() == 0 for name in (*BINARY, "logits"))
    assert np.ptp(np.abs(filters_first(result, "first")), axis=1).max() > 0
    result = tfc.binarize(model, *data(), STILL, skip=[inner.name])
    assert np.ptp(np.abs(filters_first(result, "outer")), axis=1).max() == 0
    assert np.ptp(np.abs(filters_first(result.get_layer(inner.name), "conv")), axis=1).max() > 0


@pytest.mark.parametrize("whole", [True, False])
def test_frozen_layers_and_kernels_stay(whole):
    source = small_net()
    frozen = source.get_layer("conv") if whole else source.get_layer("conv").kernel
    frozen.trainable = False
    result = tfc.binarize(source, *data(), CONFIG)
    assert not result.get_layer("conv").kernel.trainable and result.get_layer("conv").trainable != whole
    np.testing.assert_array_equal(result.get_layer("conv").kernel, source.get_layer("conv").kernel)


def test_resumed_training_ends_with_the_same_bits(tmp_path, monkeypatch):
    whole = tfc.binarize(small_net(), *data(), CONFIG, directory=tmp_path / "whole")

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(
            "tfcompress.training.fit", lambda *args, **options: fit(*args, callbacks=[Interrupt()], **options)
        )
        tfc.binarize(small_net(), *data(), CONFIG, directory=tmp_path / "interrupted")
    resumed = tfc.binarize(small_net(), *data(), CONFIG, directory=tmp_path / "interrupted")
    for a, b in zip(whole.weights, resumed.weights, strict=True):
        np.testing.assert_array_equal(a, b, err_msg=a.path)
    with pytest.raises(CheckpointError, match="binary"):
        tfc.binarize(small_net(), *data(), CONFIG, directory=tmp_path / "whole", skip=["dense"])


def test_what_cannot_be_binary_is_said():
    with pytest.raises(ValueError, match=r"skip .*'dens'"):
        tfc.binarize(small_net(), *data(), CONFIG, skip=["dens"])
    with pytest.raises(ValueError, match=r"skip must be a list of layer names\. Received: 'dense'"):
        tfc.binarize(small_net(), *data(), CONFIG, skip="dense")
    two = keras.Sequential([keras.Input((8, 8, 3)), layers.Conv2D(4, 3), layers.Flatten(), layers.Dense(5)])
    with pytest.raises(ValueError, match=r"has no weights to binarize: .* besides skip=\['conv2d.*', 'dense"):
        tfc.binarize(two, *data(), CONFIG)


@pytest.mark.slow
def test_jax_binarizes_as_tensorflow_does():
    code = (
        "import numpy as np, keras; from keras import layers; import tfcompress as tfc;"
        "from tfcompress.training import TrainingConfig; keras.utils.set_random_seed(0);"
        "x = np.random.default_rng(0).uniform(0, 1, (96, 8, 8, 3)).astype('float32');"
        "model = keras.Sequential([layers.Input((8, 8, 3)), layers.Conv2D(8, 3), layers.Conv2D(8, 3),"
        " layers.Flatten(), layers.Dense(5)]);"
        "result = tfc.binarize(model, x, np.arange(96) % 5, TrainingConfig(epochs=3, batch_size=16));"
        "moved = [np.abs(a - b).max() for a, b in zip(model.get_weights(), result.get_weights())];"
        "kernel, bias = result.layers[1].get_weights();"
        "print(len(np.unique(np.abs(kernel).reshape(-1, 8), axis=0)), min(moved) > 1e-4)"
    )
    assert last_line_on_jax(code) == "1 True"
