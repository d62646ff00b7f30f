"""Laws of training: what is learned, what is refused, and that the fast path changes nothing but the time."""

import dataclasses
import importlib
import math

import keras
import numpy as np
import pytest
from keras import layers

import tfcompress as tfc
from tfcompress.outputs import with_softmax
from tfcompress.training import CachedTeacher, CheckpointError, TrainingConfig, accuracy, fit, predict
from tfcompress.training.checkpoint import load_checkpoint, save_checkpoint
from tfcompress.training.fast import training_clone
from tfcompress.training.fit import _loss

CONFIG = TrainingConfig(epochs=4, learning_rate=0.1, warmup_epochs=1)


def network(seed=0, filters=8):
    keras.utils.set_random_seed(seed)
    inputs = keras.Input((28, 28, 1))
    x = layers.Conv2D(filters, 5, strides=2, use_bias=False, name="conv")(inputs)
    x = layers.BatchNormalization(momentum=0.8, name="bn")(x)
    x = layers.ReLU()(x)
    x = layers.MaxPooling2D(2)(x)
    return keras.Model(inputs, layers.Dense(10, name="logits")(layers.Flatten()(x)))


def test_learns_and_reports(digits, tmp_path):
    model = network()
    history = fit(
        model, digits.x_train, digits.y_train, CONFIG, validation=(digits.x_test, digits.y_test), directory=tmp_path
    )
    assert accuracy(model, digits.x_test, digits.y_test) > 0.9
    assert [row["epoch"] for row in history] == [1, 2, 3, 4]
    assert history[-1]["val_accuracy"] == accuracy(model, digits.x_test, digits.y_test)
    lines = (tmp_path / "history.csv").read_text().splitlines()
    assert lines[0] == "epoch,learning_rate,loss,accuracy,val_accuracy,seconds" and len(lines) == 5


def test_finished_training_is_loaded_not_repeated(digits, tmp_path, capsys):
    first, second = network(), network()
    fit(first, digits.x_train, digits.y_train, CONFIG, directory=tmp_path)
    capsys.readouterr()
    history = (tmp_path / "history.csv").read_text()
    (tmp_path / "history.csv").unlink()  # as by a kill between the two files
    fit(second, digits.x_train, digits.y_train, CONFIG, directory=tmp_path)
    assert "epoch" not in capsys.readouterr().out
    assert (tmp_path / "history.csv").read_text() == history
    for a, b in zip(first.get_weights(), second.get_weights()):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("compiled", [False, True])
def test_trained_model_stays_compiled_as_it_was_and_loads_from_its_file(digits, tmp_path, compiled):
    model = keras.Sequential([keras.Input((28, 28, 1)), layers.Flatten(), layers.Dense(10)])
    if compiled:
        model.compile(keras.optimizers.Adam(0.5), "mse")
    before = model.optimizer if compiled else None
    fit(model, digits.x_train[:64], digits.y_train[:64], dataclasses.replace(CONFIG, epochs=1))
    assert model.compiled == compiled and (model.optimizer if compiled else None) is before
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    for a, b in zip(model.get_weights(), loaded.get_weights()):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("normalized", [False, True])
def test_model_that_keras_cannot_clone_is_trained_itself(digits, normalized):
    model = keras.Sequential([keras.Input((28, 28, 1)), layers.Flatten(), layers.Lambda(lambda x: 2 * x)])
    if normalized:
        model.add(layers.BatchNormalization())
    model.add(layers.Dense(10, kernel_constraint=lambda kernel: kernel))
    fit(model, digits.x_train, digits.y_train, CONFIG)
    assert accuracy(model, digits.x_test, digits.y_test) > 0.8
    with pytest.raises((TypeError, ValueError)):
        fit(model, digits.x_train, digits.y_train, dataclasses.replace(CONFIG, precision="mixed_bfloat16"))


class Doubled(keras.Model):
    """A functional model with a `call` of its own."""

    def __init__(self, **arguments):
        inputs = keras.Input((28, 28, 1))
        super().__init__(inputs, layers.Dense(10)(layers.Flatten()(inputs)), **arguments)

    def call(self, x, training=None, mask=None):
        return 2 * super().call(x)


