"""Export: what is written, what it is worth, what is refused."""

import gzip

import keras
import numpy as np
import pytest
from ai_edge_litert.interpreter import Interpreter
from keras import layers

import tfcompress as tfc
from tfcompress.outputs import with_softmax
from tfcompress.tflite import export, flatbuffer


@pytest.fixture(scope="module")
def model():
    """A residual network with folded and fused layers, of every kind of fusion that the zoo has."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((16, 16, 3), name="image")
    x = shortcut = _conv_bn_relu(inputs, layers.Conv2D(8, 3, padding="same", use_bias=False, name="stem"))
    x = _conv_bn_relu(x, layers.DepthwiseConv2D(3, padding="same", use_bias=False, name="depthwise"))
    x = layers.Conv2D(8, 3, padding="same", use_bias=False, name="project")(x)
    x = layers.BatchNormalization(name="project_bn")(x)
    x = layers.ReLU(name="relu")(layers.Add(name="add")([x, shortcut]))
    x = layers.ReLU(name="pre_relu")(layers.BatchNormalization(name="pre_bn")(x))
    x = layers.Flatten(name="flatten")(layers.MaxPooling2D(4, name="pool")(x))
    x = layers.Dense(32, name="fc")(x)
    x = layers.ReLU(name="fc_relu")(x)
    model = keras.Model(inputs, layers.Dense(10, name="logits")(x), name="small")
    random = np.random.default_rng(0)
    for layer in model.layers:
        if isinstance(layer, layers.BatchNormalization):
            layer.set_weights([random.uniform(0.5, 1.5, w.shape) for w in layer.get_weights()])
        if isinstance(layer, layers.Dense):
            layer.bias.assign(random.normal(size=layer.bias.shape))
    return model


def _conv_bn_relu(x, conv):
    x = layers.BatchNormalization(name=f"{conv.name}_bn")(conv(x))
    return layers.ReLU(name=f"{conv.name}_relu")(x)


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(1).uniform(0.1, 0.9, (150, 16, 16, 3)).astype(np.float32)


@pytest.mark.parametrize(
    ("precision", "least_snr"), [("float32", 100), ("float16", 50), ("dynamic", 25), ("int8", 25), ("int16x8", 25)]
)
def test_file_computes_what_the_model_computes(model, images, tmp_path, precision, least_snr):
    file = tfc.export_tflite(model, tmp_path / "m.tflite", precision, images)
    comparison = tfc.compare(model, file.path, images[:40])
    names = [layer.name for layer in comparison.layers]
    assert [n for n in names if n != "add"] == [
        "stem_relu", "depthwise_relu", "project_bn", "relu", "pre_relu", "pool", "flatten", "fc_relu", "logits",
    ]  # fmt: skip
    assert min(layer.snr for layer in comparison.layers) > least_snr


@pytest.mark.parametrize("precision", ["float32", "int8"])
def test_stripped_file_is_smaller_and_bit_identical(model, images, tmp_path, monkeypatch, precision):
    originals = []
    strip = flatbuffer.strip
    monkeypatch.setattr(flatbuffer, "strip", lambda data, *names: originals.append(data) or strip(data, *names))
    file = tfc.export_tflite(model, tmp_path / "m.tflite", precision, images)
    original = tmp_path / "original.tflite"
    original.write_bytes(originals[0])
    assert file.bytes < len(originals[0]) - 1500
    assert len(strip(originals[0])) <= file.bytes
    for image in images[:10]:
        np.testing.assert_array_equal(_run(file.path, image), _run(original, image))


def _run(path, image):
    interpreter = Interpreter(str(path))
    interpreter.allocate_tensors()
    details = interpreter.get_input_details()[0]
    quantized = np.round(image * 255) - 128
    interpreter.set_tensor(
        details["index"], (quantized if details["dtype"] == np.int8 else image)[None].astype(details["dtype"])
    )
    interpreter.invoke()
    return interpreter.get_tensor(interpreter.get_output_details()[0]["index"])


def test_sizes_are_those_of_the_file(model, images, tmp_path):
    file = tfc.export_tflite(model, tmp_path / "m.tflite", "int8", images)
    data = (tmp_path / "m.tflite").read_bytes()
    assert (file.bytes, file.gzip_bytes, file.precision) == (len(data), len(gzip.compress(data, 9, mtime=0)), "int8")
    assert file.bytes < model.count_params() + 4500


def test_buffers_are_aligned(model, tmp_path):
    data = tfc.export_tflite(model, tmp_path / "m.tflite", "float32").path.read_bytes()
    packed = flatbuffer.schema.Model.GetRootAsModel(data, 0)
    vectors = [packed.Buffers(i).DataAsNumpy() for i in range(packed.BuffersLength())]
    starts = [
        v.__array_interface__["data"][0] - np.frombuffer(data, np.uint8).ctypes.data
        for v in vectors
        if not np.isscalar(v)
    ]
    assert len(starts) > 5
    assert all(start % 16 == 0 for start in starts)


def test_int8_input_takes_pixels_minus_128(model, images, tmp_path):
    path = tfc.export_tflite(model, tmp_path / "m.tflite", "int8", images).path  # whose values lie in 0.1 .. 0.9
    interpreter = Interpreter(str(path))
    details = interpreter.get_input_details()[0]
    assert details["dtype"] == interpreter.get_output_details()[0]["dtype"] == np.int8
    assert details["quantization"] == (float(np.float32(1 / 255)), -128)


def test_other_input_ranges_are_kept(model, images, tmp_path):
    path = tfc.export_tflite(model, tmp_path / "m.tflite", "int8", images * 2 - 1).path
    scale, _ = Interpreter(str(path)).get_input_details()[0]["quantization"]
    assert scale == pytest.approx(np.ptp(images * 2 - 1) / 255, rel=1e-4)


def test_unexpected_input_range_is_an_error(model, images, tmp_path, monkeypatch):
    monkeypatch.setattr(export, "_checked_calibration", lambda calibration, *args, **kwargs: [calibration])
    convert = export._convert
    monkeypatch.setattr(export, "_convert", lambda m, p, calibration, s: convert(m, p, [calibration[0] / 2], s))
    with pytest.raises(ValueError, match="zero point -128; inputs in"):
        tfc.export_tflite(model, tmp_path / "m.tflite", "int8", images)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("precision", ["float32", "int8"])
def test_softmax(model, images, tmp_path, precision):
    logits = tfc.export_tflite(model, tmp_path / "logits.tflite", precision, images)
    softmax = tfc.export_tflite(model, tmp_path / "softmax.tflite", precision, images, softmax=True)
    expected = keras.ops.convert_to_numpy(keras.ops.softmax(tfc.predict_tflite(logits.path, images)))
    np.testing.assert_allclose(
        tfc.predict_tflite(softmax.path, images), expected, atol=1 / 256 if precision == "int8" else 1e-6
    )
    with pytest.raises(ValueError, match="ends in a softmax"):
        tfc.export_tflite(with_softmax(model), tmp_path / "twice.tflite", precision, images, softmax=True)


@pytest.mark.parametrize(
    ("tensor", "fused", "layer"),
    [
        ("small_1/stem_1/convolution", False, "stem_bn"),  # folded; without a trace when its offset is zero
        ("small_1/stem_1/convolution", True, "stem_relu"),
        ("small_1/stem_relu_1/Relu;small_1/depthwise_1/depthwise;small_1/stem_1/convolution", True, "stem_relu"),
        ("small_1/fc_1/MatMul;small_1/fc_relu_1/Relu;small_1/fc_1/BiasAdd", True, "fc_relu"),
        ("small_1/fc_1/MatMul", False, "fc"),
        ("Identity", False, None),
    ],
)
def test_layer_of_a_tensor(model, tensor, fused, layer):
    assert export._LayerNames(model)(tensor, fused)[0] == layer


def test_keras_names_that_look_like_suffixes(tmp_path):
    inputs = keras.Input((8, 8, 1))
    x = layers.Conv2D(2, 3, name="conv", activation="relu")(inputs)
    x = layers.Conv2D(3, 3, name="conv_1", activation="relu")(x)
    x = layers.Conv2D(4, 3, name="conv_1_1", activation="relu")(x)
    model = keras.Model(inputs, x)
    file = tfc.export_tflite(model, tmp_path / "m.tflite", "float32")
    comparison = tfc.compare(model, file.path, np.random.default_rng(0).random((4, 8, 8, 1), np.float32))
    assert [(layer.name, layer.snr > 100) for layer in comparison.layers] == [
        (n, True) for n in ("conv", "conv_1", "conv_1_1")
    ]


BAD_CALIBRATION = {
    "missing": (None, "need calibration"),
    "empty": (np.zeros((0, 16, 16, 3), np.float32), "empty"),
    "empty list": ([], "empty"),
    "shape": (np.zeros((5, 16, 16, 1), np.float32), r"\(N, 16, 16, 3\)"),
    "one image": (np.zeros((16, 16, 3), np.float32), r"\(N, 16, 16, 3\)"),
    "pixels": (np.zeros((5, 16, 16, 3), np.uint8), "pixels / 255"),
    "nan": (np.full((5, 16, 16, 3), np.nan, np.float32), "finite"),
}


@pytest.mark.parametrize("case", BAD_CALIBRATION)
def test_bad_calibration(model, tmp_path, case):
    calibration, message = BAD_CALIBRATION[case]
    with pytest.raises(ValueError, match=message):
        tfc.export_tflite(model, tmp_path / "m.tflite", "int8", calibration)
    assert list(tmp_path.iterdir()) == []


class _Subclassed(keras.Model):
    def call(self, x):
        return x


BAD_MODELS = {
    "subclassed": (_Subclassed, "Only functional"),
    "unbuilt": (lambda: keras.Sequential([layers.Dense(2)]), "not built"),
    "open shape": (lambda: keras.Sequential([keras.Input((None, None, 3)), layers.Conv2D(2, 3)]), "fixed"),
    "integer input": (
        lambda: keras.Sequential([keras.Input((4,), dtype="uint8"), layers.Rescaling(1 / 255), layers.Dense(2)]),
        "takes uint8",
    ),
    "bfloat16": (
        lambda: keras.Sequential([keras.Input((4,)), layers.Dense(2, dtype="mixed_bfloat16")]),
        "computes in bfloat16",
    ),
}


@pytest.mark.parametrize("case", BAD_MODELS)
def test_bad_models(tmp_path, case):
    build, message = BAD_MODELS[case]
    with pytest.raises(ValueError, match=message):
        tfc.export_tflite(build(), tmp_path / "m.tflite", "float32")


def rows_summed(x):
    return keras.ops.cumsum(x, axis=1)


@pytest.mark.parametrize("layer", [rows_summed, layers.ELU(), layers.LayerNormalization()])
def test_int8_file_with_a_float_operation_is_not_written(tmp_path, layer):
    inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(4, 3)(layer(layers.Conv2D(4, 3)(inputs)))
    model = keras.Model(inputs, layers.Dense(2)(layers.GlobalAveragePooling2D()(x)))
    images = np.random.default_rng(0).random((8, 8, 8, 3), dtype="float32")
    with pytest.raises(ValueError, match="stayed float, as LiteRT has no int8 kernel for it"):
        tfc.export_tflite(model, tmp_path / "m.tflite", "int8", images)
    assert list(tmp_path.iterdir()) == []


def test_what_int16x8_does_not_know_is_said(tmp_path):
    inputs = keras.Input((6, 6, 2))
    x = layers.Activation("hard_silu")(layers.Conv2D(4, 3)(inputs))
    model = keras.Model(inputs, layers.Dense(3)(layers.Flatten()(x)), name="mobile")
    x = np.random.default_rng(0).random((4, 6, 6, 2), "float32")
    with pytest.raises(ValueError, match=r"'mobile' cannot be converted to int16x8: .*HARD_SWISH.* Choose another"):
        tfc.export_tflite(model, tmp_path / "m.tflite", "int16x8", x)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("precision", ["int8", "int16x8"])
def test_recurrent_layers_are_quantized_unrolled_only(tmp_path, precision):
    def network(unroll):
        inputs = keras.Input((12, 6))
        return keras.Model(inputs, layers.Dense(5)(layers.Bidirectional(layers.SimpleRNN(4, unroll=unroll))(inputs)))

    x = np.random.default_rng(0).random((8, 12, 6), dtype="float32")
    with pytest.raises(tfc.UnsupportedLayerError, match="quantized with unroll=True only"):
        tfc.export_tflite(network(unroll=False), tmp_path / "m.tflite", precision, x)
    if precision == "int8":
        tfc.export_tflite(network(unroll=True), tmp_path / "m.tflite", precision, x)


def test_unknown_precision(model, tmp_path):
    with pytest.raises(ValueError, match="precision='int4'"):
        tfc.export_tflite(model, tmp_path / "m.tflite", "int4")


def test_unwritable_path_fails_before_the_conversion(model, tmp_path, monkeypatch):
    monkeypatch.setattr(export, "_convert", lambda *args: pytest.fail("converted"))
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "missing" / "m.tflite", tmp_path, tmp_path / "file" / "m.tflite"):
        with pytest.raises(OSError, match="Cannot write"):
            tfc.export_tflite(model, path, "float32")


def test_failed_conversion_leaves_the_old_file(model, tmp_path, monkeypatch):
    monkeypatch.setattr(export, "_convert", lambda *args: b"not a flatbuffer")
    (tmp_path / "m.tflite").write_text("old")
    with pytest.raises(Exception):  # noqa: B017 - whatever goes wrong
        tfc.export_tflite(model, tmp_path / "m.tflite", "float32")
    assert [p.name for p in tmp_path.iterdir()] == ["m.tflite"]
    assert (tmp_path / "m.tflite").read_text() == "old"


def test_two_inputs_pruned_trained_and_in_integers(tmp_path):
    """The class is told by both inputs together: which half of the photo is bright, and the sensors' sign."""
    rng = np.random.default_rng(0)
    classes = rng.integers(0, 4, 600)
    photos = rng.random((600, 12, 12, 3), np.float32) / 2
    photos[:, :, :6] += 0.5 * (classes < 2)[:, None, None, None]
    sensors = (rng.normal(0, 1, (600, 5)) + np.where(classes % 2, 3, -3)[:, None]).astype("float32")
    keras.utils.set_random_seed(0)
    inputs = keras.Input((12, 12, 3), name="photo"), keras.Input((5,), name="sensors")
    x = layers.Conv2D(8, 3, strides=3, use_bias=False, name="conv")(inputs[0])
    x = layers.Flatten()(layers.ReLU()(layers.BatchNormalization()(x)))
    both = layers.Concatenate()([x, layers.Dense(6, activation="relu", name="hidden")(inputs[1])])
    model = keras.Model(inputs, layers.Dense(4, name="logits")(both))
    pruned, plan = tfc.prune_channels(model, "l2", ratio=0.5)
    assert [len(plan.kept[name]) for name in ("conv", "hidden")] == [4, 3]
    tfc.recalibrate(pruned, [photos, sensors])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    pruned.compile(keras.optimizers.Adam(0.01), loss, jit_compile=False)
    pruned.fit([photos, sensors], classes, epochs=10, verbose=0)
    expected = pruned.predict([photos, sensors], verbose=0)
    assert np.mean(expected.argmax(-1) == classes) > 0.97

    exact = tfc.export_tflite(pruned, tmp_path / "float.tflite", "float32")
    np.testing.assert_allclose(tfc.predict_tflite(exact.path, [photos, sensors]), expected, atol=1e-4)
    file = tfc.export_tflite(pruned, tmp_path / "int8.tflite", "int8", [photos[:100], sensors[:100]])
    assert tfc.evaluate_tflite(file.path, [photos, sensors], classes) > 0.95
    assert tfc.evaluate_tflite(file.path, [photos, sensors[::-1]], classes) < 0.7
    scales = {details["name"]: details["quantization"] for details in Interpreter(str(file.path)).get_input_details()}
    assert scales["photo"] == (pytest.approx(1 / 255), -128)
    assert scales["sensors"][0] == pytest.approx(np.ptp(sensors[:100]) / 255, rel=1e-4)

    with pytest.raises(ValueError, match="2 arrays of equally many examples"):
        tfc.export_tflite(pruned, tmp_path / "int8.tflite", "int8", [photos, sensors[:10]])
    with pytest.raises(ValueError, match="has 2 inputs"):
        tfc.predict_tflite(file.path, [photos])


