"""Loading of the image data sets, from a folder, the cache, or their official sources."""

import gzip
import os
import zipfile
from pathlib import Path
from typing import NamedTuple

import numpy as np

CLASSES = {"mnist": 10, "fashion_mnist": 10, "cifar10": 10, "cifar100": 100, "digits": 10}
NAMES = tuple(CLASSES)

_FASHION_MNIST = "https://storage.googleapis.com/tensorflow/tf-keras-datasets/"
_FASHION_MNIST_MD5 = {
    "train-images-idx3-ubyte.gz": "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
    "train-labels-idx1-ubyte.gz": "25c81989df183df01b3e8a0aad5dffbe",
    "t10k-images-idx3-ubyte.gz": "bef4ecab320f06d8554ea6380940ec79",
    "t10k-labels-idx1-ubyte.gz": "bb300cfdad3c16e7a12a480ee83cd310",
}


class DatasetError(RuntimeError):
    """A data set that is missing and cannot be downloaded, or whose file is damaged."""


class Dataset(NamedTuple):
    """Images as uint8 (N, H, W, C), labels as int64 (N,) in [0, classes)."""

    name: str
    classes: int
    x_train: np.ndarray
    y_train: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray


def load(name):
    """Loads a data set: from `$TFCOMPRESS_DATA_DIR/<name>.npz`, else Keras' cache, else its official source.

    Downloads show their progress and are checked against a checksum. "digits" ships with scikit-learn and needs
    neither; its 8x8 images are enlarged to 28x28.

    Args:
        name: "mnist", "fashion_mnist", "cifar10", "cifar100" or "digits".

    Returns:
        A `Dataset`.

    Raises:
        ValueError: an unknown name.
        DatasetError: the data set cannot be had, or its file is damaged.
    """
    if name not in CLASSES:
        raise ValueError(f"Unknown data set {name!r}; there are {', '.join(NAMES)}")
    if name == "digits":
        return _checked(name, _digits(), "scikit-learn's load_digits")
    folder = os.environ.get("TFCOMPRESS_DATA_DIR")
    path = Path(folder) / f"{name}.npz" if folder else None
    if path and path.exists():
        return _checked(name, _read_npz(path), path)
    return _checked(name, _download(name), "its official source")


def split_validation(images, labels, count=5000, seed=0):
    """Holds out training images, each class in its proportion, the same ones for the same seed.

    Args:
        images: (N, ...) array.
        labels: (N,) integers.
        count: images to hold out, less than N.
        seed: of the choice.

    Returns:
        ((images, labels) to train on, (images, labels) held out), both in their original order.
    """
    if not 0 < count < len(images):
        raise ValueError(f"count must be between 1 and {len(images) - 1}. Received: {count}")
    # Sorting a shuffled order by class spreads every class evenly over the list; every n-th of it is held out.
    order = np.random.default_rng(seed).permutation(len(images))
    order = order[np.argsort(labels[order], kind="stable")]
    held_out = np.zeros(len(images), bool)
    held_out[order[np.linspace(0, len(order) - 1, count).round().astype(int)]] = True
    return (images[~held_out], labels[~held_out]), (images[held_out], labels[held_out])


def _read_npz(path):
    keys = ("x_train", "y_train", "x_test", "y_test")
    try:
        with np.load(path) as stored:
            missing = [key for key in keys if key not in stored.files]
            if missing:
                raise DatasetError(
                    f"{path} has no {', '.join(missing)}; it must hold {', '.join(keys)}. Received: {stored.files}"
                )
            return tuple(stored[key] for key in keys)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise DatasetError(f"{path} is damaged or cut short ({error}); delete it or write it again") from error


def _download(name):
    import keras

    try:
        if name == "fashion_mnist":
            return _fashion_mnist(keras.utils.get_file)
        (x_train, y_train), (x_test, y_test) = getattr(keras.datasets, name).load_data()
        return x_train, y_train, x_test, y_test
    except Exception as error:
        raise DatasetError(
            f"{name} is not on this machine and its download failed ({error}). Either connect to the internet and run "
            f"the same command again, or put {name}.npz (uint8 arrays x_train, y_train, x_test, y_test) into a folder "
            f"and set TFCOMPRESS_DATA_DIR to that folder"
        ) from error


def _fashion_mnist(get_file):
    arrays = []
    for file, md5 in _FASHION_MNIST_MD5.items():
        path = get_file(file, _FASHION_MNIST + file, file_hash=md5, cache_subdir="datasets/fashion-mnist")
        header = 16 if "images" in file else 8
        arrays.append(np.frombuffer(gzip.decompress(Path(path).read_bytes()), np.uint8, offset=header))
    x_train, y_train, x_test, y_test = arrays
    return x_train.reshape(-1, 28, 28), y_train, x_test.reshape(-1, 28, 28), y_test


def _digits():
    from scipy.ndimage import zoom
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = zoom(digits.images / 16 * 255, (1, 3.5, 3.5), order=1).round().astype("uint8")
    order = np.random.default_rng(0).permutation(len(images))
    images, labels = images[order], digits.target[order]
    return images[:1437], labels[:1437], images[1437:], labels[1437:]


def _checked(name, arrays, source):
    x_train, y_train, x_test, y_test = arrays
    y_train, y_test = (np.asarray(labels).reshape(-1).astype("int64") for labels in (y_train, y_test))
    x_train, x_test = (images[..., None] if images.ndim == 3 else images for images in (x_train, x_test))
    for images, labels in ((x_train, y_train), (x_test, y_test)):
        if images.dtype != np.uint8 or images.ndim != 4 or len(images) != len(labels) or len(images) == 0:
            raise DatasetError(
                f"{name} from {source} must hold uint8 images (N, H, W[, C]) and as many labels. "
                f"Received: {images.dtype} {images.shape} and {len(labels)} labels"
            )
        if labels.min() < 0 or labels.max() >= CLASSES[name]:
            raise DatasetError(
                f"{name} from {source} must have labels in [0, {CLASSES[name]}). "
                f"Received: {labels.min()} to {labels.max()}"
            )
    return Dataset(name, CLASSES[name], x_train, y_train, x_test, y_test)
