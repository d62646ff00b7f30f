"""The diversifying algorithm (Chen 2018) with one threshold per layer: given, or solved for two targets at once."""

import math
from typing import NamedTuple

import numpy as np

from tfcompress.criteria.diversity import cosine_similarities, eliminate
from tfcompress.surgery.budget import solve_line
from tfcompress.surgery.channel_graph import ChannelGraph
from tfcompress.surgery.plan import PruningPlan

MIN_KEPT = 1 / 32
SPAN = 16  # of the ends of the line, in standard deviations of a layer's cosines
ROUNDS = 4


def plan_by_thresholds(model, thresholds, *, skip=(), min_kept=MIN_KEPT):
    """Plans the removal of similar filters, front to back, each layer down to its own threshold.

    Filters of a layer, as sliced by the layers before it, go one by one while the largest cosine between two that are
    left is at least the layer's threshold; see `tfcompress.criteria.Diversity`.

    Args:
        model: a Sequential or functional Keras model. It is not changed.
        thresholds: {layer name: cosine in [-1, 1]}; of coupled layers the first stands for all. Layers without one
            stay whole.
        skip: names of layers whose output channels are all kept.
        min_kept: fraction of each layer's channels that stays whatever its threshold, in (0, 1].

    Returns:
        A `PruningPlan`, for `apply_plan`.

    Raises:
        UnsupportedLayerError: for a layer that surgery does not know.
        ValueError: a threshold is outside [-1, 1] or names a layer that cannot be pruned; min_kept is outside (0, 1].
    """
    _check_min_kept(min_kept)
    graph = ChannelGraph(model, skip)
    names = [group.name for group in graph.groups]
    for name, threshold in thresholds.items():
        if not -1 <= threshold <= 1:
            raise ValueError(f"thresholds[{name!r}] must be in [-1, 1]. Received: {threshold}")
        if name in names:
            continue
        graph.check_layer("thresholds", name)
        coupled = next((group.name for group in graph.groups if name in group.positions), None)
        why = f"coupled to {coupled!r}, which stands for it" if coupled else "without channels that can be removed"
        raise ValueError(f"thresholds names a layer {why}: {name!r}.")
    alive, _ = _front_to_back(graph, lambda index, layer: thresholds.get(names[index], np.inf), min_kept)
    return PruningPlan.of(graph, alive, "diversity")


def solve_thresholds(model, *, params_reduction, macs_reduction, skip=(), min_kept=MIN_KEPT):
    """Solves for thresholds with which two cuts are reached at once, and exceeded as little as possible.

    The threshold of layer l is about mean_l + z_l std_l of the cosines between its filters, and z_l runs linearly from
    the first layer to the last; z_first and z_last are solved for. A line in the cosine itself would not do: filters
    of d weights that have nothing in common have cosines of about 1 / sqrt(d), 0.2 in the first layer of VGG16 and
    0.015 in the last, so that one cosine empties one layer and spares another. In units of their own spread, the
    thresholds of all layers are comparable, and layers with more pairs that stand out lose more filters.

    Args:
        model: a Sequential or functional Keras model with a fixed input size.
        params_reduction, macs_reduction: fraction of the parameters and of the MACs to remove at least, in (0, 1).
        skip, min_kept: as for `plan_by_thresholds`.

    Returns:
        {layer name: cosine}, for `plan_by_thresholds` with the same `skip` and `min_kept`.

    Raises:
        UnsupportedLayerError: for a layer that surgery does not know.
        ValueError: bad arguments, or cuts that cannot be reached.

    Example:

    ```python
    thresholds = solve_thresholds(model, params_reduction=0.9, macs_reduction=0.7)
    smaller = apply_plan(model, plan_by_thresholds(model, thresholds))
    ```
    """
    targets = np.array([params_reduction, macs_reduction])
    if not np.all((targets > 0) & (targets < 1)):
        raise ValueError(f"params_reduction and macs_reduction must be in (0, 1). Received: {targets.tolist()}")
    _check_min_kept(min_kept)
    graph = ChannelGraph(model, skip)
    alive, _ = _front_to_back(graph, lambda index, layer: -1.0, min_kept)
    most = _cuts(graph, alive)
    if np.any(most < targets):
        raise ValueError(
            f"Cuts of {targets[0]:.1%} of the parameters and {targets[1]:.1%} of the MACs cannot be reached: the most "
            f"is {most[0]:.1%} and {most[1]:.1%} with {min_kept:.1%} of each layer kept."
        )
    # What goes from a layer depends on how those before it are sliced. So the line is solved for among layers as the
    # last solution sliced them; its numbers of filters are then what counts, as their cost is known.
    alive, layers = _front_to_back(graph, lambda index, layer: 1.0, min_kept)
    aim, thresholds, excess = targets, None, np.inf
    for _ in range(ROUNDS):
        counts = _solve_line(graph, layers, aim, min_kept)
        alive, layers = _front_to_back(graph, lambda i, layer, counts=counts: layer.threshold(counts[i]), min_kept)
        cuts = _cuts(graph, alive)
        if np.all(cuts >= targets) and np.max(cuts - targets) < excess:
            excess = np.max(cuts - targets)
            thresholds = {layer.name: layer.threshold(counts[index]) for index, layer in layers.items()}
        # Where layers read some channels of a group only, the cost depends on which ones go: the aim makes up for it.
        aim = np.minimum(aim + np.maximum(targets - cuts, 0), most)
    if thresholds is None:
        raise ValueError(
            f"No thresholds cut {targets[0]:.1%} of the parameters and {targets[1]:.1%} of the MACs: "
            f"{cuts[0]:.1%} and {cuts[1]:.1%} were found. Ask for a little more."
        )
    return thresholds


