"""Random networks from a seed: every topology that surgery must get right, mixed at random."""

import keras
import numpy as np
from keras import layers

MAXIMUM_STEPS = 6


def random_network(seed):
    """A small network with one or two image inputs and one or two outputs, the same one for the same seed."""
    return _Builder(np.random.default_rng(seed)).build()


class _Builder:
    def __init__(self, rng):
        self.rng = rng

    def build(self):
        inputs = [keras.Input((8, 8, 3), name=f"image{i}") for i in range(self.rng.integers(1, 3))]
        tensors = [self.convolution(x) for x in inputs]
        for _ in range(self.rng.integers(2, MAXIMUM_STEPS + 1)):
            x = tensors[self.rng.integers(len(tensors))]
            step = self.pick(
                "residual",
                "joined",
                "plain",
                "depthwise",
                "separable",
                "grouped",
                "transposed",
                "squeeze",
                "prelu",
                "shared",
                "nested",
                "padded",
                "pooled",
            )
            tensors.append(getattr(self, step)(x))
        x = layers.Concatenate()([layers.GlobalAveragePooling2D()(x) for x in tensors[-3:] + tensors[:2]])
        outputs = [layers.Dense(3)(layers.Dense(self.width(), activation="relu")(x))]
        if self.rng.random() < 0.5:
            outputs.append(layers.Conv2D(2, 1)(tensors[-1]))
        return keras.Model(inputs, outputs)

    def pick(self, *choices):
        return choices[self.rng.integers(len(choices))]

    def width(self):
        return int(self.rng.integers(4, 10))

    def activation(self, x):
        kind = self.pick("relu", "swish", "tanh", "sigmoid", "leaky", None)
        if kind == "leaky":
            return layers.LeakyReLU()(x)
        return layers.Activation(kind)(x) if kind else x

    def convolution(self, x, width=None):
        x = layers.Conv2D(width or self.width(), self.pick(1, 3), padding="same", use_bias=bool(self.pick(0, 1)))(x)
        if self.rng.random() < 0.6:
            x = layers.BatchNormalization(scale=self.rng.random() < 0.8)(x)
        return self.activation(x)

    def plain(self, x):
        return self.convolution(x)

    def residual(self, x):
        y = self.convolution(self.convolution(x), x.shape[-1])
        merge = self.pick(layers.Add, layers.Add, layers.Multiply, layers.Average, layers.Maximum, layers.Subtract)
        return merge()([x, y])

    def joined(self, x):
        return self.convolution(layers.Concatenate()([x, self.convolution(x), self.convolution(x)]))

    def depthwise(self, x):
        return self.convolution(layers.DepthwiseConv2D(3, padding="same", depth_multiplier=self.pick(1, 2))(x))

    def separable(self, x):
        return layers.SeparableConv2D(self.width(), 3, padding="same", depth_multiplier=self.pick(1, 2))(x)

    def grouped(self, x):
        groups = self.pick(2, 4)
        x = self.convolution(x, 8)
        return self.activation(layers.Conv2D(4 * groups, 3, padding="same", groups=groups)(x))

    def transposed(self, x):
        return layers.Conv2DTranspose(self.width(), 3, padding="same", activation="relu")(x)

    def squeeze(self, x):
        gate = layers.GlobalAveragePooling2D(keepdims=True)(x)
        gate = layers.Conv2D(3, 1, activation="relu")(gate)
        return layers.Multiply()([x, layers.Conv2D(x.shape[-1], 1, activation="sigmoid")(gate)])

    def prelu(self, x):
        return layers.PReLU(shared_axes=self.pick([1, 2], [1, 2, 3], None))(x)

    def shared(self, x):
        """The one convolution that several places of the network share."""
        self.shared_layer = getattr(self, "shared_layer", None) or layers.Conv2D(6, 3, padding="same")
        return self.shared_layer(self.convolution(x, 5))

    def nested(self, x):
        inputs = keras.Input(x.shape[1:])
        outputs = layers.Add()([inputs, self.convolution(inputs, x.shape[-1])])
        return keras.Model(inputs, outputs)(x)

    def padded(self, x):
        """A shortcut that pads the channels with zeros."""
        y = layers.Permute((3, 2, 1))(x)
        y = layers.ZeroPadding2D(((1, 1), (0, 0)))(y)
        y = layers.Permute((3, 2, 1))(y)
        return layers.Add()([y, self.convolution(x, x.shape[-1] + 2)])

    def pooled(self, x):
        y = layers.MaxPooling2D(2)(x)
        return layers.UpSampling2D(2)(self.convolution(y))
