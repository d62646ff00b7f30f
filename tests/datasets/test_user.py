"""A user's data arrive in the model's shape and range, or are refused in one line that says what to do."""

import sys
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from tfcompress.datasets import SCALINGS, DataError, load_user_data

SHAPE = (8, 6, 3)


def pixels(count, shape=SHAPE):
    return np.random.default_rng(count).integers(0, 256, (count, *shape), np.uint8)


@pytest.fixture
def npz(tmp_path):
    """Writes the arrays into a file and returns its path."""

    def write(**arrays):
        np.savez(tmp_path / "data.npz", **arrays)
        return tmp_path / "data.npz"

    return write


def refused(source, input_shape=SHAPE, **settings):
    with pytest.raises(DataError) as caught:
        load_user_data(source, input_shape=input_shape, **settings)
    message = str(caught.value)
    assert "\n" not in message
    return message


def write_images(folder, colours, size=(12, 16), count=3, suffix=".png"):
    """One folder per class, its images of one colour each."""
    for name, colour in colours.items():
        (folder / name).mkdir(parents=True)
        for index in range(count):
            Image.new("RGB", size, colour).save(folder / name / f"{index}{suffix}")


COLOURS = {"blue": (0, 0, 255), "green": (0, 255, 0), "red": (255, 0, 0)}


def test_parts_of_an_npz_are_taken_as_they_are(npz):
    x, y = pixels(20), np.arange(20) % 4
    arrays = {"x_train": x[:10], "y_train": y[:10], "x_val": x[10:14], "y_val": y[10:14], "x_test": x[14:]}
    data = load_user_data(npz(**arrays, y_test=y[14:]), input_shape=SHAPE, classes=4)
    for part, expected in ((data.train, slice(0, 10)), (data.validation, slice(10, 14)), (data.test, slice(14, 20))):
        np.testing.assert_array_equal(part[0], x[expected])
        np.testing.assert_array_equal(part[1], y[expected])
        assert part[0].dtype == np.uint8 and part[1].dtype == np.int64
    assert data.class_names == ("0", "1", "2", "3") and data.source.endswith("data.npz")


def test_validation_is_split_off_by_class_and_seed(npz):
    path = npz(x=pixels(100), y=np.arange(100) % 2)
    data = load_user_data(path, input_shape=SHAPE, held_out=0.2)
    assert data.test is None and len(data.train[0]) == 80
    assert np.bincount(data.validation[1]).tolist() == [10, 10]
    together = np.concatenate([data.train[0], data.validation[0]])
    assert {image.tobytes() for image in together} == {image.tobytes() for image in pixels(100)}
    other = load_user_data(path, input_shape=SHAPE, held_out=0.2, seed=1)
    assert not np.array_equal(data.validation[0], other.validation[0])


def test_nothing_is_held_out_where_nothing_is_chosen(npz):
    data = load_user_data(npz(x=pixels(3), y=np.arange(3)), input_shape=SHAPE, held_out=None)
    assert data.validation is None and data.train[1].tolist() == [0, 1, 2]


def test_class_of_which_no_image_is_left_to_train_on_is_named(npz):
    labels = np.repeat(np.arange(4), (1, 30, 30, 1))
    assert "leaves no training image of class 0, 3; give it more" in refused(npz(x=pixels(62), y=labels))


@pytest.mark.parametrize("name", ["val", "valid", "validation"])
def test_names_of_the_validation_arrays_and_of_those_not_used(npz, name, capsys):
    x, y = pixels(6), np.arange(6) % 2
    path = npz(x_train=x[:4], y_train=y[:4], **{f"x_{name}": x[4:], f"y_{name}": y[4:]}, weights=y)
    np.testing.assert_array_equal(load_user_data(path, input_shape=SHAPE).validation[0], x[4:])
    assert capsys.readouterr().err == f"{path}: not used: weights\n"


@pytest.mark.parametrize("as_labels", [lambda y: y[:, None], lambda y: np.eye(3)[y], lambda y: y.astype("float32")])
def test_labels_become_integers(npz, as_labels):
    y = np.arange(12, dtype=np.uint8) % 3
    path = npz(x=pixels(12), y=as_labels(y), x_val=pixels(3), y_val=y[:3])
    data = load_user_data(path, input_shape=SHAPE)
    np.testing.assert_array_equal(data.train[1], y)
    assert data.train[1].dtype == np.int64 and len(data.class_names) == 3


