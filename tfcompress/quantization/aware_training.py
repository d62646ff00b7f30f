"""Quantization-aware training with TF-MOT: wrap, calibrate, train."""

import contextlib

import keras
import numpy as np
import tensorflow as tf

from tfcompress.datasets.arrays import as_classes, sample
from tfcompress.graph import inlined
from tfcompress.keras2 import tfmot, to_tf_keras
from tfcompress.outputs import check_logits, is_augmentation
from tfcompress.quantization.equalize import equalize_depthwise
from tfcompress.quantization.scheme import CUSTOM_OBJECTS, Scheme, check_supported
from tfcompress.quantization.weight_sharing import weight_tying
from tfcompress.training.checkpoint import digest
from tfcompress.training.fit import check_data, fit

_CALIBRATION_IMAGES = 1024


def quantization_aware_training(
    model,
    x,
    y,
    config,
    *,
    preserve_sparsity=False,
    preserve_sharing=False,
    input_range=(0.0, 1.0),
    teacher=None,
    validation=None,
    directory=None,
):
    """Trains a network with the rounding of int8 arithmetic in its forward pass (Jacob et al. 2018).

    Weights become int8 (symmetric, one scale per filter of a convolution; of depthwise ones see `equalize_depthwise`),
    activations int8 with ranges that start from up to 1,024 of the training images and follow a moving average.
    Dropout is off. Of a Keras 3 model, models inside it are taken apart, and layers of augmentation left out.

    Args:
        model: a Keras 3 or tf_keras model, trained. It is not changed.
        x: training images, as `tfcompress.training.fit` takes them.
        y: (N,) integer labels.
        config: a `TrainingConfig`.
        preserve_sparsity: whether weights that are zero stay zero.
        preserve_sharing: whether weights that `share_weights` made equal stay equal, in kernels with at least twice as
            many weights as values, and zeros zero. Where a BatchNorm follows a dense layer, that is so within each
            unit: int8 folds its scales into the weights.
        input_range: (smallest, largest) value of the model's inputs; (0, 1) for pixels / 255.
        teacher: a model to be distilled from, a `CachedTeacher`, or None.
        validation: (images, labels) to measure after each epoch, or None.
        directory: where the checkpoints go, or None. The same call resumes there.

    Returns:
        A `tf_keras.Model` that computes, in floats, what its int8 file will.

    Raises:
        ValueError: a model that is subclassed, not built, no classifier with one input, or ends in a softmax; images
            outside `input_range`, or not the model's.
        UnsupportedLayerError: a layer that tf_keras does not have or that cannot be quantized.
        FloatingPointError, CheckpointError: as `fit` raises them.
    """
    check_data(model, x, as_classes(y))
    check_logits(model)
    _check_range(x, input_range)
    wrapped = quantize_wrap(model, preserve_sparsity=preserve_sparsity, input_range=input_range)
    calibrate(wrapped, *sample(_CALIBRATION_IMAGES, x), batch_size=config.batch_size)
    identity = {
        "preserve_sparsity": preserve_sparsity,
        "preserve_sharing": preserve_sharing,
        "input_range": [float(end) for end in input_range],
        # Not those of `wrapped`: another processor finds ranges that differ in the last bits.
        "initial_weights": digest(model.get_weights())[:16],
    }
    callbacks = [weight_tying(wrapped)] if preserve_sharing else []
    options = {"validation": validation, "teacher": teacher, "directory": directory}
    fit(wrapped, x, y, config, callbacks=callbacks, identity=identity, **options)
    _update_weight_ranges(wrapped)
    return wrapped


def _check_range(x, input_range):
    """Asserts that the file's input, which is clipped to the range, can hold the images."""
    if len(x) == 0:
        return  # `calibrate` says so
    unit = 255 if x.dtype == np.uint8 else 1
    least, most = float(x.min()) / unit, float(x.max()) / unit
    low, high = min(0.0, *input_range), max(0.0, *input_range)
    # What an augmentation or a rounding adds is not worth a refusal.
    tolerance = 0.01 * (high - low)
    if least < low - tolerance or most > high + tolerance:
        raise ValueError(
            f"x must lie in input_range, as the int8 input is clipped to it. Received: values from {least:g} to "
            f"{most:g}, input_range=({low:g}, {high:g}). Give the range of the images, or pixels / 255"
        )


