"""Filters near the geometric median of their layer go first (He et al. 2019, FPGM)."""

import numpy as np

from tfcompress.criteria.base import Criterion


class GeometricMedian(Criterion):
    """s_i = sum_j ||w_i - w_j||_2 (equation 8): what lies amid the others is best replaced by them."""

    name = "geometric_median"

    def scores(self, filters):
        return distances(filters).sum(axis=1)


def distances(filters):
    """Euclidean distances between filters: (N, d) to (N, N)."""
    filters = np.asarray(filters, "float64")
    squares = (filters**2).sum(axis=1)
    squared = squares[:, None] + squares - 2 * filters @ filters.T
    np.fill_diagonal(squared, 0)  # rounding leaves it at +-1e-16, of which the root is 1e-8
    return np.sqrt(np.maximum(squared, 0))
