"""Weight sharing: few values, the right ones, moved as the paper says, kept by int8 training and by a resumed one."""

import dataclasses

import keras
import numpy as np
import pytest
from keras import layers
from small_training import CONFIG, STILL, Interrupt, data, last_line_on_jax

import tfcompress as tfc
from tfcompress.quantization.weight_sharing import weight_tying
from tfcompress.sparsity import sparsity_of
from tfcompress.training import CheckpointError, TrainingConfig, accuracy, fit


def small_net():
    keras.utils.set_random_seed(0)
    inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(8, 3, use_bias=False, name="conv")(inputs)
    x = layers.BatchNormalization(name="bn")(x)
    x = layers.ReLU(name="relu")(x)
    x = layers.DepthwiseConv2D(3, name="depthwise")(x)
    return keras.Model(inputs, layers.Dense(5, name="dense")(layers.Flatten(name="flatten")(x)))


def distinct(model, name):
    return len(np.unique(model.get_layer(name).get_weights()[0]))


@pytest.mark.parametrize("precision", ["float32", "mixed_bfloat16"])
@pytest.mark.parametrize("clusters", [2, 16])
def test_every_kernel_takes_so_many_values_and_learns(clusters, precision):
    source = small_net()
    before = source.get_weights()
    shared = tfc.share_weights(source, clusters, *data(), dataclasses.replace(CONFIG, precision=precision))
    assert {name: distinct(shared, name) for name in ("conv", "dense")} == {"conv": clusters, "dense": clusters}
    assert distinct(shared, "depthwise") == 72
    assert [type(layer) for layer in shared.layers] == [type(layer) for layer in source.layers]
    for old, new in zip(before, source.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)
    still = tfc.share_weights(source, clusters, *data(), STILL)
    for name in ("conv", "depthwise", "dense"):
        moved = np.abs(shared.get_layer(name).get_weights()[0] - still.get_layer(name).get_weights()[0])
        assert moved.max() > 1e-5, name


def test_values_are_the_means_of_the_weights_nearest_to_them():
    """Both conditions of a minimum of eq. 2 of the paper, the sum of squares within clusters."""
    source = small_net()
    shared = tfc.share_weights(source, 8, *data(), STILL)
    for name in ("conv", "dense"):
        weights, values = (np.ravel(model.get_layer(name).get_weights()[0]) for model in (source, shared))
        centroids = np.unique(values)
        nearest = centroids[np.abs(weights[:, None] - centroids).argmin(axis=1)]
        np.testing.assert_array_equal(values, nearest, err_msg=name)
        means = [weights[values == centroid].mean() for centroid in centroids]
        np.testing.assert_allclose(centroids, means, atol=1e-3 * np.ptp(weights), err_msg=name)


def test_centroids_spread_evenly_at_first_are_those_of_lloyds_algorithm():
    source = small_net()
    found = np.unique(tfc.share_weights(source, 4, *data(), STILL).get_layer("dense").get_weights()[0])
    weights = np.ravel(source.get_layer("dense").get_weights()[0]).astype("float64")
    centroids = np.linspace(weights.min(), weights.max(), 4)
    for _ in range(300):
        nearest = np.abs(weights[:, None] - centroids).argmin(axis=1)
        centroids = np.array([weights[nearest == i].mean() for i in range(4)])
    np.testing.assert_allclose(found, centroids, rtol=1e-5)


def test_a_step_moves_a_value_by_the_mean_of_its_gradients():
    """Eq. 3 of the paper over the number of weights."""
    import tensorflow as tf

    x, y = data(16)
    model = tfc.share_weights(small_net(), 4, x, y, STILL)
    before = model.get_layer("dense").get_weights()[0]
    # Statistics of the batch in the gradient as in the training.
    with tf.GradientTape() as tape:
        losses = keras.losses.sparse_categorical_crossentropy(y, model(x, training=True), from_logits=True)
        loss = tf.reduce_mean(losses)
    gradient = np.asarray(tape.gradient(loss, model.get_layer("dense").kernel.value))
    config = TrainingConfig(epochs=1, batch_size=16, learning_rate=0.01, schedule="constant")
    fit(model, x, y, config, callbacks=[weight_tying(model)])
    after = model.get_layer("dense").get_weights()[0]
    for value in np.unique(before):
        shares = before == value
        # The first step of Nesterov's momentum 0.9 is 1.9 times as long as without.
        expected = value - 0.01 * 1.9 * gradient[shares].mean()
        np.testing.assert_allclose(after[shares], expected, rtol=1e-4, atol=1e-6)


