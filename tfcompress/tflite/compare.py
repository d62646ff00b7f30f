"""Where does a smaller model stop being the same function?"""

import contextlib
import dataclasses
import os

import numpy as np

from tfcompress.graph import check_takes_floats
from tfcompress.tflite.evaluate import dequantize, open_interpreter, quantize, to_float
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
            falls.append(level - layer.snr)
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

    Layers are matched by name and left out where one side does not have them or has them in another shape. A .tflite
    file written by `export_tflite` names the output of a fused group after its last layer: of Conv2D,
    BatchNormalization and ReLU that became one operation, only the ReLU is compared.

    Args:
        a: the reference: a Keras 3 or tf_keras model, or the path of a .tflite file.
        b: the other: the same.
        x: inputs (N, *input shape): float, or uint8 pixels, which are divided by 255. A few dozen are enough.

    Returns:
        A `Comparison`.

    Raises:
        ValueError: no layer has the same name and shape in both; x is empty; a model takes integers.
    """
    x = to_float(x)
    if len(x) == 0:
        raise ValueError(f"x must hold at least one input. Received: shape {x.shape}")
    layers_a, layers_b = _layers_of(a), _layers_of(b)
    signal, noise, shapes = {}, {}, {}
    for start in range(0, len(x), BATCH):
        ours, theirs = (layers(x[start : start + BATCH]) for layers in (layers_a, layers_b))
        for name, values in ours.items():
            if name in theirs and theirs[name].shape == values.shape:
                reference, other = values.astype(np.float64), theirs[name].astype(np.float64)
                signal[name] = signal.get(name, 0.0) + np.sum(reference**2)
                noise[name] = noise.get(name, 0.0) + np.sum((reference - other) ** 2)
                shapes[name] = values.shape[1:]
    if not signal:
        raise ValueError(f"No layer of {a} and {b} has the same name and output shape.")
    return Comparison(tuple(LayerSNR(name, shapes[name], _decibel(signal[name], noise[name])) for name in signal))


def _decibel(signal, noise):
    if noise == 0:
        return float("inf")
    return float(10 * np.log10(signal / noise)) if signal > 0 else float("-inf")


def _layers_of(model):
    """A function from inputs to {layer name: output}, in graph order."""
    return _file_layers(model) if isinstance(model, str | os.PathLike) else _keras_layers(model)


def _keras_layers(model):
    check_takes_floats(model)
    if any(base.__module__.startswith("tf_keras.") for base in type(model).__mro__):
        import tf_keras as keras
    else:
        import keras
    from tfcompress.outputs import as_logits, ends_in_softmax, with_softmax

    outputs = {}
    if keras.__name__ == "keras" and ends_in_softmax(model):
        # As in a file: logits under the name of the last layer, then probabilities as "softmax".
        with contextlib.suppress(ValueError):  # no classifier
            model = with_softmax(as_logits(model)[0])
    for layer in model.layers:
        try:
            output = layer.output
        except (AttributeError, ValueError):
            continue  # used more than once: no single output
        if type(layer).__name__ != "InputLayer" and not isinstance(output, list | tuple | dict):
            outputs[plain_name(layer.name)] = output
    probe = keras.Model(model.inputs[0], list(outputs.values()))
    probe.run_eagerly = True  # tracing takes longer than the few batches

    def layers(x):
        values = probe.predict_on_batch(x)
        return dict(zip(outputs, values if isinstance(values, list) else [values]))

    return layers


def _file_layers(path):
    from ai_edge_litert.interpreter import OpResolverType

    # Delegates keep what lies inside their partitions to themselves.
    resolver = OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
    interpreter = open_interpreter(path, experimental_preserve_all_tensors=True, experimental_op_resolver_type=resolver)
    source = interpreter.get_input_details()[0]
    named = [d for d in interpreter.get_tensor_details() if d["name"] and d["index"] != source["index"]]

    def layers(x):
        rows = {detail["name"]: [] for detail in named}
        for image in x:
            interpreter.set_tensor(source["index"], quantize(image[None], source))
            interpreter.invoke()
            for detail in named:
                rows[detail["name"]].append(dequantize(interpreter.get_tensor(detail["index"]), detail))
        return {name: np.concatenate(values) for name, values in rows.items()}

    return layers
