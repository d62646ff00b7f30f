"""Comparison: the ratio is the textbook's, and a damaged layer is found from either kind of model."""

import keras
import numpy as np
import pytest
import tensorflow as tf
import tf_keras

import tfcompress as tfc
from tfcompress.tflite import flatbuffer
from tfcompress.tflite.compare import Comparison, LayerSNR
from tfcompress.tflite.evaluate import open_interpreter
from tfcompress.training import TrainingConfig

LAYERS = ["conv1", "pool1", "conv2", "flatten", "fc1", "logits"]


def _damaged_model(model, layer):
    clone = keras.models.clone_model(model)
    clone.set_weights(model.get_weights())
    kernel, bias = clone.get_layer(layer).get_weights()
    clone.get_layer(layer).set_weights([kernel[..., ::-1], bias])
    return clone


def _damaged_file(path, tensor_name, folder):
    """A copy of a file whose weights of one layer are in reverse order."""
    model = flatbuffer.read(path.read_bytes())
    graph = model.subgraphs[0]
    for operator in graph.operators:
        if graph.tensors[operator.outputs[0]].name == tensor_name.encode():
            buffer = model.buffers[graph.tensors[operator.inputs[1]].buffer]
            buffer.data = buffer.data[::-1].copy()
    (folder / "damaged.tflite").write_bytes(flatbuffer.write(model))
    return folder / "damaged.tflite"


def test_snr_is_the_textbooks(small_model, small_images):
    other = keras.models.clone_model(small_model)
    other.set_weights(small_model.get_weights())
    kernel, bias = other.get_layer("conv2").get_weights()
    other.get_layer("conv2").set_weights([kernel * 1.1, bias])
    snr = {layer.name: layer.snr for layer in tfc.compare(small_model, other, small_images).layers}
    assert list(snr) == LAYERS
    assert snr["conv1"] == snr["pool1"] == np.inf
    assert snr["conv2"] == pytest.approx(20, abs=1e-3)  # an error of a tenth; the biases are zero


def test_of_dead_layers_the_first_is_the_worst():
    ratios = {"conv": 35, "dead_relu": -np.inf, "dead_pool": -np.inf, "fc": 20, "logits": 12}
    comparison = Comparison(tuple(LayerSNR(name, (1,), snr) for name, snr in ratios.items()))
    assert comparison.worst.name == "dead_relu"


@pytest.mark.parametrize("layer", ["conv1", "conv2", "fc1", "logits"])
def test_damaged_layer_of_a_file_is_found(small_model, small_files, small_images, tmp_path, layer):
    damaged = _damaged_file(small_files["int8"], layer, tmp_path)
    for reference in (small_model, small_files["float32"], str(small_files["int8"])):
        comparison = tfc.compare(reference, damaged, small_images[:40])
        assert [row.name for row in comparison.layers] == LAYERS
        assert comparison.worst.name == layer
        assert comparison.worst.snr < 5
        assert [line.split()[0] for line in str(comparison).splitlines() if line.endswith("<- worst")] == [layer]


@pytest.mark.parametrize("layer", ["conv1", "fc1"])
def test_damaged_layer_of_a_model_is_found(small_model, small_images, layer):
    assert tfc.compare(small_model, _damaged_model(small_model, layer), small_images).worst.name == layer


def test_sound_int8_file_is_close_everywhere(small_model, small_files, small_images):
    comparison = tfc.compare(small_model, small_files["int8"], small_images[:40])
    assert min(layer.snr for layer in comparison.layers) > 25


def test_softmax_of_the_last_layer_is_not_held_against_it(small_model, small_files, small_images):
    model = keras.models.clone_model(small_model)
    model.set_weights(small_model.get_weights())
    model.get_layer("logits").activation = keras.activations.softmax
    comparison = tfc.compare(model, small_files["int8"], small_images[:40])
    assert [row.name for row in comparison.layers] == LAYERS
    assert comparison.layers[-1].snr > 25


@pytest.mark.parametrize("library", [keras, tf_keras])
@pytest.mark.parametrize("sequential", [True, False])
def test_a_model_inside_a_model(library, sequential, small_images, tmp_path):
    """Has a row for each of its layers where the other side has them, else one."""
    layers = library.layers
    inner_inputs = library.Input((12, 12, 1))
    inner_stack = [layers.Conv2D(4, 3, activation="relu", name="conv"), layers.MaxPooling2D(2, name="pool")]
    inner = library.Model(inner_inputs, inner_stack[1](inner_stack[0](inner_inputs)), name="inner")
    stack = [inner, layers.Flatten(name="flatten"), layers.Dense(3, name="logits")]
    if sequential:
        model = library.Sequential([library.Input((12, 12, 1)), *stack])
    else:
        inputs = library.Input((12, 12, 1))
        model = library.Model(inputs, stack[2](stack[1](stack[0](inputs))))
    file = tfc.export_tflite(model, tmp_path / "m.tflite", "float32").path
    inner, outer = ["inner", "flatten", "logits"], ["conv", "pool", "flatten", "logits"]
    others = [(file, inner), (model, outer if library is keras else inner)]
    if library is keras:
        trained = tfc.quantization_aware_training(
            model, small_images[:64], np.arange(64) % 3, TrainingConfig(epochs=1, learning_rate=1e-6)
        )
        others.append((tfc.export_tflite(trained, tmp_path / "q.tflite").path, outer))
    for other, names in others:
        rows = tfc.compare(model, other, small_images[:5]).layers
        assert [row.name for row in rows] == names
        assert all(row.snr > (20 if str(other).endswith("q.tflite") else 100) for row in rows)


