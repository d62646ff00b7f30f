"""What quantization-aware training promises about the file, the zeros and the resumed training."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from int8_file import Int8File, convert, sparsity
from keras import layers

import tfcompress as tfc
from tfcompress.keras2 import tf_keras, to_tf_keras
from tfcompress.models import lenet5
from tfcompress.quantization.aware_training import calibrate, quantization_aware_training, quantize_wrap
from tfcompress.sparsity import allocate, prunable_kernels, sparsity_of
from tfcompress.training import TrainingConfig

RNG = np.random.default_rng(0)
IMAGES = RNG.uniform(0, 1, (64, 28, 28, 1)).astype("float32")
LABELS = RNG.integers(0, 10, 64)


def sparse_lenet(share=0.8):
    keras.utils.set_random_seed(0)
    model = lenet5()
    for name, part in allocate(model, share).items():
        kernel, bias = model.get_layer(name).get_weights()
        kernel[np.abs(kernel) <= np.quantile(np.abs(kernel), part)] = 0
        model.get_layer(name).set_weights([kernel, bias])
    return model


def train(model, epochs=2, initial_epoch=0):
    if model.optimizer is None:
        compile_model(model)
    model.fit(IMAGES, LABELS, 16, epochs=epochs, initial_epoch=initial_epoch, shuffle=False, verbose=0)
    return model


def compile_model(model):
    optimizer = tf_keras.optimizers.SGD(0.05, momentum=0.9)
    model.compile(optimizer, tf_keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    optimizer.build(model.trainable_variables)


@pytest.fixture(scope="module")
def trained():
    """(prune-preserving QAT of an 80 % sparse LeNet, its int8 file)."""
    model = quantize_wrap(sparse_lenet(), preserve_sparsity=True)
    calibrate(model, IMAGES)
    train(model)
    return model, Int8File(convert(model))


def test_input_scale_is_that_of_pixels(trained):
    assert trained[1].input["quantization"] == (pytest.approx(1 / 255, rel=1e-7), -128)
    assert trained[1].input["dtype"] is np.int8


def test_input_range_survives_images_beyond_it():
    model = quantize_wrap(lenet5())
    calibrate(model, IMAGES)
    compile_model(model)
    model.fit(IMAGES * 1.5 - 0.2, LABELS, 16, verbose=0)
    assert Int8File(convert(model)).input["quantization"] == (pytest.approx(1 / 255, rel=1e-7), -128)


@pytest.mark.parametrize(
    ("images", "input_range", "received"),
    [
        (IMAGES * 2 - 1, (0, 1), r"from -.*input_range=\(0, 1\)"),
        (IMAGES * 255, (0, 1), "to 25"),
        (IMAGES * 2 - 1, (-0.5, 1), "from -"),
    ],
)
def test_images_beyond_the_input_range_are_refused(images, input_range, received):
    """The int8 input would clip them, in training and on the phone."""
    with pytest.raises(ValueError, match=f"must lie in input_range.*{received}"):
        quantization_aware_training(lenet5(), images, LABELS, TrainingConfig(epochs=1), input_range=input_range)


@pytest.mark.parametrize(
    ("images", "input_range"),
    [((IMAGES * 255).astype("uint8"), (0, 1)), (IMAGES * 1.009, (0, 1)), (IMAGES + 1, (1, 2))],
)
def test_images_in_the_input_range_are_trained_on(images, input_range, tmp_path):
    config = TrainingConfig(epochs=1, batch_size=32)
    wrapped = quantization_aware_training(lenet5(), images, LABELS, config, input_range=input_range)
    some = images[:9] / np.float32(255) if images.dtype == np.uint8 else images[:9] * np.float32(0.9)
    for calibration in (None, some):  # the range is known, and need not be spanned
        tfc.export_tflite(wrapped, tmp_path / "m.tflite", calibration=calibration)
    scale, _ = Int8File(convert(wrapped)).input["quantization"]
    assert scale == pytest.approx(input_range[1] / 255, rel=1e-6)


def test_zeros_survive_into_the_file(trained):
    source = sparse_lenet()
    assert sparsity_of(trained[0]) == sparsity_of(source)
    kernels = trained[1].kernels()
    assert [k.dtype for k in kernels] == [np.int8] * 4
    assert sum(k.size for k in kernels) == 430_500
    assert sparsity(kernels) >= sparsity_of(source) >= 0.799


def test_zeros_of_every_kind_of_kernel_survive(rng, tmp_path):
    inputs = keras.Input((6, 6, 2))
    x = layers.Conv2D(4, 3, activation="relu", name="plain")(inputs)
    x = layers.Conv2DTranspose(4, 3, activation="tanh", name="transposed")(x)
    x = layers.SeparableConv2D(4, 3, activation="relu", name="separable")(layers.DepthwiseConv2D(3, name="depth")(x))
    model = keras.Model(inputs, layers.Dense(3, name="head")(layers.Flatten()(x)))
    for kernels in prunable_kernels(model).values():
        for kernel in kernels:
            kernel.assign(kernel * (np.abs(kernel) > np.median(np.abs(kernel))))
    images = rng.random((32, 6, 6, 2), np.float32)
    config = TrainingConfig(epochs=2, batch_size=8, optimizer="adam", learning_rate=0.01)
    trained = quantization_aware_training(model, images, np.arange(32) % 3, config, preserve_sparsity=True)
    assert [np.mean(k == 0) for ks in prunable_kernels(trained).values() for k in ks] == pytest.approx([0.5] * 6)
    file = tfc.export_tflite(trained, tmp_path / "m.tflite").path
    expected = trained.predict(images, verbose=0)
    assert np.abs(tfc.predict_tflite(file, images) - expected).max() < 0.05 * np.ptp(expected)


def test_zeros_do_not_survive_without_preservation():
    model = train(quantize_wrap(sparse_lenet()))
    assert sparsity_of(model) < 0.2


def test_file_computes_what_the_model_computes(trained):
    model, file = trained
    expected, got = model.predict(IMAGES[:16], verbose=0), file.predict(IMAGES[:16])
    step = file.output["quantization"][0]
    assert np.abs(expected - got).max() <= 3 * step
    assert np.ptp(expected) > 50 * step


def test_file_is_integer_only(trained):
    assert trained[1].float_tensors() == []


def test_calibrated_model_is_close_to_the_float_model():
    source = sparse_lenet()
    model = quantize_wrap(source)
    pixels = (IMAGES * 255).astype("uint8")
    expected = source.predict(pixels / 255, verbose=0)

    def noise_to_signal():
        return np.std(expected - model.predict(pixels / 255, verbose=0)) / np.std(expected - expected.mean(0))

    assert noise_to_signal() > 1, "the ranges of a new wrapper are useless"
    calibrate(model, pixels, batch_size=20)
    assert noise_to_signal() < 0.1


def test_calibration_changes_nothing_but_ranges():
    model = quantize_wrap(lenet5())
    before = {v.name: v.numpy() for v in model.variables}
    calibrate(model, IMAGES)
    changed = {v.name for v in model.variables if not np.array_equal(before[v.name], v.numpy())}
    assert changed and all("_min" in name or "_max" in name for name in changed)
    with pytest.raises(ValueError, match="at least one image"):
        calibrate(model, IMAGES[:0])


def test_training_is_deterministic_and_resumes_from_its_variables():
    def wrap():
        model = quantize_wrap(sparse_lenet(), preserve_sparsity=True)
        calibrate(model, IMAGES)
        return model

    whole, again, interrupted = train(wrap()), train(wrap()), train(wrap(), epochs=1)
    resumed = wrap()
    compile_model(resumed)
    for target, source in (
        (resumed.variables, interrupted.variables),
        (resumed.optimizer.variables, interrupted.optimizer.variables),
    ):
        for variable, value in zip(target, source, strict=True):
            variable.assign(value)
    train(resumed, epochs=2, initial_epoch=1)
    assert any("post_activation_max" in v.name for v in resumed.variables)
    for a, b, c in zip(whole.variables, again.variables, resumed.variables, strict=True):
        np.testing.assert_array_equal(a, b, err_msg=a.name)
        np.testing.assert_array_equal(a, c, err_msg=a.name)


@pytest.mark.parametrize("preserve_sparsity", [False, True])
def test_gradients_of_weights_are_those_of_tfmot(preserve_sparsity):
    """No weight lies outside its range, where TF-MOT would stop the gradient; zeros that stay get none."""
    gradients = []
    for ours in (True, False):
        model = quantize_wrap(sparse_lenet(), preserve_sparsity=preserve_sparsity)
        calibrate(model, IMAGES)
        for wrapper in [] if ours else [layer for layer in model.layers if hasattr(layer, "_weight_vars")]:
            wrapper._weight_vars = [(w, q._quantizer, ranges) for w, q, ranges in wrapper._weight_vars]
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(model(IMAGES, training=True) ** 2)
        gradients.append(tape.gradient(loss, model.trainable_variables))
    for variable, a, b in zip(model.trainable_variables, *gradients, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5 * np.abs(b).max(), err_msg=variable.name)
        if "kernel" in variable.name:
            assert np.all(a.numpy()[variable.numpy() == 0] == 0) == preserve_sparsity


def test_source_is_not_changed():
    source = to_tf_keras(lenet5())
    before = source.get_weights()
    train(quantize_wrap(source), epochs=1)
    for old, new in zip(before, source.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)
