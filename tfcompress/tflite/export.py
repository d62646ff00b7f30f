"""From a Keras model to a .tflite file."""

import dataclasses
import gzip
import pathlib
import re
import warnings

import numpy as np

from tfcompress.errors import UnsupportedLayerError
from tfcompress.files import replacing
from tfcompress.tflite import flatbuffer

PRECISIONS = ("float32", "float16", "dynamic", "int8", "int16x8")
CALIBRATED = ("int8", "int16x8")
ACTIVATIONS = ("Activation", "ReLU")
PRODUCTS = (
    flatbuffer.schema.BuiltinOperator.CONV_2D,
    flatbuffer.schema.BuiltinOperator.DEPTHWISE_CONV_2D,
    flatbuffer.schema.BuiltinOperator.FULLY_CONNECTED,
)
TRANSPOSED = flatbuffer.schema.BuiltinOperator.TRANSPOSE_CONV
CONVERSIONS = (flatbuffer.schema.BuiltinOperator.QUANTIZE, flatbuffer.schema.BuiltinOperator.DEQUANTIZE)
MOST_REQUANTIZATION = 256


@dataclasses.dataclass(frozen=True)
class TFLiteFile:
    """A written .tflite file.

    Attributes:
        path: where it is.
        bytes: its size.
        gzip_bytes: its size after `gzip -9` without a time stamp: what an app's download grows by.
        precision: one of float32, float16, dynamic, int8, int16x8.
    """

    path: pathlib.Path
    bytes: int
    gzip_bytes: int
    precision: str


class RequantizationError(ValueError):
    """An int8 file that XNNPACK would refuse for the values of its weights; other weights may do."""


def export_tflite(model, path, precision="int8", calibration=None, *, softmax=False):
    """Writes a model as a .tflite file of batch 1 that any LiteRT runtime executes.

    A model trained with quantization awareness (QAT, by TF-MOT) brings its ranges along and needs no calibration. Every
    other model is quantized after training with the ranges seen on `calibration`. If all calibration values lie in
    [0, 1], an exact 0 and an exact 1 are added, so that an int8 input has scale 1/255 and zero point -128: an app feeds
    pixels minus 128.

    Args:
        model: functional or sequential Keras 3 or tf_keras model with float inputs of fixed shape and one output.
        path: file to write; replaced at the end in one step, or left as it was.
        precision: `float32`; `float16` (weights); `dynamic` (int8 weights, float activations); `int8` (all of it, input
            and output included); `int16x8` (int16 activations, int8 weights, float input and output).
        calibration: float array (N, *input shape) of representative inputs, for `int8` and `int16x8`; for a model with
            several inputs a list of them, in the order of `model.inputs`. For a QAT model it only tells the input's
            range; without it that is [0, 1], or the `input_range` of `quantization_aware_training`.
        softmax: whether to append a softmax; otherwise the file returns what the model returns.

    Returns:
        A `TFLiteFile`.

    Raises:
        ValueError: a model that cannot be exported, or that ends in a softmax already, a wrong precision, or a
            calibration set that is missing, empty, of another shape or not finite; an int8 file whose input range is
            not the calibration's, or that XNNPACK, which computes int8 on phones, would refuse.
        OSError: the file cannot be written. Found before the conversion.
    """
    from tfcompress.outputs import check_logits

    if precision not in PRECISIONS:
        raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}. Received: precision={precision!r}")
    _check_model(model)
    if softmax:
        check_logits(model)
    quantization_aware = is_quantization_aware(model)
    if quantization_aware and precision not in ("float32", "int8"):
        raise ValueError(f"A QAT model is exported as int8 (or float32, to debug). Received: precision={precision!r}")
    if precision in CALIBRATED:
        _check_not_recurrent(model)
        calibration = _checked_calibration(calibration, model, optional=quantization_aware)
    path = pathlib.Path(path)
    with replacing(path) as part:
        data = _convert(model, precision, None if quantization_aware else calibration, softmax)
        if precision == "int8":
            _check_int8(
                data,
                _input_ranges(model, calibration),
                "since nothing tells its range"
                if quantization_aware
                else "as LiteRT has no int8 kernel for it: replace the layer, or export as dynamic or float16",
            )
        inputs = [plain_name(tensor.name) for tensor in model.inputs]
        data = flatbuffer.strip(data, _LayerNames(model), inputs, "softmax" if softmax else _output_name(model))
        part.write_bytes(data)
    return TFLiteFile(path, len(data), len(gzip.compress(data, 9, mtime=0)), precision)


