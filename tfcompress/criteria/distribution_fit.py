"""Filter pruning via distribution fitting (Zhang, Kou & Liu 2022), reconstructed from the abstract."""

import itertools

import numpy as np
from scipy.stats import norm as normal_distribution

from tfcompress.criteria.base import Criterion
from tfcompress.criteria.geometric_median import distances

METHODS = ("strata", "wasserstein", "jensen_shannon", "normal", "lognormal")


class DistributionFit(Criterion):
    """Keeps filters whose norms fit the layer's original distribution of norms, and drops redundant ones.

    "Smaller norm = less important" unbalances that distribution. Reconstructed from the abstract. Norms
    n_i = ||w_i||_2; replaceability g(i) = sum_j ||w_i - w_j||_2, small if other filters can stand in for filter i.

    Args:
        method: "strata" (A, the default): the sorted norms are cut into k strata of equal mass, and the filter with
            the largest g of each stratum is kept.
            "wasserstein", "jensen_shannon" (B): the filter with the smallest N D(p, q without i) + weight * g(i)
            goes, again and again; D compares the norms of all N filters with those of the kept ones (one filter moves
            it by about 1 / N).
            "normal", "lognormal" (C): the k mid-quantiles of a fitted distribution each keep the unused filter with
            the nearest norm.
        weight: lambda of method B. Distances are in units of the norms' standard deviation, g in units of its mean.

    Raises:
        ValueError: for an unknown method.
    """

    name = "distribution_fit"

    def __init__(self, method="strata", weight=0.1):
        if method not in METHODS:
            raise ValueError(f"method must be one of {', '.join(METHODS)}. Received: method={method!r}")
        self.method = method
        self.weight = weight

    def keep(self, filters, count):
        norms = np.linalg.norm(np.asarray(filters, "float64"), axis=1)
        if self.method == "strata":
            return keep_by_strata(norms, distances(filters).sum(axis=1), count)
        if self.method in ("normal", "lognormal"):
            return keep_by_quantiles(norms, count, log=self.method == "lognormal")
        replaceability = distances(filters).sum(axis=1)
        penalty = self.weight * replaceability / max(replaceability.mean(), 1e-12)
        divergence = wasserstein_without if self.method == "wasserstein" else jensen_shannon_without
        return keep_by_elimination(norms, penalty, count, divergence)


def keep_by_strata(norms, replaceability, count):
    """Method A: of each of `count` strata of the sorted norms, the filter that is hardest to replace."""
    order = np.argsort(norms, kind="stable")
    bounds = np.round(np.linspace(0, len(norms), count + 1)).astype(int)
    strata = [order[a:b] for a, b in itertools.pairwise(bounds)]
    return np.sort([stratum[np.argmax(replaceability[stratum])] for stratum in strata])


def keep_by_elimination(norms, penalty, count, divergence):
    """Method B: greedy elimination of the filter whose loss changes the distribution least."""
    order = np.argsort(norms, kind="stable")
    live = np.ones(len(norms), bool)
    for _ in range(len(norms) - count):
        cost = len(norms) * divergence(norms[order], live) + penalty[order]
        live[np.argmin(np.where(live, cost, np.inf))] = False
    return np.sort(order[live])


def wasserstein_without(norms, live):
    """Wasserstein-1 distance between all norms (ascending) and the live ones without i, for every i: (N,).

    W_1 is the area between the two cumulative distributions. Losing norm i lowers the live count from i upwards.
    """
    widths = np.append(np.diff(norms), 0) / max(norms.std(), 1e-12)
    everything = np.arange(1, len(norms) + 1) / len(norms)
    left, alive = np.cumsum(live), live.sum() - 1
    below = widths * np.abs(everything - left / max(alive, 1))
    above = widths * np.abs(everything - (left - 1) / max(alive, 1))
    before = np.concatenate([[0], np.cumsum(below)[:-1]])
    return before + np.cumsum(above[::-1])[::-1]


def jensen_shannon_without(norms, live):
    """Jensen-Shannon divergence (nats) between histograms of all norms and of the live ones without i: (N,)."""
    bins = max(2, round(np.sqrt(len(norms))))
    span = max(norms[-1] - norms[0], 1e-12)
    bin_of = np.minimum(((norms - norms[0]) / span * bins).astype(int), bins - 1)
    everything = np.bincount(bin_of, minlength=bins) / len(norms)
    left = np.bincount(bin_of[live], minlength=bins)
    without = np.maximum(left - np.eye(bins), 0)
    without /= np.maximum(without.sum(axis=1, keepdims=True), 1)
    middle = (everything + without) / 2
    divergence = (_kullback_leibler(everything, middle) + _kullback_leibler(without, middle)) / 2
    return divergence[bin_of]


def keep_by_quantiles(norms, count, log):
    """Method C: each mid-quantile of a fitted (log-)normal keeps the nearest norm that is still unused."""
    values = np.log(np.maximum(norms, 1e-12)) if log else norms
    quantiles = (np.arange(count) + 0.5) / count
    targets = values.mean() + values.std() * normal_distribution.ppf(quantiles)
    unused, kept = values.copy(), []
    for target in targets:
        kept.append(int(np.argmin(np.abs(unused - target))))
        unused[kept[-1]] = np.inf
    return np.sort(kept)


def _kullback_leibler(p, q):
    p, q = np.broadcast_arrays(p, q)
    return np.sum(np.where(p > 0, p * np.log(np.maximum(p, 1e-300) / np.maximum(q, 1e-300)), 0), axis=1)
