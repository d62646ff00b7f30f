"""The CIFAR ResNets of He et al. 2016, section 4.2."""

import re

import keras
from keras import layers


def resnet(depth, classes=10, shortcut="A", input_shape=(32, 32, 3)):
    """Builds ResNet20, 32, 44, 56, 110, ...: three stages of basic blocks with 16, 32 and 64 channels.

    ResNet20: 269,722 parameters and 40,551,040 MACs; ResNet110: 1,727,962 and 252,887,680 (shortcut A, ten classes).

    Args:
        depth: number of weighted layers, 6n + 2.
        classes: number of classes.
        shortcut: where the width changes, "A" subsamples and pads with zero channels (no parameters),
            "B" is a 1x1 convolution with BatchNorm.
        input_shape: (height, width, channels); pixels are expected in [0, 1].

    Returns:
        A `keras.Model` that maps `(batch, *input_shape)` to `(batch, classes)` logits.

    Raises:
        ValueError: if `depth` is not 6n + 2 or `shortcut` is not "A" or "B".
    """
    if depth < 8 or (depth - 2) % 6:
        raise ValueError(f"depth must be 6n + 2 (8, 14, 20, ...). Received: depth={depth}")
    if shortcut not in ("A", "B"):
        raise ValueError(f'shortcut must be "A" or "B". Received: shortcut={shortcut!r}')
    inputs = keras.Input(input_shape, name="image")
    x = _convolution_bn(inputs, 16, 3, 1, "conv1")
    x = layers.ReLU(name="conv1_relu")(x)
    for stage, width in enumerate((16, 32, 64), start=1):
        for block in range(1, (depth - 2) // 6 + 1):
            strides = 2 if stage > 1 and block == 1 else 1
            x = _basic_block(x, width, strides, shortcut, f"stage{stage}_block{block}")
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    outputs = layers.Dense(classes, name="logits")(x)
    return keras.Model(inputs, outputs, name=f"resnet{depth}")


def deepen(model, depth):
    """Grows a ResNet into a deeper one that computes almost the same, so that what it has learned is where that starts.

    A residual block is a step of an integration over depth (Chang et al. 2018, "Multi-level residual networks from
    dynamical systems view"): k steps with the block's weights and a k-th of its branch each lead almost where the block
    did. The first block of a stage, which may change the width, stays single; copies of the others are spread evenly.

    Args:
        model: a `keras.Model` made by `resnet`, of depth 14 or more.
        depth: number of weighted layers of the deeper network, 6n + 2.

    Returns:
        A `keras.Model` as `resnet(depth)` builds it. Its BatchNorms hold the statistics of the shallow network:
        `tfcompress.recalibrate` or training gives them their own.

    Raises:
        ValueError: if `model` is no ResNet of two or more blocks in each stage, or `depth` is not a larger 6n + 2.
    """
    names = {layer.name for layer in model.layers}
    blocks = max((n for n in range(2, len(names)) if f"stage3_block{n}_add" in names), default=0)
    if not blocks or depth < 6 * blocks + 8 or (depth - 2) % 6:
        raise ValueError(
            "deepen takes a ResNet of depth 14 or more and a larger depth, 6n + 2. "
            f"Received: {model.name!r}, with {blocks or 'less than two'} blocks in each stage, and depth={depth}"
        )
    shortcut = "B" if "stage2_block1_shortcut" in names else "A"
    deeper = resnet(depth, model.output_shape[-1], shortcut, model.input_shape[1:])
    originals = _originals(blocks, (depth - 2) // 6)
    for layer in deeper.layers:
        block = re.match(r"(stage\d_block)(\d+)_(.*)", layer.name)
        original = originals[int(block[2])] if block else None
        name = f"{block[1]}{original}_{block[3]}" if block else layer.name
        layer.set_weights(model.get_layer(name).get_weights())
        if block and block[3] == "conv2_bn":
            copies = list(originals.values()).count(original)
            layer.gamma.assign(layer.gamma / copies)
            layer.beta.assign(layer.beta / copies)
    return deeper


def _originals(blocks, deeper_blocks):
    """{block of the deeper stage: the block whose copy it is}, counted from 1; the first is never repeated."""
    copied = range(deeper_blocks - 1)
    return {1: 1, **{block + 2: 2 + block * (blocks - 1) // (deeper_blocks - 1) for block in copied}}


def _basic_block(x, width, strides, shortcut, name):
    y = _convolution_bn(x, width, 3, strides, f"{name}_conv1")
    y = layers.ReLU(name=f"{name}_conv1_relu")(y)
    y = _convolution_bn(y, width, 3, 1, f"{name}_conv2")
    if strides > 1:
        if shortcut == "A":
            x = _zero_padded_shortcut(x, width, f"{name}_shortcut")
        else:
            x = _convolution_bn(x, width, 1, strides, f"{name}_shortcut")
    x = layers.Add(name=f"{name}_add")([x, y])
    return layers.ReLU(name=f"{name}_relu")(x)


def _zero_padded_shortcut(x, width, name):
    """Subsamples by two and pads the channels with zeros on both sides, from layers that TF-MOT's QAT accepts."""
    before = (width - x.shape[-1]) // 2
    after = width - x.shape[-1] - before
    x = layers.AveragePooling2D(1, 2, name=f"{name}_subsample")(x)
    x = layers.Permute((3, 2, 1), name=f"{name}_channels_to_rows")(x)
    x = layers.ZeroPadding2D(((before, after), (0, 0)), name=f"{name}_pad")(x)
    return layers.Permute((3, 2, 1), name=f"{name}_rows_to_channels")(x)


def _convolution_bn(x, width, kernel_size, strides, name):
    x = layers.Conv2D(width, kernel_size, strides, "same", use_bias=False, kernel_initializer="he_normal", name=name)(x)
    return layers.BatchNormalization(name=f"{name}_bn")(x)
