"""The baseline that every criterion must beat: random filters (Mittal et al. 2018)."""

import zlib

import numpy as np

from tfcompress.criteria.base import Criterion


class Random(Criterion):
    """Scores are uniform random numbers, the same ones for the same filters and seed.

    Args:
        seed: seed of the random numbers.
    """

    name = "random"
    comparable = True

    def __init__(self, seed=0):
        self.seed = seed

    def scores(self, filters):
        # A stream per layer: equal draws in layers of equal width would remove the same indices everywhere.
        layer = zlib.crc32(np.ascontiguousarray(filters).tobytes())
        return np.random.default_rng([self.seed, layer]).random(len(filters))
