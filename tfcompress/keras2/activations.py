"""Activation functions: what Keras 3 calls them, and what computes the same in tf_keras."""

import tensorflow as tf
import tf_keras


@tf_keras.saving.register_keras_serializable("tfcompress")
def hard_sigmoid(x):
    """relu6(x + 3) / 6, Keras 3's hard sigmoid; tf_keras's own is clip(0.2 x + 0.5, 0, 1)."""
    return tf.nn.relu6(x + 3.0) * (1.0 / 6.0)


@tf_keras.saving.register_keras_serializable("tfcompress")
def hard_silu(x):
    """x * relu6(x + 3) / 6, in the order of operations that the LiteRT converter fuses into one HARD_SWISH."""
    return x * tf.nn.relu6(x + 3.0) * (1.0 / 6.0)


_SAME_NAMES = (
    "elu",
    "exponential",
    "gelu",
    "linear",
    "mish",
    "relu",
    "relu6",
    "selu",
    "sigmoid",
    "softmax",
    "softplus",
)

ACTIVATIONS = {
    **{name: tf_keras.activations.get(name) for name in (*_SAME_NAMES, "softsign", "tanh")},
    "silu": tf_keras.activations.swish,
    "hard_sigmoid": hard_sigmoid,
    "hard_silu": hard_silu,
}