def test_model_with_a_call_of_its_own_is_trained_itself(digits):
    for model in (Doubled(), keras.Sequential([keras.Input((28, 28, 1)), Doubled()])):
        with training_clone(model) as trained:
            assert trained is model
        fit(model, digits.x_train, digits.y_train, CONFIG)
        assert accuracy(model, digits.x_train, digits.y_train) > 0.8
        with pytest.raises(ValueError, match="a model with a `call` of its own"):
            fit(model, digits.x_train, digits.y_train, dataclasses.replace(CONFIG, precision="mixed_bfloat16"))


@pytest.mark.parametrize("policy", ["float64", "float16"])
def test_other_arithmetic_than_float32(digits, policy):
    inputs = keras.Input((28, 28, 1))
    x = layers.Conv2D(4, 5, strides=4, dtype=policy)(inputs)
    x = layers.Flatten(dtype=policy)(layers.BatchNormalization(dtype=policy)(x))
    model = keras.Model(inputs, layers.Dense(10)(x))
    fit(model, digits.x_train, digits.y_train, CONFIG)
    assert accuracy(model, digits.x_test, digits.y_test) > 0.8


@pytest.mark.parametrize("policy", ["bfloat16", "mixed_float16"])
def test_other_arithmetic_resumes(digits, tmp_path, monkeypatch, policy):
    """Weights that NumPy's files do not know, and an optimizer that Keras has put another one around."""

    def build():
        keras.utils.set_random_seed(0)
        hidden = [layers.Flatten(), layers.Dense(8, activation="relu"), layers.BatchNormalization()]
        return keras.Sequential([keras.Input((28, 28, 1)), *hidden, layers.Dense(10, dtype="float32")])

    def train(model, folder):
        fit(model, digits.x_train[:256], digits.y_train[:256], CONFIG, directory=tmp_path / folder)
        return model

    def interrupt(path, *state):
        save_checkpoint(path, *state)
        raise InterruptedError

    keras.config.set_dtype_policy(policy)
    try:
        whole = train(build(), "whole")
        with monkeypatch.context() as patch, pytest.raises(InterruptedError):
            patch.setattr(importlib.import_module("tfcompress.training.fit"), "save_checkpoint", interrupt)
            train(build(), "killed")
        for resumed in (train(build(), "killed"), train(build(), "killed")):
            for a, b in zip(whole.get_weights(), resumed.get_weights(), strict=True):
                np.testing.assert_array_equal(a, b)
    finally:
        keras.config.set_dtype_policy("float32")


@pytest.mark.parametrize("precision", ["float32", "mixed_bfloat16"])
def test_variables_that_are_frozen_by_themselves_stay(digits, precision):
    model = network()
    model.get_layer("conv").kernel.trainable = False
    before = model.get_weights()
    fit(model, digits.x_train[:64], digits.y_train[:64], dataclasses.replace(CONFIG, epochs=1, precision=precision))
    moved = {v.path: np.abs(v - old).max() for v, old in zip(model.weights, before)}
    assert moved.pop("conv/kernel") == 0 and min(moved.values()) > 0


@pytest.mark.parametrize("change", ["config", "data", "weights"])
def test_checkpoint_of_another_training_is_refused(digits, tmp_path, change):
    images, labels = digits.x_train[:256], digits.y_train[:256]
    config = dataclasses.replace(CONFIG, epochs=1)
    fit(network(), images, labels, config, directory=tmp_path)
    if change == "config":
        config = dataclasses.replace(config, learning_rate=0.2)
    if change == "data":
        images = 255 - images
    with pytest.raises(
        CheckpointError, match={"config": "learning_rate 0.1, now 0.2", "data": "images", "weights": "init"}[change]
    ):
        fit(network(seed=int(change == "weights")), images, labels, config, directory=tmp_path)


