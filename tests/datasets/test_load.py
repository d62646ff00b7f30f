"""Loading and splitting of data sets, and what is said when a file is wrong."""

import numpy as np
import pytest

from tfcompress import datasets


def arrays(**changes):
    good = {
        "x_train": np.zeros((20, 28, 28), np.uint8),
        "y_train": np.arange(20, dtype=np.uint8) % 10,
        "x_test": np.zeros((10, 28, 28), np.uint8),
        "y_test": np.arange(10, dtype=np.uint8),
    }
    return {key: value for key, value in {**good, **changes}.items() if value is not None}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("TFCOMPRESS_DATA_DIR", str(tmp_path))
    return tmp_path


def test_npz_in_the_data_folder_is_taken(folder):
    np.savez(folder / "mnist.npz", **arrays())
    mnist = datasets.load("mnist")
    assert mnist.x_train.shape == (20, 28, 28, 1) and mnist.x_train.dtype == np.uint8
    assert mnist.y_test.tolist() == list(range(10)) and mnist.classes == 10


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"y_test": None}, "has no y_test"),
        ({"y_train": np.full(20, 10)}, r"labels in \[0, 10\).*10 to 10"),
        ({"x_train": np.zeros((20, 28, 28))}, "uint8 images.*float64"),
        ({"y_train": np.zeros(19, np.uint8)}, "19 labels"),
    ],
)
def test_wrong_content_is_named(folder, changes, message):
    np.savez(folder / "mnist.npz", **arrays(**changes))
    with pytest.raises(datasets.DatasetError, match=message):
        datasets.load("mnist")


def test_truncated_file_is_refused(folder):
    path = folder / "mnist.npz"
    np.savez(path, **arrays())
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(datasets.DatasetError, match=r"mnist\.npz is damaged or cut short"):
        datasets.load("mnist")


def test_failed_download_says_what_to_do(folder, monkeypatch):
    import keras

    def offline():
        raise OSError("URL fetch failure")

    monkeypatch.setattr(keras.datasets.cifar10, "load_data", offline)
    with pytest.raises(datasets.DatasetError, match=r"download failed.*put cifar10\.npz.*TFCOMPRESS_DATA_DIR"):
        datasets.load("cifar10")


def test_fashion_mnist_with_a_wrong_checksum_is_refused(folder, monkeypatch):
    import keras

    monkeypatch.setattr(keras.utils, "get_file", lambda *args, file_hash, **kwargs: _refuse(file_hash))
    with pytest.raises(datasets.DatasetError, match="8d4fb7e6c68d591d4c3dfef9ec88bf0d"):
        datasets.load("fashion_mnist")


def _refuse(file_hash):
    raise ValueError(f"incomplete or outdated file, expected {file_hash}")


def test_unknown_name_lists_the_known():
    with pytest.raises(ValueError, match=r"'mnits'.*mnist, fashion_mnist, cifar10, cifar100, digits"):
        datasets.load("mnits")


def test_digits_are_28_by_28_pixels_up_to_255(digits):
    assert digits.x_train.shape == (1437, 28, 28, 1) and digits.x_test.shape == (360, 28, 28, 1)
    assert digits.x_train.min() == 0 and digits.x_train.max() == 255


def test_split_is_a_stratified_deterministic_partition(rng):
    labels = rng.choice(3, 1000, p=[0.6, 0.3, 0.1])
    images = np.arange(1000)
    (kept, kept_labels), (held, held_labels) = datasets.split_validation(images, labels, 200)
    assert sorted([*kept, *held]) == list(range(1000)) and len(held) == 200
    np.testing.assert_array_equal(labels[held], held_labels)
    np.testing.assert_array_equal(labels[kept], kept_labels)
    np.testing.assert_allclose(np.bincount(held_labels), np.bincount(labels) / 5, atol=1)
    np.testing.assert_array_equal(held, datasets.split_validation(images, labels, 200)[1][0])
    assert not np.array_equal(held, datasets.split_validation(images, labels, 200, seed=1)[1][0])


def test_split_of_everything_is_refused():
    with pytest.raises(ValueError, match="between 1 and 9"):
        datasets.split_validation(np.zeros(10), np.zeros(10, int), 10)