def _check_model(model):
    from tfcompress.graph import check_takes_floats

    bases = {base.__name__ for base in type(model).__mro__}
    if not bases & {"Functional", "Sequential"}:
        raise ValueError(
            f"Only functional and sequential models can be exported. Received: {model!r}. Build a subclassed model's "
            "layers with keras.Model(inputs, outputs)."
        )
    if not model.built or not getattr(model, "inputs", None):
        raise ValueError(f"Model {model.name!r} is not built: its input shape is unknown. Add a keras.Input first.")
    if len(model.outputs) != 1:
        raise ValueError(
            f"A model with one output is expected. Received: {model.name!r} with {len(model.outputs)} outputs."
        )
    check_takes_floats(model)
    for shape in _input_shapes(model):
        if None in shape:
            raise ValueError(f"Every dimension of the input must be fixed. Received: input shape {shape}")
    for layer in model.layers:
        if getattr(layer, "compute_dtype", "float32") != "float32":
            raise UnsupportedLayerError(
                layer,
                f"computes in {layer.compute_dtype}; build the model with dtype policy float32, and give it "
                "the weights of this one (set_weights).",
            )
    if not _is_tf_keras(model):
        import keras

        if keras.backend.backend() != "tensorflow":
            raise ValueError(
                f"The converter reads TensorFlow graphs and Keras runs on {keras.backend.backend()}. Save the model "
                "(model.save) and export it in a process with KERAS_BACKEND=tensorflow."
            )


def _check_not_recurrent(model):
    """Refuses what TensorFlow's calibration dies of, with the whole process."""
    for layer in model._flatten_layers():
        if "RNN" in {base.__name__ for base in type(layer).__mro__} and not layer.unroll:
            raise UnsupportedLayerError(
                layer, "a recurrent layer is quantized with unroll=True only; else export as dynamic or float16."
            )


def _input_shapes(model):
    return [tuple(tensor.shape[1:]) for tensor in model.inputs]


def _input_ranges(model, calibration):
    """What range each input is expected to have: the one that a QAT model was trained for, else the calibration's."""
    trained = [layer.quantizer for layer in model.layers if hasattr(getattr(layer, "quantizer", None), "init_min")]
    ranges = [(0.0, 1.0)] * len(model.inputs)
    if calibration is not None:
        ranges = [(float(array.min()), float(array.max())) for array in calibration]
    if len(trained) == len(ranges) == 1:
        ((low, high),), (quantizer,) = ranges, trained
        if calibration is None or quantizer.init_min <= low <= high <= quantizer.init_max:
            ranges = [(quantizer.init_min, quantizer.init_max)]
    return ranges


def _is_tf_keras(model):
    return any(base.__module__.startswith("tf_keras.") for base in type(model).__mro__)


def is_quantization_aware(model):
    """Whether TF-MOT's fake quantization is in a model."""
    return any(type(layer).__name__.startswith("Quantize") for layer in model.layers)


def _checked_calibration(calibration, model, optional):
    """The calibration sets, one for each input, as float32; those that lie in [0, 1] have an exact 0 and 1; or None."""
    if calibration is None:
        if optional:
            return None
        raise ValueError("int8 and int16x8 need calibration: a few hundred inputs, float array (N, *input shape).")
    shapes = _input_shapes(model)
    arrays = [calibration] if len(shapes) == 1 else list(calibration)
    if len(arrays) != len(shapes) or len({len(array) for array in arrays}) > 1:
        raise ValueError(
            f"calibration must be {len(shapes)} arrays of equally many examples, one for each input. "
            f"Received: shapes {', '.join(str(np.shape(array)) for array in arrays)}"
        )
    return [_checked_array(np.asarray(array), shape) for array, shape in zip(arrays, shapes)]


