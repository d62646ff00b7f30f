"""One filter per cluster of similar filters stays (Ayinde & Zurada 2018, redundant feature pruning)."""

import numpy as np

from tfcompress.criteria.base import Criterion
from tfcompress.criteria.diversity import cosine_similarities, is_dead


class Redundancy(Criterion):
    """Agglomerative clustering of the filters by cosine distance, average linkage; each cluster keeps its medoid.

    The paper keeps a random filter of each cluster; the one most similar to the others is no worse, and repeatable.
    Dead filters, whose direction says nothing, join no cluster and go first.

    Args:
        threshold: if given, clusters are merged while their similarity is at least this (the paper's tau, in
            [-1, 1]), whatever their number; no ratio or reduction is then given to `prune_channels`.
    """

    name = "redundancy"

    def __init__(self, threshold=None):
        self.threshold = threshold

    def keep(self, filters, count):
        dead = is_dead(filters)
        live = np.flatnonzero(~dead)
        if count >= len(live):
            return np.sort([*live, *np.flatnonzero(dead)[: count - len(live)]])
        similarity = cosine_similarities(filters)
        labels = _cluster(similarity[np.ix_(live, live)], n_clusters=count)
        clusters = [live[labels == label] for label in range(count)]
        return np.sort([c[np.argmax(similarity[np.ix_(c, c)].sum(axis=1))] for c in clusters])

    def count(self, filters):
        live = np.asarray(filters)[~is_dead(filters)]
        if not len(live):
            return 1
        # Clusters are merged strictly below the distance.
        labels = _cluster(cosine_similarities(live), n_clusters=None, distance_threshold=1 - self.threshold + 1e-9)
        return int(labels.max()) + 1


def _cluster(similarity, **until):
    from sklearn.cluster import AgglomerativeClustering  # takes a second to import

    if len(similarity) == 1:
        return np.zeros(1, int)
    clustering = AgglomerativeClustering(metric="precomputed", linkage="average", **until)
    return clustering.fit_predict(np.maximum(1 - similarity, 0))
