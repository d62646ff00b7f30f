"""Kernels as matrices, and their best approximations of lower rank.

The best approximation of rank k, in the Frobenius norm, is that of the k largest singular values (Eckart & Young 1936).
A kernel becomes a matrix by one of two schemes:

"channel": (h w C, F), where the second factor mixes channels only (Zhang et al. 2016, "Accelerating very deep
convolutional networks for classification and detection", without their data). A dense kernel (C, F) is that matrix
itself (Denton et al. 2014).

"spatial": (h C, w F), a column of pixels and then a row (Tai et al. 2016, "Convolutional neural networks with low-rank
regularization").
"""

import numpy as np

SCHEMES = ("spatial", "channel")


def as_matrix(kernel, scheme):
    """A kernel (h, w, C, F), or (C, F), as the matrix of a scheme, in float64."""
    kernel = np.asarray(kernel, "float64")
    if scheme == "channel":
        return kernel.reshape(-1, kernel.shape[-1])
    height, width, channels, filters = kernel.shape
    return kernel.transpose(0, 2, 1, 3).reshape(height * channels, width * filters)


def energies(kernel, scheme):
    """(full rank,): fraction of the squared norm in the approximations of rank 1, 2, ..., ascending up to 1."""
    squares = np.linalg.svd(as_matrix(kernel, scheme), compute_uv=False) ** 2
    energy = np.cumsum(squares)
    return energy / energy[-1] if energy[-1] > 0 else np.ones_like(energy)


def rank_at(energies, energy):
    """The smallest rank whose approximation holds this fraction of the squared norm, in [0, 1]."""
    return min(int(np.searchsorted(energies, energy)), len(energies) - 1) + 1


def factors(kernel, scheme, rank):
    """The kernels of two thin layers, which share the roots of the singular values, so that both train at one rate.

    Returns:
        By channel (h, w, C, rank) and (1, 1, rank, F), or (C, rank) and (rank, F); spatial (h, 1, C, rank) and
        (1, w, rank, F).
    """
    left, values, right = np.linalg.svd(as_matrix(kernel, scheme), full_matrices=False)
    roots = np.sqrt(values[:rank])
    first, second = left[:, :rank] * roots, roots[:, None] * right[:rank]
    if kernel.ndim == 2:
        return first, second
    height, width, channels, filters = kernel.shape
    if scheme == "channel":
        return first.reshape(height, width, channels, rank), second[None, None]
    second = second.reshape(rank, width, filters).transpose(1, 0, 2)[None]
    return first.reshape(height, 1, channels, rank), second
