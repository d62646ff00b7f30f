"""Each criterion against its definition, by brute force on small matrices."""

import time

import numpy as np
import pytest

from tfcompress import criteria
from tfcompress.criteria.distribution_fit import (
    METHODS,
    jensen_shannon_without,
    keep_by_quantiles,
    keep_by_strata,
    wasserstein_without,
)
from tfcompress.criteria.diversity import eliminate

OF_FILTERS = [name for name, kind in criteria.REGISTRY.items() if kind.reads == "filters"]


def filters(count=20, size=12, seed=0):
    return np.random.default_rng(seed).normal(size=(count, size))


@pytest.mark.parametrize("name", OF_FILTERS)
@pytest.mark.parametrize("count", [1, 7, 20])
def test_keeps_that_many_different_filters_in_order(name, count):
    kept = criteria.get(name).keep(filters(), count)
    assert len(kept) == count
    assert np.all(np.diff(kept) > 0)
    assert kept[0] >= 0 and kept[-1] < 20


@pytest.mark.parametrize("name", OF_FILTERS)
def test_repeats_itself(name):
    first, second = (criteria.get(name).keep(filters(), 8) for _ in range(2))
    np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize("name", OF_FILTERS)
def test_512_filters_of_4608_weights_take_less_than_three_seconds(name):
    """Well under a second on an idle core; the margin is for a machine that is not."""
    w = filters(512, 4608)
    criteria.get(name).keep(filters(), 8)
    start = time.perf_counter()
    criteria.get(name).keep(w, 256)
    assert time.perf_counter() - start < 3


@pytest.mark.parametrize("name, order", [("l1", 1), ("l2", 2)])
def test_norms_keep_the_largest(name, order):
    w = filters()
    norms = np.linalg.norm(w, order, axis=1)
    kept = criteria.get(name).keep(w, 9)
    assert norms[kept].min() > np.delete(norms, kept).max()


def test_random_depends_on_the_seed_and_on_the_layer():
    a, b = criteria.Random(0), criteria.Random(1)
    assert not np.array_equal(a.keep(filters(), 8), b.keep(filters(), 8))
    assert not np.array_equal(a.keep(filters(), 8), a.keep(filters(seed=1), 8))


def test_geometric_median_drops_the_filters_amid_the_others():
    w = filters()
    total = [sum(np.linalg.norm(a - b) for b in w) for a in w]
    np.testing.assert_allclose(criteria.get("geometric_median").scores(w), total)


def brute_force_diversity(w, count):
    """The algorithm as it is written down, one pair at a time."""
    live = list(range(len(w)))
    cosine = [[float(a @ b / np.linalg.norm(a) / np.linalg.norm(b)) for b in w] for a in w]
    while len(live) > count:
        i, j = max(((i, j) for i in live for j in live if i < j), key=lambda pair: cosine[pair[0]][pair[1]])
        sums = {n: sum(cosine[n][m] for m in live if m != n) for n in (i, j)}
        if abs(sums[i] - sums[j]) < 1e-6:
            live.remove(min((i, j), key=lambda n: np.abs(w[n]).sum()))
        else:
            live.remove(max((i, j), key=lambda n: sums[n]))
    return live


@pytest.mark.parametrize("seed", range(5))
def test_diversity_equals_its_definition(seed):
    w = filters(seed=seed)
    np.testing.assert_array_equal(criteria.Diversity().keep(w, 9), brute_force_diversity(w, 9))


def test_diversity_drops_the_smaller_of_two_parallel_filters():
    w = np.concatenate([filters(4), 2 * filters(1)])  # filter 4 is filter 0, twice as large
    assert set(range(5)) - set(criteria.Diversity().keep(w, 4)) == {0}


def test_diversity_drops_dead_filters_first():
    """What weight decay leaves of a filter has a random direction: similar to no other, it would stay longest."""
    w = filters()
    w[[3, 11]] *= 0.02
    order, similarity = eliminate(w)
    assert set(order[:2]) == {3, 11}
    np.testing.assert_array_equal(similarity[:2], 1)


@pytest.mark.parametrize("criterion", [criteria.Diversity, criteria.Redundancy])
def test_threshold_of_one_removes_copies(criterion):
    w = filters(12, seed=3)
    assert criterion(1.0).count(np.concatenate([w, 3 * w])) == 12
    assert criterion(0.0).count(np.eye(4)) == 1


