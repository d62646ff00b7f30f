"""Low-rank factorization: a layer becomes two thin ones."""

from tfcompress.low_rank.factorize import Factorized, factorize
from tfcompress.low_rank.plan import Factor, LowRankPlan

__all__ = ["Factor", "Factorized", "LowRankPlan", "factorize"]