def test_one_number_for_two_classes_is_compared_with_two(small_images, tmp_path):
    layers = keras.layers
    stack = [keras.Input((12, 12, 1)), layers.Flatten(name="flatten"), layers.Dense(1, "sigmoid", name="head")]
    model = keras.Sequential(stack)
    logits, _ = tfc.as_logits(model)
    file = tfc.export_tflite(logits, tmp_path / "m.tflite", "float32", softmax=True).path
    for a, b in ((model, file), (file, model)):
        rows = tfc.compare(a, b, small_images[:5]).layers
        assert [(row.name, row.snr > 100) for row in rows][-2:] == [("head", True), ("softmax", True)]
    one = tfc.export_tflite(model, tmp_path / "one.tflite", "float32").path
    assert tfc.compare(model, one, small_images[:5]).layers[-1].shape == (1,)


def test_several_inputs(rng, tmp_path):
    inputs = keras.Input((4,), name="b"), keras.Input((4,), name="a")
    difference = keras.layers.Subtract(name="difference")(inputs)
    model = keras.Model(inputs, keras.layers.Dense(3, name="logits")(difference))
    x = list(rng.random((2, 40, 4), np.float32))
    file = tfc.export_tflite(model, tmp_path / "m.tflite", "float32").path
    for a, b in ((model, model), (model, file), (file, model)):
        assert [(row.name, row.snr > 100) for row in tfc.compare(a, b, x).layers] == [
            ("difference", True), ("logits", True),
        ]  # fmt: skip
    for wrong in (x[:1], x[0], [x[0], x[1][:9]], {"a": x[0], "b": x[1]}):
        with pytest.raises(ValueError, match=r"has 2 inputs: x must be .*in a list"):
            tfc.compare(model, file, wrong)
    with pytest.raises(ValueError, match=r"equally many inputs\. Received: 2 and 1"):
        tfc.compare(model, keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)]), x)


@pytest.mark.parametrize("library", [keras, tf_keras])
@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
@pytest.mark.parametrize("fused", [True, False])
def test_activation_at_the_end_is_compared(library, activation, fused, small_images, tmp_path):
    layers = library.layers
    stack = [layers.Flatten(name="flatten"), layers.Dense(3, activation=activation if fused else None, name="dense")]
    stack += [] if fused else [layers.Activation(activation, name="act")]
    model = library.Sequential([library.Input((12, 12, 1)), *stack])
    file = tfc.export_tflite(model, tmp_path / "m.tflite", "float32").path
    rows = tfc.compare(model, file, small_images[:5]).layers
    end = "softmax" if activation == "softmax" else stack[-1].name
    # The logits of a fused softmax are in the file, and tf_keras has none.
    logits = ["dense"] if not fused or (activation == "softmax" and library is keras) else []
    assert [row.name for row in rows] == ["flatten", *logits, end]
    assert min(row.snr for row in rows) > 100
    outputs = [d["name"] for d in open_interpreter(file).get_tensor_details() if d["name"]]
    assert len(set(outputs)) == len(outputs)


def test_integer_inputs_are_refused(small_images):
    inputs = keras.Input((12, 12, 1), dtype="uint8")
    model = keras.Model(inputs, keras.layers.Rescaling(1 / 255)(inputs))
    with pytest.raises(ValueError, match="takes uint8"):
        tfc.compare(model, model, small_images)


def test_file_of_others_has_names_of_its_own(small_model, small_images, tmp_path):
    (tmp_path / "m.tflite").write_bytes(tf.lite.TFLiteConverter.from_keras_model(small_model).convert())
    with pytest.raises(ValueError, match=r"same name and output shape.* if export_tflite has written them"):
        tfc.compare(small_model, tmp_path / "m.tflite", small_images[:3])


def test_nothing_in_common(small_model, small_images):
    other = keras.Sequential([keras.Input((12, 12, 1)), keras.layers.Flatten(name="other")])
    with pytest.raises(ValueError, match="same name and output shape"):
        tfc.compare(small_model, other, small_images)
    with pytest.raises(ValueError, match="at least one input"):
        tfc.compare(small_model, small_model, small_images[:0])


def test_vector_and_image_of_one_pixel_are_alike(rng):
    a = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, name="same")])
    dense, pixel = keras.layers.Dense(3, name="dense"), keras.layers.Reshape((1, 1, 3), name="same")
    b = keras.Sequential([keras.Input((4,)), dense, pixel])
    b.set_weights(a.get_weights())
    (row,) = tfc.compare(a, b, rng.random((5, 4), "float32")).layers
    assert (row.name, row.shape, row.snr) == ("same", (3,), float("inf"))
