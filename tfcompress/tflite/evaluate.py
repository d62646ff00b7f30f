"""Accuracy of a .tflite file, by LiteRT."""

import pathlib

import numpy as np

from tfcompress.datasets.arrays import as_classes, as_float

BATCH = 100
THREADS = 2


def evaluate_tflite(path, x, y, k=1):
    """Top-k accuracy of a .tflite classifier over all of x.

    Args:
        path: the file.
        x: inputs (N, *input shape): float as the Keras model takes them, or uint8 pixels, which are divided by 255; for
            a file with several inputs a list of them, in the order of `model.inputs`.
        y: labels, (N,) or (N, 1) integers, or one-hot (N, classes).
        k: a prediction is correct if the label is among the k largest outputs; of equal ones, the first are larger.

    Returns:
        Fraction of correct predictions in [0, 1].

    Raises:
        ValueError: x, y and k do not fit each other or the file, the file is no classifier, or not a .tflite file.
        OSError: the file cannot be read.
    """
    labels = as_classes(y)
    outputs = predict_tflite(path, x)
    if outputs.ndim != 2 or outputs.shape[1] < 2:
        raise ValueError(
            "A classifier that returns one number per class, (N, classes), is expected. Received: a file with outputs "
            f"of shape {outputs.shape}; compute its accuracy from predict_tflite"
        )
    classes = outputs.shape[1]
    if not 1 <= k <= classes:
        raise ValueError(f"k must be between 1 and the file's {classes} classes. Received: k={k}")
    if len(labels) and not 0 <= labels.min() <= labels.max() < classes:
        raise ValueError(
            f"y must be in [0, {classes}), as the file has {classes} outputs. Received: {labels.min()} to "
            f"{labels.max()}"
        )
    if len(labels) != len(outputs):
        raise ValueError(
            f"x and y must have the same length, at least 1. Received: {len(outputs)} inputs, {len(labels)} labels"
        )
    largest = np.argsort(-outputs, axis=-1, kind="stable")[:, :k]
    return float(np.mean((largest == labels[:, None]).any(axis=-1)))


def predict_tflite(path, x):
    """Outputs of a .tflite file as float, quantized inputs and outputs converted here.

    Args:
        path: the file.
        x: inputs (N, *input shape): float as the Keras model takes them, or uint8 pixels, which are divided by 255; for
            a file with several inputs a list of them, in the order of `model.inputs`.

    Returns:
        float32 array (N, *output shape).

    Raises:
        ValueError: x does not fit the file, or the file is not a .tflite file.
        OSError: the file cannot be read.
    """
    interpreter = open_interpreter(path, threads=THREADS)
    sources, target = interpreter.get_input_details(), interpreter.get_output_details()[0]
    arrays = checked_inputs(x, sources)
    outputs, count = [], len(arrays[0])
    batch = _resize(interpreter, min(BATCH, count))
    for start in range(0, count, batch):
        for array, source in zip(arrays, sources):
            chunk = array[start : start + batch]
            if len(chunk) < batch:
                # The last chunk is filled up, not run at its own size: resizing costs more than a few images.
                chunk = np.concatenate([chunk, np.repeat(chunk[:1], batch - len(chunk), axis=0)])
            interpreter.set_tensor(source["index"], quantize(chunk, source))
        interpreter.invoke()
        outputs.append(dequantize(interpreter.get_tensor(target["index"]), target))
    return np.concatenate(outputs)[:count]


def open_interpreter(path, threads=1, **options):
    """An `Interpreter` of a file with its tensors allocated.

    Args:
        path: the file.
        threads: number of threads.
        **options: passed to `ai_edge_litert.interpreter.Interpreter`.

    Raises:
        ValueError: the file is corrupt, or LiteRT cannot run it.
        OSError: the file cannot be read.
    """
    from ai_edge_litert.interpreter import Interpreter

    data = pathlib.Path(path).read_bytes()
    try:
        interpreter = Interpreter(model_content=data, num_threads=threads, **options)
        interpreter.allocate_tensors()
    except (ValueError, RuntimeError) as error:
        raise ValueError(f"{path} ({len(data):,} bytes) is corrupt, or LiteRT cannot run it: {error}") from error
    return interpreter


def quantize(x, details):
    """Float inputs in a tensor's own type."""
    scale, zero_point = details["quantization"]
    if scale == 0:
        return np.asarray(x, details["dtype"])
    limits = np.iinfo(details["dtype"])
    return np.clip(np.round(x / np.float32(scale)) + zero_point, limits.min, limits.max).astype(details["dtype"])


def dequantize(values, details):
    """A tensor's values as float32."""
    scale, zero_point = details["quantization"]
    values = values.astype(np.float32)
    return values if scale == 0 else (values - np.float32(zero_point)) * np.float32(scale)


def as_arrays(x, count):
    """The inputs of a model that has so many of them as a list of float arrays, equally many examples each."""
    arrays = list(x) if isinstance(x, list | tuple) and count > 1 else [x]
    if isinstance(x, dict) or len(arrays) != count or len({len(array) for array in arrays}) > 1:
        shapes = ", ".join(str(np.shape(array)) for array in arrays)
        received = "a dict" if isinstance(x, dict) else f"shapes {shapes}"
        raise ValueError(
            f"The model has {count} inputs: x must be an array of examples for each, equally many, in a list if there "
            f"are several. Received: {received}"
        )
    return [as_float(np.asarray(array)) for array in arrays]


def checked_inputs(x, sources):
    """One float array for each input of the file."""
    for source in sources:
        if np.issubdtype(source["dtype"], np.integer) and source["quantization"][0] == 0:
            raise ValueError(
                f"The file takes {np.dtype(source['dtype']).name} without a scale, where pixels / 255 would become 0. "
                "Expected float or quantized inputs: export a model that takes floats"
            )
    arrays = as_arrays(x, len(sources))
    for array, source in zip(arrays, sources):
        if len(array) == 0 or array.shape[1:] != tuple(source["shape"][1:]):
            shape = ", ".join(map(str, source["shape"][1:]))
            raise ValueError(f"x must have shape (N, {shape}) with N >= 1. Received: {array.shape}")
    return arrays


def _resize(interpreter, batch):
    """Sets the batch size, or 1 for a file whose graph is fixed to it. Returns the size set."""
    for size in (batch, 1):
        for source in interpreter.get_input_details():
            interpreter.resize_tensor_input(source["index"], [size, *source["shape"][1:]])
        try:
            interpreter.allocate_tensors()
        except RuntimeError:
            continue
        if interpreter.get_output_details()[0]["shape"][0] == size:
            return size
    raise ValueError("The file has no batch axis: input and output must both start with it.")