def test_checkpoint_from_before_a_hyperparameter_is_one_of_its_default(digits, tmp_path):
    images, labels = digits.x_train[:256], digits.y_train[:256]
    config = dataclasses.replace(CONFIG, epochs=1)
    fit(network(), images, labels, config, directory=tmp_path)
    arrays, meta = load_checkpoint(tmp_path / "checkpoint.npz")
    del meta["cutout"]
    save_checkpoint(tmp_path / "checkpoint.npz", arrays, meta)
    fit(network(), images, labels, config, directory=tmp_path)
    with pytest.raises(CheckpointError, match="cutout 0, now 3"):
        fit(network(), images, labels, dataclasses.replace(config, cutout=3), directory=tmp_path)


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (np.zeros((4, 28, 28, 1), "uint8"), np.zeros(3, int), "equally many"),
        (np.zeros((0, 28, 28, 1), "uint8"), np.zeros(0, int), "at least one"),
        (np.zeros((4, 32, 32, 3), "uint8"), np.zeros(4, int), r"\(28, 28, 1\)"),
        (np.zeros((4, 28, 28, 1), "uint8"), np.full(4, 10), r"\[0, 10\)"),
        (np.full((4, 28, 28, 1), np.nan, "float32"), np.zeros(4, int), "NaN"),
        (np.zeros((4, 28, 28, 1), "uint8"), np.zeros(4) + 0.5, "labels must be integers"),
        (np.zeros((4, 28, 28, 1), "uint8"), np.zeros((4, 10)), "not one-hot"),
    ],
)
def test_bad_data_is_named(images, labels, message):
    with pytest.raises(ValueError, match=message):
        fit(network(), images, labels, CONFIG)


def test_models_that_are_no_classifiers_are_named(digits):
    a, b = keras.Input((28, 28, 1)), keras.Input((28, 28, 1))
    dense = [layers.Dense(10)(layers.Flatten()(x)) for x in (a, b)]
    for model, message in (
        (keras.Model(a, [dense[0], layers.Dense(10)(layers.Flatten()(a))]), r"\(None, 10\), \(None, 10\)"),
        (keras.Model(a, layers.Dense(10)(a)), r"one output, \(batch, classes\).* Received: .*\(None, 28, 28, 10\)"),
        (keras.Model([a, b], layers.Add()(dense)), "one input is expected. Received: 2 inputs"),
    ):
        for train in (fit, tfc.quantization_aware_training):
            with pytest.raises(ValueError, match=message):
                train(model, digits.x_train, digits.y_train, CONFIG)


@pytest.mark.parametrize(
    ("shape", "layer", "message"),
    [
        ((8, 8), layers.Reshape((8, 8, 1)), r"Received: images \(8, 8\)$"),
        ((1, 8, 8), layers.Conv2D(2, 3, data_format="channels_first", name="odd"), r"channels-first model \(odd\)"),
    ],
)
def test_augmentation_takes_images_of_rows_columns_and_channels(shape, layer, message):
    inputs = keras.Input(shape)
    model = keras.Model(inputs, layers.Dense(10)(layers.Flatten()(layer(inputs))))
    images, labels = np.zeros((4, *shape), "uint8"), np.arange(4)
    with pytest.raises(ValueError, match=message):
        fit(model, images, labels, dataclasses.replace(CONFIG, epochs=1, flip=True, crop_padding=0))
    assert len(fit(model, images, labels, dataclasses.replace(CONFIG, epochs=1, flip=False, crop_padding=0))) == 1


@pytest.mark.parametrize("framework", ["keras", "tf_keras"])
def test_integer_inputs_are_refused(framework):
    """Pixels / 255 would be 0 there."""
    library = importlib.import_module(framework)
    inputs = library.Input((4, 4, 1), dtype="uint8", name="photo")
    stack = [library.layers.Rescaling(1 / 255), library.layers.Flatten(), library.layers.Dense(2)]
    x = inputs
    for layer in stack:
        x = layer(x)
    model, images, labels = library.Model(inputs, x), np.full((6, 4, 4, 1), 200, "uint8"), np.arange(6) % 2
    for use in (lambda: fit(model, images, labels, TrainingConfig(epochs=1)), lambda: accuracy(model, images, labels)):
        with pytest.raises(ValueError, match=r"takes uint8.*keras\.Input\(\(4, 4, 1\)\)"):
            use()


@pytest.mark.parametrize("shape", [(1,), (2, 3)])
def test_accuracy_needs_one_output_per_class(shape):
    model = keras.Sequential([keras.Input((4, 4, 1)), layers.Flatten(), layers.Dense(math.prod(shape))])
    model.add(layers.Reshape(shape))
    with pytest.raises(ValueError, match=r"one output per class is expected\. Received: outputs \(2, "):
        accuracy(model, np.zeros((2, 4, 4, 1)), np.zeros(2, int))


@pytest.mark.parametrize(("images", "labels"), [(2, 1), (0, 0)])
def test_accuracy_needs_a_label_for_each_image(images, labels):
    with pytest.raises(ValueError, match=f"equally many, at least one. Received: {images}, {labels}"):
        accuracy(network(), np.zeros((images, 28, 28, 1)), np.zeros(labels, int))


