"""BatchNorm statistics after surgery: no labels, no gradients, a large gain before fine-tuning."""

import collections
import functools

import keras
from keras import layers

from tfcompress.graph import as_inputs, walk


def recalibrate(model, x, batch_size=32):
    """Measures the moving statistics of every BatchNormalization anew, in place.

    Each BatchNorm sees the batches as in training, and its statistics become their average over all its calls, weighted
    by size; every other layer works as in inference. BatchNorms that are frozen (`trainable=False`) keep their
    statistics.

    Args:
        model: a Sequential or functional Keras model.
        x: inputs (an array, or what the model's `predict` takes: a list or dict of arrays), without labels; uint8
            pixels are divided by 255 where the model takes floats. A few hundred examples do.
        batch_size: examples per batch.

    Returns:
        The same model.

    Raises:
        ValueError: if the model is subclassed, there are no examples, not one array for each input, or fractions for
            a model that takes integers.
    """
    inputs = as_inputs(model, x)
    if not len(inputs[0]):
        raise ValueError("recalibrate needs examples. Received: an empty x")
    seen = collections.Counter()  # examples, by each BatchNorm
    for start in range(0, len(inputs[0]), batch_size):
        values = [
            keras.ops.convert_to_tensor(array[start : start + batch_size], spec.dtype)
            for array, spec in zip(inputs, model.inputs)
        ]
        walk(model, values, functools.partial(_run, seen=seen, count=len(values[0])))
    return model


def run_on_statistics_of_batch(call):
    """Calls an operation of a model, for `walk`: a BatchNorm, unless it is frozen, as in training, all else not."""
    layer = call.operation
    if _is_recalibrated(layer):
        renorm, layer.renorm = layer.renorm, False
        try:
            return [layer(*call.args, **{**call.kwargs, "training": True})]
        finally:
            layer.renorm = renorm
    # The call has the layer's own default, which is to be in training for layers of augmentation.
    inference = {"training": False} if getattr(layer, "_call_has_training_arg", False) else {}
    return keras.tree.flatten(layer(*call.args, **{**call.kwargs, **inference}))


def _is_recalibrated(layer):
    return isinstance(layer, layers.BatchNormalization) and layer.trainable


def _run(call, seen, count):
    layer = call.operation
    if not _is_recalibrated(layer):
        return run_on_statistics_of_batch(call)
    own, layer.momentum = layer.momentum, seen[id(layer)] / (seen[id(layer)] + count)
    seen[id(layer)] += count
    try:
        return run_on_statistics_of_batch(call)
    finally:
        layer.momentum = own
        if layer.renorm:  # batch renormalization keeps copies of its own
            deviation = keras.ops.sqrt(layer.moving_variance + layer.epsilon)
            layer.renorm_mean.assign(layer.moving_mean)
            layer.renorm_stddev.assign(deviation)
            layer.moving_stddev.assign(deviation)
