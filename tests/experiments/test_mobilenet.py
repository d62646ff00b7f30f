"""The MobileNet experiment: names, weights of keras.applications, and all its stages on a short network."""

import csv
import dataclasses
import importlib

import keras
import numpy as np
import pytest
from PIL import Image

from experiments import mobilenet
from experiments.mobilenet import PROFILES, VARIANTS, Config, parse, pretrained, select
from experiments.runner import Run
from tfcompress.reporting import Row, read_records

VARIANT_FILES = ["float32", "int8-ptq", "int8-qat", "sparse50-int8-qat", "l2-params50-int8-qat"]


def test_names_of_variants():
    assert parse("sparse70") == (None, {"sparsity": 0.7})
    criterion, budget = parse("geometric_median-macs62")
    assert criterion.name == "geometric_median" and budget == {"macs_reduction": 0.62}
    assert parse("l2-params85")[1] == {"params_reduction": 0.85}
    for names in VARIANTS.values():
        Config(variants=names)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model": "mobilenet-8x8"}, "model must be one of mobilenet, mobilenet-4x4"),
        ({"setting": "mnist"}, "setting must be one of cifar10, imagenet"),
        ({"variants": ("sparse50", "l2-72")}, "sparse<percent>, or criterion-params<percent>"),
        ({"variants": ("sparse100",)}, "Received: 'sparse100'"),
        ({"variants": ("l2-params71-macs00",)}, "from 01 to 99"),
        ({"variants": ("l2-macs60-params71",)}, "criterion-params<percent>-macs<percent>"),
        ({"variants": ("l3-params72",)}, "geometric_median"),
        ({"setting": "imagenet", "imagenet_dir": "images"}, "together only"),
        ({"imagenet_dir": "images", "imagenet_weights": "w.h5"}, "needs setting 'imagenet'"),
    ],
)
def test_bad_configurations_are_named(fields, message):
    with pytest.raises(ValueError, match=message):
        Config(**fields)


def test_selected_is_the_smallest_that_loses_little():
    def row(name, val_top1, size):
        return Row(name, 0.9, 1, 1, 0.0, size, size, val_top1=val_top1)

    unpruned = [row("float32", 0.93, 400), row("int8-qat", 0.93, 100)]
    pruned = [row("sparse50-int8-qat", 0.93, 100), row("l2-params50-int8-qat", 0.926, 50)]
    assert select([*unpruned, *pruned, row("l2-params85-int8-qat", 0.92, 20)]) is pruned[1]
    assert select(unpruned) is None


@pytest.fixture
def short(monkeypatch):
    """Two blocks instead of thirteen: the time goes into TensorFlow's graphs."""
    monkeypatch.setattr(importlib.import_module("tfcompress.models.mobilenet"), "_BLOCKS", ((128, 1), (256, 2)))


@pytest.fixture
def images(tmp_path):
    """A folder of 3 classes with 24 images each, JPEG and PNG of several sizes."""
    rng = np.random.default_rng(0)
    for label, name in enumerate(("n01", "n02", "n03")):
        (tmp_path / "images" / name).mkdir(parents=True)
        for i in range(24):
            pixels = rng.integers(0, 85, (40 + i, 50, 3)) + 80 * label
            suffix = "png" if i % 2 else "jpg"
            Image.fromarray(pixels.astype("uint8")).save(tmp_path / "images" / name / f"{i}.{suffix}")
    return tmp_path / "images"


def _run(folder, **changes):
    config = dataclasses.replace(PROFILES["smoke"], **changes)
    mobilenet.run(Run("mobilenet", "smoke", 0, config, "", folder / "runs", folder / "results"))
    (record,) = read_records(folder / "results")
    return record, {row.variant: row for row in record.rows}


def test_both_routes(tmp_path, short):
    record, rows = _run(tmp_path)
    assert (record.experiment, record.dataset) == ("mobilenet-digits", "digits")
    assert list(rows) == VARIANT_FILES
    sparse, narrow, int8 = rows["sparse50-int8-qat"], rows["l2-params50-int8-qat"], rows["int8-qat"]
    assert sparse.sparsity == pytest.approx(0.5, abs=0.01) and sparse.params == int8.params
    assert sparse.gzip_bytes < 0.85 * int8.gzip_bytes
    assert sparse.tflite_bytes == pytest.approx(int8.tflite_bytes, abs=64)  # equal constants are stored once
    assert narrow.params <= 0.5 * int8.params and narrow.tflite_bytes < 0.75 * int8.tflite_bytes
    folder = tmp_path / "results" / "mobilenet-digits" / "smoke-seed0"
    with open(folder / "signal_to_noise.csv", newline="") as file:
        noise = {row.pop("layer"): row for row in csv.DictReader(file)}
    assert next(iter(noise)) == "conv1_relu" and list(noise)[-1] == "logits"
    assert list(noise["logits"]) == VARIANT_FILES[1:] and float(noise["conv1_relu"]["int8-ptq"]) > 30