@pytest.mark.parametrize(
    "layer",
    [
        layers.Conv2D(4, 1, use_bias=False),
        layers.Conv2DTranspose(4, 1, use_bias=False),
        layers.DepthwiseConv2D(1, use_bias=False),
    ],
)
@pytest.mark.parametrize(("weight", "runs"), [(255 * 127, True), (257 * 127, False)])
def test_int8_file_that_xnnpack_would_refuse_is_not_written(tmp_path, layer, weight, runs):
    """With inputs and outputs in [0, 1] the requantization scale is the largest weight / 127."""
    layer = type(layer).from_config(layer.get_config())
    model = keras.Sequential([keras.Input((4, 4, 2)), layer, layers.Flatten()])
    kernel = np.zeros(layer.kernel.shape)
    by_input = kernel.swapaxes(2, 3) if isinstance(layer, layers.Conv2DTranspose) else kernel
    by_input[0, 0, 0], by_input[0, 0, 1] = 1, weight
    layer.set_weights([kernel])
    x = np.random.default_rng(0).uniform(0, 1, (20, 4, 4, 2)).astype(np.float32)
    x[..., 1] = 0
    path = tmp_path / "m.tflite"
    if runs:
        tfc.export_tflite(model, path, "int8", x)
        Interpreter(str(path)).allocate_tensors()  # raises where XNNPACK refuses
    else:
        with pytest.raises(ValueError, match=r"scaled by 257 .* less than 256"):
            tfc.export_tflite(model, path, "int8", x)
        assert not path.exists()
