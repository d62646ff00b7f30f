"""Laws of learning-rate tables and of augmentation."""

import keras
import numpy as np
import pytest

from tfcompress.training import TrainingConfig
from tfcompress.training.augment import augment, mix
from tfcompress.training.schedule import learning_rates, table_schedule


def rates(**fields):
    return learning_rates(TrainingConfig(**{"epochs": 10, "learning_rate": 0.2, **fields}), 100)


def test_cosine_warms_up_linearly_and_ends_at_zero():
    table = rates(schedule="cosine", warmup_epochs=2)
    np.testing.assert_allclose(table[:200], 0.2 * np.arange(1, 201) / 200, rtol=1e-6)
    np.testing.assert_allclose(table[600], 0.1, rtol=1e-5)
    assert table[-1] < 1e-5 and (np.diff(table[200:]) < 0).all()


def test_one_cycle_rises_from_a_25th_to_the_peak():
    table = rates(schedule="one_cycle")
    assert table[0] == pytest.approx(0.2 / 25, rel=0.01) and table.argmax() in (299, 300)
    assert table.max() == pytest.approx(0.2, rel=1e-4) and table[-1] < 1e-4


def test_step_multiplies_by_a_fifth_three_times():
    table = rates(schedule="step")
    np.testing.assert_allclose(table[[0, 299, 300, 600, 800, 999]], [0.2, 0.2, 0.04, 0.008, 0.0016, 0.0016], rtol=1e-5)


def test_optimizer_reads_the_table_by_step():
    schedule = table_schedule(keras, np.array([0.1, 0.2, 0.3], "float32"))
    assert [float(schedule(step)) for step in (0, 1, 2, 7)] == pytest.approx([0.1, 0.2, 0.3, 0.3])


def images(rng, n=300):
    return rng.integers(1, 256, (n, 12, 12, 3), dtype=np.uint8)


def config(**fields):
    return TrainingConfig(epochs=1, **fields)


def test_no_augmentation_is_the_identity(rng):
    x = images(rng)
    np.testing.assert_array_equal(augment(x, config(), rng), x)


def test_flip_gives_each_image_or_its_mirror(rng):
    x = images(rng)
    y = augment(x, config(flip=True), rng)
    same, mirrored = (y == x).all((1, 2, 3)), (y == x[:, :, ::-1]).all((1, 2, 3))
    assert (same ^ mirrored).all() and 0.4 < mirrored.mean() < 0.6


def test_crop_shifts_and_fills_with_zeros(rng):
    """Every copy is the image shifted by at most the padding, each of the (2p + 1)^2 shifts about equally often."""
    x = images(rng)
    y = augment(x, config(crop_padding=1), rng)
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    matches = [(y == padded[:, i : i + 12, j : j + 12]).all((1, 2, 3)) for i in range(3) for j in range(3)]
    counts = np.sum(matches, axis=1)
    assert counts.sum() == 300 and counts.min() > 10


def test_cutout_hides_a_square_behind_the_mean_colour(rng):
    x = images(rng)
    x[:, :, :, 0] = 7
    y = augment(x, config(cutout=4), rng)
    assert (y[..., 0] == 7).all()
    hidden = (y[..., 1] != x[..., 1]) | (y[..., 2] != x[..., 2])
    mean = x.mean((0, 1, 2)).astype(np.uint8)
    np.testing.assert_array_equal(y[hidden], np.tile(mean, (hidden.sum(), 1)))
    rows, columns = hidden.any(2), hidden.any(1)
    assert (rows.sum(1) <= 4).all() and (columns.sum(1) <= 4).all() and hidden.any((1, 2)).all()
    # The edges cut off some of the 4 rows: those about row 0, 1, ... are 2, 3, 4, ..., 4, 3.
    assert hidden.mean() == pytest.approx((44 / 12 / 12) ** 2, rel=0.03)
    assert np.all(np.abs(rows.mean(0)[2:-2] - 1 / 3) < 0.1)


def test_cutmix_mixes_labels_as_the_areas(rng):
    n = 3000
    x = np.broadcast_to(np.arange(n, dtype="float32")[:, None, None, None], (n, 12, 10, 1)).copy()
    y = np.eye(n, dtype="float32")
    mixed, targets = mix(x, y, config(cutmix=0.5), rng)
    other = mixed[..., 0] != x[..., 0]
    np.testing.assert_array_equal(mixed[other][:, 0], np.broadcast_to((x + 1) % n, x.shape)[other][:, 0])
    share = other.mean((1, 2))
    np.testing.assert_allclose(targets[np.arange(n), (np.arange(n) + 1) % n], share, atol=1e-6)
    np.testing.assert_allclose(targets.sum(1), 1, atol=1e-6)
    # What is replaced is a rectangle: its rows and columns that are touched, all of it.
    np.testing.assert_array_equal(other, other.any(2)[:, :, None] & other.any(1)[:, None, :])
    # About half of the images; sides of sqrt(u), u from U(0, 1), of which the edges cut off a part.
    touched = share > 0
    assert touched.mean() == pytest.approx(0.5 * (1 - 1 / 100), abs=0.03)
    assert share[touched].max() == 1 and share[touched].mean() == pytest.approx(0.31, abs=0.03)
    same, unmixed = mix(x, y, config(), rng)
    assert same is x and unmixed is y


def test_affine_of_nothing_is_the_identity_and_rotation_turns(rng):
    x = images(rng)
    np.testing.assert_array_equal(augment(x, config(rotation=1e-9), rng), x)
    dot = np.zeros((200, 11, 11, 1), np.uint8)
    dot[:, 5, 9] = 200
    turned = augment(dot, config(rotation=90.0), rng)
    rows, columns = np.indices((11, 11)) - 5
    mass = turned[..., 0] / turned.sum((1, 2, 3))[:, None, None]
    radius = np.hypot((mass * rows).sum((1, 2)), (mass * columns).sum((1, 2)))
    np.testing.assert_allclose(radius, 4, atol=0.25)
    assert np.ptp((mass * rows).sum((1, 2))) > 6


def test_same_generator_same_images(rng):
    x = images(rng)
    options = config(crop_padding=2, flip=True, rotation=10.0, scaling=0.1, cutout=3)
    a, b = (augment(x, options, np.random.default_rng([1, 2])) for _ in range(2))
    np.testing.assert_array_equal(a, b)
