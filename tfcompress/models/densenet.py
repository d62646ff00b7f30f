"""The CIFAR DenseNets of Huang et al. 2017."""

import keras
from keras import layers


def densenet(
    depth=40,
    growth=12,
    bottleneck=False,
    reduction=1.0,
    stem=16,
    classes=10,
    input_shape=(32, 32, 3),
):
    """Builds DenseNet and DenseNet-BC: three dense blocks of BN-ReLU-convolution, with transitions between them.

    DenseNet-40-12: 1,019,722 parameters and 264,812,928 MACs. DenseNet-BC-40-12
    (`bottleneck=True, reduction=0.5, stem=24`): 176,122 and 72,365,352 (ten classes).

    Args:
        depth: number of weighted layers: 3n + 4, or 6n + 4 with bottlenecks.
        growth: channels that each layer adds.
        bottleneck: whether a 1x1 convolution to 4 * growth channels precedes each 3x3 convolution.
        reduction: fraction of the channels that a transition keeps ("theta"), in (0, 1].
        stem: channels of the first convolution.
        classes: number of classes.
        input_shape: (height, width, channels); pixels are expected in [0, 1].

    Returns:
        A `keras.Model` that maps `(batch, *input_shape)` to `(batch, classes)` logits.

    Raises:
        ValueError: if the depth does not fit three equal blocks, or `reduction` is outside (0, 1].
    """
    convolutions_per_layer = 2 if bottleneck else 1
    layers_per_block, rest = divmod(depth - 4, 3 * convolutions_per_layer)
    if layers_per_block < 1 or rest:
        raise ValueError(f"depth must be {3 * convolutions_per_layer}n + 4. Received: depth={depth}")
    if not 0 < reduction <= 1:
        raise ValueError(f"reduction must be in (0, 1]. Received: reduction={reduction}")
    inputs = keras.Input(input_shape, name="image")
    x = _convolution(inputs, stem, 3, "conv1")
    for block in (1, 2, 3):
        for layer in range(1, layers_per_block + 1):
            x = _dense_layer(x, growth, bottleneck, f"block{block}_layer{layer}")
        if block < 3:
            x = _transition(x, int(x.shape[-1] * reduction), f"transition{block}")
    x = _bn_relu(x, "final")
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    outputs = layers.Dense(classes, name="logits")(x)
    return keras.Model(inputs, outputs, name=f"densenet{'_bc' if bottleneck else ''}{depth}_{growth}")


def _dense_layer(x, growth, bottleneck, name):
    y = x
    if bottleneck:
        y = _bn_relu(y, f"{name}_bottleneck")
        y = _convolution(y, 4 * growth, 1, f"{name}_bottleneck")
    y = _bn_relu(y, name)
    y = _convolution(y, growth, 3, f"{name}_conv")
    return layers.Concatenate(name=f"{name}_concat")([x, y])


def _transition(x, width, name):
    x = _bn_relu(x, name)
    x = _convolution(x, width, 1, f"{name}_conv")
    return layers.AveragePooling2D(2, name=f"{name}_pool")(x)


def _bn_relu(x, name):
    x = layers.BatchNormalization(name=f"{name}_bn")(x)
    return layers.ReLU(name=f"{name}_relu")(x)


def _convolution(x, width, kernel_size, name):
    return layers.Conv2D(width, kernel_size, padding="same", use_bias=False, kernel_initializer="he_normal", name=name)(
        x
    )
