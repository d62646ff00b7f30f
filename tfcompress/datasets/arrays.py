"""Images and labels as networks take them."""

import numpy as np


def as_classes(labels):
    """Class indices, int64 (N,), whichever way they came.

    Args:
        labels: (N,) or (N, 1) integers, also as floats or booleans, or one-hot (N, classes).

    Raises:
        ValueError: something else.
    """
    labels = np.asarray(labels)
    if labels.ndim == 2 and labels.shape[1] > 1:
        ones = labels.dtype.kind in "buif" and ((labels == 0) | (labels == 1)).all() and (labels.sum(1) == 1).all()
        if not ones:
            raise ValueError(f"labels of shape {labels.shape} are not one-hot; give one integer per image")
        return labels.argmax(1)
    if labels.ndim != 1 and labels.shape[1:] != (1,):
        raise ValueError(f"labels must be integers (N,) or one-hot (N, classes). Received: shape {labels.shape}")
    labels = labels.reshape(-1)
    # NaN and infinity fail this, too.
    if labels.dtype.kind not in "buif" or not (np.isfinite(labels) & (np.floor(labels) == labels)).all():
        shown = ", ".join(map(str, labels[:3]))
        raise ValueError(f"labels must be integers. Received: {labels.dtype}, such as {shown}")
    return labels.astype(np.int64)


def sample(count, *arrays):
    """Up to so many examples of arrays of equal length, drawn at random, the same ones at every call.

    The first ones would be of few classes where a data set is sorted by class.
    """
    chosen = np.random.default_rng(0).permutation(len(arrays[0]))[:count]
    return tuple(array[chosen] for array in arrays)


def as_float(images):
    """Network input: uint8 pixels become float32 in [0, 1]; floats stay as they are."""
    return images.astype("float32") / np.float32(255) if images.dtype == np.uint8 else images.astype("float32")
