"""Comparison: the ratio is the textbook's, and a damaged layer is found from either kind of model."""

import keras
import numpy as np
import pytest

import tfcompress as tfc
from tfcompress.tflite import flatbuffer

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


def test_integer_inputs_are_refused(small_images):
    inputs = keras.Input((12, 12, 1), dtype="uint8")
    model = keras.Model(inputs, keras.layers.Rescaling(1 / 255)(inputs))
    with pytest.raises(ValueError, match="takes uint8"):
        tfc.compare(model, model, small_images)


def test_nothing_in_common(small_model, small_images):
    other = keras.Sequential([keras.Input((12, 12, 1)), keras.layers.Flatten(name="other")])
    with pytest.raises(ValueError, match="same name and output shape"):
        tfc.compare(small_model, other, small_images)
    with pytest.raises(ValueError, match="at least one input"):
        tfc.compare(small_model, small_model, small_images[:0])
