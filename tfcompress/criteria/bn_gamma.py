"""Channels with small BatchNorm scales go first (Liu et al. 2017, Network Slimming)."""

from tfcompress.criteria.base import Criterion


class BatchNormGamma(Criterion):
    """s_i = |gamma_i| (section 3), averaged over the BatchNorms that a coupled channel passes."""

    name = "bn_gamma"
    reads = "gamma"
    comparable = True

    def scores(self, filters):
        return filters[:, 0]