def test_weight_decay_is_that_of_any_training():
    config = dataclasses.replace(CONFIG, epochs=3, weight_decay=0.5, schedule="constant")
    source, norms = small_net(), []
    for decay in (0.0, 0.5):
        config = dataclasses.replace(config, weight_decay=decay)
        trained = tfc.share_weights(source, 4, *data(), config)
        norms.append(np.linalg.norm(trained.get_layer("conv").get_weights()[0]))
    # 18 steps of a rate of 0.01.
    assert norms[1] / norms[0] == pytest.approx((1 - 0.01 * 0.5) ** 18, abs=0.02)


def test_student_of_a_teacher_and_its_held_out_accuracy(tmp_path):
    x, y = data()
    teacher = small_net()
    teacher.get_layer("dense").bias.assign([9, 0, 0, 0, 0])
    config = dataclasses.replace(CONFIG, epochs=5, learning_rate=0.05, distillation_weight=1.0)
    options = {"teacher": teacher, "validation": (x, np.zeros(96, int)), "directory": tmp_path}
    tfc.share_weights(small_net(), 8, x, y, config, **options)
    assert float((tmp_path / "history.csv").read_text().splitlines()[-1].split(",")[4]) == 1


def test_depthwise_kernels_of_separable_convolutions_are_not_shared():
    keras.utils.set_random_seed(0)
    net = [keras.Input((8, 8, 3)), layers.SeparableConv2D(8, 3, name="both"), layers.Flatten(), layers.Dense(5)]
    shared = tfc.share_weights(keras.Sequential(net), 4, *data(), CONFIG)
    depthwise, pointwise, _ = shared.get_layer("both").get_weights()
    assert len(np.unique(depthwise)) == 27 and len(np.unique(pointwise)) == 4


def test_weights_that_nobody_shared_are_not_tied():
    """Even if they are equal at first: ones, or zeros of a bias."""
    keras.utils.set_random_seed(0)
    ones = {"kernel_initializer": "ones"}
    net = [keras.Input((8, 8, 3)), layers.Conv2D(4, 3, name="skipped", **ones), layers.Flatten(), layers.Dense(5)]
    shared = tfc.share_weights(keras.Sequential(net), 4, *data(), CONFIG, skip=["skipped"])
    assert distinct(shared, "skipped") > 100


def test_kernels_that_are_frozen_by_themselves_stay():
    model = small_net()
    model.get_layer("conv").kernel.trainable = False
    for smaller in (tfc.share_weights(model, 4, *data(), CONFIG), tfc.sparsify(model, 0.5, *data(), CONFIG)):
        np.testing.assert_array_equal(smaller.get_layer("conv").kernel, model.get_layer("conv").kernel)
        assert not smaller.get_layer("conv").kernel.trainable


def test_zeros_stay_and_do_not_count():
    """Also those of depthwise kernels and of layers that are skipped."""
    sparse = tfc.sparsify(small_net(), 0.7, *data(), CONFIG, allocation="uniform")
    shared = tfc.share_weights(sparse, 4, *data(), CONFIG, skip=["conv"])
    for name in ("conv", "depthwise", "dense"):
        zeros = [model.get_layer(name).get_weights()[0] == 0 for model in (sparse, shared)]
        np.testing.assert_array_equal(*zeros)
    assert distinct(shared, "dense") == 5


def test_zeros_of_kernels_of_many_values_stay():
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((8, 8, 3)), layers.Flatten(), layers.Dense(5, name="dense")])
    kernel = model.get_layer("dense").kernel
    kernel.assign(np.where(np.arange(960).reshape(192, 5) % 3 == 0, 0, kernel))
    fit(model, *data(), CONFIG, callbacks=[weight_tying(model)])
    assert sparsity_of(model) == pytest.approx(1 / 3) and distinct(model, "dense") == 641


def test_skipped_layers_are_not_shared():
    shared = tfc.share_weights(small_net(), 4, *data(), CONFIG, skip=["conv"])
    assert distinct(shared, "conv") == 216 and distinct(shared, "dense") == 4