def test_diversity_threshold_leaves_no_pair_above_it():
    w = filters()
    criterion = criteria.Diversity(threshold=0.2)
    kept = criterion.keep(w, criterion.count(w))
    unit = w[kept] / np.linalg.norm(w[kept], axis=1, keepdims=True)
    cosine = unit @ unit.T - np.eye(len(kept))
    assert 1 < len(kept) < 20
    assert cosine.max() < 0.2
    assert np.all(np.diff(eliminate(w)[1]) <= 1e-12)


def test_strata_keep_the_least_replaceable_of_each_stratum():
    norms = np.array([5.0, 1.0, 4.0, 2.0, 3.0, 6.0])
    replaceability = np.array([0.0, 9.0, 1.0, 3.0, 5.0, 7.0])
    # strata of the sorted norms: filters {1, 3}, {4, 2}, {0, 5}
    np.testing.assert_array_equal(keep_by_strata(norms, replaceability, 3), [1, 4, 5])


def test_distribution_fit_keeps_the_distribution_that_l2_unbalances():
    w = filters(200) * np.random.default_rng(1).lognormal(0, 0.5, (200, 1))
    norms = np.linalg.norm(w, axis=1)

    def shift(kept):
        return abs(np.median(norms[kept]) - np.median(norms)) / norms.std()

    biased = shift(criteria.get("l2").keep(w, 100))
    for method in METHODS:
        assert shift(criteria.DistributionFit(method).keep(w, 100)) < 0.35 * biased, method


def wasserstein(a, b):
    from scipy.stats import wasserstein_distance

    return wasserstein_distance(a, b)


def test_wasserstein_without_each_filter_equals_scipy():
    norms = np.sort(np.random.default_rng(0).random(12))
    live = np.ones(12, bool)
    live[[2, 7]] = False
    fast = wasserstein_without(norms, live) * norms.std()
    for i in np.flatnonzero(live):
        rest = live.copy()
        rest[i] = False
        assert fast[i] == pytest.approx(wasserstein(norms, norms[rest]))


def test_jensen_shannon_is_zero_for_the_same_histogram():
    norms = np.repeat([0.0, 1.0], 3)
    live = np.array([1, 1, 1, 1, 0, 1], bool)
    divergence = jensen_shannon_without(norms, live)
    assert divergence[0] == pytest.approx(0, abs=1e-12)
    assert divergence[3] > 0.01


def test_quantiles_take_each_filter_once():
    kept = keep_by_quantiles(np.array([1.0, 1.0, 1.0, 5.0]), 3, log=False)
    assert len(set(kept.tolist())) == 3


def test_redundancy_keeps_one_of_each_cluster():
    centres = np.eye(4, 12) * 3
    w = np.repeat(centres, 5, axis=0) + 0.05 * filters()
    kept = criteria.Redundancy().keep(w, 4)
    np.testing.assert_array_equal(kept // 5, [0, 1, 2, 3])
    assert criteria.Redundancy(threshold=0.54).count(w) == 4


def test_redundancy_drops_dead_filters_first():
    for noise in (0, 1e-4):
        w = filters(8)
        w[:4] *= noise
        np.testing.assert_array_equal(criteria.Redundancy().keep(w, 4), [4, 5, 6, 7])
        assert len(criteria.Redundancy().keep(w, 6)) == 6
        assert criteria.Redundancy(0.54).count(w) <= 4
    assert criteria.Redundancy().keep(np.zeros((5, 3)), 2).tolist() == [0, 1]
    assert criteria.Redundancy(0.54).count(np.zeros((5, 3))) == 1


def test_taylor_squares_the_sum_of_each_batch():
    products = np.array([[1.0, -1.0], [0.5, 0.5]])
    scores = criteria.Taylor(x=np.zeros(1), y=np.zeros(1)).scores(products)
    np.testing.assert_allclose(scores, [1.0, 0.25])


def test_registry_lists_what_it_knows():
    with pytest.raises(ValueError, match=r"'l3'. Known: bn_gamma, distribution_fit, diversity"):
        criteria.get("l3")
    with pytest.raises(ValueError, match="'taylor' needs data"):
        criteria.get("taylor")
    with pytest.raises(ValueError, match="method='median'"):
        criteria.DistributionFit("median")
    with pytest.raises(ValueError, match="no scores to compare"):
        criteria.get("distribution_fit").scores(filters())
    mine = criteria.L1()
    assert criteria.get(mine) is mine