def quantize_wrap(model, *, preserve_sparsity=False, input_range=(0.0, 1.0)):
    """Puts TF-MOT's fake quantization into a copy of the model.

    The ranges of a new wrapper are [-6, 6], far from any network's: `calibrate` them before training or conversion.

    Args:
        model: a Keras 3 or tf_keras model. It is not changed.
        preserve_sparsity: whether weights that are zero now stay zero (prune-preserving QAT).
        input_range: (smallest, largest) value of the model's inputs, fixed, and widened to hold 0. For (0, 1) the
            file's input has scale 1/255 and zero point -128, so pixels enter it as they are, minus 128.

    Returns:
        A `tf_keras.Model`; its variables include all ranges, so they suffice to resume a training.

    Raises:
        ValueError: a model that is subclassed or not built.
        UnsupportedLayerError: a layer that tf_keras does not have or that cannot be quantized.
    """
    legacy = to_tf_keras(inlined(model, _is_left_out) if isinstance(model, keras.Model) else model)
    check_supported(legacy)
    legacy = equalize_depthwise(legacy)
    with tfmot.quantization.keras.quantize_scope(CUSTOM_OBJECTS):
        annotated = tfmot.quantization.keras.quantize_annotate_model(legacy)
        wrapped = tfmot.quantization.keras.quantize_apply(annotated, Scheme(preserve_sparsity))
    for layer in wrapped.layers:
        if getattr(layer, "quantizer", None):
            # TF-MOT's input quantizer widens with the data; one rounding error of an augmentation above 1 would
            # move the scale off 1/255.
            layer.quantizer = tfmot.quantization.keras.quantizers.FixedQuantizer(
                num_bits=8, init_min=min(0.0, input_range[0]), init_max=max(0.0, input_range[1]), narrow_range=False
            )
    for wrapper in _wrappers(wrapped):
        wrapper._weight_vars = [(weight, _StraightThrough(q), ranges) for weight, q, ranges in wrapper._weight_vars]
    return wrapped


def _is_left_out(operation):
    return isinstance(operation, keras.layers.Identity) or is_augmentation(operation)


def calibrate(model, x, *, batch_size=128):
    """Sets all ranges from data: weights to their extremes, activations to the mean of the extremes of each batch.

    TF-MOT would otherwise average its way from [-6, 6] at 0.1 % a step, which takes thousands of steps.

    Args:
        model: what `quantize_wrap` returned.
        x: (N, H, W, C) images, uint8 pixels (pixels / 255 are used) or floats.
        batch_size: images per forward pass.

    Raises:
        ValueError: x is empty.
    """
    if len(x) == 0:
        raise ValueError("calibration needs at least one image. Received: none")
    _update_weight_ranges(model)
    wrappers = _wrappers(model)
    ranges = [v for wrapper in wrappers for v in wrapper.weights if v.name.endswith(_ACTIVATION_RANGES)]
    observed = []
    with _observing(wrappers):
        for start in range(0, len(x), batch_size):
            batch = x[start : start + batch_size]
            model(batch / np.float32(255) if batch.dtype == np.uint8 else batch, training=False)
            observed.append([variable.numpy() for variable in ranges])
    for variable, values in zip(ranges, zip(*observed)):
        variable.assign(np.mean(values))


class _StraightThrough:
    """A quantizer of weights through which gradients pass unchanged, except to zeros that stay.

    TF-MOT's gradient stops at weights outside the range. The range is that of the weights, so there are none, and the
    kernel that looks for them takes a fifth of the computations of a training step of MobileNet.
    """

    def __init__(self, quantizer):
        self._quantizer = quantizer

    def __call__(self, inputs, training, weights, **kwargs):
        if not training:
            return self._quantizer(inputs, training, weights, **kwargs)
        inputs = tf.convert_to_tensor(inputs)
        quantized = self._quantizer(tf.stop_gradient(inputs), training, weights, **kwargs)
        mask = weights.get("sparsity_mask", 1.0)
        return tf.custom_gradient(lambda _: (quantized, lambda upstream: upstream * mask))(inputs)


_ACTIVATION_RANGES = ("activation_min:0", "activation_max:0", "output_min:0", "output_max:0")


def _wrappers(model):
    return [layer for layer in model.layers if isinstance(layer, tfmot.quantization.keras.QuantizeWrapper)]


def _update_weight_ranges(model):
    """Sets the range of every weight to its extremes; training leaves those from before the optimizer's last step."""
    for wrapper in _wrappers(model):
        for weight, quantizer, variables in wrapper._weight_vars:
            quantizer(weight, training=True, weights=variables)


class _Observer(tfmot.quantization.keras.quantizers.LastValueQuantizer):
    """Takes each batch's own range, whether training or not: BatchNorm and dropout must see inference meanwhile."""

    def __call__(self, inputs, training, weights, **kwargs):
        return super().__call__(inputs, True, weights)


@contextlib.contextmanager
def _observing(wrappers):
    """Replaces the moving-average quantizers of all activations by observers (they use the same variables)."""
    observer = _Observer(num_bits=8, per_axis=False, symmetric=False, narrow_range=False)
    activations = [(activation, activation.quantizer) for w in wrappers for activation in w._quantize_activations]
    outputs = [(wrapper, wrapper._output_quantizers) for wrapper in wrappers if wrapper._output_quantizers]
    try:
        for activation, _ in activations:
            activation.quantizer = observer
        for wrapper, _ in outputs:
            wrapper._output_quantizers = [observer]
        yield
    finally:
        for activation, quantizer in activations:
            activation.quantizer = quantizer
        for wrapper, quantizers in outputs:
            wrapper._output_quantizers = quantizers