def test_grey_images_get_a_channel_axis(npz):
    path = npz(x=pixels(10, (8, 6)), y=np.arange(10) % 2)
    assert load_user_data(path, input_shape=(8, 6, 1)).train[0].shape == (9, 8, 6, 1)
    assert load_user_data(path, input_shape=(8, 6)).train[0].shape == (9, 8, 6)
    assert load_user_data(path, input_shape=(None, None, 1)).train[0].shape == (9, 8, 6, 1)
    assert "(8, 6), but the model takes (8, 6, 3)" in refused(path)


@pytest.mark.parametrize(
    ("scaling", "expected"),
    [("-1-1", lambda x: x / 127.5 - 1), ("0-255", lambda x: x), ("none", lambda x: x)],
)
def test_pixels_are_scaled_to_the_range_of_the_model(npz, scaling, expected):
    x, y = pixels(10), np.arange(10) % 2
    data = load_user_data(npz(x=x, y=y, x_val=x, y_val=y), input_shape=SHAPE, scaling=scaling)
    assert data.train[0].dtype == np.float32 and data.scaling == scaling
    np.testing.assert_allclose(data.train[0], expected(x.astype("float64")), atol=1e-6)


@pytest.mark.parametrize(("scaling", "low", "high"), [("0-1", 0, 1), ("-1-1", -1, 1), ("0-255", 0, 255)])
def test_floats_are_taken_in_the_range_of_the_scaling(npz, scaling, low, high):
    x, y = np.linspace(low, high, 10 * 144).reshape(10, *SHAPE), np.arange(10) % 2
    data = load_user_data(npz(x=x, y=y, x_val=x, y_val=y), input_shape=SHAPE, scaling=scaling)
    np.testing.assert_allclose(data.train[0], x, rtol=1e-6)
    assert data.train[0].dtype == np.float32


@pytest.mark.parametrize(
    ("low", "high", "scaling", "hint"),
    [
        (-1, 1, "0-1", "'-1-1'"),
        (0, 255, "0-1", "'0-255'"),
        (-3, 3, "-1-1", "'none'"),
        (-1, 1, "0-255", "'-1-1'"),
        # Ranges of nothing that a model does with pixels: those of 0 to 255 would come out wrong.
        (-0.5, 0.5, "0-1", "'none'"),
        (0, 1.02, "0-1", "'none'"),
    ],
)
def test_floats_out_of_range_name_the_scaling_that_fits(npz, low, high, scaling, hint):
    x = np.linspace(low, high, 10 * 144).reshape(10, *SHAPE)
    message = refused(npz(x=x, y=np.arange(10) % 2), scaling=scaling)
    assert f"scaling={hint} (" in message and f"from {low} to {high}" in message


