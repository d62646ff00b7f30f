"""Filters with the smallest absolute weights go first (Li et al. 2017, "Pruning Filters for Efficient ConvNets")."""

import numpy as np

from tfcompress.criteria.base import Criterion


class L1(Criterion):
    """s_i = sum_k |w_ik| (section 3.1)."""

    name = "l1"

    def scores(self, filters):
        return np.abs(filters).sum(axis=1)
