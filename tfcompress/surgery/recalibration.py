"""BatchNorm statistics after surgery: no labels, no gradients, a large gain before fine-tuning."""

import keras
import numpy as np
from keras import layers

from tfcompress.datasets.arrays import as_float
from tfcompress.graph import model_inputs, walk


def recalibrate(model, x, batch_size=32):
    """Measures the moving statistics of every BatchNormalization anew, in place.

    Each BatchNorm sees the batches as in training, and its statistics become the plain average over them; every
    other layer works as in inference. BatchNorms that are frozen (`trainable=False`) keep their statistics.

    Args:
        model: a Sequential or functional Keras model.
        x: inputs (an array, or what the model's `predict` takes: a list or dict of arrays), without labels; uint8
            pixels are divided by 255 where the model takes floats. A few hundred examples do.
        batch_size: examples per batch.

    Returns:
        The same model.

    Raises:
        ValueError: if the model is subclassed or there are no examples.
    """
    inputs = keras.tree.flatten(x)
    if not inputs or not len(inputs[0]):
        raise ValueError("recalibrate needs examples. Received: an empty x")
    for batch, start in enumerate(range(0, len(inputs[0]), batch_size)):
        values = [array[start : start + batch_size] for array in inputs]
        walk(model, _as_inputs(model, values), lambda call, batch=batch: _run(call, batch))
    return model


def _as_inputs(model, values):
    specs = model_inputs(model)
    values = [as_float(np.asarray(value)) if "float" in spec.dtype else value for value, spec in zip(values, specs)]
    return [keras.ops.convert_to_tensor(value, spec.dtype) for value, spec in zip(values, specs)]


def _run(call, batch):
    layer = call.operation
    if not isinstance(layer, layers.BatchNormalization) or not layer.trainable:
        return keras.tree.flatten(layer(*call.args, **call.kwargs))
    momentum, layer.momentum = layer.momentum, batch / (batch + 1)
    try:
        return [layer(*call.args, **{**call.kwargs, "training": True})]
    finally:
        layer.momentum = momentum
