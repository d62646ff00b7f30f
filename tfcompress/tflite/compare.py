"""Where does a smaller model stop being the same function?"""

import collections
import contextlib
import dataclasses
import os

import numpy as np

from tfcompress.tflite.evaluate import as_arrays, checked_inputs, dequantize, open_interpreter, quantize
from tfcompress.tflite.export import plain_name

BATCH = 32
CLEAN_DB = 40.0


@dataclasses.dataclass(frozen=True)
class LayerSNR:
    """Signal-to-noise ratio of one layer's output.

    Attributes:
        name: the layer.
        shape: output shape of one example.
        snr: 10 log10(sum a^2 / sum (a - b)^2) over all of x, dB; infinite where a and b agree exactly.
    """

    name: str
    shape: tuple
    snr: float


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Signal-to-noise ratios in graph order; `str()` is a table.

    Attributes:
        layers: tuple of `LayerSNR`.
    """

    layers: tuple

    @property
    def worst(self):
        """The `LayerSNR` at which the signal is lost.

        Noise is inherited, so the lowest ratio is mostly the output's. The layer to blame is where the ratio falls
        furthest below everything before it. Ratios above 40 dB, which 8 bits rarely reach, count as 40 dB.
        """
        falls, level = [], CLEAN_DB
        for layer in self.layers:
            falls.append(level - layer.snr if level > -np.inf else -np.inf)  # behind a dead layer all is dead
            level = min(level, layer.snr)
        return self.layers[int(np.argmax(falls))]

    def __str__(self):
        width = max(len("layer"), *(len(layer.name) for layer in self.layers))
        lines = [f"{'layer':{width}}  {'shape':>16}  SNR (dB)"]
        for layer in self.layers:
            mark = "  <- worst" if layer is self.worst else ""
            lines.append(f"{layer.name:{width}}  {layer.shape!s:>16}  {layer.snr:8.1f}{mark}")
        return "\n".join(lines)


def compare(a, b, x):
    """Compares two models layer by layer, to find where a quantized or pruned one goes wrong.

    Layers are matched by name and left out where one side does not have them or has them in another shape. A model
    inside a Keras 3 model is taken apart where the other side has its layers, else it counts as one; one number for two
    classes is compared as two where the other side has two. Probabilities at the end are called "softmax", whatever the
    layer's name. A .tflite file written by `export_tflite` names the output of a fused group after its last layer: of
    Conv2D, BatchNormalization and ReLU that became one operation, only the ReLU is compared.

    Args:
        a: the reference: a Keras 3 or tf_keras model, or the path of a .tflite file.
        b: the other: the same.
        x: inputs (N, *input shape): float, or uint8 pixels, which are divided by 255; for models with several inputs a
            list of them, in the order of `model.inputs`. A few dozen are enough.

    Returns:
        A `Comparison`.

    Raises:
        ValueError: no layer has the same name and shape in both; x is empty or does not fit; a model takes integers.
    """
    (count, layers_a), (count_b, layers_b) = _layers_of(_like(a, b)), _layers_of(_like(b, a))
    if count != count_b:
        raise ValueError(f"{a} and {b} must have equally many inputs. Received: {count} and {count_b}")
    arrays = as_arrays(x, count)
    if len(arrays[0]) == 0:
        raise ValueError(f"x must hold at least one input. Received: shape {arrays[0].shape}")
    signal, noise, shapes = {}, {}, {}
    for start in range(0, len(arrays[0]), BATCH):
        batch = [array[start : start + BATCH] for array in arrays]
        ours, theirs = layers_a(batch), layers_b(batch)
        for name, values in ours.items():
            if name in theirs and _are_alike(values, theirs[name]):
                reference = values.astype(np.float64)
                other = theirs[name].astype(np.float64).reshape(values.shape)
                signal[name] = signal.get(name, 0.0) + np.sum(reference**2)
                noise[name] = noise.get(name, 0.0) + np.sum((reference - other) ** 2)
                shapes[name] = values.shape[1:]
    if not signal:
        raise ValueError(
            f"No layer of {a} and {b} has the same name and output shape. Files name their tensors after layers if "
            "export_tflite has written them"
        )
    return Comparison(tuple(LayerSNR(name, shapes[name], _decibel(signal[name], noise[name])) for name in signal))


def _are_alike(a, b):
    """Whether shapes differ in dimensions of size 1 only: int8 computes some vectors as images of one pixel."""
    return np.squeeze(a).shape == np.squeeze(b).shape


def _decibel(signal, noise):
    if noise == 0:
        return float("inf")
    return float(10 * np.log10(signal / noise)) if signal > 0 else float("-inf")


def _like(model, other):
    """A Keras 3 model in the form of what it is compared with; any other model as it is."""
    import keras

    from tfcompress.graph import inlined
    from tfcompress.outputs import two_classes

    if not isinstance(model, keras.Model):
        return model
    names, outputs = _names_and_outputs(other)
    flat = model
    with contextlib.suppress(ValueError):  # a layer that cannot be copied
        flat = inlined(model)
    inner = {layer.name for layer in flat.layers} - {layer.name for layer in model.layers}
    model = flat if inner & names else model
    return two_classes(model) if outputs == 2 else model


def _names_and_outputs(model):
    """The names of a model's layers or a file's tensors, and how many numbers it returns."""
    import keras

    if isinstance(model, str | os.PathLike):
        interpreter = open_interpreter(model)
        names = {detail["name"] for detail in interpreter.get_tensor_details()}
        return names, int(interpreter.get_output_details()[0]["shape"][-1])
    layers = model._flatten_layers() if isinstance(model, keras.Model) else getattr(model, "layers", [])
    outputs = getattr(model, "outputs", None)
    return {plain_name(layer.name) for layer in layers}, outputs[0].shape[-1] if outputs else None


def _layers_of(model):
    """The number of inputs, and a function from a list of as many arrays to {layer name: output}, in graph order."""
    return _file_layers(model) if isinstance(model, str | os.PathLike) else _keras_layers(model)


def _keras_layers(model):
    from tfcompress.graph import check_takes_floats
    from tfcompress.outputs import as_logits, ends_in_softmax, with_softmax

    check_takes_floats(model)
    if any(base.__module__.startswith("tf_keras.") for base in type(model).__mro__):
        import tf_keras as keras
    else:
        import keras
    if keras.__name__ == "keras" and ends_in_softmax(model):
        # As in a file: logits under the name of the last layer, then probabilities as "softmax".
        with contextlib.suppress(ValueError):  # no classifier
            model = with_softmax(as_logits(model)[0])
    outputs = _outputs(model)
    if ends_in_softmax(model):
        outputs = {"softmax" if x is model.outputs[0] else name: x for name, x in outputs.items()}
    single = len(model.inputs) == 1
    probe = keras.Model(model.inputs[0] if single else model.inputs, list(outputs.values()))
    probe.run_eagerly = True  # tracing takes longer than the few batches

    def layers(arrays):
        values = probe.predict_on_batch(arrays[0] if single else arrays)
        return dict(zip(outputs, values if isinstance(values, list) else [values]))

    return len(model.inputs), layers


def _outputs(model):
    """{layer name: output tensor} of the layers that are called once and have one output."""
    from tfcompress.graph import layer_calls

    names = {layer.name for layer in model.layers}
    calls = [(operation.name, tensors) for operation, tensors in layer_calls(model) if operation.name in names]
    counts = collections.Counter(name for name, _ in calls)
    return {plain_name(name): xs[0] for name, xs in calls if counts[name] == len(xs) == 1}


def _file_layers(path):
    from ai_edge_litert.interpreter import OpResolverType

    # Delegates keep what lies inside their partitions to themselves.
    resolver = OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
    interpreter = open_interpreter(path, experimental_preserve_all_tensors=True, experimental_op_resolver_type=resolver)
    sources = interpreter.get_input_details()
    inputs = [source["index"] for source in sources]
    details = interpreter.get_tensor_details()
    named = [d for d in details if d["name"] and len(d["shape"]) and d["index"] not in inputs]

    def layers(arrays):
        rows = {detail["name"]: [] for detail in named}
        for example in zip(*checked_inputs(arrays if len(sources) > 1 else arrays[0], sources)):
            for values, source in zip(example, sources):
                interpreter.set_tensor(source["index"], quantize(values[None], source))
            interpreter.invoke()
            for detail in named:
                rows[detail["name"]].append(dequantize(interpreter.get_tensor(detail["index"]), detail))
        return {name: np.concatenate(values) for name, values in rows.items()}

    return len(sources), layers