def _check_min_kept(min_kept):
    if not 0 < min_kept <= 1:
        raise ValueError(f"min_kept must be in (0, 1]. Received: {min_kept}")


class _Layer(NamedTuple):
    """A group of filters as judged by the algorithm.

    Attributes:
        name: of the group.
        mean, std: of the cosines between its filters.
        order, similarity: see `eliminate`.
    """

    name: str
    mean: float
    std: float
    order: np.ndarray
    similarity: np.ndarray

    def gone(self, threshold, min_kept):
        """The filters that go at a threshold, in order."""
        size = len(self.order) + 1
        most = size - math.ceil(size * min_kept - 1e-9)
        return self.order[: min(np.count_nonzero(self.similarity >= threshold), most)]

    def threshold(self, count):
        """The cosine at which so many filters go: midway between the last one that goes and the next."""
        bounds = np.concatenate([[1], self.similarity, [-1]])
        return float(bounds[count : count + 2].mean())


def _front_to_back(graph, threshold, min_kept):
    """Judges each group as sliced by those before it, and removes its filters.

    Args:
        graph: a `ChannelGraph`.
        threshold: function of a group's index and its `_Layer`.
        min_kept: fraction of each group that stays.

    Returns:
        The classes left alive, (classes,) bool, and {index of the group: `_Layer`}.
    """
    alive, layers = np.ones(len(graph.frozen), bool), {}
    for index, group in enumerate(graph.groups):
        if len(group) < 2:
            continue
        filters = graph.filters(group, alive)
        cosine = cosine_similarities(filters)
        pairs = cosine[np.triu_indices(len(group), 1)]
        layers[index] = _Layer(group.name, pairs.mean(), pairs.std(), *eliminate(filters, cosine))
        alive[group.classes[layers[index].gone(threshold(index, layers[index]), min_kept)]] = False
    return alive, layers


def _solve_line(graph, layers, targets, min_kept):
    """The line over depth with which layers judged before reach both cuts: {index of the group: filters that go}."""
    last = max(len(graph.groups) - 1, 1)

    def gone(front, back):
        z = {index: front + (back - front) * index / last for index in layers}
        return {index: layer.gone(layer.mean + z[index] * layer.std, min_kept) for index, layer in layers.items()}

    def cuts(front, back):
        alive = np.ones(len(graph.frozen), bool)
        for index, filters in gone(front, back).items():
            alive[graph.groups[index].classes[filters]] = False
        return _cuts(graph, alive)

    front, back = solve_line(cuts, *targets, low=-SPAN, high=SPAN)
    return {index: len(filters) for index, filters in gone(front, back).items()}


def _cuts(graph, alive):
    """The fractions of the parameters and of the MACs that are removed."""
    before, after = graph.cost(np.ones_like(alive)), graph.cost(alive)
    if before.macs is None:
        raise ValueError("macs_reduction needs a model with a fixed input size: its height or width is open.")
    return np.array([1 - after.params / before.params, 1 - after.macs / before.macs])