def test_scalings_map_pixels_to_their_names():
    ends = {name: (offset, 255 * scale + offset) for name, (scale, offset, _) in SCALINGS.items()}
    np.testing.assert_allclose([ends["0-1"], ends["-1-1"], ends["0-255"]], [(0, 1), (-1, 1), (0, 255)])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": pixels(10, (8, 7, 3))}, "(8, 7, 3), but the model takes (8, 6, 3)"),
        ({"x": pixels(9)}, "9 images, but 10 labels"),
        ({"x": pixels(10).astype("int32")}, "uint8 pixels or floats. Received: int32"),
        ({"x": np.full((10, *SHAPE), np.nan)}, "NaN or infinity"),
        ({"x": np.full((10, *SHAPE), np.inf)}, "NaN or infinity"),
        ({"x": pixels(0), "y": np.zeros(0, int)}, "no images"),
        ({"y": np.arange(10) - 1}, "labels must lie in [0, 10), one per class. Received: -1 to 8"),
        ({"y": np.arange(10) + 1}, "labels must lie in [0, 10), one per class. Received: 1 to 10"),
        ({"y": np.arange(10) / 2}, "labels must be integers. Received: float64, such as 0.0, 0.5"),
        ({"y": np.full(10, np.nan)}, "labels must be integers"),
        ({"y": np.array(["a"] * 10)}, "labels must be integers. Received: <U1"),
        ({"y": np.full((10, 10), 0.1)}, "are not one-hot"),
        ({"y": np.zeros((10, 2, 2))}, "Received: shape (10, 2, 2)"),
        ({"x_test": pixels(2), "y_test": np.array([3, 10])}, "test: labels must lie in [0, 10)"),
        ({"x_test": pixels(2)}, "has no y_test"),
        ({"x": np.array([None] * 10)}, "not an .npz file of numbers"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(npz, change, message):
    path = npz(**{"x": pixels(10), "y": np.arange(10), **change})
    assert message in refused(path, classes=10)


def test_test_labels_beyond_those_of_training_are_refused(npz):
    path = npz(x=pixels(10), y=np.arange(10) % 3, x_test=pixels(2), y_test=np.array([0, 3]))
    assert "test: labels must lie in [0, 3), one per class. Received: 0 to 3" in refused(path)


def test_missing_arrays_are_named(npz):
    message = refused(npz(images=pixels(3), labels=np.arange(3)))
    assert "no x_train, y_train" in message and "Received: images, labels" in message


def test_wrong_settings_are_named(npz):
    path = npz(x=pixels(3), y=np.arange(3))
    assert "0-1, -1-1, 0-255, none. Received: '0-2'" in refused(path, scaling="0-2")
    assert "Received: 'ignore'" in refused(path, on_bad_image="ignore")
    assert "Received: 1.5" in refused(path, held_out=1.5)
    assert "class_names must hold 3 names, one per output. Received: 2" in refused(
        path, classes=3, class_names=("a", "b")
    )
    assert "must be different ones. Received: a, b, a" in refused(path, classes=3, class_names=("a", "b", "a"))
    assert "3 training images are too few to hold out 3" in refused(path, held_out=0.9)


def test_class_names_are_kept(npz):
    path = npz(x=pixels(10), y=np.arange(10) % 2)
    assert load_user_data(path, input_shape=SHAPE, class_names=["cat", "dog"]).class_names == ("cat", "dog")


def test_files_that_are_no_npz_are_refused(npz, tmp_path):
    assert "no such file or folder. Expected an .npz file" in refused(tmp_path / "absent.npz")
    np.save(tmp_path / "array.npy", pixels(3))
    assert "not an .npz file" in refused(tmp_path / "array.npy")
    path = npz(x=pixels(10), y=np.arange(10))
    content = bytearray(path.read_bytes())
    content[500] ^= 1
    path.write_bytes(content)
    assert "is damaged" in refused(path)
    path.write_bytes(content[:-100])
    assert "cut short" in refused(path)


def test_folders_are_classes_in_alphabetic_order(tmp_path, capsys):
    write_images(tmp_path, COLOURS)
    (tmp_path / ".cache").mkdir()
    (tmp_path / "red" / ".hidden").touch()
    (tmp_path / "red" / "notes.txt").touch()
    write_images(tmp_path / "blue", {"dark": (0, 0, 200)})
    data = load_user_data(tmp_path, input_shape=SHAPE, held_out=0.34)
    assert capsys.readouterr().err == f"{tmp_path}: not used: blue/dark, red/notes.txt\n"
    assert data.class_names == ("blue", "green", "red") and data.train[0].shape == (6, *SHAPE)
    for x, y in (data.train, data.validation):
        assert x.dtype == np.uint8 and sorted(set(y)) == [0, 1, 2]
        for image, label in zip(x, y):
            np.testing.assert_array_equal(image, np.broadcast_to(list(COLOURS.values())[label], SHAPE))


@pytest.mark.parametrize("validation", ["validation", "val", "valid"])
def test_folders_of_parts_are_kept_apart(tmp_path, validation, capsys):
    write_images(tmp_path / "train", COLOURS, count=3)
    write_images(tmp_path / validation, {"red": COLOURS["red"]}, count=2)
    write_images(tmp_path / "test", COLOURS, count=1)
    data = load_user_data(tmp_path, input_shape=SHAPE)
    assert data.train[1].tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert data.validation[1].tolist() == [2, 2] and data.test[1].tolist() == [0, 1, 2]
    assert capsys.readouterr().err == ""
    write_images(tmp_path / "unlabelled", COLOURS, count=1)
    load_user_data(tmp_path, input_shape=SHAPE)
    assert capsys.readouterr().err == f"{tmp_path}: not used: unlabelled\n"
    write_images(tmp_path / ("val" if validation == "valid" else "valid"), COLOURS, count=1)
    assert "has two validation parts, " in refused(tmp_path)


def test_class_names_order_the_folders(tmp_path):
    write_images(tmp_path, COLOURS)
    data = load_user_data(tmp_path, input_shape=SHAPE, class_names=("red", "green", "blue"))
    assert (data.train[0][data.train[1] == 0] == COLOURS["red"]).all()
    message = refused(tmp_path, class_names=("rot", "green", "blue"))
    assert "red is not the folder of a class. Expected: rot, green, blue" in message


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".JPEG", ".bmp", ".gif", ".webp"])
def test_kinds_of_images_are_decoded(tmp_path, suffix):
    write_images(tmp_path, {"grey": (100, 100, 100), "white": (255, 255, 255)}, suffix=suffix)
    for channels in (1, 3):
        data = load_user_data(tmp_path, input_shape=(5, 5, channels))
        np.testing.assert_allclose(data.train[0][data.train[1] == 0], 100, atol=3)
        assert data.train[0].shape == (5, 5, 5, channels)


