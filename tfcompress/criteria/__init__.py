"""Which filters to keep: one file per method, one registry."""

from tfcompress.criteria.base import Criterion
from tfcompress.criteria.bn_gamma import BatchNormGamma
from tfcompress.criteria.distribution_fit import DistributionFit
from tfcompress.criteria.diversity import Diversity
from tfcompress.criteria.geometric_median import GeometricMedian
from tfcompress.criteria.l1 import L1
from tfcompress.criteria.l2 import L2
from tfcompress.criteria.random import Random
from tfcompress.criteria.redundancy import Redundancy
from tfcompress.criteria.taylor import Taylor

REGISTRY = {
    criterion.name: criterion
    for criterion in (
        L1,
        L2,
        Random,
        GeometricMedian,
        Diversity,
        DistributionFit,
        BatchNormGamma,
        Taylor,
        Redundancy,
    )
}

__all__ = [
    "L1",
    "L2",
    "REGISTRY",
    "BatchNormGamma",
    "Criterion",
    "DistributionFit",
    "Diversity",
    "GeometricMedian",
    "Random",
    "Redundancy",
    "Taylor",
    "get",
]


def get(criterion):
    """A criterion from its name, or the criterion itself.

    Args:
        criterion: a name in `REGISTRY`, or a `Criterion`.

    Returns:
        A `Criterion`.

    Raises:
        ValueError: if the name is unknown, or the criterion needs arguments (data) that a name cannot give.
    """
    if isinstance(criterion, Criterion):
        return criterion
    if criterion not in REGISTRY:
        raise ValueError(f"Unknown criterion: {criterion!r}. Known: {', '.join(sorted(REGISTRY))}.")
    return REGISTRY[criterion]()
