"""Augmentation of whole epochs in numpy: fast enough for two cores, and the same on every backend."""

import numpy as np

from tfcompress.training.config import AUGMENTATIONS

_CHUNK = 2048


def augment(images, config, rng):
    """Draws one augmented copy of every image; `mix` comes after it.

    Args:
        images: array of shape (N, H, W, C).
        config: a `TrainingConfig`; uses `crop_padding`, `flip`, `rotation`, `scaling` and `cutout`.
        rng: a `numpy.random.Generator`.

    Returns:
        Array of the shape and dtype of `images`.
    """
    if not is_augmenting(config):
        return images
    out = np.empty_like(images)
    for start in range(0, len(images), _CHUNK):
        chunk = images[start : start + _CHUNK]
        if config.rotation or config.scaling:
            chunk = _random_affine(chunk, config.rotation, config.scaling, rng)
        if config.crop_padding:
            chunk = _random_crop(chunk, config.crop_padding, rng)
        if config.flip:
            flipped = rng.random(len(chunk)) < 0.5
            chunk = np.where(flipped[:, None, None, None], chunk[:, :, ::-1], chunk)
        if config.cutout:
            chunk = _cut_out(chunk, config.cutout, rng)
        out[start : start + _CHUNK] = chunk
    return out


def mix(images, targets, config, rng):
    """Puts a rectangle of the next image into some images, and as much of its target into theirs (CutMix).

    The rectangle's centre is any pixel, its sides are the image's times sqrt(1 - lambda), lambda from U(0, 1), as
    in Yun et al. 2019, equation 2; what lies outside the image is cut off. Each image draws its own.

    Args:
        images: array of shape (N, H, W, C), in random order.
        targets: (N, classes) probabilities.
        config: a `TrainingConfig`; uses `cutmix`.
        rng: a `numpy.random.Generator`.

    Returns:
        Images and targets, of the shapes and dtypes of the given ones.
    """
    if not config.cutmix:
        return images, targets
    n, height, width, _ = images.shape
    side = np.sqrt(rng.random((n, 1))) * (rng.random((n, 1)) < config.cutmix)
    spans = []
    for length in (height, width):
        centre, half = rng.integers(0, length, (n, 1)), np.round(side * length / 2)
        pixels = np.arange(length)
        spans.append((pixels >= centre - half) & (pixels < centre + half))
    rows, columns = spans
    out = np.empty_like(images)
    for start in range(0, n, _CHUNK):
        chunk = np.arange(start, min(start + _CHUNK, n))
        replaced = rows[chunk, :, None, None] & columns[chunk, None, :, None]
        out[chunk] = np.where(replaced, images[(chunk + 1) % n], images[chunk])
    share = (rows.mean(1) * columns.mean(1)).astype(targets.dtype)[:, None]
    return out, (1 - share) * targets + share * np.roll(targets, -1, axis=0)


def is_augmenting(config):
    """Whether a `TrainingConfig` changes images at all."""
    return any(getattr(config, name) for name in AUGMENTATIONS)


def _random_crop(images, padding, rng):
    n, height, width, _ = images.shape
    padded = np.pad(images, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    top, left = rng.integers(0, 2 * padding + 1, (2, n))
    rows = top[:, None] + np.arange(height)
    columns = left[:, None] + np.arange(width)
    return padded[np.arange(n)[:, None, None], rows[:, :, None], columns[:, None, :]]


def _cut_out(images, size, rng):
    """Hides a square about any pixel, less at the edges, behind the mean colour: zero, where pixels are normalized."""
    n, height, width, _ = images.shape
    top, left = (rng.integers(0, side, (n, 1)) - size // 2 for side in (height, width))
    rows, columns = np.arange(height) - top, np.arange(width) - left
    hidden = ((rows >= 0) & (rows < size))[:, :, None] & ((columns >= 0) & (columns < size))[:, None, :]
    mean = images.mean((0, 1, 2), dtype="float64").astype(images.dtype)
    return np.where(hidden[..., None], mean, images)


def _random_affine(images, rotation, scaling, rng):
    """Rotates and zooms about the centre, bilinear, zeros outside."""
    n, height, width, channels = images.shape
    angle = np.deg2rad(rng.uniform(-rotation, rotation, n)).astype("float32")
    zoom = rng.uniform(1 - scaling, 1 + scaling, n).astype("float32")
    cos, sin = (np.cos(angle) / zoom)[:, None, None], (np.sin(angle) / zoom)[:, None, None]
    y = (np.arange(height, dtype="float32") - (height - 1) / 2)[None, :, None]
    x = (np.arange(width, dtype="float32") - (width - 1) / 2)[None, None, :]
    # One pixel of zeros around the image lets every clipped coordinate read a zero.
    source_y = np.clip(cos * y - sin * x + (height + 1) / 2, 0, height + 0.999)
    source_x = np.clip(sin * y + cos * x + (width + 1) / 2, 0, width + 0.999)
    padded = np.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0))).reshape(-1, channels)
    top, left = source_y.astype("int32"), source_x.astype("int32")
    down, right = (source_y - top)[..., None], (source_x - left)[..., None]
    at = np.arange(n, dtype="int32")[:, None, None] * ((height + 2) * (width + 2)) + top * (width + 2) + left
    upper = padded[at] * (1 - right) + padded[at + 1] * right
    lower = padded[at + width + 2] * (1 - right) + padded[at + width + 3] * right
    return (upper * (1 - down) + lower * down + (0.5 if images.dtype == np.uint8 else 0)).astype(images.dtype)
