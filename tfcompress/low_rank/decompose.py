"""Kernels as matrices, and their best approximations of lower rank."""

from dataclasses import dataclass

import numpy as np

SCHEMES = ("spatial", "channel")


@dataclass(frozen=True)
class Decomposition:
    """The singular value decomposition of a kernel, by one scheme.

    The best approximation of rank k, in the Frobenius norm, is that of the k largest singular values (Eckart & Young
    1936). Its factors share the roots of the singular values, so that both train at one rate.

    Attributes:
        scheme: "channel", where the second factor mixes channels only (Zhang et al. 2016, "Accelerating very deep
            convolutional networks for classification and detection", without their data): (h w C, F). A dense kernel
            (C, F) is that matrix itself (Denton et al. 2014). Or "spatial", a column of pixels and then a row (Tai et
            al. 2016, "Convolutional neural networks with low-rank regularization"): (h C, w F).
        shape: of the kernel: (h, w, C, F), or (C, F).
        left, values, right: (rows, full rank), (full rank,) in descending order, (full rank, columns).
    """

    scheme: str
    shape: tuple
    left: np.ndarray
    values: np.ndarray
    right: np.ndarray

    @classmethod
    def of(cls, kernel, scheme):
        """Decomposes a kernel in float64."""
        kernel = np.asarray(kernel, "float64")
        matrix = kernel.reshape(-1, kernel.shape[-1])
        if scheme == "spatial":
            height, width, channels, filters = kernel.shape
            matrix = kernel.transpose(0, 2, 1, 3).reshape(height * channels, width * filters)
        return cls(scheme, kernel.shape, *np.linalg.svd(matrix, full_matrices=False))

    @property
    def full_rank(self):
        """The rank from which on the factors are the kernel itself."""
        return len(self.values)

    @property
    def energy(self):
        """(full rank,): fraction of the squared norm in the approximations of rank 1, 2, ..., ascending up to 1."""
        energy = np.cumsum(self.values**2)
        return energy / energy[-1] if energy[-1] > 0 else np.ones_like(energy)

    def rank(self, energy):
        """The smallest rank whose approximation holds this fraction of the squared norm, in [0, 1]."""
        return min(int(np.searchsorted(self.energy, energy)), self.full_rank - 1) + 1

    def factors(self, rank):
        """The two kernels: (h, w, C, rank) and (1, 1, rank, F), or (h, 1, C, rank) and (1, w, rank, F)."""
        roots = np.sqrt(self.values[:rank])
        first, second = self.left[:, :rank] * roots, roots[:, None] * self.right[:rank]
        if len(self.shape) == 2:
            return first, second
        height, width, channels, filters = self.shape
        if self.scheme == "channel":
            return first.reshape(height, width, channels, rank), second[None, None]
        second = second.reshape(rank, width, filters).transpose(1, 0, 2)[None]
        return first.reshape(height, 1, channels, rank), second