@pytest.mark.slow
def test_sizes_need_neither_weights_nor_images(tmp_path, short, monkeypatch):
    monkeypatch.setattr(mobilenet, "RANDOM_IMAGES", 34)
    record, rows = _run(tmp_path, setting="imagenet", variants=("int8-qat", "sparse50"))
    assert (record.experiment, record.dataset) == ("mobilenet-sizes", "none")
    assert all(row.top1 is row.top1_tflite is row.val_top1 is None and row.latency_ms > 0 for row in rows.values())
    assert rows["sparse50-int8-qat"].gzip_bytes < 0.85 * rows["int8-qat"].gzip_bytes
    assert all(row.tflite is None for row in rows.values()) and not list((tmp_path / "results").rglob("*.tflite"))


@pytest.mark.parametrize(
    ("folder", "given", "message"),
    [(False, "qat_epochs", "nothing to train on.* qat_epochs would"), (True, "baseline_cutout", "baseline_cutout wo")],
)
def test_options_without_effect_are_refused(tmp_path, folder, given, message):
    folders = {"imagenet_dir": str(tmp_path), "imagenet_weights": str(tmp_path)} if folder else {}
    config = dataclasses.replace(PROFILES["smoke"], setting="imagenet", **folders)
    with pytest.raises(SystemExit, match=message):
        mobilenet.run(Run("mobilenet", "smoke", 0, config, "", tmp_path, tmp_path, given=("setting", given)))


@pytest.mark.slow
def test_images_of_a_folder(tmp_path, short, images, monkeypatch):
    monkeypatch.setattr(
        mobilenet, "pretrained", lambda path, alpha, classes: mobilenet._imagenet_network(alpha, classes)
    )
    weights = tmp_path / "w.h5"
    weights.touch()
    options = {"setting": "imagenet", "imagenet_dir": str(images), "variants": ("l2-params50",)}
    with pytest.raises(ValueError, match=r"w2\.h5 does not exist"):
        _run(tmp_path, **options, imagenet_weights=str(tmp_path / "w2.h5"))
    record, rows = _run(tmp_path, **options, imagenet_weights=str(weights))
    # The names only: the folder may move.
    assert (record.config["imagenet_weights"], record.config["imagenet_dir"]) == ("w.h5", "images")
    assert (record.experiment, record.dataset) == ("mobilenet-imagenet", "imagenet")
    assert all(row.top5_tflite == 1 and 0 <= row.top1_tflite <= 1 for row in rows.values())


def test_images_of_a_folder_are_mixed_and_cut(tmp_path, images, monkeypatch):
    splits = []
    monkeypatch.setattr(
        mobilenet, "pretrained", lambda *_: keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    )
    monkeypatch.setattr(mobilenet, "compress", lambda task, network, split, so_far: splits.append(split))
    monkeypatch.setattr(mobilenet.measure, "record", lambda *_, **__: None)
    folders = {"imagenet_dir": str(images), "imagenet_weights": str(images)}
    config = dataclasses.replace(PROFILES["smoke"], setting="imagenet", train_images=20, **folders)
    mobilenet.run(Run("mobilenet", "smoke", 0, config, "", tmp_path / "runs", tmp_path / "results"))
    labels = splits[0].train[1]
    assert len(labels) == 20 and set(labels[:10]) == {0, 1, 2}
    # The images have come along.
    assert [int(image.mean()) // 80 for image in splits[0].train[0]] == labels.tolist()


def test_weights_of_keras_applications(tmp_path):
    keras.utils.set_random_seed(0)
    source = keras.applications.MobileNet((224, 224, 3), 0.25, weights=None, classes=3)
    source.save_weights(tmp_path / "source.weights.h5")
    x = np.random.default_rng(0).random((2, 224, 224, 3)).astype("float32")
    logits = pretrained(tmp_path / "source.weights.h5", 0.25, 3)(x)
    np.testing.assert_allclose(keras.ops.softmax(logits), source(2 * x - 1), atol=1e-5)


@pytest.mark.slow
def test_the_whole_network(tmp_path, run_experiment, images):
    done = run_experiment("mobilenet", tmp_path, "--profile=smoke")
    assert done.returncode == 0, done.stderr
    keras.applications.MobileNet((224, 224, 3), 0.25, weights=None, classes=3).save_weights(tmp_path / "w.weights.h5")
    flags = ["--profile=smoke", "--setting=imagenet", "--variants=l2-params50"]
    flags += [f"--imagenet_weights={tmp_path / 'w.weights.h5'}", f"--imagenet_dir={images}"]
    done = run_experiment("mobilenet", tmp_path, *flags)
    assert done.returncode == 0, done.stderr
    digits, real = read_records(tmp_path / "results")
    assert [row.variant for row in digits.rows] == VARIANT_FILES
    assert [row.variant for row in real.rows] == [*VARIANT_FILES[:2], "l2-params50-int8-qat"]