def test_network_of_any_image_size_is_trained(digits):
    inputs = keras.Input((None, None, 1))
    x = layers.BatchNormalization()(layers.Conv2D(8, 5, strides=2)(inputs))
    model = keras.Model(inputs, layers.Dense(10)(layers.GlobalMaxPooling2D()(layers.ReLU()(x))))
    history = fit(model, digits.x_train, digits.y_train, dataclasses.replace(CONFIG, precision="mixed_bfloat16"))
    assert history[-1]["loss"] < history[0]["loss"]
    with pytest.raises(ValueError, match=r"takes images of shape \(None, None, 1\). Received: \(28, 28, 3\)"):
        fit(model, np.zeros((2, 28, 28, 3), "uint8"), np.zeros(2, int), CONFIG)


def test_labels_of_keras_datasets_and_one_hot_ones(digits, tmp_path):
    images, labels = digits.x_train[:256], digits.y_train[:256]
    histories = [
        fit(network(), images, y, CONFIG, validation=(images, y), directory=tmp_path)
        for y in (labels, labels[:, None].astype("uint8"), np.eye(10)[labels])
    ]
    assert histories[0] == histories[1] == histories[2] and histories[0][-1]["val_accuracy"] > 0.2


def test_numbers_of_numpy_and_tuples_resume(digits, tmp_path, capsys):
    config = dataclasses.replace(CONFIG, seed=np.int64(1), learning_rate=np.float32(0.1))
    for expected in (4, 0):
        fit(network(), digits.x_train[:64], digits.y_train[:64], config, directory=tmp_path, identity={"k": ("a", 1)})
        assert capsys.readouterr().out.count("epoch ") == expected


def test_validation_data_are_checked_before_the_training(digits, capsys):
    images, labels = digits.x_train[:64], digits.y_train[:64]
    with pytest.raises(ValueError, match=r"equally many.*Received: 64, 1"):
        fit(network(), images, labels, CONFIG, validation=(images, labels[:1]))
    assert "epoch" not in capsys.readouterr().out


def test_callback_that_ends_the_training_is_refused(digits):
    class Stop(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            self.model.stop_training = True

    with pytest.raises(ValueError, match="stop_training in epoch 1: fit trains all epochs"):
        fit(network(), digits.x_train[:64], digits.y_train[:64], CONFIG, callbacks=[Stop()])


def test_divergence_stops_the_training_and_is_not_saved(digits, tmp_path):
    with pytest.raises(FloatingPointError, match=r"epoch 1: training diverged. Lower learning_rate \(now 1e\+30\)"):
        fit(network(), digits.x_train, digits.y_train, TrainingConfig(2, learning_rate=1e30), directory=tmp_path)
    assert not (tmp_path / "checkpoint.npz").exists()


@pytest.mark.parametrize("own", [False, True])
def test_after_an_error_the_model_has_the_weights_it_came_with(digits, own, tmp_path):
    """Whether a clone is trained or the model itself: the same call can be tried again, and resumes."""
    model = Doubled() if own else network()
    before = model.get_weights()
    with pytest.raises(FloatingPointError):
        fit(model, digits.x_train[:256], digits.y_train[:256], TrainingConfig(2, learning_rate=math.inf))

    class Interrupt(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            if epoch == 1:
                raise KeyboardInterrupt

    training = (model, digits.x_train[:256], digits.y_train[:256], TrainingConfig(2))
    with pytest.raises(KeyboardInterrupt):
        fit(*training, directory=tmp_path, callbacks=[Interrupt()])
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)
    assert [row["epoch"] for row in fit(*training, directory=tmp_path)] == [1, 2]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("crop_padding", -1),
        ("temperature", 0.0),
        ("epochs", 0),
        ("schedule", "cosin"),
        ("optimizer", "lamb"),
        ("learning_rate", 0.0),
        ("label_smoothing", 1.0),
        ("scaling", 1.0),
        ("cutmix", 1.5),
    ],
)
def test_bad_hyperparameters_are_quoted(field, value):
    with pytest.raises(ValueError, match=f"{field} must.*Received: {value!r}"):
        dataclasses.replace(CONFIG, **{field: value})