def test_images_are_resized_bilinearly(tmp_path):
    write_images(tmp_path, {"a": (0, 0, 0), "b": (0, 0, 0)}, count=2)
    Image.fromarray(np.array([[0, 100]], np.uint8)).save(tmp_path / "a" / "0.png")
    data = load_user_data(tmp_path, input_shape=(1, 4, 1), held_out=0.5)
    x, y = (np.concatenate(parts) for parts in zip(data.train, data.validation))
    assert sorted(x[y == 0].reshape(-1, 4).tolist()) == [[0, 0, 0, 0], [0, 25, 75, 100]]


def test_folders_that_do_not_fit_are_refused(tmp_path):
    assert "has no folders. Expected one folder of images per class" in refused(tmp_path)
    write_images(tmp_path, COLOURS)
    message = refused(tmp_path, classes=4)
    assert "3 classes (blue, green, red), but the model has 4 outputs" in message
    assert "fixed (height, width, 1 or 3 channels)" in refused(tmp_path, input_shape=(None, None, 3))
    odd = tmp_path / "caf\udce9"  # as archives of other encodings leave it
    odd.mkdir()
    assert r"whose name is not UTF-8, 'caf\udce9'; rename it" in refused(tmp_path)
    odd.rmdir()
    (tmp_path / "yellow").mkdir()
    assert "yellow has no images" in refused(tmp_path)


def test_class_of_the_test_folder_that_training_lacks_is_named(tmp_path):
    write_images(tmp_path / "train", COLOURS)
    write_images(tmp_path / "test", {"yellow": (255, 255, 0)})
    assert "yellow is not the folder of a class" in refused(tmp_path)


def test_bad_image_stops_or_is_skipped(tmp_path, capsys):
    write_images(tmp_path, COLOURS)
    good = (tmp_path / "red" / "0.png").read_bytes()
    (tmp_path / "green" / "bad.jpg").write_text("not an image")
    (tmp_path / "red" / "cut.png").write_bytes(good[: len(good) // 2])
    assert "bad.jpg is not an image that can be used" in refused(tmp_path)
    data = load_user_data(tmp_path, input_shape=SHAPE, on_bad_image="skip")
    assert len(data.train[0]) + len(data.validation[0]) == 9
    for image, label in zip(*data.train):
        np.testing.assert_array_equal(image[0, 0], list(COLOURS.values())[label])
    error = capsys.readouterr().err
    assert "2 of 11 images skipped" in error and "bad.jpg" in error


def test_images_of_16_bits_are_refused(tmp_path):
    write_images(tmp_path, COLOURS)
    Image.fromarray(np.full((4, 4), 40000, np.uint16)).save(tmp_path / "blue" / "0.png")
    assert "more than 8 bits" in refused(tmp_path)


def test_tfds_that_is_not_installed_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    assert "pip install tensorflow-datasets" in refused("tfds:mnist")


class Builder:
    """Stands for a data set of tensorflow-datasets with images of different sizes."""

    def __init__(self, splits=("train", "test"), features=("image", "label")):
        self.info = SimpleNamespace(
            supervised_keys=features,
            features=dict.fromkeys(features, SimpleNamespace(names=["dark", "light"])),
            splits=dict.fromkeys(splits),
        )

    def download_and_prepare(self):
        pass

    def as_dataset(self, split, as_supervised):
        count = {"train": 10, "test": 4}[split]
        return [(np.full((5 + index, 7, 1), 200 * (index % 2), np.uint8), index % 2) for index in range(count)]


def fake_tfds(monkeypatch, builder):
    module = SimpleNamespace(builder=builder, as_numpy=lambda examples: examples)
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", module)


def test_tfds_is_fitted_to_the_model(monkeypatch):
    fake_tfds(monkeypatch, lambda name: {"shades": Builder()}[name])
    data = load_user_data("tfds:shades", input_shape=SHAPE, classes=2)
    assert data.class_names == ("dark", "light") and data.source == "tfds:shades"
    assert [len(part[0]) for part in (data.train, data.validation, data.test)] == [9, 1, 4]
    assert data.test[0].shape == (4, *SHAPE)
    np.testing.assert_array_equal(data.test[0][:, 0, 0, 0], 200 * data.test[1])


def test_tfds_that_does_not_fit_is_refused(monkeypatch):
    fake_tfds(monkeypatch, lambda name: {}[name])
    assert "tfds:absent cannot be had" in refused("tfds:absent")
    fake_tfds(monkeypatch, lambda name: Builder(splits=("test",)))
    assert "no split train. Received: test" in refused("tfds:shades")
    fake_tfds(monkeypatch, lambda name: Builder(features=("text", "label")))
    assert "Received: text, label" in refused("tfds:texts")