def test_layers_of_nested_models_are_shared_or_skipped():
    inner = small_net()
    inputs = keras.Input((8, 8, 3))
    model = keras.Model(inputs, layers.Dense(5, name="outer")(inner(inputs)))
    shared = tfc.share_weights(model, 4, *data(), CONFIG)
    assert distinct(shared.get_layer(inner.name), "conv") == distinct(shared, "outer") == 4
    shared = tfc.share_weights(model, 4, *data(), CONFIG, skip=[inner.name])
    assert distinct(shared.get_layer(inner.name), "conv") == 216 and distinct(shared, "outer") == 4


def test_directory_of_other_clusters_is_refused(tmp_path, capsys):
    tfc.share_weights(small_net(), 4, *data(), CONFIG, directory=tmp_path, skip=["conv", "depthwise"])
    capsys.readouterr()
    tfc.share_weights(small_net(), 4, *data(), CONFIG, directory=tmp_path, skip={"depthwise", "conv"})
    assert "epoch" not in capsys.readouterr().out
    with pytest.raises(CheckpointError, match="clusters 4, now 8"):
        tfc.share_weights(small_net(), 8, *data(), CONFIG, directory=tmp_path, skip=["conv", "depthwise"])


def test_resumed_training_ends_with_the_same_bits(tmp_path, monkeypatch):
    whole = tfc.share_weights(small_net(), 8, *data(), CONFIG, directory=tmp_path / "whole")

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(
            "tfcompress.training.fit",
            lambda *args, callbacks, **options: fit(*args, callbacks=[*callbacks, Interrupt()], **options),
        )
        tfc.share_weights(small_net(), 8, *data(), CONFIG, directory=tmp_path / "interrupted")
    resumed = tfc.share_weights(small_net(), 8, *data(), CONFIG, directory=tmp_path / "interrupted")
    for a, b in zip(whole.weights, resumed.weights, strict=True):
        np.testing.assert_array_equal(a, b, err_msg=a.path)


@pytest.mark.parametrize("preserve", [True, False])
def test_int8_training_keeps_values_equal_and_zeros_zero(tmp_path, preserve):
    x, y = data()
    shared = tfc.share_weights(tfc.sparsify(small_net(), 0.5, x, y, CONFIG), 4, x, y, CONFIG)
    quantized = tfc.quantization_aware_training(shared, x, y, CONFIG, preserve_sharing=preserve)
    kernel = next(v for v in quantized.weights if "dense/kernel" in v.name).numpy()
    before = shared.get_layer("dense").get_weights()[0]
    assert (len(np.unique(kernel)) == 5) == preserve
    assert np.abs(kernel - before).max() > 0
    if preserve:
        np.testing.assert_array_equal(kernel == 0, before == 0)
        file = tfc.export_tflite(quantized, tmp_path / "model.tflite", "int8")
        assert tfc.evaluate_tflite(file.path, x, y) == pytest.approx(accuracy(quantized, x, y), abs=0.05)


def test_int8_training_keeps_values_equal_within_units_before_a_batch_norm():
    """The scale of the BatchNorm, another for each unit, is folded into the weights before they are trained."""
    keras.utils.set_random_seed(0)
    net = [keras.Input((8, 8, 3)), layers.Flatten(), layers.Dense(64, use_bias=False, name="hidden")]
    model = keras.Sequential([*net, layers.BatchNormalization(), layers.ReLU(), layers.Dense(5)])
    x, y = data()
    shared = tfc.share_weights(model, 8, x, y, CONFIG)
    quantized = tfc.quantization_aware_training(shared, x, y, CONFIG, preserve_sharing=True)
    kernel = next(v for v in quantized.weights if "hidden/kernel" in v.name).numpy()
    assert max(len(np.unique(unit)) for unit in kernel.T) <= 8