@pytest.mark.parametrize("filters", [8, 10])  # for 10, no kernel of oneDNN is fast
def test_fused_batch_normalization_equals_keras(digits, filters):
    """Same outputs in training and inference, same moving statistics, same gradients."""
    import tensorflow as tf

    model = network(filters=filters)
    rng = np.random.default_rng(0)
    norm = model.get_layer("bn")
    norm.gamma.assign(rng.uniform(0.5, 2.0, filters))
    norm.beta.assign(rng.normal(size=filters))
    x = digits.x_train[:64].astype("float32") / 255
    with training_clone(model) as fast:
        assert type(fast.get_layer("bn")).__name__ == "FusedBatchNormalization"
        gradients = []
        for candidate in (model, fast):
            with tf.GradientTape() as tape:
                loss = tf.reduce_sum(candidate(x, training=True) ** 2)
            gradients.append(tape.gradient(loss, [v.value for v in candidate.trainable_variables]))
        for a, b in zip(*gradients):
            np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-3 * np.abs(a).max())
        for a, b in zip(model.get_weights(), fast.get_weights()):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(model(x), fast(x), atol=1e-4)


def test_fused_sgd_takes_the_steps_of_keras(rng):
    """Bit for bit, with weight decay, on variables that decay and on others."""
    import tensorflow as tf

    from tfcompress.training.fast import fused_sgd

    start = [rng.normal(size=shape).astype("float32") for shape in ((30, 7), (7,))]
    gradients = [[tf.constant(rng.normal(size=array.shape), "float32") for array in start] for _ in range(5)]

    def run(cls):
        variables = [keras.Variable(array) for array in start]
        optimizer = cls(0.1, momentum=0.9, nesterov=True, weight_decay=0.01)
        optimizer.exclude_from_weight_decay([variables[1]])
        for gradient in gradients:
            optimizer.apply(gradient, variables)
        return [*map(np.array, variables), *map(np.array, optimizer.variables)]

    for a, b in zip(run(fused_sgd()), run(keras.optimizers.SGD), strict=True):
        np.testing.assert_array_equal(a, b)


def test_bfloat16_batch_normalization_rounds_the_result_of_float32(rng):
    """Statistics and gradients of a bfloat16 image are those of float32 arithmetic; only images are rounded.

    The gradient of the image is the difference of two, each rounded.
    """
    import tensorflow as tf

    from tfcompress.training.fast import _normalize_wide

    gamma, beta = tf.constant([0.5, -2.0, 1.0]), tf.constant([3.0, 0.0, -1.0])
    x = tf.cast(rng.normal(5.0, 2.0, (16, 6, 8, 3)), "bfloat16")
    upstream = tf.cast(rng.normal(size=(16, 6, 8, 3)), "bfloat16")

    def run(dtype):
        pixels = tf.cast(x, dtype)
        with tf.GradientTape() as tape:
            tape.watch([pixels, gamma, beta])
            outputs, mean, variance = _normalize_wide(pixels, gamma, beta, 1e-3)
            loss = tf.reduce_sum(tf.cast(outputs, "float32") * tf.cast(upstream, "float32"))
        assert outputs.dtype == dtype
        return [tf.cast(t, "float32") for t in (outputs, mean, variance, *tape.gradient(loss, [pixels, gamma, beta]))]

    for name, a, b in zip(
        ("outputs", "mean", "variance", "to x", "to gamma", "to beta"), run("float32"), run("bfloat16")
    ):
        rounding = 2**-8 if name in ("outputs", "to x") else 1e-5
        unit = np.abs(a).max() if name == "to x" else 1e-2
        np.testing.assert_allclose(b, a, rtol=rounding, atol=rounding * unit, err_msg=name)


@pytest.mark.parametrize("filters", [8, 10])
def test_bfloat16_trains_and_leaves_a_float32_model(digits, filters):
    model = network(filters=filters)
    fit(model, digits.x_train, digits.y_train, dataclasses.replace(CONFIG, precision="mixed_bfloat16"))
    assert {layer.compute_dtype for layer in model.layers} == {"float32"}
    assert accuracy(model, digits.x_test, digits.y_test) > 0.9


