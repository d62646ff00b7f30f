"""MobileNet v1 (Howard et al. 2017)."""

import keras
from keras import layers

_BLOCKS = ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *[(512, 1)] * 5, (1024, 2), (1024, 1))


def mobilenet(input_shape=(32, 32, 3), alpha=1.0, classes=10, stem_strides=1, block2_strides=2, rescaling=False):
    """Builds MobileNet v1: a 3x3 convolution and 13 depthwise separable blocks.

    With `input_shape=(224, 224, 3), classes=1000, stem_strides=2`, the network of the paper: 4,231,976 parameters
    and 568,740,352 MACs.

    Args:
        input_shape: (height, width, channels); pixels are expected in [0, 1].
        alpha: width multiplier.
        classes: number of classes.
        stem_strides: strides of the first convolution: 2 in the paper; 1 leaves a 32x32 image 2x2 positions
            at the end instead of one.
        block2_strides: strides of the second block: 2 in the paper; 1 as well leaves a 32x32 image 4x4 positions.
        rescaling: whether the network itself maps its pixels to [-1, 1], as the weights of
            `keras.applications.MobileNet` expect.

    Returns:
        A `keras.Model` that maps `(batch, *input_shape)` to `(batch, classes)` logits.
    """
    inputs = keras.Input(input_shape, name="image")
    x = layers.Rescaling(2.0, -1.0, name="rescaling")(inputs) if rescaling else inputs
    x = layers.Conv2D(
        int(32 * alpha), 3, stem_strides, "same", use_bias=False, kernel_initializer="he_normal", name="conv1"
    )(x)
    x = _bn_relu6(x, "conv1")
    for block, (width, strides) in enumerate(_BLOCKS, start=1):
        x = _separable_block(x, int(width * alpha), block2_strides if block == 2 else strides, f"block{block}")
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    outputs = layers.Dense(classes, name="logits")(x)
    return keras.Model(inputs, outputs, name="mobilenet")


def _separable_block(x, width, strides, name):
    x = layers.DepthwiseConv2D(
        3, strides, "same", use_bias=False, depthwise_initializer="he_normal", name=f"{name}_depthwise"
    )(x)
    x = _bn_relu6(x, f"{name}_depthwise")
    x = layers.Conv2D(width, 1, use_bias=False, kernel_initializer="he_normal", name=f"{name}_pointwise")(x)
    return _bn_relu6(x, f"{name}_pointwise")


def _bn_relu6(x, name):
    x = layers.BatchNormalization(name=f"{name}_bn")(x)
    return layers.ReLU(6.0, name=f"{name}_relu")(x)