def test_int8_training_does_not_tie_depthwise_weights():
    """Equal ranges, which channels get first, make the largest weights of all channels equal."""
    keras.utils.set_random_seed(0)
    net = [keras.Input((8, 8, 3)), layers.Conv2D(16, 3, name="conv"), layers.BatchNormalization(), layers.ReLU()]
    net += [layers.DepthwiseConv2D(3, name="depthwise", use_bias=False), layers.BatchNormalization(), layers.ReLU()]
    model = keras.Sequential([*net, layers.Flatten(), layers.Dense(5)])
    x, y = data()
    shared = tfc.share_weights(model, 4, x, y, CONFIG)
    quantized = tfc.quantization_aware_training(shared, x, y, CONFIG, preserve_sharing=True)
    values = {v.name.split("/")[-1]: len(np.unique(v)) for v in quantized.weights if "kernel:0" in v.name}
    assert values["depthwise_kernel:0"] == 144 and values["kernel:0"] == 4


def test_int8_training_with_and_without_sharing_are_two(tmp_path):
    x, y = data()
    shared = tfc.share_weights(small_net(), 4, x, y, CONFIG)
    tfc.quantization_aware_training(shared, x, y, CONFIG, preserve_sharing=True, directory=tmp_path)
    with pytest.raises(CheckpointError, match="preserve_sharing True, now False"):
        tfc.quantization_aware_training(shared, x, y, CONFIG, directory=tmp_path)


def test_files_compress_better(tmp_path, digits):
    """16 values are worth 4 bits, and a little more where int8 has a scale for each row."""
    keras.utils.set_random_seed(0)
    source = keras.Sequential(
        [keras.Input((28, 28, 1)), layers.Flatten(), layers.Dense(64, activation="relu"), layers.Dense(10)]
    )
    images, labels = digits.x_train[:320], digits.y_train[:320]
    fit(source, images, labels, CONFIG)
    shared = tfc.share_weights(source, 16, images, labels, CONFIG)
    sizes = [
        tfc.export_tflite(model, tmp_path / f"{i}.tflite", "int8", images[:100] / np.float32(255)).gzip_bytes
        for i, model in enumerate((source, shared))
    ]
    assert sizes[1] < 0.65 * sizes[0]


def test_kernels_that_keras_has_quantized_are_left_alone():
    model = keras.Sequential([keras.Input((8, 8, 3)), layers.Conv2D(4, 3), layers.Flatten(), layers.Dense(5)])
    model.quantize("int8")
    shared, sparse = tfc.share_weights(model, 4, *data(), CONFIG), tfc.sparsify(model, 0.5, *data(), CONFIG)
    before, *after = ([w for w in m.layers[-1].weights if w.dtype == "int8"] for m in (model, shared, sparse))
    assert len(before) == 1
    for kernels in after:
        np.testing.assert_array_equal(kernels[0], before[0])
    assert distinct(shared, model.layers[0].name) == 4


@pytest.mark.parametrize("clusters", [1, 257, 2.5, True, "4"])
def test_impossible_numbers_of_clusters_are_refused(clusters):
    with pytest.raises(ValueError, match="clusters must be an integer from 2 to 256"):
        tfc.share_weights(small_net(), clusters, *data(), CONFIG)


def test_what_cannot_be_shared_is_said():
    with pytest.raises(ValueError, match=r"skip .*'dens'"):
        tfc.share_weights(small_net(), 4, *data(), CONFIG, skip=["dens"])
    with pytest.raises(ValueError, match=r"skip must be a list of layer names\. Received: 'dense'"):
        tfc.share_weights(small_net(), 4, *data(), CONFIG, skip="dense")
    frozen = small_net()
    frozen.trainable = False
    with pytest.raises(ValueError, match="has no weights to share"):
        tfc.share_weights(frozen, 4, *data(), CONFIG)


@pytest.mark.slow
def test_jax_shares_as_tensorflow_does():
    code = (
        "import numpy as np, keras; from keras import layers; import tfcompress as tfc;"
        "from tfcompress.training import TrainingConfig;"
        "x = np.random.default_rng(0).uniform(0, 1, (96, 8, 8, 3)).astype('float32');"
        "model = keras.Sequential([layers.Input((8, 8, 3)), layers.Conv2D(8, 3), layers.Flatten(), layers.Dense(5)]);"
        "shared = tfc.share_weights(model, 4, x, np.arange(96) % 5, TrainingConfig(epochs=3, batch_size=16));"
        "print([len(np.unique(shared.layers[i].get_weights()[0])) for i in (0, 2)])"
    )
    assert last_line_on_jax(code) == "[4, 4]"
