"""Logits and accuracy of a model on arrays of images."""

import numpy as np

from tfcompress.datasets.arrays import as_classes, as_float
from tfcompress.graph import check_takes_floats


def predict(model, images, batch_size=500):
    """Runs a Keras 3 or tf_keras model over images.

    Args:
        model: a model with one input and one output.
        images: (N, H, W, C), uint8 pixels (taken as pixels / 255), or floats as the model takes them.
        batch_size: examples at a time.

    Returns:
        float32 array (N, classes).

    Raises:
        ValueError: the model takes integers.
    """
    check_takes_floats(model)
    parts = [
        np.asarray(model.predict_on_batch(as_float(images[i : i + batch_size])), "float32")
        for i in range(0, len(images), batch_size)
    ]
    return np.concatenate(parts)


def check_paired(images, labels):
    """Refuses images and labels that are not equally many, or none, with a `ValueError`."""
    if len(images) != len(labels) or len(images) == 0:
        raise ValueError(
            f"images and labels must be equally many, at least one. Received: {len(images)}, {len(labels)}"
        )


def accuracy(model, images, labels):
    """Top-1 accuracy, a fraction in [0, 1], of a model on images (N, H, W, C) with integer or one-hot labels.

    Raises:
        ValueError: the model takes integers, its output is not (N, classes), labels that are neither, or are not as
            many as the images, or no images.
    """
    labels = as_classes(labels)
    check_paired(images, labels)
    logits = predict(model, images)
    if logits.ndim != 2 or logits.shape[1] < 2:
        raise ValueError(f"A classifier with one output per class is expected. Received: outputs {logits.shape}")
    return float(np.mean(logits.argmax(-1) == labels))
