"""Filters with the smallest Euclidean norm go first (He et al. 2018, "Soft Filter Pruning")."""

import numpy as np

from tfcompress.criteria.base import Criterion


class L2(Criterion):
    """s_i = ||w_i||_2 (equation 2, with p = 2)."""

    name = "l2"

    def scores(self, filters):
        return np.linalg.norm(filters, axis=1)
