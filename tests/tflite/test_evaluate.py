"""Evaluation: all of x, in batches, as one image at a time would give it."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfcompress as tfc
from tfcompress.tflite import evaluate


@pytest.mark.parametrize("precision", ["float32", "float16", "dynamic", "int8", "int16x8"])
def test_batches_equal_single_images(small_files, small_images, precision):
    batched = tfc.predict_tflite(small_files[precision], small_images)
    single = np.concatenate([tfc.predict_tflite(small_files[precision], image[None]) for image in small_images[-60:]])
    if precision in ("int8", "int16x8"):
        np.testing.assert_array_equal(batched[-60:], single)
    else:
        np.testing.assert_allclose(batched[-60:], single, atol=1e-5)


@pytest.mark.parametrize("precision", ["float32", "int8"])
def test_predictions_are_the_models(small_model, small_files, small_images, precision):
    expected = small_model.predict(small_images / 255, verbose=0)
    error = np.abs(tfc.predict_tflite(small_files[precision], small_images) - expected).max()
    assert error < (1e-5 if precision == "float32" else 0.05 * np.ptp(expected))


def test_pixels_and_floats_are_the_same(small_files, small_images):
    pixels, floats = (tfc.predict_tflite(small_files["int8"], x) for x in (small_images, small_images / 255))
    np.testing.assert_array_equal(pixels, floats)


def test_top1_counts_every_image(small_files, small_images):
    labels = tfc.predict_tflite(small_files["float32"], small_images).argmax(-1)
    assert tfc.evaluate_tflite(small_files["float32"], small_images, labels) == 1
    labels[-3:] = (labels[-3:] + 1) % 10  # in the last, partial batch
    assert tfc.evaluate_tflite(small_files["float32"], small_images, labels[:, None]) == pytest.approx(254 / 257)


def test_top_k_counts_the_first_k(small_files, small_images):
    second = tfc.predict_tflite(small_files["float32"], small_images).argsort(-1)[:, -2]
    correct = [tfc.evaluate_tflite(small_files["float32"], small_images, second, k) for k in (1, 2, 10)]
    assert correct == [0, 1, 1]


@pytest.mark.parametrize("layer", [keras.layers.Dense(1, activation="sigmoid"), keras.layers.Reshape((4, 4, 1))])
def test_files_that_are_no_classifiers_are_refused(layer, tmp_path):
    """The largest of a single output is always the first; of an image it is a row of pixels."""
    model = keras.Sequential([keras.Input((4, 4, 1)), keras.layers.Flatten(), layer])
    file = tfc.export_tflite(model, tmp_path / "m.tflite", "float32")
    with pytest.raises(ValueError, match=r"\(N, classes\), is expected. Received: .*shape \(3, "):
        tfc.evaluate_tflite(file.path, np.ones((3, 4, 4, 1), np.float32), np.zeros(3, int))


def test_threads_change_nothing(small_files, small_images, monkeypatch):
    expected = tfc.predict_tflite(small_files["float32"], small_images)
    monkeypatch.setattr(evaluate, "THREADS", 1)
    np.testing.assert_array_equal(tfc.predict_tflite(small_files["float32"], small_images), expected)


def test_file_fixed_to_batch_1(small_files, small_images, monkeypatch, small_model, tmp_path):
    monkeypatch.setattr("tfcompress.tflite.flatbuffer._free_batch", lambda model: None)
    fixed = tfc.export_tflite(small_model, tmp_path / "fixed.tflite", "float32").path
    expected = tfc.predict_tflite(small_files["float32"], small_images[:30])
    np.testing.assert_allclose(tfc.predict_tflite(fixed, small_images[:30]), expected, atol=1e-5)


@pytest.mark.parametrize("share", [0, 1e-4, 0.01, 0.5, 0.99])
def test_truncated_file(small_files, small_images, tmp_path, share):
    data = small_files["int8"].read_bytes()
    path = tmp_path / "broken.tflite"
    path.write_bytes(data[: int(share * len(data))])
    for use in (lambda: tfc.predict_tflite(path, small_images), lambda: tfc.benchmark_tflite(path)):
        with pytest.raises(ValueError, match=r"broken\.tflite .*is corrupt"):
            use()


def test_foreign_file_of_integers_without_a_scale_is_refused(tmp_path):
    inputs = keras.Input((4, 4, 1), dtype="uint8")
    model = keras.Model(inputs, keras.layers.Flatten()(keras.layers.Rescaling(1 / 255)(inputs)))
    path = tmp_path / "m.tflite"
    path.write_bytes(tf.lite.TFLiteConverter.from_keras_model(model).convert())
    with pytest.raises(ValueError, match="takes uint8 without a scale"):
        tfc.predict_tflite(path, np.full((2, 4, 4, 1), 200, "uint8"))


def test_bad_arguments(small_files, small_images, tmp_path):
    path = small_files["int8"]
    with pytest.raises(FileNotFoundError):
        tfc.predict_tflite(tmp_path / "none.tflite", small_images)
    with pytest.raises(ValueError, match="same length"):
        tfc.evaluate_tflite(path, small_images, np.zeros(5, int))
    labels = np.zeros(len(small_images), int)
    for k in (0, 11):
        with pytest.raises(ValueError, match=rf"between 1 and the file's 10 classes. Received: k={k}"):
            tfc.evaluate_tflite(path, small_images, labels, k)
    for beyond in (-1, 10):
        labels[-1] = beyond
        with pytest.raises(ValueError, match=rf"in \[0, 10\).*{beyond}"):
            tfc.evaluate_tflite(path, small_images, labels)
    with pytest.raises(ValueError, match=r"\(N, 12, 12, 1\)"):
        tfc.predict_tflite(path, small_images[:, :5])
    with pytest.raises(ValueError, match=r"\(N, 12, 12, 1\)"):
        tfc.predict_tflite(path, small_images[:0])