def _checked_array(calibration, shape):
    if calibration.ndim == 0 or len(calibration) == 0:
        raise ValueError(f"The calibration set is empty. Received: an array of shape {calibration.shape}")
    if calibration.shape[1:] != shape:
        raise ValueError(
            f"calibration must have shape (N, {', '.join(map(str, shape))}). Received: {calibration.shape}"
        )
    if not np.issubdtype(calibration.dtype, np.floating):
        raise ValueError(f"calibration must be float, pixels / 255. Received: dtype {calibration.dtype}")
    if not np.isfinite(calibration).all():
        raise ValueError("calibration must be finite. Received: an array with NaN or infinity")
    calibration = calibration.astype(np.float32)
    extremes = np.stack([calibration[0], calibration[0]])
    if calibration.min() >= 0 and calibration.max() <= 1:
        # One pixel is enough for the input's range; an all-1 image would widen the range of every later tensor.
        extremes[0].flat[0], extremes[1].flat[0] = 0, 1
    return np.concatenate([calibration, extremes])


def _convert(model, precision, calibration, softmax):
    import tensorflow as tf
    from absl import logging
    from tensorflow.lite.python.convert import ConverterError

    # A fixed batch spares the file the operations that compute shapes, which phone accelerators refuse.
    signature = [
        tf.TensorSpec((1, *shape), tf.float32, name=tensor.name.split(":")[0])
        for shape, tensor in zip(_input_shapes(model), model.inputs)
    ]

    @tf.function(input_signature=signature)
    def forward(*inputs):
        outputs = model(inputs[0] if len(inputs) == 1 else list(inputs), training=False)
        return tf.nn.softmax(outputs) if softmax else outputs

    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Statistics for quantized inputs")
            # With trackable_obj, as its deprecation asks, weights stay variables and calibration fails (READ_VARIABLE).
            converter = tf.lite.TFLiteConverter.from_concrete_functions([forward.get_concrete_function()])
            _configure(converter, precision, calibration)
            return converter.convert()
    except (ConverterError, RuntimeError) as error:
        reason = re.search("error: (.*)|(.* not yet supported .*)", str(error))
        hint = ". Choose another precision, or replace the layer" if precision == "int16x8" else ""
        raise ValueError(
            f"{model.name!r} cannot be converted to {precision}: {reason[1] or reason[2] if reason else error}{hint}"
        ) from error
    finally:
        logging.set_verbosity(verbosity)


def _configure(converter, precision, calibration):
    import tensorflow as tf

    if precision == "float32":
        return
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    if precision == "float16":
        converter.target_spec.supported_types = [tf.float16]
    if precision == "int8":
        converter.inference_input_type = converter.inference_output_type = tf.int8
    if precision in CALIBRATED and calibration is not None:
        converter.representative_dataset = lambda: ([array[None] for array in arrays] for arrays in zip(*calibration))
        sets = tf.lite.OpsSet
        converter.target_spec.supported_ops = [
            sets.TFLITE_BUILTINS_INT8
            if precision == "int8"
            else sets.EXPERIMENTAL_TFLITE_BUILTINS_ACTIVATIONS_INT16_WEIGHTS_INT8
        ]


class _LayerNames:
    """From the converter's tensor names to layer names.

    A fused tensor's name lists its operations, `model/relu/Relu;model/conv/Conv2D`, mostly the last one first, and may
    add strangers that share a constant. It is the output of the layer found by starting at the first and going on to
    the only consumer while that is listed too, or can be in it unlisted: a BatchNormalization folded into the
    convolution, the activation that the operation contains.
    """

    def __init__(self, model):
        self._layers = {layer.name: layer for layer in model.layers}
        self._exact_first = _is_tf_keras(model)
        self._consumer = _only_consumers(model)

    def __call__(self, tensor_name, fused_activation):
        found = [name for name in map(self._layer, tensor_name.split(";")) if name is not None]
        if not found:
            return None, ()
        name = found[0]
        while (following := self._consumer.get(name)) and (
            following in found or self._leaves_no_trace(name, following, fused_activation)
        ):
            name = following
        return plain_name(name), tuple(map(plain_name, found))

    def _layer(self, operation):
        for scope in operation.split("/")[:2]:
            # Keras 3 opens each layer's scope twice, so that `conv` always becomes `conv_1`; tf_keras does not.
            candidates = (re.sub(r"_\d+$", "", scope), scope)
            for name in reversed(candidates) if self._exact_first else candidates:
                if name in self._layers:
                    return name
        return None

    def _leaves_no_trace(self, name, following, fused_activation):
        kinds = [
            type(getattr(layer, "layer", layer)).__name__ for layer in (self._layers[name], self._layers[following])
        ]
        if kinds[1] == "BatchNormalization":
            return "Conv" in kinds[0] or kinds[0] == "Dense"
        return fused_activation and kinds[1] in ACTIVATIONS and kinds[0] not in ACTIVATIONS