def test_bfloat16_leaves_outputs_in_float32_in_a_model_inside_too():
    inner = keras.Sequential([keras.Input((5,)), layers.Dense(6, name="hidden"), layers.Dense(3, name="logits")])
    inputs = keras.Input((4,))
    model = keras.Model(inputs, inner(layers.Dense(5)(inputs)))
    with training_clone(model, "mixed_bfloat16") as fast:
        head = fast.get_layer(inner.name)
        assert [layer.compute_dtype for layer in head.layers] == ["bfloat16", "float32"]
        assert fast(np.zeros((1, 4))).dtype == "float32"


@pytest.mark.parametrize("shape", [(6, 7, 4), (None, None, 4)])
def test_bfloat16_beside_depthwise_convolutions_rounds_operands_of_pointwise_ones_only(shape, rng):
    """1x1 convolutions are matrix products of bfloat16 numbers; all else, slower so on a CPU, stays float32."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input(shape)
    x = layers.DepthwiseConv2D(3, strides=2, padding="same")(inputs)
    x = layers.Conv2D(8, 1, bias_initializer="normal", activation="relu", name="pointwise")(x)
    x = layers.Conv2D(8, 1, strides=2, name="strided")(x)
    model = keras.Model(inputs, layers.Dense(3)(layers.GlobalAveragePooling2D()(x)))
    with training_clone(model, "mixed_bfloat16") as fast:
        in_bfloat16 = {layer.name for layer in fast.layers if layer.compute_dtype == "bfloat16"}
        assert in_bfloat16 == {"pointwise"}
        kernel, bias = fast.get_layer("pointwise").get_weights()
        images = rng.normal(size=(5, 6, 7, 4)).astype("float32")
        outputs = keras.ops.convert_to_numpy(fast.get_layer("pointwise")(images)).astype("float32")
    expected = np.maximum(images @ kernel[0, 0] + bias, 0)
    np.testing.assert_allclose(outputs, expected, atol=0.02)
    assert np.abs(outputs - expected).max() > 0


@pytest.mark.parametrize(("size", "shape"), [((1, 1), (6, 5)), ((3, 3), (2, 2)), ((3, 1), (4, 3)), ((5, 3), (1, 4))])
def test_convolution_as_a_matrix_product_has_the_outputs_and_gradients_of_a_convolution(size, shape, rng):
    import tensorflow as tf

    from tfcompress.training.fast import _convolve

    x = tf.constant(rng.normal(size=(7, *shape, 4)).astype("float32"))
    kernel = tf.constant(rng.normal(size=(*size, 4, 6)).astype("float32"))
    upstream = rng.normal(size=(7, *shape, 6)).astype("float32")

    def run(convolve):
        with tf.GradientTape() as tape:
            tape.watch([x, kernel])
            outputs = convolve(x, kernel)
        return [outputs, *tape.gradient(outputs, [x, kernel], upstream)]

    expected = run(lambda x, kernel: tf.nn.conv2d(x, kernel, 1, "SAME"))
    for name, a, b in zip(("outputs", "to x", "to kernel"), run(_convolve), expected):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4, err_msg=name)


def test_bfloat16_computes_small_images_as_matrix_products_and_larger_ones_as_convolutions(rng, monkeypatch):
    from tfcompress.training import fast

    products = []
    convolve = fast._convolve
    monkeypatch.setattr(fast, "_convolve", lambda x, kernel: products.append(x.shape[1:3]) or convolve(x, kernel))
    inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(8, 3, padding="same", bias_initializer="normal", activation="relu")(inputs)
    x = layers.Conv2D(6, 3, padding="same")(layers.MaxPooling2D()(x))
    x = layers.Conv2D(4, 3)(x)
    model = keras.Model(inputs, layers.Dense(3)(layers.GlobalAveragePooling2D()(x)))
    images = rng.normal(size=(5, 8, 8, 3)).astype("float32")
    with fast.training_clone(model, "mixed_bfloat16") as clone:
        products.clear()
        outputs = keras.ops.convert_to_numpy(clone(images)).astype("float32")
    assert products == [(4, 4)]
    np.testing.assert_allclose(outputs, model.predict(images, verbose=0), atol=0.02)


def test_teacher_of_other_classes_is_refused(digits):
    teacher = keras.Sequential([keras.Input((28, 28, 1)), keras.layers.Flatten(), keras.layers.Dense(7)])
    with pytest.raises(ValueError, match=r"the model's outputs, 10 of them\. Received: 7"):
        fit(network(), digits.x_train[:64], digits.y_train[:64], CONFIG, teacher=teacher)


def test_probabilities_are_refused(digits):
    probabilities = with_softmax(network())
    with pytest.raises(ValueError, match="the model must return logits"):
        fit(probabilities, digits.x_train[:64], digits.y_train[:64], CONFIG)
    for teacher in (probabilities, CachedTeacher(probabilities, "logits")):
        with pytest.raises(ValueError, match="the teacher must return logits"):
            fit(network(), digits.x_train[:64], digits.y_train[:64], CONFIG, teacher=teacher)


def test_frozen_layers_stay_and_are_named(digits, capsys):
    model = network()
    frozen = next(layer for layer in model.layers if layer.weights)
    frozen.trainable = False
    before = [weights.copy() for weights in frozen.get_weights()]
    fit(model, digits.x_train[:64], digits.y_train[:64], CONFIG)
    assert f"1 layers are frozen and stay as they are: {frozen.name}" in capsys.readouterr().err
    for old, new in zip(before, frozen.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


def test_checkpoint_of_another_network_with_the_same_weights_is_refused(digits, tmp_path):
    images, labels = digits.x_train[:64], digits.y_train[:64]
    fit(network(), images, labels, CONFIG, directory=tmp_path)
    other = network()
    next(layer for layer in other.layers if getattr(layer, "activation", None)).activation = keras.activations.tanh
    with pytest.raises(CheckpointError, match=r"another training \(network"):
        fit(other, images, labels, CONFIG, directory=tmp_path)


def test_student_of_a_teacher_follows_its_logits(digits):
    teacher = network(filters=16)
    fit(teacher, digits.x_train, digits.y_train, CONFIG)
    config = dataclasses.replace(CONFIG, distillation_weight=1.0, temperature=4.0)
    wrong_labels = (digits.y_train + 1) % 10
    student = network(seed=1)
    fit(student, digits.x_train, wrong_labels, config, teacher=teacher)
    assert accuracy(student, digits.x_test, digits.y_test) > 0.85


def test_teacher_is_asked_about_the_mixed_images_and_labels_are_mixed_too(rng, monkeypatch):
    """Images of one colour by class show which classes an image holds, and how much of each."""
    module = importlib.import_module("tfcompress.training.fit")
    labels = rng.integers(0, 10, 200)
    images = np.broadcast_to(labels[:, None, None, None] * 25, (200, 28, 28, 1)).astype("uint8")
    seen, asked = [], []

    def batches(x, y, batch_size):
        seen.append((x, y))
        return original(x, y, batch_size)

    original = module._batches
    monkeypatch.setattr(module, "_batches", batches)
    monkeypatch.setattr("tfcompress.training.teacher.predict", lambda model, x: asked.append(x) or predict(model, x))
    fit(network(), images, labels, TrainingConfig(1, cutmix=1.0), teacher=network(seed=1))
    (x, y), shown = seen[0], np.eye(10)[np.round(seen[0][0][..., 0] * 255 / 25).astype(int)].mean((1, 2))
    np.testing.assert_array_equal(asked[0], x)
    np.testing.assert_allclose(y[:, :10], shown, atol=1e-5)
    assert ((shown > 0).sum(1) == 2).mean() > 0.5 and len(np.unique(np.argsort(-y[:, :10])[:, 0])) == 10


def test_cached_teacher_is_asked_by_the_first_student_only(digits, tmp_path, monkeypatch):
    from tfcompress.training import teacher as module

    asked = []
    monkeypatch.setattr(module, "predict", lambda model, x: asked.append(len(x)) or predict(model, x))
    model, config = network(filters=16), dataclasses.replace(CONFIG, epochs=2)
    teacher = CachedTeacher(model, tmp_path)

    def student(teacher, config=config):
        asked.clear()
        student = network(seed=1)
        fit(student, digits.x_train, digits.y_train, config, teacher=teacher)
        return student.get_weights(), len(asked)

    expected, _ = student(model)
    for questions in (2, 0):
        weights, count = student(teacher)
        assert count == questions
        for a, b in zip(weights, expected):
            np.testing.assert_array_equal(a, b)
    assert student(teacher, dataclasses.replace(config, seed=1))[1] == 2
    assert student(CachedTeacher(network(seed=2, filters=16), tmp_path))[1] == 2


def test_damaged_logits_of_a_cached_teacher_are_refused(digits, tmp_path):
    teacher, config = CachedTeacher(network(filters=16), tmp_path), dataclasses.replace(CONFIG, epochs=1)
    fit(network(), digits.x_train, digits.y_train, config, teacher=teacher)
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=r"damaged.*delete it"):
        fit(network(), digits.x_train, digits.y_train, config, teacher=teacher)


def test_distillation_loss_is_hintons(rng):
    """(1 - l) CE(y, s) + l T^2 CE(softmax(t / T), softmax(s / T)), written out in numpy."""
    labels, teacher, student = np.eye(5, dtype="float32")[[1, 3]], rng.normal(size=(2, 5)), rng.normal(size=(2, 5))
    config = dataclasses.replace(CONFIG, distillation_weight=0.3, temperature=2.5)

    def log_softmax(z):
        return z - np.log(np.exp(z).sum(-1, keepdims=True))

    hard = -(labels * log_softmax(student)).sum(-1)
    soft = -(np.exp(log_softmax(teacher / 2.5)) * log_softmax(student / 2.5)).sum(-1)
    targets = np.concatenate([labels, teacher], 1).astype("float32")
    np.testing.assert_allclose(
        _loss(5, config)(targets, student.astype("float32")), 0.7 * hard + 0.3 * 2.5**2 * soft, rtol=1e-5
    )


def test_weight_decay_reaches_kernels_only(digits):
    """Without a gradient, SGD with decoupled decay scales kernels by 1 - rate * decay, and nothing else."""
    model = network()
    before = [w.copy() for w in model.get_weights()]
    config = TrainingConfig(
        epochs=1, batch_size=len(digits.x_train), learning_rate=1e-3, schedule="constant", weight_decay=500.0
    )
    fit(model, digits.x_train, digits.y_train, config)
    kernel, logits_bias = model.get_layer("conv").get_weights()[0], model.get_layer("logits").get_weights()[1]
    np.testing.assert_allclose(kernel, before[0] * 0.5, atol=0.01)
    np.testing.assert_allclose(logits_bias, before[-1], atol=0.01)


def test_predict_takes_pixels_as_fractions(digits):
    model = network()
    as_pixels = predict(model, digits.x_test[:10])
    np.testing.assert_array_equal(as_pixels, predict(model, digits.x_test[:10].astype("float32") / np.float32(255)))


@pytest.mark.parametrize(("images", "batch_size", "momentum"), [(3840, 128, 0.95), (3840, 64, 0.975), (1280, 128, 0.9)])
def test_statistics_reach_back_2560_images_or_an_epoch(digits, images, batch_size, momentum):
    seen = []

    class Momentum(keras.callbacks.Callback):
        def on_train_begin(self, logs=None):
            seen.append(self.model.get_layer("bn").momentum)

    model = network()
    model.get_layer("bn").momentum = 0.99
    rows = np.arange(images) % len(digits.x_train)
    config = TrainingConfig(1, batch_size, learning_rate=0.01)
    fit(model, digits.x_train[rows], digits.y_train[rows], config, callbacks=[Momentum()])
    assert seen == [pytest.approx(momentum)] and model.get_layer("bn").momentum == 0.99


@pytest.mark.parametrize("framework", ["keras", "tf_keras"])
def test_moving_statistics_keep_up_with_a_short_training(framework, digits):
    """With momentum 0.999, six epochs of three steps would leave 98 % of the statistics where they began."""
    library = importlib.import_module(framework)
    library.utils.set_random_seed(0)
    model = library.Sequential(
        [
            library.layers.InputLayer((28, 28, 1)),
            library.layers.Conv2D(8, 5, strides=4, use_bias=False),
            library.layers.BatchNormalization(momentum=0.999),
            library.layers.ReLU(),
            library.layers.Flatten(),
            library.layers.Dense(10),
        ]
    )
    images, labels = digits.x_train[:384], digits.y_train[:384]
    config = TrainingConfig(epochs=6, optimizer="adam", learning_rate=0.01)
    fit(model, images, labels, config)
    assert model.layers[1].momentum == 0.999
    convolved = np.asarray(library.Sequential(model.layers[:1])(images / np.float32(255)))
    np.testing.assert_allclose(model.layers[1].moving_variance, convolved.var((0, 1, 2)), rtol=0.35)
    assert accuracy(model, images, labels) > 0.8
