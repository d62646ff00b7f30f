"""The door to Keras 2: tf_keras, TF-MOT (which works on tf_keras only) and the translation of Keras 3 models."""

import os

import tensorflow as tf
import tf_keras

# Importing TF-MOT sets TF_USE_LEGACY_KERAS=1 for the whole process (its keras/compat.py). Were `tf.keras` still
# unresolved then, it would become Keras 2 behind the user's back; so it is resolved first, as the user chose it, and
# the variable is put back afterwards. TF-MOT finds tf_keras either way.
_chosen = os.environ.get("TF_USE_LEGACY_KERAS")
tf.keras.layers  # noqa: B018
import tensorflow_model_optimization as tfmot  # noqa: E402

if _chosen is None:
    os.environ.pop("TF_USE_LEGACY_KERAS", None)
else:
    os.environ["TF_USE_LEGACY_KERAS"] = _chosen

from tfcompress.keras2.translate import to_tf_keras  # noqa: E402

__all__ = ["tf_keras", "tfmot", "to_tf_keras"]
