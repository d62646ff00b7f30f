"""Trains for the resume tests in a process of its own: `resume_script.py KIND DIRECTORY`; prints the weights' hash."""

import sys

import keras
import numpy as np
from keras import layers

from tfcompress import datasets
from tfcompress.training import TrainingConfig, fit
from tfcompress.training.checkpoint import digest


def network():
    keras.utils.set_random_seed(0)
    inputs = keras.Input((28, 28, 1))
    x = layers.Conv2D(8, 3, strides=2, use_bias=False)(inputs)
    x = layers.BatchNormalization()(x)
    x = layers.ReLU()(x)
    x = layers.Dropout(0.3)(x)
    x = layers.Conv2D(8, 3, strides=2)(x)
    return keras.Model(inputs, layers.Dense(10)(layers.Flatten()(x)))


def quantized_network():
    from tfcompress.quantization.aware_training import quantize_wrap

    return quantize_wrap(network())


def main(kind, directory):
    config = TrainingConfig(
        epochs=6, learning_rate=0.05, schedule="one_cycle", weight_decay=1e-3, crop_padding=2, seed=3
    )
    model = quantized_network() if kind == "quantized" else network()
    digits = datasets.load("digits")
    fit(model, digits.x_train, digits.y_train, config, directory=directory)
    print("weights", digest([np.asarray(w) for w in model.get_weights()]))


main(*sys.argv[1:])
