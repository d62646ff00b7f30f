"""Loading of the user's own images: an `.npz` file, a folder per class, or a TensorFlow data set."""

import sys
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tfcompress.datasets.arrays import as_classes
from tfcompress.datasets.load import split_validation
from tfcompress.errors import listed

SCALINGS = {
    "0-1": (1 / 255, 0.0, "pixels / 255"),
    "-1-1": (1 / 127.5, -1.0, "pixels / 127.5 - 1"),
    "0-255": (1.0, 0.0, "pixels as they are"),
    "none": (1.0, 0.0, "values as they are, in any range"),
}
"""What a model does with pixels: name -> (scale, offset, help text); its input is pixels * scale + offset."""

_EXPECTED = "Expected an .npz file, a folder with one folder of images per class, or tfds:NAME"
_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp")
_SPLITS = {"train": "train", "validation": "validation", "val": "validation", "valid": "validation", "test": "test"}


class DataError(ValueError):
    """Data that do not fit the model, or cannot be read: what is wrong with them, and what to do."""


@dataclass(frozen=True)
class UserData:
    """Images and labels, each part as (x, y): x (N, *input_shape), y int64 (N,) in [0, len(class_names)).

    Args:
        train: to train on.
        validation: to make choices on, or None if the source has none and nothing was held out.
        test: to measure on, or None if the source has none.
        class_names: one for each output of the model.
        scaling: a key of `SCALINGS`. x is float32 in the range of the model's input; with "0-1" it is uint8 where the
            source has uint8 pixels, which the rest of the package divides by 255.
        source: where the data came from.
    """

    train: tuple
    validation: tuple | None
    test: tuple | None
    class_names: tuple
    scaling: str
    source: str


def load_user_data(
    source,
    *,
    input_shape,
    scaling="0-1",
    classes=None,
    class_names=None,
    held_out=0.1,
    seed=0,
    on_bad_image="stop",
):
    """Loads a user's own data in the shape and range of a model's input.

    Args:
        source: one of
            - an `.npz` file with arrays x and y, or x_train and y_train; x_val, y_val (or _valid, _validation), x_test
              and y_test are optional.
              x is uint8 pixels, or floats that lie in the range of the model's input already. y holds integers, or
              one-hot rows.
            - a folder with one folder of images per class, or with folders train and, optionally, validation (or val,
              valid) and test that hold them. Images are resized (bilinear) and converted to the model's channels.
            - "tfds:NAME", a data set of tensorflow-datasets.
        input_shape: of one example, as in `model.input_shape[1:]`. None stands for any size.
        scaling: a key of `SCALINGS`.
        classes: outputs of the model; without it, as many as the training labels need.
        class_names: in the order of the outputs. For folders, these are the folders' names; without it, the folders
            are numbered in alphabetic order.
        held_out: fraction of the training images, each class in its proportion, that becomes the validation part
            where the source has none; None leaves it without one, where nothing is to be chosen.
        seed: of the choice of held-out images.
        on_bad_image: "stop", or "skip" to leave out images that do not decode and to say on stderr how many.

    Returns:
        A `UserData`.

    Raises:
        DataError: the source cannot be read, or does not fit the model.

    Example:
        >>> load_user_data("flowers/", input_shape=(224, 224, 3), classes=5).class_names
        ('daisy', 'dandelion', 'roses', 'sunflowers', 'tulips')
    """
    if scaling not in SCALINGS:
        raise DataError(f"scaling must be one of {', '.join(SCALINGS)}. Received: {scaling!r}")
    if on_bad_image not in ("stop", "skip"):
        raise DataError(f"on_bad_image must be 'stop' or 'skip'. Received: {on_bad_image!r}")
    if held_out is not None and not 0 < held_out < 1:
        raise DataError(f"held_out must be a fraction between 0 and 1. Received: {held_out}")
    if class_names is not None and classes is not None and len(class_names) != classes:
        raise DataError(f"class_names must hold {classes} names, one per output. Received: {len(class_names)}")
    if class_names is not None and len(set(class_names)) != len(class_names):
        raise DataError(f"class_names must be different ones. Received: {', '.join(class_names)}")
    shape = tuple(input_shape)
    if str(source).startswith("tfds:"):
        parts, found = _read_tfds(source, shape)
    elif Path(source).is_dir():
        parts, found = _read_folder(Path(source), shape, class_names, on_bad_image)
    else:
        parts, found = _read_npz(Path(source)), None
    names = tuple(class_names or found or ())
    if names and classes is not None and len(names) != classes:
        raise DataError(
            f"{source} has {len(names)} classes ({listed(names)}), but the model has {classes} outputs; give "
            "class_names, one per output"
        )
    labels = {part: _integers(f"{source}, {part}", y) for part, (_, y) in parts.items()}
    names = names or tuple(str(index) for index in range(classes or _count(labels["train"])))
    parts = {
        part: _checked(f"{source}, {part}", x, labels[part], shape, scaling, len(names))
        for part, (x, _) in parts.items()
    }
    if "validation" not in parts and held_out is not None:
        x, y = parts["train"]
        parts["train"], parts["validation"] = hold_out(source, x, y, max(1, round(len(x) * held_out)), seed)
    return UserData(parts["train"], parts.get("validation"), parts.get("test"), names, scaling, str(source))


