"""LeNet-5 as Caffe ships it (LeCun et al. 1998, with 20-50-500-10 units)."""

import keras
from keras import layers


def lenet5(input_shape=(28, 28, 1), classes=10, dropout=0.0):
    """Builds Caffe's LeNet-5: two 5x5 valid convolutions without activation, each followed by 2x2 max pooling.

    431,080 parameters and 2,293,000 MACs for 28x28x1 and ten classes.

    Args:
        input_shape: (height, width, channels); pixels are expected in [0, 1].
        classes: number of classes.
        dropout: fraction of the hidden units that training silences; 0, as in Caffe, leaves the layer out.

    Returns:
        A `keras.Model` that maps `(batch, *input_shape)` to `(batch, classes)` logits.
    """
    inputs = keras.Input(input_shape, name="image")
    x = layers.Conv2D(20, 5, name="conv1")(inputs)
    x = layers.MaxPooling2D(2, name="pool1")(x)
    x = layers.Conv2D(50, 5, name="conv2")(x)
    x = layers.MaxPooling2D(2, name="pool2")(x)
    x = layers.Flatten(name="flatten")(x)
    x = layers.Dense(500, activation="relu", name="fc1")(x)
    if dropout:
        x = layers.Dropout(dropout, name="dropout")(x)
    outputs = layers.Dense(classes, name="logits")(x)
    return keras.Model(inputs, outputs, name="lenet5")