def plain_name(layer_name):
    """The name a layer had before quantization-aware training wrapped it."""
    return layer_name.removeprefix("quant_")


def _only_consumers(model):
    """{layer name: name of the one layer that reads its output}."""
    readers = {}
    for layer in model.layers:
        for tensor in _tensors(layer, "input"):
            readers.setdefault(id(tensor), []).append(layer.name)
    consumers = {}
    for layer in model.layers:
        names = [
            name for tensor in _tensors(layer, "output") for name in readers.get(id(tensor), ()) if name != layer.name
        ]
        if len(names) == 1:
            consumers[layer.name] = names[0]
    return consumers


def _tensors(layer, side):
    """Symbolic inputs or outputs of a layer; none for a layer that is used more than once."""
    try:
        value = getattr(layer, side)
    except (AttributeError, ValueError):
        return []
    return value if isinstance(value, list | tuple) else [value]


def _output_name(model):
    from tfcompress.graph import layer_calls
    from tfcompress.outputs import ends_in_softmax

    if ends_in_softmax(model):
        return "softmax"
    for operation, tensors in layer_calls(model):
        if any(tensor is model.outputs[0] for tensor in tensors):
            return plain_name(operation.name)
    return "output"


def _check_int8(data, input_ranges, why_float):
    """Asserts that no activation stayed float, that phones run the file and that its inputs quantize as expected."""
    model = flatbuffer.read(data)
    for graph in model.subgraphs:
        for operator in graph.operators:
            _check_operator(model, graph, operator, why_float)
    graph = model.subgraphs[0]
    for index, input_range in zip(graph.inputs, input_ranges, strict=True):
        _check_input(graph.tensors[index].quantization, input_range)


def _check_operator(model, graph, operator, why_float):
    code = flatbuffer.code(model, operator)
    types = {graph.tensors[index].type for index in (*operator.inputs, *operator.outputs) if index >= 0}
    name = graph.tensors[operator.outputs[0]].name.decode()
    if flatbuffer.schema.TensorType.FLOAT32 in types and code not in CONVERSIONS:
        raise ValueError(f"An operation of the int8 file stayed float, {why_float}: {name}")
    if code in PRODUCTS or code == TRANSPOSED:
        # The first input of a transposed convolution is its output's shape.
        inputs, kernel = operator.inputs[2:0:-1] if code == TRANSPOSED else operator.inputs[:2]
        _check_requantization(name, *(graph.tensors[i].quantization for i in (inputs, kernel, *operator.outputs)))


def _check_requantization(name, inputs, kernel, outputs):
    """Asserts that XNNPACK, which computes int8 on phones, takes an operation of these quantizations."""
    scale = inputs.scale[0] * np.max(kernel.scale) / outputs.scale[0]
    if scale >= MOST_REQUANTIZATION:
        raise RequantizationError(
            f"XNNPACK would not run the int8 file: the sums of {name} are scaled by {scale:.0f} to the steps of its "
            f"output, and it takes less than {MOST_REQUANTIZATION}. A channel whose inputs are nearly zero has a huge "
            "weight there, as after a BatchNormalization that saw hardly any variance: train longer, or prune it."
        )


def _check_input(quantization, input_range):
    scale, zero_point = float(quantization.scale[0]), int(quantization.zeroPoint[0])
    low, high = min(0.0, float(input_range[0])), max(0.0, float(input_range[1]))
    expected_scale = (high - low) / 255
    exact_zero_point = -128 - low / expected_scale
    # Of [-1, 1] it is -0.5, which may be rounded either way.
    if not np.isclose(scale, expected_scale, rtol=1e-4) or abs(zero_point - exact_zero_point) > 0.5001:
        raise ValueError(
            f"The int8 input has scale {scale:.8g} and zero point {zero_point}; inputs in [{low:g}, {high:g}] need "
            f"{expected_scale:.8g} and {exact_zero_point:g}. Give a QAT model the range that it was trained on, by "
            "calibration images that span it. After training, the converter gives an input another range where it is "
            "concatenated with something else: keep it apart, or train with quantization."
        )
