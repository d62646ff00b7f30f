"""The diversifying algorithm of Chen 2018 (NCCU), reconstructed from the abstract."""

import numpy as np

from tfcompress.criteria.base import Criterion

# Of the layer's mean norm. Below, a filter is what weight decay has left, and its direction says nothing: 60 epochs
# leave 0.4 % of the initial norm, 0.005 to 0.05 of the mean in trained ResNet20 and MobileNet. Their smallest live
# filters have 0.1 of it.
DEAD = 0.05


class Diversity(Criterion):
    """Repeatedly drops one of the two most similar filters of a layer, until few enough are left.

    S_ij = cosine(w_i, w_j). Of the pair (i, j) = argmax S over the live filters, the one with the larger sum of
    similarities to the live others goes; on a tie, the one with the smaller sum of |weights|. Layers are judged front
    to back, each as already sliced by the layers before it. Reconstructed from the abstract: the thesis names the
    quantities that decide (edge value, edge sum of the node, sum of |weights|), not their order.

    Args:
        threshold: if given, filters are dropped while the largest similarity is at least this (in [-1, 1]), whatever
            their number; no ratio or reduction is then given to `prune_channels`. With `scope="global"`, a reduction
            solves for one threshold for all layers.
    """

    name = "diversity"
    comparable = True
    front_to_back = True

    def __init__(self, threshold=None):
        self.threshold = threshold

    def scores(self, filters):
        """One minus the similarity at which a filter goes, in [0, 2]; the last one left has 2."""
        order, similarity = eliminate(filters)
        scores = np.full(len(filters), 2.0)
        scores[order] = 1 - similarity
        return scores

    def keep(self, filters, count):
        order, _ = eliminate(filters)
        removed = order[: len(filters) - count]
        return np.setdiff1d(np.arange(len(filters)), removed)

    def count(self, filters):
        _, similarity = eliminate(filters)
        return len(filters) - int(np.count_nonzero(similarity >= self.threshold))


def cosine_similarities(filters):
    """Cosines between filters: (N, d) to (N, N). Those of parallel filters are exactly 1."""
    filters = np.asarray(filters, "float64")
    unit = filters / np.maximum(np.linalg.norm(filters, axis=1, keepdims=True), 1e-12)
    return np.clip(np.round(unit @ unit.T, 12), -1, 1)


def is_dead(filters):
    """Which filters are next to nothing: (N, d) to (N,) bool."""
    norm = np.linalg.norm(np.asarray(filters, "float64"), axis=1)
    return norm <= DEAD * norm.mean()


def eliminate(filters, cosine=None):
    """The order in which filters go, and the similarity of the pair each time: two arrays (N - 1,).

    The similarities never rise, as the largest is taken each time. A dead filter says nothing that another one does
    not: its similarity counts as 1, and it goes first.

    Args:
        filters: (N, d).
        cosine: their `cosine_similarities`, where they are known.
    """
    filters = np.asarray(filters, "float64")
    cosine = cosine_similarities(filters) if cosine is None else cosine.copy()
    magnitude, dead = np.abs(filters).sum(axis=1), is_dead(filters)
    cosine[dead] = cosine[:, dead] = 1
    np.fill_diagonal(cosine, 0)
    edge_sum = cosine.sum(axis=1)
    live = cosine.copy()
    np.fill_diagonal(live, -np.inf)
    # The maximum of each row is kept, as only a few rows lose theirs when a filter goes.
    nearest = live.argmax(axis=1)
    largest = live.max(axis=1)
    order, similarity = [], []
    for _ in range(len(filters) - 1):
        i = int(largest.argmax())
        j = int(nearest[i])
        similarity.append(largest[i])
        if np.isclose(edge_sum[i], edge_sum[j], rtol=0, atol=1e-6):  # what float32 weights resolve
            gone = i if magnitude[i] < magnitude[j] else j
        else:
            gone = i if edge_sum[i] > edge_sum[j] else j
        order.append(gone)
        edge_sum -= cosine[:, gone]
        live[gone] = live[:, gone] = -np.inf
        stale = np.flatnonzero(nearest == gone)
        nearest[stale] = live[stale].argmax(axis=1)
        largest[stale] = live[stale, nearest[stale]]
        largest[gone] = -np.inf
    return np.array(order, int), np.array(similarity)