def _read_npz(path):
    """{"train": (x, y), ...} as they are in the file."""
    if not path.exists():
        raise DataError(f"{path}: no such file or folder. {_EXPECTED}")
    if not zipfile.is_zipfile(path):
        raise DataError(f"{path} is not an .npz file, or is cut short. {_EXPECTED}")
    try:
        with np.load(path) as stored:
            arrays = {name: stored[name] for name in stored.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(f"{path} is damaged, or not an .npz file of numbers ({error}); write it again") from error
    given = [name for name in _SPLITS if arrays.keys() & {f"x_{name}", f"y_{name}"}]
    pairs = {part: (f"x_{name}", f"y_{name}") for part, name in _parts(path, given).items()}
    if "x_train" not in arrays and "x" in arrays:
        pairs["train"] = ("x", "y")
    pairs.setdefault("train", ("x_train", "y_train"))
    _note_ignored(path, arrays.keys() - {name for pair in pairs.values() for name in pair})
    missing = [name for pair in pairs.values() for name in pair if name not in arrays]
    if missing:
        raise DataError(
            f"{path} has no {', '.join(missing)}. Expected x and y, or x_train and y_train, optionally with x_val, "
            f"y_val, x_test and y_test. Received: {', '.join(sorted(arrays)) or 'no arrays'}"
        )
    return {part: (arrays[x], arrays[y]) for part, (x, y) in pairs.items()}


def _read_folder(folder, shape, class_names, on_bad_image):
    """{"train": (x, y), ...} with x uint8, and the names of the classes."""
    _check_image_shape(folder, shape)
    # A class may be called "train", too; its folder holds images and no folders.
    splits = {"train": folder}
    if (folder / "train").is_dir() and _subfolders(folder / "train"):
        found = [sub.name for sub in _subfolders(folder)]
        splits = {part: folder / name for part, name in _parts(folder, found).items()}
        _note_ignored(folder, set(found) - {sub.name for sub in splits.values()})
    names = tuple(class_names or (sub.name for sub in _subfolders(splits["train"])))
    if not names:
        raise DataError(f"{splits['train']} has no folders. Expected one folder of images per class")
    return {part: _read_images(sub, names, shape, on_bad_image) for part, sub in splits.items()}, names


def _parts(source, names):
    """{part: its name in the source}."""
    parts = {}
    for name in names:
        if _SPLITS.get(name) in parts:
            raise DataError(f"{source} has two validation parts, {parts['validation']} and {name}; rename one of them")
        if name in _SPLITS:
            parts[_SPLITS[name]] = name
    return parts


def _note_ignored(source, names):
    if names:
        print(f"{source}: not used: {listed(sorted(names))}", file=sys.stderr)


def _subfolders(folder):
    folders = sorted(sub for sub in folder.iterdir() if sub.is_dir() and not sub.name.startswith((".", "__")))
    for sub in folders:
        # As old archives leave them: no file could hold the class's name.
        if sub.name.encode("utf-8", "replace").decode() != sub.name:
            raise DataError(f"{folder} has a folder whose name is not UTF-8, {sub.name!a}; rename it")
    return folders


def _read_images(folder, names, shape, on_bad_image):
    files, labels, others = [], [], []
    for sub in _subfolders(folder):
        if sub.name not in names:
            raise DataError(f"{sub} is not the folder of a class. Expected: {listed(names)}")
        images = []
        for file in sorted(file for file in sub.iterdir() if not file.name.startswith(".")):
            (images if file.suffix.lower() in _SUFFIXES else others).append(file)
        if not images:
            raise DataError(f"{sub} has no images ({', '.join(_SUFFIXES)}); fill it or delete it")
        files += images
        labels += [names.index(sub.name)] * len(images)
    _note_ignored(folder, [file.relative_to(folder) for file in others])
    x, kept, bad = np.empty((len(files), *shape), np.uint8), [], []
    for file, label in zip(files, labels):
        try:
            x[len(kept)] = _decode(file, shape)
            kept.append(label)
        except DataError as error:
            if on_bad_image == "stop":
                raise
            bad.append(error)
    if bad:
        print(f"{folder}: {len(bad)} of {len(files)} images skipped, the first one: {bad[0]}", file=sys.stderr)
    return x[: len(kept)], np.array(kept, np.int64)


def _decode(file, shape):
    from PIL import Image

    try:
        with Image.open(file) as image:
            if image.mode.startswith(("I", "F")):
                raise ValueError(f"its pixels have more than 8 bits (mode {image.mode}), convert them to 8")
            return _fitted(image, shape)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(f"{file} is not an image that can be used: {error}") from error


def _fitted(image, shape):
    """A Pillow image as uint8 (H, W, C)."""
    from PIL import Image

    height, width, channels = shape
    image = image.convert("L" if channels == 1 else "RGB").resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(image).reshape(shape)


def _check_image_shape(source, shape):
    if len(shape) != 3 or None in shape or shape[2] not in (1, 3):
        raise DataError(
            f"{source}: images can be fitted to a model input of fixed (height, width, 1 or 3 channels) only. "
            f"Received: input_shape={shape}. Give the data as an .npz file instead"
        )


def _read_tfds(source, shape):
    """{"train": (x, y), ...} with x uint8, and the names of the classes."""
    try:
        import tensorflow_datasets as tfds
    except ImportError as error:
        raise DataError(f"{source} needs tensorflow-datasets: pip install tensorflow-datasets") from error
    _check_image_shape(source, shape)
    try:
        builder = tfds.builder(source.removeprefix("tfds:"))
        builder.download_and_prepare()
    except Exception as error:
        raise DataError(f"{source} cannot be had: {str(error).strip().splitlines()[0]}") from error
    if not builder.info.supervised_keys or not {"image", "label"} <= set(builder.info.features):
        raise DataError(
            f"{source} is not for classification. Expected features image and label. "
            f"Received: {', '.join(builder.info.features)}"
        )
    splits = [name for name in ("train", "validation", "test") if name in builder.info.splits]
    if "train" not in splits:
        raise DataError(f"{source} has no split train. Received: {', '.join(builder.info.splits)}")
    parts = {
        name: _fit_all(tfds.as_numpy(builder.as_dataset(split=name, as_supervised=True)), shape) for name in splits
    }
    return parts, builder.info.features["label"].names


def _fit_all(examples, shape):
    from PIL import Image

    x, y = zip(*((_fitted(Image.fromarray(np.squeeze(image)), shape), label) for image, label in examples))
    return np.stack(x), np.array(y)


def _integers(where, y):
    try:
        return as_classes(y)
    except ValueError as error:
        raise DataError(f"{where}: {error}") from error


def _count(labels):
    return int(labels.max(initial=0)) + 1


def _checked(where, x, y, shape, scaling, classes):
    """The images in the model's range, and their labels."""
    if x.ndim == len(shape) and shape[-1] in (1, None):
        x = x[..., None]
    if x.ndim != len(shape) + 1 or any(size not in (None, got) for got, size in zip(x.shape[1:], shape)):
        raise DataError(
            f"{where}: images have the shape {x.shape[1:]}, but the model takes {shape}; resize or convert them"
        )
    if len(x) != len(y):
        raise DataError(f"{where}: {len(x)} images, but {len(y)} labels")
    if len(x) == 0:
        raise DataError(f"{where}: no images")
    if y.min() < 0 or y.max() >= classes:
        raise DataError(f"{where}: labels must lie in [0, {classes}), one per class. Received: {y.min()} to {y.max()}")
    return _scaled(where, x, scaling), y


def _scaled(where, x, scaling):
    scale, offset, _ = SCALINGS[scaling]
    if x.dtype == np.uint8:
        return x if scaling == "0-1" else x * np.float32(scale) + np.float32(offset)
    if x.dtype.kind != "f":
        raise DataError(f"{where}: images must be uint8 pixels or floats. Received: {x.dtype}; convert them")
    low, high = float(x.min()), float(x.max())
    if not np.isfinite([low, high]).all():
        raise DataError(f"{where}: images hold NaN or infinity; remove those")
    if not _lies_in(low, high, scaling):
        fitting = next(name for name in SCALINGS if _lies_in(low, high, name) and _fills(low, high, name))
        raise DataError(
            f"{where}: float values from {low:.6g} to {high:.6g} are not in the range of scaling {scaling!r} "
            f"({SCALINGS[scaling][2]}). scaling={fitting!r} ({SCALINGS[fitting][2]}) fits them; if they are pixels, "
            "store them as uint8, and give what the model does with pixels"
        )
    return x.astype(np.float32)


def _lies_in(low, high, scaling):
    scale, offset, _ = SCALINGS[scaling]
    return scaling == "none" or (low >= offset - 1e-6 and high <= 255 * scale + offset + 1e-6)


def _fills(low, high, scaling):
    """Whether values take nearly all of a range, as those of pixels do."""
    return scaling == "none" or high - low >= 0.9 * 255 * SCALINGS[scaling][0]


def hold_out(source, x, y, count, seed=0):
    """What `split_validation` returns, with images of all classes left to train on.

    Raises:
        DataError: images so few that none of some class are left.
    """
    if count >= len(x):
        raise DataError(f"{source}: {len(x)} training images are too few to hold out {count} for validation")
    train, validation = split_validation(x, y, count, seed)
    if lost := [str(label) for label in sorted(set(y.tolist()) - set(train[1].tolist()))]:
        raise DataError(
            f"{source}: holding out {count} of {len(x)} images leaves no training image of class {listed(lost)}; give "
            "it more images, or a validation part of your own"
        )
    return train, validation
