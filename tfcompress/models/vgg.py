"""VGG16 for small images (Simonyan & Zisserman 2015; with BatchNorm as in Liu & Deng 2015)."""

import keras
from keras import layers

_WIDTHS = (64, 64, "pool", 128, 128, "pool", 256, 256, 256, "pool", 512, 512, 512, "pool", 512, 512, 512, "pool")


def vgg16(input_shape=(32, 32, 3), classes=10):
    """Builds the VGG16 of the CIFAR literature: 13 convolutions with BatchNorm, FC512 with BatchNorm, FC.

    14,991,946 parameters and 313,463,808 MACs for 32x32x3 and ten classes.

    Args:
        input_shape: (height, width, channels), both sides at least 32; pixels are expected in [0, 1].
        classes: number of classes.

    Returns:
        A `keras.Model` that maps `(batch, *input_shape)` to `(batch, classes)` logits.
    """
    inputs = keras.Input(input_shape, name="image")
    x, convolution, pool = inputs, 0, 0
    for width in _WIDTHS:
        if width == "pool":
            pool += 1
            x = layers.MaxPooling2D(2, name=f"pool{pool}")(x)
            continue
        convolution += 1
        name = f"conv{convolution}"
        x = layers.Conv2D(width, 3, padding="same", kernel_initializer="he_normal", name=name)(x)
        x = layers.BatchNormalization(name=f"{name}_bn")(x)
        x = layers.ReLU(name=f"{name}_relu")(x)
    x = layers.Flatten(name="flatten")(x)
    x = layers.Dense(512, kernel_initializer="he_normal", name="fc1")(x)
    x = layers.BatchNormalization(name="fc1_bn")(x)
    x = layers.ReLU(name="fc1_relu")(x)
    outputs = layers.Dense(classes, name="logits")(x)
    return keras.Model(inputs, outputs, name="vgg16")
