"""Gives the channels of a depthwise convolution the same range before they share one scale."""

import numpy as np

from tfcompress.keras2 import tf_keras
from tfcompress.quantization.layout import folding_producer

# A channel whose kernel is smaller than this part of the largest one is dead; brought up fully, it would drown float32.
_SMALLEST = 1e-3


def equalize_depthwise(model):
    """Scales every channel of a depthwise kernel to the same largest weight; the BatchNorm behind it takes that back.

    TF-MOT quantizes a depthwise kernel with one range for all channels, of which trained ones differ by orders of
    magnitude: the small ones keep a few of the 255 steps. Equalized, every channel uses all of them. The converter
    folds the BatchNorm into the kernel's scales, one per channel, so nothing of this is left in the file. It is the
    cross-layer equalization of Nagel et al. 2019 ("Data-free quantization through weight equalization and bias
    correction", section 4.1) between a convolution and its own BatchNorm, where no ReLU6 is in the way.

    Args:
        model: a `tf_keras.Model`. It is not changed.

    Returns:
        The model, or a copy that computes the same in inference and, but for the BatchNorm's epsilon, in training.
    """
    pairs = _pairs(model)
    if not pairs:
        return model
    equalized = tf_keras.models.clone_model(model)
    equalized.set_weights(model.get_weights())
    for depthwise, norm in pairs:
        _equalize(equalized.get_layer(depthwise), equalized.get_layer(norm))
    return equalized


def _pairs(model):
    """Names of the depthwise convolutions and of the BatchNorms with a gamma that they alone feed."""
    norms = [layer for layer in model.layers if isinstance(layer, tf_keras.layers.BatchNormalization) and layer.scale]
    producers = [folding_producer(norm, model) for norm in norms]
    return [
        (depthwise.name, norm.name)
        for depthwise, norm in zip(producers, norms)
        if isinstance(depthwise, tf_keras.layers.DepthwiseConv2D)
    ]


def _equalize(depthwise, norm):
    kernel = depthwise.depthwise_kernel.numpy()
    largest = np.abs(kernel).max(axis=(0, 1), keepdims=True)
    factor = largest.max() / np.maximum(largest, _SMALLEST * max(largest.max(), np.finfo("float32").tiny))
    depthwise.depthwise_kernel.assign(kernel * factor)
    factor = factor.reshape(-1)
    if depthwise.use_bias:
        depthwise.bias.assign(depthwise.bias.numpy() * factor)
    variance = norm.moving_variance.numpy()
    norm.moving_mean.assign(norm.moving_mean.numpy() * factor)
    norm.moving_variance.assign(variance * factor**2)
    # Without epsilon the BatchNorm undoes the factor by itself, and gamma stays.
    norm.gamma.assign(norm.gamma.numpy() * np.sqrt((variance + norm.epsilon / factor**2) / (variance + norm.epsilon)))
